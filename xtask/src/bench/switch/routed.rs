//! What an application sees of it that does not know: through the router, and beside it by hand, through PgBouncer.

use super::super::Options;
use super::super::measure::percentile;
use super::super::pgbouncer;
use super::super::report::verdict;
use super::by_hand::{self, Wait};
use super::clients::{CLIENTS, TRANSACTIONS_PER_SECOND};
use super::found::Found;
use super::{SWITCHES, TABLES, Way, back_and_forth};

/// By hand, each with one way to wait; enough for a median.
const BY_HAND: u64 = 20;
const STALL_P50_MS: f64 = 30.0;
const STALL_P99_MS: f64 = 120.0;
const ADDED_P50_MS: f64 = 60.0;
const ADDED_P99_MS: f64 = 250.0;

/// One way, and what it came to.
struct Contestant {
    name: String,
    is_segue: bool,
    found: Found,
}

/// Their table, and whether the router is as fast as it is to be. Panics if a client of the router met an error.
pub(super) async fn measure(options: &Options) -> String {
    let mut contestants = Vec::new();
    for pool in ["transaction", "session"] {
        eprintln!("bench: through segue's router, pool {pool}");
        let found = back_and_forth(options, TABLES, options.scaled(SWITCHES), Way::Router(pool)).await;
        assert_eq!(found.errors(), 0, "clients of the router met {}", found.errors_text());
        assert_eq!(found.lost, 0, "acknowledged writes are lost");
        let name = format!("segue's router, {pool} pool");
        contestants.push(Contestant { name, is_segue: true, found });
    }
    for wait in [Wait::Slot, Wait::Marker] {
        eprintln!("bench: by hand, {}", wait.name());
        // Twice at least: there, and back.
        let found = by_hand::measure(options, TABLES, options.scaled(BY_HAND).max(2), wait).await;
        contestants.push(Contestant {
            name: format!("PgBouncer by hand, {}", wait.name()),
            is_segue: false,
            found,
        });
    }
    text(&contestants)
}

fn text(contestants: &[Contestant]) -> String {
    let mut text = format!(
        "### through a router\n\nThe same {CLIENTS} clients and {TRANSACTIONS_PER_SECOND} transactions a second on {TABLES} \
         tables, all behind one address: they know of no other side, and whatever error they met is counted. Those of the \
         router's session pool prepare their statements, the others send them unnamed. The stall is the longest time that \
         one transaction of any client took around a hand-over, also one that came to nothing; added is what the slowest one of each client took beyond \
         the median of those that came by none. By hand: a subscription of PostgreSQL's own, with its defaults and in sync, \
         leads from the side with the writes to the other one; a script with open sessions says `PAUSE` to PgBouncer ({}, \
         transaction pool), then at once copies the sequences' values and looks every {} ms whether the subscriber has \
         everything (by the slot's `confirmed_flush_lsn`, or by a row inserted last), then `RELOAD`, with the \
         configuration rewritten before, and `RESUME`. It has neither a fence nor a way back: the side without the writes \
         is copied anew before the next hand-over, which is not measured.\n\n",
        pgbouncer::version(),
        by_hand::LOOK.as_millis(),
    );
    text.push_str(
        "| contestant | stall p50 ms | p99 | most | gap p50 ms | p99 | most | added p50 ms | p99 | hand-overs | not done | \
         errors | lost |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for Contestant { name, found, .. } in contestants {
        let three = |values: &[f64]| [0.5, 0.99, 1.0].map(|share| cell(values, share)).join(" | ");
        let added = found.added_ms();
        text.push_str(&format!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
            three(&found.client_stalls_ms()),
            three(&found.gaps_of_all_ms()),
            cell(&added, 0.5),
            cell(&added, 0.99),
            found.hands.len(),
            found.not_moved(),
            found.errors(),
            found.lost,
        ));
    }
    text.push_str("\nThe steps, medians in ms:\n\n");
    for Contestant { name, found, .. } in contestants {
        text.push_str(&format!("* {name}: {}\n", found.steps_text()));
    }
    for Contestant { name, found, .. } in contestants.iter().filter(|contestant| contestant.is_segue) {
        let (stalls, added) = (found.client_stalls_ms(), found.added_ms());
        for (what, values, share, wanted) in [
            ("stall, p50 ms", &stalls, 0.5, STALL_P50_MS),
            ("stall, p99 ms", &stalls, 0.99, STALL_P99_MS),
            ("added, p50 ms", &added, 0.5, ADDED_P50_MS),
            ("added, p99 ms", &added, 0.99, ADDED_P99_MS),
        ] {
            let line = verdict(&format!("{name}: {what}"), percentile(values, share), wanted, false);
            text.push_str(&format!("\n{line}"));
        }
        let line = verdict(&format!("{name}: errors of clients"), found.errors() as f64, 0.0, false);
        text.push_str(&format!("\n{line}"));
    }
    text
}

fn cell(values: &[f64], share: f64) -> String {
    format!("{:.1}", percentile(values, share))
}
