//! Records of what the switch decides, written in order and beside it: nobody waits for the journal while writes are
//! held up. What is so is in the ownership rows; the journal tells it.

use super::Driver;
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_postgres::control::{Entry, Lease};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// The kind of the record of a rehearsal that went as far as it should.
pub(super) const REHEARSED: &str = "rehearsed";

/// Where records are noted.
#[derive(Clone)]
pub(super) struct Journal {
    notes: mpsc::UnboundedSender<(&'static str, Value)>,
    /// When the last rehearsal of handing the writes to the target succeeded; `i64::MIN`: never.
    rehearsed_us: Arc<AtomicI64>,
}

/// Writes them.
pub(super) struct Scribe {
    notes: mpsc::UnboundedReceiver<(&'static str, Value)>,
}

impl Journal {
    /// A journal that goes on after `entries`, and whoever writes it.
    pub(super) fn after(entries: &[Entry]) -> (Journal, Scribe) {
        let (notes, noted) = mpsc::unbounded_channel();
        let of_this_copy = entries.iter().rev().take_while(|entry| entry.entry.kind != "born");
        let last = of_this_copy.into_iter().find(|Entry { entry, .. }| {
            entry.kind == REHEARSED && entry.body["owner"] == json!(Side::Source)
        });
        let rehearsed_us = Arc::new(AtomicI64::new(last.map_or(i64::MIN, |entry| entry.at_us)));
        (Journal { notes, rehearsed_us }, Scribe { notes: noted })
    }

    /// Notes a record; it is written soon.
    pub(super) fn note(&self, kind: &'static str, body: Value) {
        // Whoever writes lives as long as the attempt.
        let _ = self.notes.send((kind, body));
    }

    /// A rehearsal of handing the writes to the target has succeeded, by the control database's clock.
    pub(super) fn rehearsed(&self, at_us: i64) {
        self.rehearsed_us.store(at_us, Ordering::Relaxed);
    }

    /// When the last rehearsal of handing the writes to the target succeeded, in microseconds since 1970.
    pub(super) fn rehearsed_us(&self) -> Option<i64> {
        Some(self.rehearsed_us.load(Ordering::Relaxed)).filter(|at| *at != i64::MIN)
    }
}

impl Scribe {
    /// Writes what is noted until `over` is dropped, and then what is still noted. Whoever drops this loses a record that is
    /// being written.
    pub(super) async fn run(
        mut self,
        (driver, lease): (&Driver, &Lease),
        mut over: oneshot::Receiver<Infallible>,
    ) -> Outcome<()> {
        loop {
            let note = tokio::select! {
                biased;
                note = self.notes.recv() => note,
                _ = &mut over => return Ok(()),
            };
            match note {
                Some((kind, body)) => driver.record(lease, kind, body).await.map(drop)?,
                // Nobody is left to note anything.
                None => return over.await.map_or(Ok(()), |never| match never {}),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;

    #[test]
    fn only_a_rehearsal_of_the_switch_of_this_copy_counts() {
        let entry = |at_us, kind: &str, owner: &str| {
            let body = json!({ "outcome": "rehearsed", "owner": owner });
            Entry {
                seq: at_us,
                at_us,
                entry: NewEntry { version: 1, actor: "a".into(), kind: kind.into(), body },
            }
        };
        let after = |entries: &[Entry]| Journal::after(entries).0.rehearsed_us();
        let mut entries =
            vec![entry(1, "born", ""), entry(2, REHEARSED, "source"), entry(3, REHEARSED, "target")];
        assert_eq!(after(&entries), Some(2), "the way back was rehearsed later");
        entries.push(entry(4, "born", ""));
        assert_eq!(after(&entries), None, "the stream was made anew");
    }
}
