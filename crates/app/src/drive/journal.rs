//! Records of what the switch decides, written in order and beside it: nobody waits for the journal while writes are
//! held up. What is so is in the ownership rows; the journal tells it.

use super::Driver;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::progress::now_us;
use segue_postgres::control::{Entry, Lease};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tokio::sync::{Mutex, mpsc};

/// The kind of the record of a rehearsal that went as far as it should.
pub(super) const REHEARSED: &str = "rehearsed";

/// Where records are noted.
#[derive(Clone)]
pub(super) struct Journal {
    notes: mpsc::UnboundedSender<(&'static str, Value)>,
    /// When the last rehearsal succeeded; `i64::MIN`: never.
    rehearsed_us: Arc<AtomicI64>,
}

/// Writes them.
pub(super) struct Scribe {
    notes: Mutex<mpsc::UnboundedReceiver<(&'static str, Value)>>,
}

impl Journal {
    /// A journal that goes on after `entries`, and whoever writes it.
    pub(super) fn after(entries: &[Entry]) -> (Journal, Scribe) {
        let (notes, noted) = mpsc::unbounded_channel();
        let last = entries.iter().rev().find(|entry| entry.entry.kind == REHEARSED);
        let rehearsed_us = Arc::new(AtomicI64::new(last.map_or(i64::MIN, |entry| entry.at_us)));
        (Journal { notes, rehearsed_us }, Scribe { notes: Mutex::new(noted) })
    }

    /// Notes a record; it is written soon.
    pub(super) fn note(&self, kind: &'static str, body: Value) {
        if kind == REHEARSED {
            self.rehearsed_us.store(i64::try_from(now_us()).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
        // Whoever writes lives as long as the attempt.
        let _ = self.notes.send((kind, body));
    }

    /// When the last rehearsal succeeded, in microseconds since 1970.
    pub(super) fn rehearsed_us(&self) -> Option<i64> {
        Some(self.rehearsed_us.load(Ordering::Relaxed)).filter(|at| *at != i64::MIN)
    }
}

impl Scribe {
    /// Writes what is noted, for ever; ends with the fault that keeps it from doing so.
    pub(super) async fn run(&self, driver: &Driver, lease: &Lease) -> Fault {
        let mut notes = self.notes.lock().await;
        while let Some((kind, body)) = notes.recv().await {
            if let Err(fault) = driver.record(lease, kind, body).await {
                return fault;
            }
        }
        std::future::pending().await
    }

    /// Writes what is still noted, and no more.
    pub(super) async fn finish(&self, driver: &Driver, lease: &Lease) -> Outcome<()> {
        let mut notes = self.notes.lock().await;
        while let Ok((kind, body)) = notes.try_recv() {
            driver.record(lease, kind, body).await?;
        }
        Ok(())
    }
}
