//! What verifications have compared: stored by whoever carries one out, and seen by the next look.

use segue_engine::ports::Outcome;
use segue_engine::verify::report::{Mode, Report};
use segue_model::switch::gates::{Sample, Share};
use segue_postgres::control::{Control, Lease, NewSample};
use std::sync::{Arc, Mutex, PoisonError};

/// The series in which they are stored.
pub(in crate::drive) const SERIES: &str = "verification";

/// Takes down what verifications came to, from any task of the attempt.
#[derive(Clone)]
pub(crate) struct Comparisons {
    control: Arc<Control>,
    lease: Lease,
    /// Stored, and not yet seen by a look.
    fresh: Arc<Mutex<Vec<Sample<Share>>>>,
}

impl Comparisons {
    pub(super) fn new(control: Arc<Control>, lease: Lease) -> Comparisons {
        Comparisons { control, lease, fresh: Arc::default() }
    }

    /// A verification has come to this.
    pub(crate) async fn reported(&self, report: &Report) -> Outcome<()> {
        match report.mode {
            Mode::Digest | Mode::Sample => self.compared(report.rows, report.divergent).await,
            // It says nothing about any row.
            Mode::Aggregate => Ok(()),
        }
    }

    /// A verification has compared so many rows and confirmed so many differences, those included that it has repaired:
    /// the window's drift is about what went wrong, not about what is left of it.
    pub(crate) async fn compared(&self, rows: u64, divergent: u64) -> Outcome<()> {
        let sample = NewSample { series: SERIES, part: divergent, whole: rows };
        let at_us = self.control.append_samples(&self.lease, &[sample]).await?;
        let sample = Sample { at_us, value: Share { part: divergent, whole: rows } };
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        Ok(())
    }

    /// What has come since the last look.
    pub(super) fn take(&self) -> Vec<Sample<Share>> {
        std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
