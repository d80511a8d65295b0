//! What a session was served, counted when it is answered; and said, where somebody listens.
//!
//! With `segue_router::served` at level `debug` in the log, each group of statements is a line: who served it, in what time,
//! and the `traceparent` that a comment of it names.

use super::Session;
use crate::classify::Class;
use crate::reads;
use crate::served::Entry;
use crate::settings::Parameters;
use segue_model::switch::Side;
use std::sync::Arc;
use std::time::Instant;
use tracing::Level;

const TARGET: &str = "segue_router::served";
/// Statements that are sent together are told apart up to so many.
const NOTED_MAX: usize = 64;
/// Entries that a session looks for before it asks everybody's.
const KNOWN_MAX: usize = 8;

/// What was sent and is not answered yet.
#[derive(Default)]
pub(super) struct Tally {
    /// What this session used lately, as long as its application is called the same.
    known: Vec<Arc<Entry>>,
    told: Option<Arc<Parameters>>,
    noted: Vec<Arc<Entry>>,
    since: Option<Instant>,
    trace: Option<String>,
}

impl Tally {
    /// What was sent will be sent again.
    pub(super) fn take_back(&mut self) {
        self.noted.clear();
        self.since = None;
    }
}

impl Session {
    /// A statement is sent.
    pub(super) fn note_class(&mut self, class: &Class, trace: Option<String>) {
        let tally = &mut self.tally;
        tally.since.get_or_insert_with(Instant::now);
        tally.trace = trace;
        if tally.noted.len() >= NOTED_MAX {
            return;
        }
        if !tally.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, &self.told)) {
            tally.known.clear();
            tally.told = Some(Arc::clone(&self.told));
        }
        let known = tally.known.iter().find(|entry| entry.fingerprint == class.fingerprint);
        let entry = match known {
            Some(entry) => Arc::clone(entry),
            None => {
                let application = self.told.get(b"application_name").unwrap_or_default();
                let application = String::from_utf8_lossy(application);
                let entry = self.shared.served.entry(&self.startup.user, &application, class);
                if tally.known.len() >= KNOWN_MAX {
                    tally.known.remove(0);
                }
                tally.known.push(Arc::clone(&entry));
                entry
            }
        };
        tally.noted.push(entry);
    }

    /// What was sent is answered `now`.
    pub(super) fn tally(&mut self, now: Instant) {
        let Some(since) = self.tally.since.take() else { return };
        let Some(side) = self.link.as_ref().map(|link| link.server.side) else { return };
        let took = now.duration_since(since);
        for entry in &self.tally.noted {
            self.shared.served.used(entry, side, now);
        }
        let strongest = self.tally.noted.iter().max_by_key(|entry| entry.kind);
        if let Some(entry) = strongest {
            self.shared.served.took(side, entry.kind, took);
            self.say_served(side, entry, took);
        }
        self.tally.noted.clear();
    }

    fn say_served(&self, side: Side, entry: &Entry, took: std::time::Duration) {
        let trace = self.tally.trace.as_deref().unwrap_or_default();
        let (took_us, fingerprint) = (took.as_micros(), entry.fingerprint);
        tracing::debug!(
            target: TARGET,
            side = side.name(),
            kind = entry.kind.name(),
            user = %self.startup.user,
            fingerprint = format_args!("{fingerprint:016x}"),
            took_us,
            trace,
            "served"
        );
    }
}

/// The trace that a statement's comment names, as sqlcommenter writes it, where somebody listens.
pub(super) fn trace_in(text: &[u8]) -> Option<String> {
    let is_heard = tracing::enabled!(target: TARGET, Level::DEBUG);
    is_heard.then(|| reads::comment(text, b"traceparent='")).flatten()
}
