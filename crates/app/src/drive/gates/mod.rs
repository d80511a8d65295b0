//! The evidence of a switch's gates: measured on both sides, kept over restarts, and judged.
//!
//! One [`Gates`] lives as long as an attempt and looks about once a second. What can be asked for nothing is asked each
//! time; the catalogs, and what is wrong with a server anyway, every [`SLOW`]. A side that cannot be looked at now is no
//! fault of the migration: what depends on it is not measured, which is red, and the reason is among the troubles.
//!
//! All times are the control database's. It decides nothing; [`segue_model::switch::gates`] judges, the switch asks.

mod born;
mod comparisons;
mod ddl;
mod environment;
mod mirrored;
mod series;
mod sessions;
mod side;
#[cfg(test)]
mod tests;

use super::Driver;
use crate::report::{GateState, LiveVerification};
use crate::sides::Sides;
use born::Born;
pub(crate) use comparisons::Comparisons;
pub(super) use comparisons::SERIES as VERIFICATIONS;
use ddl::Forms;
pub(super) use environment::BASELINE;
use environment::Surroundings;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::Profile;
use segue_model::switch::Side;
use segue_model::switch::gates::{
    Bounds, Difference, Evidence, Gate, Headroom, Move, Opposite, Replica, Share, TABLE, Verdict, Verified,
    asks, judge, not_asked,
};
use segue_postgres::control::{Control, Lease, NewSample, Standing};
use series::Measurements;
use sessions::Remembered;
use side::{OldSide, Watch};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often catalogs are compared, and the servers' own troubles collected.
const SLOW: Duration = Duration::from_secs(10);
/// How often both catalogs are read as for a plan.
const PLAN: Duration = Duration::from_secs(60);
/// How often samples that are too old are removed.
const PRUNE: Duration = Duration::from_secs(3600);

const LAG: &str = "lag";
/// The series of what live comparison has come to.
pub(super) const DRIFT: &str = "drift";

/// What the driver itself knows; everything else is looked up.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The stream's lag.
    pub(crate) lag_ms: u64,
    /// What live comparison has come to since this attempt began.
    pub(crate) live: LiveVerification,
    /// The opposite stream, if it is known.
    pub(crate) opposite: Option<Opposite>,
    /// Sequences that cannot be set on the new side, if that was looked at.
    pub(crate) sequences_unready: Option<Vec<String>>,
    /// When the last rehearsal succeeded, as the journal has it.
    pub(crate) rehearsed_us: Option<i64>,
    /// Who owns the writes now.
    pub(crate) owner: Side,
}

/// When something was last done.
#[derive(Debug, Default)]
struct Last(Option<Instant>);

impl Last {
    /// Whether it is time again; if so, it counts as done now.
    fn is_due(&mut self, every: Duration) -> bool {
        let due = self.0.is_none_or(|at| at.elapsed() >= every);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
}

/// What is not looked at each time, as it was last seen.
#[derive(Debug, Default)]
struct Slowly {
    compared: Last,
    planned: Last,
    /// The columns as this attempt first saw them.
    first: Option<Forms>,
    /// How they differ now, and what stands in the way of the plan.
    differences: Option<Vec<String>>,
    refusals: Option<Vec<String>>,
    /// What the target's tables have not, or have for themselves.
    parity: Option<Vec<Difference>>,
    /// What is wrong with either server.
    trouble: Vec<String>,
    /// What writes past either side's fence.
    past_fence: Option<Vec<String>>,
}

/// What one look at both sides has found; `None` where it could not be looked.
#[derive(Debug, Default)]
struct Seen {
    old: Option<OldSide>,
    new: Option<(Vec<Replica>, u64)>,
}

/// Measures the gates' evidence, and remembers what it came to.
pub(crate) struct Gates<'d> {
    control: Arc<Control>,
    lease: &'d Lease,
    /// What the gates ask for: the profile's bounds, as the spec moves them.
    bounds: Bounds,
    migration: String,
    born: Born,
    /// The operator lets sessions lose what they hold and cannot take along.
    accept_session_state: bool,
    /// How many of the compared reads may differ.
    mismatch_percent_max: f64,
    /// Since when rows that verifications leave unsettled are remembered by this attempt.
    opened_us: i64,
    source: Watch,
    target: Watch,
    measurements: Measurements,
    counted: mirrored::Counted,
    comparisons: Comparisons,
    sessions: Remembered,
    slowly: Slowly,
    surroundings: Surroundings,
    pruned: Last,
    /// Sides that could not be looked at the last time, and why.
    unseen: Vec<String>,
    /// The last answer of every gate, in the order of [`TABLE`], and since when it is of that colour.
    verdicts: Vec<(Gate, Verdict, i64)>,
}

impl<'d> Gates<'d> {
    /// Loads what earlier attempts have measured. The stream must have been born.
    pub(crate) async fn open(driver: &'d Driver, lease: &'d Lease) -> Outcome<Gates<'d>> {
        let (profile, migration) = (driver.spec.profile, driver.spec.name.as_str());
        let gates = Gates::over(driver.control.clone(), lease, &driver.sides, profile, migration).await?;
        let mismatch_percent_max =
            driver.spec.router.as_ref().map_or(0.0, |router| router.mirror.mismatch_percent_max);
        let accept_session_state = driver.spec.switch.accept_session_state;
        let bounds = driver.spec.switch.gates;
        Ok(Gates { accept_session_state, mismatch_percent_max, bounds, ..gates })
    }

    async fn over(
        control: Arc<Control>,
        lease: &'d Lease,
        sides: &Sides,
        profile: Profile,
        migration: &str,
    ) -> Outcome<Gates<'d>> {
        let journal = control.journal(0).await?;
        let born = Born::read(&journal)?;
        let opened_us = control.now_us().await?;
        let lag = control.samples(LAG, Bounds::LAG_WINDOW_MAX).await?;
        let drift = control.samples(DRIFT, Bounds::WINDOW_MAX).await?;
        let verifications = control.samples(comparisons::SERIES, Bounds::WINDOW_MAX).await?;
        let matches = control.samples(mirrored::SERIES, Bounds::WINDOW_MAX).await?;
        let comparisons = Comparisons::new(control.clone(), lease.clone());
        Ok(Gates {
            control,
            lease,
            bounds: Bounds::of(profile),
            migration: migration.to_owned(),
            born,
            accept_session_state: false,
            mismatch_percent_max: 0.0,
            opened_us,
            source: Watch::of(sides.source.marked(migration)),
            target: Watch::of(sides.target.marked(migration)),
            measurements: Measurements::load(&lag, &drift, &verifications).with_matches(&matches),
            counted: Default::default(),
            comparisons,
            sessions: Remembered::default(),
            slowly: Slowly::default(),
            surroundings: Surroundings::new(profile, &journal),
            pruned: Last::default(),
            unseen: Vec::new(),
            verdicts: Vec::new(),
        })
    }

    /// Looks at everything that is due, and judges it. To be called about once a second; [`Gates::expire`] before it is
    /// relied upon. Fails only if the control database cannot be asked, or another driver has taken over.
    pub(crate) async fn look(&mut self, measured: Measured) -> Outcome<Evidence> {
        let seen = self.look_at_sides(measured.owner).await;
        let standing = self.control.standing(self.born.at_us, self.opened_us).await?;
        let routers = self.control.routers().await?;
        let mirrored = mirrored::of(&routers, self.mismatch_percent_max);
        for sample in self.comparisons.take() {
            self.measurements.verified(sample);
        }
        let live = Share { part: measured.live.divergent, whole: measured.live.compared };
        self.measurements.measured(standing.now_us, measured.lag_ms, live);
        self.measurements.compared(self.counted.more(&routers));
        self.store(standing.now_us).await?;
        let evidence = Evidence { mirrored: Some(mirrored), ..self.evidence(measured, seen, &standing) };
        self.judge(&evidence);
        Ok(evidence)
    }

    /// The next look leaves nothing out.
    pub(crate) fn expire(&mut self) {
        self.slowly.compared = Last::default();
        self.slowly.planned = Last::default();
    }

    /// Where verifications say what they have compared.
    pub(crate) fn comparisons(&self) -> Comparisons {
        self.comparisons.clone()
    }

    /// The gates that `what` asks for, as the last look left them. None before the first.
    pub(crate) fn state(&self, what: Move) -> Vec<GateState> {
        let asked = self.verdicts.iter().filter(|(gate, _, _)| gate.line().asked_by.contains(&what));
        asked.map(|(gate, verdict, since_us)| state_of(*gate, verdict, *since_us, &self.bounds)).collect()
    }

    /// What is wrong with the servers, and why a side could not be looked at, a line each.
    pub(crate) fn trouble(&self) -> Vec<String> {
        self.unseen.iter().chain(&self.slowly.trouble).cloned().chain(self.surroundings.unlike()).collect()
    }

    async fn look_at_sides(&mut self, owner: Side) -> Seen {
        let (old_tables, (old, new)) = match owner {
            Side::Source => (self.born.sources(), (&mut self.source, &mut self.target)),
            Side::Target => (self.born.targets(), (&mut self.target, &mut self.source)),
        };
        let (found_old, found_new) = tokio::join!(old.old_side(&self.migration, &old_tables), new.new_side());
        self.unseen.clear();
        let seen = Seen {
            old: note(&mut self.unseen, owner, found_old),
            new: note(&mut self.unseen, owner.other(), found_new),
        };
        if !self.unseen.is_empty() {
            // Nobody is asked more who does not answer this; both are, at once, when they do.
            self.slowly.differences = None;
            self.expire();
            return seen;
        }
        if self.slowly.compared.is_due(SLOW) {
            self.look_slowly().await;
            // It decides nothing: a side that does not answer is not asked again for it.
            if self.unseen.is_empty() {
                self.look_around(owner).await;
            }
        }
        if self.slowly.planned.is_due(PLAN) {
            self.plan_again(owner).await;
        }
        seen
    }

    /// Compares the catalogs with what was, and asks both servers for their own troubles.
    async fn look_slowly(&mut self) {
        let (sources, targets) = (self.born.sources(), self.born.targets());
        let (source, target) = tokio::join!(
            self.source.slowly(&self.migration, &sources),
            self.target.slowly(&self.migration, &targets),
        );
        self.slowly.trouble.clear();
        let (mut forms, mut past_fence) = (Vec::new(), Vec::new());
        for (side, found) in [(Side::Source, source), (Side::Target, target)] {
            let Some(found) = note(&mut self.unseen, side, found) else { continue };
            past_fence.extend(found.past_fence.into_iter().map(|what| format!("{side}: {what}")));
            self.slowly.trouble.extend(found.trouble.into_iter().map(|what| format!("{side}: {what}")));
            forms.push(found.columns);
        }
        self.slowly.trouble.extend(past_fence.iter().cloned());
        self.slowly.past_fence = (forms.len() == 2).then_some(past_fence);
        self.slowly.differences = match <[_; 2]>::try_from(forms) {
            Ok([source, target]) => {
                let now = Forms { source, target };
                let first = self.slowly.first.get_or_insert_with(|| now.clone());
                Some(ddl::differences(&self.born, first, &now))
            }
            // Asked again with the next look.
            Err(_) => {
                self.slowly.compared = Last::default();
                None
            }
        };
    }

    /// Reads both catalogs as for a plan, and keeps what stands in its way now.
    async fn plan_again(&mut self, owner: Side) {
        let refusals = side::refusals((&mut self.source, &mut self.target), &self.born.pairs(), owner).await;
        self.slowly.refusals = match refusals {
            Ok(refusals) => Some(refusals),
            Err(fault) => {
                self.slowly.planned = Last::default();
                self.unseen.push(format!("both catalogs could not be compared: {fault}"));
                None
            }
        };
        self.slowly.parity = match owner {
            Side::Source => self.compare_again().await,
            // Who goes back is not asked.
            Side::Target => None,
        };
    }

    /// Compares what belongs to the tables.
    async fn compare_again(&mut self) -> Option<Vec<Difference>> {
        match side::parity((&mut self.source, &mut self.target), &self.born.pairs()).await {
            Ok(found) => Some(found),
            Err(fault) => {
                self.slowly.planned = Last::default();
                self.unseen.push(format!("what belongs to the tables could not be compared: {fault}"));
                None
            }
        }
    }

    /// Stores what was measured since the last time, every ten seconds.
    async fn store(&mut self, now_us: i64) -> Outcome<()> {
        let Some((lag_ms, live)) = self.measurements.due(now_us) else { return Ok(()) };
        let matches = self.measurements.due_matches();
        let samples = [
            NewSample { series: LAG, part: lag_ms, whole: 0 },
            NewSample { series: DRIFT, part: live.part, whole: live.whole },
            NewSample { series: mirrored::SERIES, part: matches.part, whole: matches.whole },
        ];
        let at_us = self.control.append_samples(self.lease, &samples).await?;
        self.measurements.stored(at_us);
        if self.pruned.is_due(PRUNE) {
            self.control.prune_samples(self.lease, Bounds::WINDOW_MAX).await?;
        }
        Ok(())
    }

    fn evidence(&mut self, measured: Measured, seen: Seen, standing: &Standing) -> Evidence {
        let needed = seen.old.as_ref().map(|old| old.application_sessions);
        let (replicas, free) = seen.new.map_or((None, None), |(replicas, free)| (Some(replicas), Some(free)));
        let mut old = seen.old.unwrap_or_default();
        if self.accept_session_state {
            old.sessions_with_state = old.sessions_with_state.map(|_| Vec::new());
        }
        Evidence {
            now_us: standing.now_us,
            lag_ms: self.measurements.lag_ms(),
            drift: self.measurements.drift(standing.now_us, self.bounds.drift_window),
            matches: self.measurements.matches(),
            mirrored: None,
            verified: Some(self.verified(standing)),
            divergences_open: Some(standing.open),
            opposite: measured.opposite,
            sequences_unready: measured.sequences_unready,
            rehearsed_us: measured.rehearsed_us,
            ddl_differences: self
                .slowly
                .differences
                .clone()
                .zip(self.slowly.refusals.clone())
                .map(|(a, b)| [a, b].concat()),
            parity: self.slowly.parity.clone(),
            transactions: old.transactions,
            replicas,
            connections: free.zip(needed).map(|(free, needed)| Headroom { free, needed }),
            wraparound_vacuums: old.wraparound_vacuums,
            sessions_with_state: old.sessions_with_state.map(|found| self.sessions.known(found)),
            ways_past_fence: self.slowly.past_fence.clone(),
        }
    }

    fn verified(&self, standing: &Standing) -> Verified {
        let ended: Vec<i64> =
            self.born.tables.iter().filter_map(|table| standing.verified.get(&table.id).copied()).collect();
        Verified {
            oldest_us: ended.iter().copied().min().unwrap_or(standing.now_us),
            tables_left: (self.born.tables.len() - ended.len()) as u64,
        }
    }

    fn judge(&mut self, evidence: &Evidence) {
        let before = std::mem::take(&mut self.verdicts);
        let now = TABLE.iter().map(|line| {
            let previous = before.iter().find(|(gate, _, _)| *gate == line.gate);
            let verdict =
                judge(line.gate, &self.bounds, evidence).after(previous.map(|(_, verdict, _)| verdict));
            let since_us = since_us(&verdict, previous, evidence.now_us);
            (line.gate, verdict, since_us)
        });
        self.verdicts = now.collect();
    }
}

/// Since when a gate is of its colour.
fn since_us(verdict: &Verdict, previous: Option<&(Gate, Verdict, i64)>, now_us: i64) -> i64 {
    match (verdict, previous) {
        (Verdict::Green { since_us }, _) => *since_us,
        (Verdict::Red(_), Some((_, Verdict::Red(_), since_us))) => *since_us,
        (Verdict::Red(_), Some((_, Verdict::Green { .. }, _)) | None) => now_us,
    }
}

fn state_of(gate: Gate, verdict: &Verdict, since_us: i64, bounds: &Bounds) -> GateState {
    let (why, next) = match verdict {
        Verdict::Green { .. } => (String::new(), String::new()),
        Verdict::Red(red) => (red.why.clone(), red.next.clone()),
    };
    let green = matches!(verdict, Verdict::Green { .. });
    GateState {
        gate,
        green,
        since_us,
        why,
        next,
        protects_data: gate.line().protects_data,
        asks: asks(gate, bounds),
        not_asked: not_asked(gate, bounds).unwrap_or_default().to_owned(),
    }
}

/// What was found, or nothing and why.
fn note<T>(unseen: &mut Vec<String>, side: Side, found: Result<T, Fault>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(fault) => {
            let line = format!("the {side} could not be looked at: {fault}");
            if !unseen.contains(&line) {
                unseen.push(line);
            }
            None
        }
    }
}
