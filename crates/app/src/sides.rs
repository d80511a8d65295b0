//! The databases of a migration: source, target and control, reached as the spec says.

use segue_engine::ports::Outcome;
use segue_model::spec::{Database, Spec};
use segue_postgres::connect::Endpoint;

/// Where the three databases are.
#[derive(Debug, Clone)]
pub(crate) struct Sides {
    /// Owned the data when the migration was planned.
    pub(crate) source: Endpoint,
    /// The other one.
    pub(crate) target: Endpoint,
    /// Journal, lease and commands; the target unless the spec names another.
    pub(crate) control: Endpoint,
    /// The control database is the target.
    pub(crate) control_is_target: bool,
}

impl Sides {
    /// The databases of `spec`.
    pub(crate) fn of(spec: &Spec) -> Outcome<Sides> {
        let control_is_target = spec.control.expose() == spec.target.expose();
        let source = Endpoint::parse(spec.source.expose()).map_err(|f| f.during("the spec's `source`"))?;
        let target = Endpoint::parse(spec.target.expose()).map_err(|f| f.during("the spec's `target`"))?;
        let control = match control_is_target {
            // One place: sessions that are kept are those of both.
            true => target.clone(),
            false => Endpoint::parse(spec.control.expose()).map_err(|f| f.during("the spec's `control`"))?,
        };
        Ok(Sides { source, target, control, control_is_target })
    }

    /// Ends the sessions that are kept for whoever needs one next.
    pub(crate) fn forget(&self) {
        [&self.source, &self.target, &self.control].into_iter().for_each(Endpoint::forget);
    }

    /// The one that a spec calls so.
    pub(crate) fn of_database(&self, database: Database) -> &Endpoint {
        match database {
            Database::Source => &self.source,
            Database::Target => &self.target,
            Database::Control => &self.control,
        }
    }

    /// Every database that is written to, each once.
    pub(crate) fn written(&self) -> Vec<&Endpoint> {
        let mut all = vec![&self.control, &self.source];
        if !self.control_is_target {
            all.push(&self.target);
        }
        all
    }
}
