//! Watches who still uses the source after the writes have left it, for as long as a driver runs, and remembers it.
//!
//! It only looks. What may be concluded is [`segue_model::traffic`]'s; whoever completes the migration asks.

use super::Driver;
use super::flow::Flows;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;
use segue_model::traffic::{Own, Record};
use segue_postgres::control::Lease;
use segue_postgres::{fence, traffic};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// Between two looks. Refused writes and busy sessions have their own times; only reads are dated by looks.
const PAUSE: Duration = Duration::from_secs(10);

/// The watch of one attempt.
pub(super) struct Traffic<'d> {
    driver: &'d Driver,
    lease: &'d Lease,
    flows: Arc<Flows>,
    record: Mutex<Option<Record>>,
}

impl<'d> Traffic<'d> {
    /// Nothing is asked yet.
    pub(super) fn new((driver, lease): (&'d Driver, &'d Lease), flows: Arc<Flows>) -> Self {
        Traffic { driver, lease, flows, record: Mutex::default() }
    }

    /// Looks again and again while the target owns the writes. A look that fails is made up for by the next one.
    pub(super) async fn run(&self) -> Infallible {
        let mut owner = self.flows.owner.subscribe();
        loop {
            let is_target = *owner.borrow_and_update() == Some(Side::Target);
            if is_target && let Err(fault) = self.look().await {
                tracing::warn!("it could not be seen who uses the source: {fault}");
            }
            tokio::select! {
                // At once when the writes have moved: the watch begins there.
                _ = owner.changed() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Looks now, and remembers what was seen.
    pub(super) async fn look(&self) -> Outcome<Record> {
        let Driver { spec, sides, .. } = self.driver;
        let migration = spec.name.as_str();
        let mut kept = self.record.lock().await;
        let (source, target, control) = tokio::try_join!(
            sides.source.connect("traffic"),
            sides.target.connect("traffic"),
            sides.control.connect("traffic")
        )?;
        let row = fence::row(&target, migration).await?;
        let epoch = row.map(|row| row.ownership.epoch().0);
        let epoch = epoch.ok_or_else(|| Fault::bug("SEGUE-TRAFFIC", "the target has no ownership row"))?;
        let known = match kept.take() {
            Some(known) => Some(known),
            None => traffic::remembered(&control, migration).await?,
        };
        let tables: Vec<QualifiedName> = self.flows.forward.tables.iter().map(|t| t.source.clone()).collect();
        let look = traffic::look(&source, migration, &tables).await?;
        // After the look: what was counted before it must be known as ours.
        let own = self.own();
        let record = match known.filter(|known| known.epoch == epoch) {
            Some(mut known) => {
                known.observe(look, own);
                known
            }
            None => Record::begin(epoch, look, own),
        };
        traffic::remember(&control, migration, self.lease, &record).await?;
        *kept = Some(record.clone());
        Ok(record)
    }

    /// What this attempt has done on the source.
    fn own(&self) -> Own {
        let strays = self.flows.forward.admissions.strays().counts().transactions;
        let back = self.flows.reverse.borrow().clone();
        let of_back = back.map_or(Own::default(), |flow| {
            let (verifications, verifying) = flow.verifying.runs();
            let (applied, compared) = (flow.progress.moved(), flow.verifying.live().compared);
            Own { applied, compared, verifications, verifying, ..Own::default() }
        });
        Own { token: self.lease.token, strays, ..of_back }
    }
}
