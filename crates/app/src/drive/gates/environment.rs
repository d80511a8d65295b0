//! The environment's parity: the source's baseline, kept in the journal, and the owner as it is now beside it.

use super::{Gates, note};
use segue_model::spec::Profile;
use segue_model::switch::Side;
use segue_model::switch::environment::{Environment, Rates};
use segue_postgres::control::Entry;
use serde_json::{Value, json};

/// The kind of the record that keeps the baseline.
pub(in crate::drive) const BASELINE: &str = "baseline";

/// What is known of the owner's surroundings.
#[derive(Debug)]
pub(super) struct Surroundings {
    environment: Environment,
    /// Whose activity was looked at.
    owner: Option<Side>,
    /// A baseline that is not in the journal yet.
    untold: Option<Rates>,
}

impl Surroundings {
    /// With the baseline that the journal has of this stream. One that cannot be read is taken anew.
    pub(super) fn new(profile: Profile, journal: &[Entry]) -> Surroundings {
        let of_this_stream = journal.iter().rev().take_while(|entry| entry.entry.kind != "born");
        let kept = of_this_stream.into_iter().find(|entry| entry.entry.kind == BASELINE);
        let kept = kept.and_then(|entry| serde_json::from_value(entry.entry.body["source"].clone()).ok());
        Surroundings { environment: Environment::new(profile, kept), owner: None, untold: None }
    }

    /// What is not as in the baseline, with who it is about.
    pub(super) fn unlike(&self) -> Vec<String> {
        let Some(owner) = self.owner else { return Vec::new() };
        self.environment.unlike().into_iter().map(|what| format!("{owner}: {what}")).collect()
    }
}

impl Gates<'_> {
    /// Looks at what the owner's database does.
    pub(super) async fn look_around(&mut self, owner: Side) {
        if self.surroundings.owner.replace(owner) != Some(owner) {
            self.surroundings.environment.begin_anew();
        }
        let watch = match owner {
            Side::Source => &mut self.source,
            Side::Target => &mut self.target,
        };
        let found = watch.activity().await;
        let Some(found) = note(&mut self.unseen, owner, found) else { return };
        if let Some(baseline) = self.surroundings.environment.look(found, owner == Side::Source) {
            self.surroundings.untold = Some(baseline);
        }
    }

    /// A new baseline, as it is journalled; it is handed out once.
    pub(crate) fn new_baseline(&mut self) -> Option<Value> {
        self.surroundings
            .untold
            .take()
            .map(|source| json!({ "source": source, "in_words": source.to_string() }))
    }

    /// The comparison as it is journalled when a hand-over begins, and what of it people are told.
    pub(crate) fn environment(&self) -> (Value, Vec<String>) {
        let Surroundings { environment, .. } = &self.surroundings;
        let unlike = self.surroundings.unlike();
        let body = json!({ "baseline": environment.baseline(), "now": environment.now(), "unlike": unlike });
        (body, unlike)
    }
}
