//! Handing the writes over, and back: one loop that reads the facts, decides, acts, and reads again.
//!
//! The decision is pure and lives in the model ([`segue_model::switch::decide`]); here is everything else. A start, an
//! order, a rehearsal and what is left of an earlier process all go through [`Switch::walk`].

mod act;
pub(crate) mod answer;
mod begin;
mod drain;
mod durable;
pub(super) mod hand_over;
mod pieces;
mod routers;
pub(crate) mod rows;
mod vacuum;
mod walk;

use super::Driver;
use super::back::WayBack;
use super::flow::Flows;
use super::gates::Gates;
use super::journal::{Journal, REHEARSED};
use act::Did;
use answer::{Answer, Progress};
pub(super) use hand_over::Order;
use routers::Routers;
use rows::{Rows, contradiction};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::switch::Side;
use segue_model::switch::decide::{Asked, Decision, WaitFor, decide};
use segue_model::switch::gates::{Move, Override};
use segue_model::switch::ownership::{Epoch, FenceId, Ownership};
use segue_model::switch::route::Route;
use segue_postgres::birth::Blocker;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::Lease;
use segue_postgres::fence::{self, Limits};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, MutexGuard, RwLock, mpsc, watch};
use tokio::time::{sleep, timeout};
use walk::{Unpaused, Walk};

/// Between two looks at a side that does not answer.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// For so long in a row it may be unknown who owns the writes because a server is slow, before the attempt begins anew.
/// It releases nobody meanwhile, and a fence opens by itself.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Two rows that cannot both be true are read so often before they are believed.
const CONTRADICTIONS_MAX: u32 = 5;
/// What is done for the old owner when an attempt ends has to be done in this time; the fence's deadline does the rest.
const RETREAT_PATIENCE: Duration = Duration::from_millis(1500);
/// How long one signal may take before the rows are looked at again.
const PASSED_PATIENCE: Duration = Duration::from_secs(1);
/// Sequences are paired anew for the gates so often; for a hand-over they always are.
const PAIRED_FOR: Duration = Duration::from_secs(30);
/// How long before the fence's deadline a hand-over is too late, as a part of the hold.
const MARGIN_PART: u32 = 10;

/// The switch of one attempt.
pub(super) struct Switch<'d> {
    driver: &'d Driver,
    lease: &'d Lease,
    flows: Arc<Flows>,
    back: Arc<WayBack<'d>>,
    gates: Arc<Mutex<Gates<'d>>>,
    journal: Journal,
    source: fence::Side,
    target: fence::Side,
    orders: Mutex<mpsc::Receiver<Order>>,
    /// Sequences that could not be set when they were last paired, from which owner, and when.
    paired: Mutex<Option<(Side, Instant, Vec<String>)>>,
    /// Why the hand-over that is under way is to be given up.
    given_up: watch::Sender<Option<String>>,
    /// A hand-over is under way.
    under_way: AtomicBool,
    /// A lock has kept autovacuum's settings from being put back.
    owes_autovacuum: AtomicBool,
    /// An order is carried out, or waits for its turn.
    is_asked: AtomicBool,
    /// Held while anything is done about who owns the writes.
    turn: Mutex<()>,
    /// Shared by those who have yet to answer a command.
    telling: Arc<RwLock<()>>,
    /// The side on which a fence of this attempt may stand.
    fenced: watch::Sender<Option<Side>>,
    routers: Routers<'d>,
}

impl<'d> Switch<'d> {
    /// Opens the sessions of both fences.
    pub(super) async fn open(
        (driver, lease): (&'d Driver, &'d Lease),
        flows: Arc<Flows>,
        back: Arc<WayBack<'d>>,
        gates: Arc<Mutex<Gates<'d>>>,
        journal: Journal,
        orders: mpsc::Receiver<Order>,
    ) -> Outcome<Switch<'d>> {
        let hold = driver.spec.switch.max_write_hold;
        let limits = Limits { hold, margin: hold / MARGIN_PART, ..Limits::default() };
        let authority = (driver.spec.name.as_str(), lease.token);
        let names = |of: fn(&segue_model::table::Table) -> &QualifiedName| {
            flows.forward.tables.iter().map(|table| of(table).clone()).collect::<Vec<_>>()
        };
        let (source, target) = tokio::try_join!(
            fence::Side::open_sessions(&driver.sides.source, authority, names(|t| &t.source), limits),
            fence::Side::open_sessions(&driver.sides.target, authority, names(|t| &t.target), limits),
        )?;
        let (paired, given_up) = (Mutex::default(), watch::Sender::new(None));
        Ok(Switch {
            driver,
            lease,
            flows,
            back,
            gates,
            journal,
            source,
            target,
            orders: Mutex::new(orders),
            paired,
            given_up,
            under_way: AtomicBool::new(false),
            owes_autovacuum: AtomicBool::new(false),
            is_asked: AtomicBool::new(false),
            turn: Mutex::default(),
            telling: Arc::default(),
            fenced: watch::Sender::new(None),
            routers: Routers::new(driver, lease),
        })
    }

    fn migration(&self) -> &str {
        self.driver.spec.name.as_str()
    }

    fn side(&self, side: Side) -> &fence::Side {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    fn endpoint(&self, side: Side) -> &Endpoint {
        match side {
            Side::Source => &self.driver.sides.source,
            Side::Target => &self.driver.sides.target,
        }
    }

    /// Completes or undoes what it finds, then carries out one order after the other. Ends with a fault.
    pub(super) async fn run(&self) -> Fault {
        let run = async {
            {
                let _turn = self.turn.lock().await;
                self.tidy().await?;
                self.point_routers().await?;
            }
            let mut orders = self.orders.lock().await;
            loop {
                let order = tokio::select! {
                    order = orders.recv() => order,
                    put_back = self.put_back_later(), if self.owes_autovacuum.load(Ordering::Relaxed) => {
                        put_back?;
                        continue;
                    }
                };
                let Some(order) = order else {
                    return std::future::pending::<Outcome<std::convert::Infallible>>().await;
                };
                self.carry_out(order).await?;
            }
        };
        let run = async {
            tokio::select! {
                ended = run => ended,
                never = self.routers.run() => match never {},
            }
        };
        match run.await {
            Err(fault) => fault,
            Ok(never) => match never {},
        }
    }

    /// Tells routers who owns the writes, once that is known for certain.
    async fn point_routers(&self) -> Outcome<()> {
        // Before the first hand-over was ever wanted there are no rows.
        let mut route = Some(Route::to(Side::Source, Ownership::FIRST_OWNER.epoch()));
        if self.source.row().await?.is_some() {
            let rows = self.rows().await?;
            let row = rows.owner().and_then(|owner| Some((owner, rows.of(owner)?)));
            route = row.map(|(owner, row)| Route::to(owner, row.ownership.epoch()));
        }
        if let Some(route) = route {
            self.routers.release(route).await;
        }
        Ok(())
    }

    /// Completes or undoes whatever is there of a hand-over.
    async fn tidy(&self) -> Outcome<()> {
        // Before the first hand-over was ever wanted there is nothing to find.
        if self.source.row().await?.is_none() {
            return Ok(());
        }
        let rows = Rows::read(&self.source, &self.target).await?;
        let is_awake = match rows.owner() {
            Some(owner) => self.side(owner).is_awake().await?,
            None => true,
        };
        self.walk(&mut Walk::at_start(is_awake)).await
    }

    /// The attempt ends: whoever owns the writes gets them back now rather than at the deadline.
    ///
    /// A request of the switch may be under way still. This one goes behind it, in the same session: what that one has
    /// changed meanwhile is refused here, and read again. Where that session is lost nothing can be asked here, either.
    pub(super) async fn retreat(&self) {
        // Nothing was handed over, or it was told where to.
        let Some(side) = *self.fenced.borrow() else { return self.routers.let_go().await };
        let undo = async {
            loop {
                let row = self.side(side).row().await?;
                let fence = match row.map(|row| row.ownership) {
                    Some(Ownership::Owner { epoch, attempt } | Ownership::Fenced { epoch, attempt, .. }) => {
                        FenceId { epoch, attempt }
                    }
                    // Nobody takes the writes now: who waits in a router waits for the next attempt, as long as it may.
                    Some(Ownership::HandedOver { .. } | Ownership::Follower { .. }) | None => {
                        return Ok(false);
                    }
                };
                match self.side(side).unfence(fence).await? {
                    fence::Answer::Done(_) | fence::Answer::AlreadyDone(_) => return Ok(true),
                    fence::Answer::Refused { .. } => {}
                    fence::Answer::Blocked { what, .. } => return Err(Fault::retry("SEGUE-LOCKED", what)),
                }
            }
        };
        let retreated = timeout(RETREAT_PATIENCE, undo).await;
        // Otherwise nobody takes the writes, or nobody may: the next attempt must not be long in coming.
        self.driver.nobody_owns.store(!matches!(retreated, Ok(Ok(true))), Ordering::Relaxed);
        match retreated {
            Ok(Ok(true)) => self.routers.let_go().await,
            Ok(Ok(false)) => {}
            Ok(Err(_)) | Err(_) => {
                tracing::warn!(
                    "the fence of the {side} could not be lifted; it opens by itself at its deadline"
                );
            }
        }
    }

    /// Has the hand-over that is under way undone, if that is still possible. Returns whether there was one.
    pub(super) async fn give_up(&self, why: &str) -> bool {
        let was = self.under_way.load(Ordering::Relaxed);
        if was {
            self.given_up.send_replace(Some(why.to_owned()));
        }
        was
    }

    /// Nothing is handed over as long as the guard lives. Waits until what is under way is over.
    pub(super) async fn at_rest(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Whether somebody has asked for a hand-over, which waits until [`Switch::at_rest`] is over.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// Both ownership rows, read now.
    pub(super) async fn rows(&self) -> Outcome<Rows> {
        Rows::read(&self.source, &self.target).await
    }

    async fn carry_out(&self, order: Order) -> Outcome<()> {
        let Order { asked, from, overrides, of, by, progress, answer } = order;
        self.is_asked.store(true, Ordering::Relaxed);
        let _turn = self.turn.lock().await;
        self.given_up.send_replace(None);
        self.under_way.store(true, Ordering::Relaxed);
        // Writers wait for the stream meanwhile, whoever else is served first.
        let _hurry = self.driver.throttle.hurry();
        let done = self.obey((asked, from, of), overrides, &by, progress).await;
        if self.fenced.borrow().is_none() {
            self.routers.let_go().await;
        }
        self.under_way.store(false, Ordering::Relaxed);
        self.is_asked.store(false, Ordering::Relaxed);
        let (told, ended) = match done {
            Ok(done) => (Ok(done), Ok(())),
            // What only the one who asked can mend does not end the attempt, as long as no fence stands.
            Err(fault) if fault.recovery == Recovery::Operator && self.fenced.borrow().is_none() => {
                (Err(fault), self.tidy().await)
            }
            Err(fault) => (Err(fault.clone()), Err(fault)),
        };
        // Whoever asked may have gone; the journal has it.
        let _ = answer.send(told);
        ended
    }

    async fn obey(
        &self,
        (asked, from, of): (Asked, Side, Option<Epoch>),
        overrides: Vec<Override>,
        by: &str,
        progress: watch::Sender<Progress>,
    ) -> Outcome<Answer> {
        self.can_begin()?;
        let way_back_armed = self.ensure_way_back(&progress).await?;
        let (rows, owner) = self.owned().await?;
        let epoch = rows.of(owner).map_or(Epoch(0), |row| row.ownership.epoch());
        // They are there; or the writes have changed hands since it was asked.
        if owner != from || of.is_some_and(|of| of != epoch) {
            return Ok(Answer::already(owner, epoch));
        }
        let found = self.beginning(asked, owner, &overrides).await?;
        let blockers = &found.blockers;
        if !blockers.is_empty() {
            self.journal.note("switch-refused", json!({ "asked": asked, "by": by, "blockers": blockers }));
            return Ok(Answer::refused(blockers).arming(way_back_armed));
        }
        self.journal.note("switch-begun", found.begun(asked, by, &overrides));
        let mut walk = Walk::new(asked, Some(progress)).knowing(found.unready, found.unlike);
        self.walk(&mut walk).await?;
        let (rows, now) = self.owned().await?;
        let epoch = rows.of(now).map_or(Epoch(0), |row| row.ownership.epoch());
        let answer = walk.answer(owner, now, epoch).arming(way_back_armed);
        let kind = match (&answer, now) {
            (Answer::Switched(_), Side::Target) => "switched",
            (Answer::Switched(_), Side::Source) => "reversed",
            (Answer::Rehearsed(_), _) => {
                if now == Side::Source {
                    self.journal.rehearsed(self.driver.control.now_us().await?);
                }
                REHEARSED
            }
            (Answer::Already(_) | Answer::Refused { .. } | Answer::Undone(_), _) => "switch-undone",
        };
        self.journal.note(kind, json!(answer));
        Ok(answer)
    }

    /// Both rows, and who owns the writes.
    async fn owned(&self) -> Outcome<(Rows, Side)> {
        let since = Instant::now();
        loop {
            let rows = Rows::read(&self.source, &self.target).await?;
            match rows.owner() {
                Some(owner) => return Ok((rows, owner)),
                None if since.elapsed() < SILENCE_MAX => sleep(LOOK_AGAIN).await,
                None => return Err(Fault::retry("SEGUE-NO-OWNER", "it is not known who owns the writes")),
            }
        }
    }

    /// A side's fence, on all tables that are there now.
    async fn prepare_fence(&self, side: Side) -> Outcome<()> {
        let client = self.endpoint(side).connect("switch").await?;
        let tables = self.flows.forward.tables.iter();
        let (tables, role): (Vec<QualifiedName>, _) = match side {
            Side::Source => (tables.map(|t| t.source.clone()).collect(), fence::Role::Owner),
            Side::Target => (tables.map(|t| t.target.clone()).collect(), fence::Role::Follower),
        };
        let (authority, elsewhere) = ((self.migration(), self.lease.token), self.endpoint(side.other()));
        fence::prepare(&client, authority, &tables, role, &elsewhere.address()).await?;
        self.endpoint(side).keep(client);
        Ok(())
    }

    /// Walks until what was asked is so, or undone, and nothing of it is left.
    async fn walk(&self, walk: &mut Walk) -> Outcome<()> {
        let hold = self.driver.spec.switch.max_write_hold;
        let mut contradictions = 0;
        let mut silent_since = None;
        loop {
            let rows = Rows::read(&self.source, &self.target).await?;
            self.driver.nobody_owns.store(rows.owner().is_none(), Ordering::Relaxed);
            self.flows.note(&rows);
            self.unless_paused(&rows, walk);
            if let Some(why) = self.given_up.borrow().clone().filter(|_| walk.asked != Asked::Nothing) {
                walk.give_up(why, Vec::new());
            }
            let facts = walk.facts(&rows, self.applied(&rows), hold);
            let decision = decide(&facts);
            if !matches!(decision, Decision::Contradiction { .. }) {
                contradictions = 0;
            }
            if !matches!(decision, Decision::AskOldOwner(_) | Decision::Wait(WaitFor::NewSide(_))) {
                silent_since = None;
            }
            match decision {
                Decision::Act(turn) => {
                    if let Did::NotNow { why, holders } = self.act(turn, &rows, walk).await? {
                        walk.give_up(why, holders);
                    }
                }
                Decision::Undo(turn) => {
                    if walk.asked != Asked::Nothing
                        && !(walk.asked == Asked::Rehearse && walk.settled.is_some())
                    {
                        let holders = std::mem::take(&mut walk.in_the_way);
                        walk.give_up(self.why_undone(walk), holders);
                    }
                    self.undo(turn, walk).await?;
                }
                Decision::Wait(WaitFor::Marker(_)) => self.drain(&rows, walk).await?,
                Decision::Wait(WaitFor::NewSide(side)) => {
                    look_again(
                        &mut silent_since,
                        &format!("the {side}, where the writes would go, is silent"),
                    )
                    .await?;
                }
                Decision::Done => {
                    walk.ends();
                    walk.paused = None;
                    return Ok(());
                }
                Decision::AskOldOwner(_) => {
                    look_again(&mut silent_since, "the side that may own the writes is silent").await?;
                }
                Decision::Contradiction { source, target } => {
                    contradictions += 1;
                    if contradictions > CONTRADICTIONS_MAX {
                        let what = "the ownership rows cannot both be true: the source says";
                        return Err(contradiction(&format!("{what} `{source}`, the target `{target}`")));
                    }
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
    }

    /// Past the point of no return the stream has to arrive, whoever paused it: nobody takes the writes before.
    fn unless_paused(&self, rows: &Rows, walk: &mut Walk) {
        let limits = self.driver.throttle.limits();
        if let (Some(_), Some(why)) = (rows.giving(), limits.paused) {
            match &mut walk.paused {
                Some(unpaused) => unpaused.go_on(why),
                None => walk.paused = Some(Unpaused::begin(self.driver.throttle.clone(), why)),
            }
        }
    }

    fn why_undone(&self, walk: &Walk) -> String {
        let held_ms = walk.elapsed().as_millis();
        let hold_ms = self.driver.spec.switch.max_write_hold.as_millis();
        if walk.begun.is_none() && walk.blocked > 0 {
            return format!(
                "the tables could not be locked, in {} tries, while writes may be held ({hold_ms} ms)",
                walk.blocked
            );
        }
        if held_ms >= hold_ms {
            return format!("writes had been held for {held_ms} ms, of {hold_ms} ms allowed");
        }
        "the fence was taken back before the hand-over".to_owned()
    }
}

/// Waits a moment for a side that is silent; for too long, and the attempt begins anew, with other sessions.
async fn look_again(since: &mut Option<Instant>, what: &str) -> Outcome<()> {
    if since.get_or_insert_with(Instant::now).elapsed() >= SILENCE_MAX {
        return Err(Fault::retry("SEGUE-NO-OWNER", what));
    }
    sleep(LOOK_AGAIN).await;
    Ok(())
}

/// What handing the writes over from `owner` is called.
pub(super) fn move_from(owner: Side) -> Move {
    match owner {
        Side::Source => Move::Writes,
        Side::Target => Move::Reverse,
    }
}

/// Who is in the way, in words.
fn named(blockers: &[Blocker]) -> Vec<String> {
    blockers.iter().map(ToString::to_string).collect()
}
