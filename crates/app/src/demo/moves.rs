//! The hand-overs of the demo: which are ordered, what has to come of each, and what clients noticed of it.
//!
//! How writes are handed over, it does not know: it gives the orders that a user would give.

use std::time::Duration;

use super::load::{Load, Noticed};
use super::narrator::{millis, time};
use super::segue::{Segue, Verified};
use super::{DemoError, Story, servers};

/// Clients are watched for this time before an order and after its answer: what is normal, and what comes late.
const AROUND: Duration = Duration::from_secs(1);

/// A time that the writes changed hands, or were about to.
#[derive(Debug, Clone)]
pub(super) struct Move {
    /// In which direction, in words.
    pub(super) what: &'static str,
    /// How long no side took writes, by Segue's account.
    pub(super) stall_ms: f64,
    /// What clients noticed, from a second before the order to a second after its answer.
    pub(super) noticed: Noticed,
}

impl Move {
    /// As the documentation shows it.
    pub(super) fn example(what: &'static str) -> Self {
        Self { what, stall_ms: 22.1, noticed: Noticed::example() }
    }

    /// What it cost, in one line.
    pub(super) fn cost(&self) -> String {
        format!(
            "no side took writes for {}, no write was acknowledged for {}, the slowest took {}",
            millis(self.stall_ms),
            time(self.noticed.gap),
            self.noticed.latency(1.0).map_or_else(|| "?".to_owned(), time)
        )
    }
}

/// An order, and what is true only if it was carried out.
struct Order {
    arguments: &'static [&'static str],
    what: &'static str,
    outcome: &'static str,
    owner: &'static str,
}

const REHEARSE: Order = Order {
    arguments: &["switch", "writes", "--dry-run"],
    what: "rehearsed",
    outcome: "rehearsed",
    owner: "source",
};
const THERE: Order =
    Order { arguments: &["switch", "writes"], what: "to the target", outcome: "switched", owner: "target" };
const BACK: Order =
    Order { arguments: &["reverse"], what: "back to the source", outcome: "switched", owner: "source" };
const THERE_AGAIN: Order = Order { what: "to the target again", ..THERE };

impl Story {
    /// The shop's clients connect to the router instead of the source, each of them between two transactions.
    pub(super) async fn go_between(&self, load: &Load) -> Result<(), DemoError> {
        self.narrator.step(6, "Let customers come by way of the router");
        let url = self.servers.router_url();
        // It listens since `run` has begun: this is the last moment to notice that it does not.
        let reached = servers::connect(&url).await;
        reached.map_err(|error| DemoError::sql("connecting to the router", &error))?;
        load.watch();
        load.connect_to(&url);
        self.watched(load, tokio::time::sleep(AROUND)).await;
        let noticed = load.noticed();
        self.narrator.detail(&format!(
            "The shop's connection string says {} now; the slowest transaction meanwhile took {}.",
            self.servers.router_address(),
            noticed.latency(1.0).map_or_else(|| "?".to_owned(), time)
        ));
        Ok(())
    }

    /// The writes change hands under load: a rehearsal, there, back, and there again. Also returns what a comparison
    /// found while the target owned them.
    pub(super) async fn hand_over(
        &self,
        segue: &Segue,
        load: &Load,
    ) -> Result<(Vec<Move>, Verified), DemoError> {
        let narrator = &self.narrator;
        narrator.step(8, "Rehearse: everything up to the point of no return, then undo it");
        let rehearsed = self.carry_out(&REHEARSE, segue, load).await?;
        narrator.detail("The source has the writes, as before.");

        narrator.step(9, "Hand the writes over to the target");
        narrator.detail(
            "The router keeps new transactions waiting for that moment, and lets them go on at the target.",
        );
        let there = self.carry_out(&THERE, segue, load).await?;
        let verified = self.verify(segue, Some(load)).await?;

        narrator.step(10, "Change our mind: back to the source, and over again");
        narrator
            .detail("What was written on the target meanwhile is on the source already: it streams back.");
        let back = self.carry_out(&BACK, segue, load).await?;
        let again = self.carry_out(&THERE_AGAIN, segue, load).await?;
        Ok((vec![rehearsed, there, back, again], verified))
    }

    async fn carry_out(&self, order: &Order, segue: &Segue, load: &Load) -> Result<Move, DemoError> {
        self.narrator.detail(&format!("$ segue {}", order.arguments.join(" ")));
        load.watch();
        self.watched(load, tokio::time::sleep(AROUND)).await;
        let done = self.watched(load, segue.hand_over(order.arguments)).await?;
        self.watched(load, tokio::time::sleep(AROUND)).await;
        let noticed = load.noticed();
        if (done.outcome.as_str(), done.owner.as_str()) != (order.outcome, order.owner) {
            let what = format!("was to leave the writes on the {}, and answered {done:?}", order.owner);
            return Err(DemoError::Segue { command: order.arguments[0], what });
        }
        let made = Move { what: order.what, stall_ms: done.stall_ms, noticed };
        self.narrator.detail(&made.cost());
        Ok(made)
    }
}
