//! The stages of a migration's life.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Where a migration is in its life. Never compared by order: what has been passed is asked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nothing has been changed anywhere.
    Planned,
    /// Publication, slot and barrier are being made.
    Preparing,
    /// Regions are being copied while the stream is followed.
    Backfilling,
    /// Everything is copied; the target follows the source.
    Following,
    /// Everything that Segue made has been removed.
    Cancelled,
}

impl Stage {
    /// Whether a migration in this stage has got as far as `wanted`.
    pub fn has_reached(self, wanted: Stage) -> bool {
        use Stage::{Backfilling, Cancelled, Following, Planned, Preparing};
        match wanted {
            Planned => true,
            Preparing => matches!(self, Preparing | Backfilling | Following),
            Backfilling => matches!(self, Backfilling | Following),
            Following => matches!(self, Following),
            Cancelled => matches!(self, Cancelled),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Planned => "planned",
            Stage::Preparing => "preparing",
            Stage::Backfilling => "backfilling",
            Stage::Following => "following",
            Stage::Cancelled => "cancelled",
        }
    }

    /// Every stage.
    pub const ALL: [Stage; 5] =
        [Stage::Planned, Stage::Preparing, Stage::Backfilling, Stage::Following, Stage::Cancelled];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No stage has this name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a stage")]
pub struct NotAStage(pub String);

impl FromStr for Stage {
    type Err = NotAStage;
    fn from_str(text: &str) -> Result<Stage, NotAStage> {
        Stage::ALL.into_iter().find(|s| s.name() == text).ok_or_else(|| NotAStage(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for stage in Stage::ALL {
            assert_eq!(stage.name().parse(), Ok(stage));
        }
        assert!("follow".parse::<Stage>().is_err());
    }

    #[test]
    fn a_cancelled_migration_has_not_reached_following() {
        assert!(!Stage::Cancelled.has_reached(Stage::Following));
        assert!(Stage::Following.has_reached(Stage::Backfilling));
        assert!(!Stage::Backfilling.has_reached(Stage::Following));
    }
}
