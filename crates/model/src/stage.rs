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
    /// The target owns the writes, and the source follows it: the way back is open.
    Switched,
    /// The way back was given up; the target owns the writes for good.
    Completed,
    /// Everything that Segue made has been removed.
    Cancelled,
}

impl Stage {
    /// Whether a migration in this stage has got as far as `wanted`.
    pub fn has_reached(self, wanted: Stage) -> bool {
        use Stage::{Backfilling, Cancelled, Completed, Following, Planned, Preparing, Switched};
        match wanted {
            Planned => true,
            Preparing => matches!(self, Preparing | Backfilling | Following | Switched | Completed),
            Backfilling => matches!(self, Backfilling | Following | Switched | Completed),
            // Everything is copied there, whichever side follows now.
            Following => matches!(self, Following | Switched | Completed),
            Switched => matches!(self, Switched | Completed),
            Completed => matches!(self, Completed),
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
            Stage::Switched => "switched",
            Stage::Completed => "completed",
            Stage::Cancelled => "cancelled",
        }
    }

    /// Every stage.
    pub const ALL: [Stage; 7] = [
        Stage::Planned,
        Stage::Preparing,
        Stage::Backfilling,
        Stage::Following,
        Stage::Switched,
        Stage::Completed,
        Stage::Cancelled,
    ];
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

    #[test]
    fn a_switched_migration_has_passed_following_and_a_completed_one_the_switch() {
        assert!(
            Stage::Switched.has_reached(Stage::Preparing) && Stage::Switched.has_reached(Stage::Following)
        );
        assert!(
            Stage::Completed.has_reached(Stage::Switched) && Stage::Completed.has_reached(Stage::Following)
        );
        assert!(
            !Stage::Following.has_reached(Stage::Switched) && !Stage::Switched.has_reached(Stage::Completed)
        );
        assert!(
            !Stage::Cancelled.has_reached(Stage::Switched) && !Stage::Completed.has_reached(Stage::Cancelled)
        );
    }

    #[test]
    fn every_stage_has_reached_itself_and_the_first() {
        for stage in Stage::ALL {
            assert!(stage.has_reached(stage) && stage.has_reached(Stage::Planned), "{stage}");
        }
    }
}
