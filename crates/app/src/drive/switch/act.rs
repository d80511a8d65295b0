//! The steps, done: one function for each, and one for what takes it back.
//!
//! Every step is idempotent. Each answers whether it was done, or why not now; a fault ends the attempt, and the next one
//! reads both rows and goes on from there.

use super::rows::Rows;
use super::walk::{Hands, Walk};
use super::{PASSED_PATIENCE, Switch, named};
use crate::drive::flow::Flow;
use segue_engine::admission::Admission;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use segue_model::switch::decide::{Asked, Turn};
use segue_model::switch::ownership::{Attempt, FenceId};
use segue_model::switch::route::Route;
use segue_model::switch::steps::Step;
use segue_model::table::Table;
use segue_postgres::birth::Direction;
use segue_postgres::fence::{Answer, Applied};
use segue_postgres::sequences::{MARGIN, Sequences};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// How long arming waits for the opposite stream, and for vacuums that run.
pub(super) const ARM_PATIENCE: Duration = Duration::from_secs(20);
/// Times for the tables' locks, one try after the other, before it is given up. As long as a try waits for a writer everybody
/// who comes waits behind it, and a writer that holds one of the locks while it waits for another does not even end before
/// we let go. So the first ones wait no longer than a short transaction takes, and find a moment between two of them; only
/// somebody who holds one for long comes to the last.
const FENCE_TRIES_MS: [u64; 12] = [5, 5, 5, 5, 10, 10, 20, 40, 80, 120, 240, 400];
/// So many locks that nobody holds take a millisecond on a busy server.
const LOCKS_PER_MS: usize = 10;
/// Between two tries, for those who waited behind: as long as they did, but no less …
const FENCE_PAUSE_MIN: Duration = Duration::from_millis(10);
/// … and no more.
const FENCE_PAUSE: Duration = Duration::from_millis(40);
/// Between two tries of what nothing depends on any more.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// The first transactions of the new owner have its processors, and its disk, to themselves.
const BEFORE_CLOSING: Duration = Duration::from_millis(250);
/// Tries to close the old owner's tables, or to make the hand-over durable, before the attempt begins anew.
pub(super) const AFTERWARDS_TRIES: u32 = 50;

/// What a step came to.
pub(super) enum Did {
    /// It is done.
    Done,
    /// It is not, and the hand-over is to be undone.
    NotNow {
        /// Why.
        why: String,
        /// Who was in the way.
        holders: Vec<String>,
    },
}

pub(super) fn not_now(why: impl Into<String>) -> Did {
    Did::NotNow { why: why.into(), holders: Vec::new() }
}

impl Switch<'_> {
    /// Does a step.
    pub(super) async fn act(&self, turn: Turn, rows: &Rows, walk: &mut Walk) -> Outcome<Did> {
        walk.begins(turn.step);
        killpoint::pass(before(turn.step));
        let did = match turn.step {
            Step::Arm => self.arm_announced(turn, walk).await?,
            Step::Hold => {
                let began = Instant::now();
                walk.held_since = Some(began);
                // Applications that connect directly meet the fence.
                if walk.has_routers {
                    walk.stall_since = Some(began);
                    let ms_max = self.driver.spec.switch.max_write_hold.as_millis() as u64;
                    self.routers.hold(Route::to(turn.from, turn.fence.epoch).held(ms_max)).await;
                }
                Did::Done
            }
            Step::Fence => self.fence(turn, walk).await?,
            Step::Settle => self.settle(turn, walk).await?,
            Step::Flip => self.flip(turn, walk).await?,
            Step::Open => self.open_new_side(turn, rows, walk).await?,
            Step::Drain => return Err(Fault::bug("SEGUE-SWITCH", "draining is waited for, not done")),
        };
        killpoint::pass(after(turn.step));
        Ok(did)
    }

    /// Why the writes cannot leave `old` yet, if a stream has not caught up. What is received tells nothing of a server that
    /// has not sent for a while: what is committed now is waited for here, and not under the fence.
    async fn behind(&self, old: Side, flow: &Flow) -> Outcome<Option<String>> {
        let opposite = self.flows.landing_on(old);
        // One that is lost will not be there again: that is no reason to keep the writes from where they can go.
        if opposite.is_none() && !self.flows.has_lost(old) {
            return Ok(Some("the way back is not armed".to_owned()));
        }
        let way_back = opposite.as_deref().map(|opposite| ("the way back", opposite));
        for (stream, flow) in way_back.into_iter().chain([("the stream", flow)]) {
            match timeout(ARM_PATIENCE, flow.verifying.passed()).await {
                Ok(passed) => {
                    passed.map_err(|fault| fault.during(format_args!("waiting for {stream} to catch up")))?;
                }
                Err(_) => {
                    let seconds = ARM_PATIENCE.as_secs();
                    return Ok(Some(format!("{stream} has not caught up within {seconds} s")));
                }
            }
        }
        Ok(None)
    }

    pub(super) async fn arm(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let (old, new) = (turn.from, turn.from.other());
        let Some(flow) = self.flows.landing_on(new) else {
            return Ok(not_now(format!("the stream to the {new} has ended")));
        };
        if let Some(why) = self.behind(old, &flow).await? {
            return Ok(not_now(why));
        }
        // Kept until the new owner is open: what is copied of a part later would be written over its rows.
        walk.still = flow.verifying.freeze(ARM_PATIENCE).await;
        if walk.still.is_none() {
            return Ok(not_now("a partition that was attached or detached is on its way"));
        }
        if let Some(why) = self.in_pieces(&flow, new).await? {
            return Ok(not_now(why));
        }
        let fenced = async {
            self.prepare_fence(Side::Source).await?;
            self.prepare_fence(Side::Target).await
        };
        if let Err(fault) = fenced.await {
            return if fault.code == "SEGUE-LOCKED" { Ok(not_now(fault.what)) } else { Err(fault) };
        }
        // Segue's own stream holds locks there, too, and nobody waits for the application yet.
        let until = Instant::now() + ARM_PATIENCE;
        loop {
            match self.side(new).become_follower(turn.fence.epoch).await? {
                Answer::Done(_) | Answer::AlreadyDone(_) => break,
                Answer::Blocked { .. } if Instant::now() < until => sleep(FENCE_PAUSE).await,
                Answer::Blocked { by, what } => {
                    let why = format!("on the {new}, where writes would go: {what}");
                    return Ok(Did::NotNow { why, holders: named(&by) });
                }
                Answer::Refused { why, .. } => return Ok(not_now(format!("on the {new}: {why}"))),
            }
        }
        let (on_old, on_new) =
            tokio::try_join!(self.endpoint(old).connect("switch"), self.endpoint(new).connect("switch"))?;
        // From here on there is something to put back.
        walk.armed = true;
        for client in [&on_old, &on_new] {
            if let Some(not_yet) = self.keep_autovacuum_away(client).await? {
                return Ok(not_yet);
            }
        }
        let tables: Vec<_> = flow.tables.iter().map(|table| Table::clone(table)).collect();
        let sequences = Sequences::pair(&on_old, &on_new, &tables, Direction::leading_to(new)).await?;
        // The gate was judged by an earlier look.
        if let Some(what) = sequences.unready().iter().find(|what| !walk.unready.contains(what)) {
            return Ok(not_now(format!("since the gates were looked at: {what}")));
        }
        if let Some(not_yet) = self.sessions_get_ready([old, new], &sequences, &on_new).await? {
            return Ok(not_yet);
        }
        flow.verifying.be_ready().await?;
        walk.has_standbys = self.side(old).has_standbys().await?;
        walk.hands = Some(Hands { old: on_old, new: on_new, sequences });
        Ok(Did::Done)
    }

    /// What the sessions will look at while nobody may write they have read before; says what is in the way. A lock is not:
    /// whoever holds one now may have gone by then.
    async fn sessions_get_ready(
        &self,
        sides: [Side; 2],
        sequences: &Sequences,
        on_new: &Client,
    ) -> Outcome<Option<Did>> {
        for side in sides {
            match self.side(side).get_ready().await {
                Err(fault) if fault.code == "SEGUE-NOT-FENCED" => return Ok(Some(not_now(fault.what))),
                Err(fault) if fault.code == "SEGUE-LOCKED" => {}
                ready => ready?,
            }
        }
        match sequences.get_ready(on_new).await {
            Err(fault) if fault.code == "SEGUE-LOCKED" => Ok(None),
            Err(fault) if fault.recovery == Recovery::Operator => Ok(Some(not_now(fault.to_string()))),
            ready => ready.map(|()| None),
        }
    }

    async fn fence(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let attempt = Attempt(turn.fence.attempt.0 + 1);
        let began = Instant::now();
        self.fenced.send_replace(Some(turn.from));
        walk.leftover = true;
        let tries = FENCE_TRIES_MS.len();
        let for_writers = Duration::from_millis(FENCE_TRIES_MS[(walk.blocked as usize).min(tries - 1)]);
        let lock =
            for_writers + Duration::from_millis((self.flows.forward.tables.len() / LOCKS_PER_MS) as u64);
        let answer = match self.side(turn.from).fence_within(turn.fence, attempt, lock).await {
            // A table came since it was armed. Nothing was changed.
            Err(fault) if fault.code == "SEGUE-NOT-FENCED" => return Ok(not_now(fault.what)),
            answered => answered?,
        };
        match answer {
            Answer::Done(_) | Answer::AlreadyDone(_) => {
                walk.stall_since.get_or_insert(began);
                walk.begun = Some(FenceId { epoch: turn.fence.epoch, attempt });
                Ok(Did::Done)
            }
            Answer::Blocked { by, what } => {
                walk.blocked += 1;
                walk.stalled_for(began.elapsed());
                if !by.is_empty() {
                    walk.in_the_way = named(&by);
                } else if walk.in_the_way.is_empty() {
                    // The short tries are over before anybody is seen.
                    walk.in_the_way = named(&self.side(turn.from).blockers().await.unwrap_or_default());
                }
                if walk.blocked as usize >= tries {
                    let why = format!("the tables could not be locked in {tries} tries: {what}");
                    return Ok(Did::NotNow { why, holders: std::mem::take(&mut walk.in_the_way) });
                }
                sleep(for_writers.clamp(FENCE_PAUSE_MIN, FENCE_PAUSE)).await;
                Ok(Did::Done)
            }
            Answer::Refused { why, .. } => Ok(not_now(why)),
        }
    }

    /// Under the fence: rows that were never at rest are compared, sequences set.
    async fn settle(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let Some(flow) = self.flows.landing_on(turn.from.other()) else {
            return Ok(not_now("the stream to the new side has ended"));
        };
        let (Some(hands), Some(_)) = (&walk.hands, &walk.still) else {
            return Ok(not_now("nothing was armed"));
        };
        let authority = (self.migration(), self.lease.token);
        let work = async {
            let (compared, carried) = tokio::try_join!(
                flow.verifying.compare_at_rest(),
                hands.sequences.carry(&hands.old, &hands.new, authority, MARGIN)
            )?;
            // As late as it can be.
            Ok::<_, Fault>((self.in_pieces(&flow, turn.from.other()).await?, compared, carried))
        };
        let left = self.driver.spec.switch.max_write_hold.saturating_sub(walk.elapsed());
        let Ok(settled) = timeout(left, work).await else {
            return Ok(not_now("sequences and hot rows were not settled in time"));
        };
        let (in_pieces, compared, carried) = match settled {
            // It is in the way of this hand-over, and not of the streams.
            Err(fault) if fault.recovery == Recovery::Operator => return Ok(not_now(fault.to_string())),
            settled => settled?,
        };
        if let Some(why) = in_pieces {
            return Ok(not_now(why));
        }
        walk.compared += compared.compared;
        if !compared.divergences.is_empty() {
            let count = compared.divergences.len();
            return Ok(not_now(format!("{count} row(s) differ under the fence: see `segue verify`")));
        }
        if compared.hot > 0 {
            let count = compared.hot;
            return Ok(not_now(format!(
                "{count} row(s) are unequal under the fence and do not stand still: somebody writes to them past it, or a \
                 commit waits for a synchronous standby"
            )));
        }
        walk.sequences = carried.len() as u64;
        walk.settled = Some(turn.fence);
        Ok(Did::Done)
    }

    /// Hands the writes over. Beside it a signal is sent through the stream, for which whatever was written past the fence
    /// since the marker waits: once it has passed, nothing of that is on its way.
    async fn flip(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let old = self.side(turn.from);
        let Some(down) = self.flows.landing_on(turn.from.other()) else {
            return Ok(not_now("the stream to the new side has ended"));
        };
        let warned = old.was_warned();
        let own = down.admissions.get();
        down.admissions.set(Admission::Undecided);
        let mut passed = std::pin::pin!(down.verifying.passed());
        let mut has_passed = None;
        // Until the rows are read again, whatever the answer is.
        self.driver.nobody_owns.store(true, Ordering::Relaxed);
        let flip = old.flip(turn.fence);
        let mut flip = std::pin::pin!(flip);
        let answer = loop {
            tokio::select! {
                answer = &mut flip => break answer,
                passed = &mut passed, if has_passed.is_none() => has_passed = Some(passed),
            }
        };
        // Until it is known that the writes were handed over they may be the old owner's again.
        let handed_over = matches!(answer, Ok(Answer::Done(_) | Answer::AlreadyDone(_)));
        down.admissions.set(if handed_over { Admission::Nothing } else { own });
        match answer? {
            Answer::Done(_) => walk.durable = !warned && !old.was_warned(),
            Answer::AlreadyDone(_) => {}
            Answer::Refused { why, .. } => return Ok(not_now(why)),
            Answer::Blocked { by, what } => return Ok(Did::NotNow { why: what, holders: named(&by) }),
        }
        if has_passed.is_none() {
            has_passed = timeout(PASSED_PATIENCE, passed).await.ok();
        }
        walk.passed = matches!(has_passed, Some(Ok(())));
        Ok(Did::Done)
    }

    /// Past the point of no return: repeated until it succeeds.
    async fn open_new_side(&self, turn: Turn, rows: &Rows, walk: &mut Walk) -> Outcome<Did> {
        let new = turn.from.other();
        // Found open by a start: its writers are there already, and no stream is needed to close the old side.
        if rows.of(new).is_none_or(|row| row.ownership.epoch() != turn.fence.epoch.next())
            && let Some(not_yet) = self.hand_to_new_side(turn, rows, walk).await?
        {
            return Ok(not_yet);
        }
        self.close_old_side(turn, walk).await
    }

    /// The new owner takes the writes; returns what it came to if it has not yet.
    async fn hand_to_new_side(&self, turn: Turn, rows: &Rows, walk: &mut Walk) -> Outcome<Option<Did>> {
        let (old, new) = (turn.from, turn.from.other());
        let marker = rows.of(old).and_then(|row| row.marker);
        let marker = marker
            .ok_or_else(|| Fault::bug("SEGUE-SWITCH", "a side that has handed over names no marker"))?;
        self.make_durable(turn, walk).await?;
        let down = self.flows.when_landing_on(new, &self.back).await?;
        let down = down.ok_or_else(|| {
            Fault::retry("SEGUE-SWITCH-OVER", "the stream to the new owner has ended before it was opened")
        })?;
        // Without a way back the new owner is opened all the same: nobody else can take the writes any more.
        let up = self.flows.when_landing_on(old, &self.back).await?;
        let admit = |admission| up.iter().for_each(|up| up.admissions.set(admission));
        // What arrives from the old owner after its marker was written past the fence; once a signal has passed nothing of
        // it is on its way. What comes from the new one is judged by the place at which it became the owner.
        down.admissions.set(Admission::Nothing);
        if !walk.passed {
            match timeout(PASSED_PATIENCE, down.verifying.passed()).await {
                Ok(passed) => passed?,
                // Somebody may have paused the stream: the rows are read again, and it goes on.
                Err(_) => return Ok(Some(Did::Done)),
            }
            walk.passed = true;
        }
        admit(Admission::Undecided);
        let applied = *down.progress.watch_applied().borrow();
        let applied = Applied { signal: applied.signal, position: applied.position };
        let answer = self.side(new).open(turn.fence, marker, Direction::leading_to(new), applied).await?;
        let Some(row) = answer.made() else {
            return Err(Fault::retry("SEGUE-OPEN-REFUSED", format!("opening the {new}: {answer:?}")));
        };
        if !walk.has_routers {
            walk.stall_ends();
        }
        admit(Admission::From(row.opened_at));
        self.fenced.send_replace(None);
        self.flows.giving.send_replace(None);
        self.flows.owner.send_replace(Some(new));
        self.driver.nobody_owns.store(false, Ordering::Relaxed);
        self.routers.release(Route::to(new, row.ownership.epoch())).await;
        walk.stall_ends();
        killpoint::pass("switch.opened");
        Ok(None)
    }

    /// The old owner follows. Nobody waits for it: it takes no writes already.
    async fn close_old_side(&self, turn: Turn, walk: &mut Walk) -> Outcome<Did> {
        let (old, new) = (turn.from, turn.from.other());
        // A start that finds it open has routers to tell.
        if walk.asked != Asked::Nothing {
            walk.ends();
            sleep(BEFORE_CLOSING).await;
        }
        // The new owner's triggers may still be awake; what the fence of the old one was begun for is done.
        (walk.leftover, walk.begun) = (self.side(new).is_awake().await?, None);
        for _ in 0..AFTERWARDS_TRIES {
            match self.side(old).become_follower(turn.fence.epoch.next()).await {
                Ok(Answer::Done(_) | Answer::AlreadyDone(_)) => return Ok(Did::Done),
                Ok(Answer::Refused { why, .. }) => return Err(Fault::retry("SEGUE-CLOSE-REFUSED", why)),
                // Its fence stands meanwhile, with the old deadline, past which the row refuses all the same.
                Ok(Answer::Blocked { .. }) => sleep(PAUSE).await,
                // A partition was made there since, by whatever makes them every night.
                Err(fault) if fault.code == "SEGUE-NOT-FENCED" => self.prepare_fence(old).await?,
                Err(fault) => return Err(fault),
            }
        }
        Err(Fault::retry("SEGUE-LOCKED", format!("the tables of the {old} could not be closed for good")))
    }

    /// Takes a step back.
    pub(super) async fn undo(&self, turn: Turn, walk: &mut Walk) -> Outcome<()> {
        walk.ends();
        killpoint::pass("switch.undo");
        match turn.step {
            Step::Fence => {
                let fence = walk.begun.unwrap_or(turn.fence);
                match self.side(turn.from).unfence(turn.fence).await? {
                    Answer::Done(_) | Answer::AlreadyDone(_) => {
                        if walk.has_routers {
                            self.routers.release(Route::to(turn.from, turn.fence.epoch)).await;
                        }
                        walk.stall_ends();
                        self.fenced.send_replace(None);
                        for table in self.side(turn.from).rest(turn.fence).await? {
                            tracing::info!("the fence of {table} is open, and still awake");
                        }
                        (walk.leftover, walk.begun, walk.still) = (false, None, None);
                    }
                    // Somebody else has changed it: read again.
                    Answer::Refused { why, .. } => {
                        tracing::info!("undoing the fence {fence}: {why}");
                        sleep(PAUSE).await;
                    }
                    // A late writer has taken the tables back, and has not ended: everybody waits for that one.
                    Answer::Blocked { .. } if walk.not_lifted < AFTERWARDS_TRIES => {
                        walk.not_lifted += 1;
                        sleep(PAUSE).await;
                    }
                    Answer::Blocked { what, .. } => {
                        return Err(Fault::retry("SEGUE-LOCKED", format!("lifting the fence: {what}")));
                    }
                }
            }
            Step::Hold => {
                walk.held_since = None;
                self.routers.let_go().await;
                walk.stall_ends();
            }
            Step::Arm => {
                self.put_back_soon().await?;
                (walk.armed, walk.hands) = (false, None);
            }
            Step::Drain | Step::Settle | Step::Flip | Step::Open => {
                let what = format!("{} is never undone", turn.step);
                return Err(Fault::bug("SEGUE-SWITCH", what));
            }
        }
        walk.asked = Asked::Nothing;
        Ok(())
    }
}

const fn before(step: Step) -> &'static str {
    match step {
        Step::Arm => "switch.arm.before",
        Step::Hold => "switch.hold.before",
        Step::Fence => "switch.fence.before",
        Step::Drain => "switch.drain.before",
        Step::Settle => "switch.settle.before",
        Step::Flip => "switch.flip.before",
        Step::Open => "switch.open.before",
    }
}

const fn after(step: Step) -> &'static str {
    match step {
        Step::Arm => "switch.arm.after",
        Step::Hold => "switch.hold.after",
        Step::Fence => "switch.fence.after",
        Step::Drain => "switch.drain.after",
        Step::Settle => "switch.settle.after",
        Step::Flip => "switch.flip.after",
        Step::Open => "switch.open.after",
    }
}
