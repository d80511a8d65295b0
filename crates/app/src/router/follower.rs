//! What the follower shows by now, and what may be read there: asked of both servers, without the control database.
//!
//! * [`Freshness`]: up to which moment the follower shows everything
//! * [`learn`](super::learn): what the owner's catalog says of names
//!
//! The owner is asked for the end of its log, the follower for its stream's checkpoint. Rows and checkpoint are written in
//! one transaction, and everything that ends at or before a checkpoint is in it: who sees a checkpoint at or beyond an end of
//! the log sees all that was acknowledged before that end was asked for. On an owner at rest checkpoints go on with the
//! stream's keepalives, once a second.

use super::{News, Say};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_model::switch::ownership::Epoch;
use segue_postgres::connect::Endpoint;
use segue_postgres::passage::{Applied, LogEnd, Passage};
use segue_router::{Fresh, Heard, Reads};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// How often both are asked: what a session waits for at least until the follower serves it after it has written.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// A server that takes longer is as good as gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// For so long the end of the owner's log may not be written out, before the owner is asked to do so.
const UNWRITTEN_MAX: Duration = Duration::from_millis(100);
/// Between two tries to reach both, longer each time.
const AGAIN: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];
/// Moments that are remembered until the follower has passed them: some minutes, ever more coarsely.
const MARKS_MAX: usize = 4_096;

/// Whether anything is asked of the follower.
pub(super) fn is_asked(reads: &Reads) -> bool {
    let moves = reads.share_percent > 0 || reads.tenants.values().any(|side| *side == Side::Target);
    !reads.contained && (moves || reads.mirror_percent > 0)
}

/// Ends of the owner's log, and a moment before each was asked for.
#[derive(Debug, Default)]
struct Marks(VecDeque<(Instant, LogEnd)>);

impl Marks {
    /// The log ended there, when it was asked after this moment.
    fn note(&mut self, asked: Instant, end: LogEnd) {
        match self.0.back_mut() {
            // A later moment at which nothing more had to be shown.
            Some((last, known)) if known.position == end.position && known.timeline == end.timeline => {
                *last = asked
            }
            _ => self.0.push_back((asked, end)),
        }
        if self.0.len() > MARKS_MAX {
            let mut is_kept = false;
            self.0.retain(|_| {
                is_kept = !is_kept;
                is_kept
            });
        }
    }

    /// The last moment of which a follower at this checkpoint shows everything.
    fn shown_by(&self, applied: Applied) -> Option<Instant> {
        let shown = self.0.iter().rev().find(|(_, end)| applied.shows(*end));
        shown.map(|(asked, _)| *asked)
    }

    /// Forgets what the follower has passed.
    fn forget_before(&mut self, moment: Instant) {
        self.0.retain(|(asked, _)| *asked >= moment);
    }
}

/// Keeps saying what the follower shows, as long as anybody reads there.
pub(super) struct Freshness {
    pub(super) migration: String,
    pub(super) source: Endpoint,
    pub(super) target: Endpoint,
    pub(super) routes: watch::Receiver<Heard>,
    pub(super) reads: watch::Receiver<Arc<Reads>>,
    /// Which parts the owner's tables had when its catalog was read last.
    pub(super) parts_read: watch::Receiver<Option<i64>>,
    /// The owner's parts are others by now.
    pub(super) parts_seen: watch::Sender<Option<i64>>,
    pub(super) fresh: watch::Sender<Option<Fresh>>,
    pub(super) say: Say,
}

impl Freshness {
    /// For as long as the router runs.
    pub(super) async fn run(self) -> Infallible {
        let (mut failures, mut is_said) = (0usize, false);
        loop {
            let mut reads = self.reads.clone();
            if reads.wait_for(|reads| is_asked(reads)).await.is_err() {
                return std::future::pending().await;
            }
            let began = Instant::now();
            let ended = self.keep(&mut is_said).await;
            // A server that was lost may come back with less than it has shown.
            self.fresh.send_replace(None);
            let Err(fault) = ended else { continue };
            if !std::mem::replace(&mut is_said, true) {
                (self.say)(&News::text(format!(
                    "reads go to the owner: what the follower shows is not known: {fault}"
                )));
            }
            failures = if began.elapsed() > AGAIN[AGAIN.len() - 1] { 0 } else { failures + 1 };
            sleep(AGAIN[failures.min(AGAIN.len() - 1)]).await;
        }
    }

    /// Until nobody reads there any more, the owner is another one, or a server fails.
    async fn keep(&self, is_said: &mut bool) -> Outcome<()> {
        let route = self.route();
        let (owner, epoch) = route;
        let (from, to) = match owner {
            Side::Source => (&self.source, &self.target),
            Side::Target => (&self.target, &self.source),
        };
        let passage = Passage::open(from, to, &self.migration, owner).await?;
        let (mut marks, mut written) = (Marks::default(), Instant::now());
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while is_asked(&self.reads.borrow()) && self.route() == route {
            ticks.tick().await;
            let asked = Instant::now();
            let both = async { tokio::try_join!(passage.log_end(), passage.applied()) };
            let (end, applied) = timeout(ANSWER_PATIENCE, both).await.map_err(|_| silent())??;
            self.parts_seen.send_if_modified(|seen| seen.replace(end.parts) != Some(end.parts));
            // A part that came since has rows which a follower that lacks it does not show.
            if *self.parts_read.borrow() == Some(end.parts) {
                marks.note(asked, end);
            }
            if self.route() != route {
                return Ok(());
            }
            if end.is_flushed {
                written = asked;
            } else if written.elapsed() > UNWRITTEN_MAX {
                timeout(ANSWER_PATIENCE, passage.write_out()).await.map_err(|_| silent())??;
                // It is done soon, if not at once.
                written = Instant::now() + UNWRITTEN_MAX;
            }
            if let Some(as_of) = applied.and_then(|applied| marks.shown_by(applied)) {
                marks.forget_before(as_of);
                self.fresh.send_replace(Some(Fresh { epoch, as_of }));
                if std::mem::take(is_said) {
                    (self.say)(&News::text("it is known again what the follower shows".to_owned()));
                }
            }
        }
        Ok(())
    }

    fn route(&self) -> (Side, Epoch) {
        let heard = self.routes.borrow();
        (heard.owner, heard.epoch)
    }
}

fn silent() -> Fault {
    let what = format!("a server has not answered for {} s", ANSWER_PATIENCE.as_secs());
    Fault::retry("SEGUE-CONNECTION", what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::position::Position;

    fn end(position: u64) -> LogEnd {
        LogEnd { position: Position(position), timeline: 1, is_flushed: true, parts: 0 }
    }

    fn applied(position: u64) -> Applied {
        Applied { position: Position(position), timeline: 1 }
    }

    #[test]
    fn the_follower_shows_what_was_before_the_last_end_of_the_log_that_it_has_passed() {
        let (mut marks, now) = (Marks::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(marks.shown_by(applied(100)), None, "no end is known");
        marks.note(at(0), end(100));
        marks.note(at(25), end(200));
        marks.note(at(50), end(200));
        marks.note(at(75), end(300));
        assert_eq!(marks.shown_by(applied(99)), None);
        assert_eq!(marks.shown_by(applied(100)), Some(at(0)));
        assert_eq!(marks.shown_by(applied(299)), Some(at(50)), "nothing was written in between");
        assert_eq!(marks.shown_by(applied(300)), Some(at(75)));
        marks.forget_before(at(50));
        assert_eq!(marks.shown_by(applied(199)), None);
        assert_eq!(marks.shown_by(applied(200)), Some(at(50)));
        let promoted = LogEnd { timeline: 2, ..end(50) };
        marks.note(at(100), promoted);
        assert_eq!(marks.shown_by(applied(300)), Some(at(75)), "the log of another timeline is another log");
    }

    #[test]
    fn what_is_remembered_has_a_bound_and_reaches_as_far_back() {
        let (mut marks, now) = (Marks::default(), Instant::now());
        for n in 0..100_000 {
            marks.note(now + Duration::from_millis(n), end(n));
        }
        assert!(marks.0.len() <= MARKS_MAX);
        assert_eq!(marks.0.front().map(|mark| mark.0), Some(now));
        assert_eq!(marks.shown_by(applied(100_000)), Some(now + Duration::from_millis(99_999)));
    }

    #[test]
    fn nobody_is_asked_for_reads_that_nobody_wants() {
        let wanted = Reads { share_percent: 1, ..Reads::default() };
        assert!(is_asked(&wanted) && !is_asked(&Reads::default()));
        assert!(is_asked(&Reads { mirror_percent: 1, ..Reads::default() }));
        assert!(!is_asked(&Reads { contained: true, ..wanted }));
    }
}
