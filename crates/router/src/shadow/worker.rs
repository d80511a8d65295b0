//! One sample after the other: when it is run where, and what is concluded of the answers.
//!
//! A mismatch is concluded only of answers that surround each other. The side that served the read gave the same answer
//! before and after the other side gave its own, and each of these was taken once the follower showed what there was
//! before it: a change that only had not arrived yet, or arrived in between, is never a mismatch.

use super::compare::{Verdict, Way, bounded, compare, tell};
use super::ledger::Ledger;
use super::links::{Links, NoServer};
use super::report::{MismatchKind, MismatchSample, SlowRead};
use super::rows::Rows;
use super::run::{self, Broken, Ran, SqlError, Statement};
use super::value::Tolerance;
use super::{Fresh, Queued, Sample, ShadowConfig};
use crate::frames::Malformed;
use segue_model::switch::Side;
use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};

/// A read whose rows change is tried so often again: it can be compared once they rest.
const REPEATS_MAX: usize = 2;
/// The other side is slow where it takes more than so many times as long, and long enough to matter.
const SLOW_TIMES: u32 = 3;
const SLOW_MIN: Duration = Duration::from_millis(10);
/// Between two looks for connections that nobody needs.
const TIDY_EVERY: Duration = Duration::from_secs(15);
/// Of the statement, and of its parameters, where they are shown.
const TEXT_BYTES_MAX: usize = 1024;
const PARAMETERS_BYTES_MAX: usize = 512;
const MESSAGE_BYTES_MAX: usize = 256;

/// What all workers share.
pub(super) struct Shared {
    pub(super) ledger: Ledger,
    pub(super) links: Links,
    way: Way,
    answer_bytes_max: usize,
    wait_max: Duration,
    fresh: Fresh,
    /// Nobody wants to know any more what waits.
    pub(super) is_over: AtomicBool,
}

/// What one sample comes to.
enum Conclusion {
    Equal { order_unproven: bool },
    Mismatch(MismatchSample),
    Noise,
}

/// Why there is no conclusion.
#[derive(Debug, thiserror::Error)]
enum NoConclusion {
    #[error("the follower has not caught up")]
    Stale,
    #[error(transparent)]
    NoServer(#[from] NoServer),
    #[error(transparent)]
    Broken(#[from] Broken),
    // Its message may quote a value.
    #[error("the server refuses with SQLSTATE {}", .0.code)]
    Refused(SqlError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Starts the workers; they end once nobody can offer samples any more.
pub(super) fn start(config: ShadowConfig, fresh: Fresh, samples: mpsc::Receiver<Queued>) -> Arc<Shared> {
    let workers = config.workers.max(1);
    let tolerance = Tolerance { float: config.float_tolerance, timestamp: config.timestamp_tolerance };
    let shared = Arc::new(Shared {
        ledger: Ledger::default(),
        links: Links::new(workers),
        way: Way { tolerance, show_values: config.show_values },
        // An answer that is the same is not larger, but for the digits of what may differ.
        answer_bytes_max: config.sample_bytes_max.saturating_mul(2),
        wait_max: config.wait_max,
        fresh,
        is_over: AtomicBool::new(false),
    });
    let samples = Arc::new(Mutex::new(samples));
    for _ in 0..workers {
        tokio::spawn(work(Arc::clone(&shared), Arc::clone(&samples)));
    }
    tokio::spawn(tidy(Arc::downgrade(&shared)));
    shared
}

async fn work(shared: Arc<Shared>, samples: Arc<Mutex<mpsc::Receiver<Queued>>>) {
    loop {
        let next = samples.lock().await.recv().await;
        let Some(queued) = next else { return };
        if shared.is_over.load(Ordering::Relaxed) {
            continue;
        }
        let own = Arc::clone(&shared);
        if !contain(async move { own.take(&queued.sample).await }).await {
            shared.ledger.failed.add_one();
        }
    }
}

/// Runs something in a task of its own, so that a panic ends only that; `false`: there was one.
async fn contain(comparing: impl Future<Output = ()> + Send + 'static) -> bool {
    match tokio::spawn(comparing).await {
        Err(error) if error.is_panic() => {
            tracing::error!(%error, "comparing a read has failed; this is a bug of the router");
            false
        }
        // Where the runtime ends, nothing has failed.
        Ok(()) | Err(_) => true,
    }
}

async fn tidy(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.links.tidy();
    }
}

impl Shared {
    async fn take(&self, sample: &Sample) {
        let mut first = None;
        match self.conclude(sample, &mut first).await {
            Ok(Conclusion::Equal { order_unproven }) => {
                self.ledger.equal.add_one();
                if order_unproven {
                    self.ledger.order_unproven.add_one();
                }
            }
            Ok(Conclusion::Mismatch(found)) => self.ledger.add_mismatch(sample, found),
            Ok(Conclusion::Noise) => self.ledger.noise.add_one(),
            Err(NoConclusion::Stale) => self.ledger.stale.add_one(),
            Err(error) => {
                // Who cannot be reached was said once, where it was noticed.
                tracing::debug!(%error, "a read could not be compared");
                self.ledger.failed.add_one();
            }
        }
        let Some(other) = first.filter(|other| is_slower(sample.took, *other)) else { return };
        if self.ledger.may_look(sample, other)
            && let Err(error) = self.look(sample, other).await
        {
            tracing::debug!(%error, "a slow read could not be looked at");
        }
    }

    /// `first`: how long the other side took when it was asked first.
    async fn conclude(
        &self,
        sample: &Sample,
        first: &mut Option<Duration>,
    ) -> Result<Conclusion, NoConclusion> {
        let statement = Statement::of(sample)?;
        let (served, other) = (sample.served_by, sample.served_by.other());
        self.shown(sample.answered_at, sample.answered_at + self.wait_max).await?;
        let mut base = Cow::Borrowed(&sample.rows);
        for _ in 0..=REPEATS_MAX {
            let ran = self.run(other, sample, &statement, false).await?;
            if first.is_none() && ran.answer.is_ok() {
                *first = Some(ran.took);
                self.ledger.add_time(served, sample.took);
                self.ledger.add_time(other, ran.took);
            }
            if let Held::Same { order_unproven } = self.hold(&base, ran, sample)? {
                return Ok(Conclusion::Equal { order_unproven });
            }
            self.shown_now().await?;
            let Ok(again) = self.run(served, sample, &statement, false).await?.answer else {
                return Ok(Conclusion::Noise);
            };
            let is_steady = matches!(compare(&base, &again, &sample.order, &self.way)?, Verdict::Same { .. });
            self.shown_now().await?;
            if !is_steady {
                if again.is_cut() {
                    break;
                }
                base = Cow::Owned(again);
                continue;
            }
            let ran = self.run(other, sample, &statement, false).await?;
            return Ok(match self.hold(&base, ran, sample)? {
                Held::Same { order_unproven } => Conclusion::Equal { order_unproven },
                Held::Differs(found) => Conclusion::Mismatch(self.complete(found, sample, &statement)?),
            });
        }
        Ok(Conclusion::Noise)
    }

    /// Waits until the follower shows what was committed before `since`.
    async fn shown(&self, since: Instant, until: Instant) -> Result<(), NoConclusion> {
        let mut fresh = self.fresh.clone();
        let waiting = fresh.wait_for(|fresh| fresh.is_some_and(|fresh| fresh.as_of >= since));
        match tokio::time::timeout_at(until.into(), waiting).await {
            Ok(Ok(_)) => Ok(()),
            // Nobody will say so any more, or not in time.
            Ok(Err(_)) | Err(_) => Err(NoConclusion::Stale),
        }
    }

    async fn shown_now(&self) -> Result<(), NoConclusion> {
        let now = Instant::now();
        self.shown(now, now + self.wait_max).await
    }

    async fn run(
        &self,
        side: Side,
        sample: &Sample,
        statement: &Statement,
        explain: bool,
    ) -> Result<Ran, NoConclusion> {
        let (key, server) = self.links.take(side, sample).await?;
        let (ran, server) = run::run(server, statement, self.answer_bytes_max, explain).await?;
        if let Some(server) = server {
            self.links.give_back(key, server);
        }
        match ran.answer {
            Err(error) if error.tells_nothing() => Err(NoConclusion::Refused(error)),
            _ => Ok(ran),
        }
    }

    /// Holds what the other side answered against `base`.
    fn hold(&self, base: &Rows, ran: Ran, sample: &Sample) -> Result<Held, Malformed> {
        let mut found = MismatchSample {
            served_by: sample.served_by,
            kind: MismatchKind::Larger,
            served_rows: base.len(),
            other_rows: 0,
            columns: Vec::new(),
            note: None,
            statement: None,
        };
        match ran.answer {
            Ok(rows) => match compare(base, &rows, &sample.order, &self.way)? {
                Verdict::Same { order_unproven } => return Ok(Held::Same { order_unproven }),
                Verdict::Differs(difference) => {
                    found.kind = difference.kind;
                    found.other_rows = difference.other_rows;
                    found.columns = difference.columns;
                }
            },
            // A message may quote a value.
            Err(SqlError { code, message }) => {
                let message = self.way.show_values.then(|| bounded(&message, MESSAGE_BYTES_MAX));
                found.kind = MismatchKind::Error { code, message };
            }
        }
        Ok(Held::Differs(found))
    }

    fn complete(
        &self,
        mut found: MismatchSample,
        sample: &Sample,
        statement: &Statement,
    ) -> Result<MismatchSample, Malformed> {
        found.note = sample.limited.then_some("which rows a LIMIT picks is not determined");
        if self.way.show_values {
            let text = bounded(&String::from_utf8_lossy(statement.text()), TEXT_BYTES_MAX);
            let mut parameters = String::new();
            for (at, (value, is_binary)) in statement.parameters()?.into_iter().enumerate() {
                parameters.push_str(&format!(" ${} = {}", at + 1, tell(value, is_binary, true)));
                if parameters.len() > PARAMETERS_BYTES_MAX {
                    break;
                }
            }
            found.statement = Some(text + &bounded(&parameters, PARAMETERS_BYTES_MAX));
        }
        Ok(found)
    }

    /// Runs a slow read on both sides again, under the same conditions, for its times and its plans: a cold cache, or a
    /// plan that the client's server had at hand, makes nothing slow.
    async fn look(&self, sample: &Sample, first: Duration) -> Result<(), NoConclusion> {
        let statement = Statement::of(sample)?;
        let other = self.run(sample.served_by.other(), sample, &statement, true).await?;
        let served = self.run(sample.served_by, sample, &statement, true).await?;
        if other.answer.is_err() || served.answer.is_err() {
            return Ok(());
        }
        let slow = SlowRead {
            fingerprint: sample.fingerprint,
            shape: sample.shape.to_string(),
            served_by: sample.served_by,
            served: served.took.max(sample.took),
            other: other.took.min(first),
            served_plan: served.plan,
            other_plan: other.plan,
        };
        if is_slower(slow.served, slow.other) {
            self.ledger.add_slow_read(slow);
        }
        Ok(())
    }
}

/// An answer held against the one that was served.
enum Held {
    Same { order_unproven: bool },
    Differs(MismatchSample),
}

fn is_slower(served: Duration, other: Duration) -> bool {
    other > SLOW_MIN && other > served.saturating_mul(SLOW_TIMES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed_and_ends_nothing_else() {
        assert!(!contain(async { panic!("as a bug would") }).await);
        assert!(contain(async {}).await);
    }

    #[test]
    fn slow_is_several_times_as_long_and_long_enough_to_matter() {
        let ms = Duration::from_millis;
        assert!(is_slower(ms(10), ms(31)) && is_slower(ms(0), ms(11)));
        assert!(!is_slower(ms(10), ms(30)) && !is_slower(ms(0), ms(10)) && !is_slower(Duration::MAX, ms(50)));
    }
}
