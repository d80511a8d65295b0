//! From signals to shares: additive increase, multiplicative decrease, and the order in which things yield.

use super::{Bound, Reading, Reason, Share, Signal, Watched};
use crate::switch::Side;
use std::time::Duration;

/// Between two decreases: what the last one has brought must be able to show.
const FALL_EVERY: Duration = Duration::from_millis(400);
/// Between two increases.
const RISE_EVERY: Duration = Duration::from_secs(1);
/// A signal ends when it has been clearly within its limit for so long: one that flaps does not.
const CALM: Duration = Duration::from_secs(3);
/// One that stays just within its limit ends after so long, or nothing would ever be given back.
const WITHIN: Duration = Duration::from_secs(30);
/// What could not be measured for so long is taken for exceeded; until then all stays as it is.
const UNKNOWN_MAX: Duration = Duration::from_secs(10);
/// With more than this part of its bound retained the stream does not yield any more.
const RETAINED_PART: f64 = 0.5;

/// What each part of Segue may use of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// The copy of rows.
    pub backfill: Share,
    /// Comparisons.
    pub verify: Share,
    /// The stream of changes.
    pub stream: Share,
}

impl Shares {
    /// Nothing yields.
    pub const fn are_full(self) -> bool {
        self.backfill.is_full() && self.verify.is_full() && self.stream.is_full()
    }
}

/// What a decision depends on beside the signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Rows are being copied: there is a copy that can yield.
    pub backfilling: bool,
    /// The side that the stream from the owner writes to; `None`: nobody owns the writes, so the stream must not be slowed.
    pub lands_on: Option<Side>,
}

/// What a decision comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// What is left.
    pub shares: Shares,
    /// Signals that have begun since the last decision.
    pub begun: Vec<Reason>,
    /// Signals that have ended since.
    pub ended: Vec<Watched>,
}

/// One signal, as its looks have left it.
#[derive(Clone, Debug)]
struct State {
    watched: Watched,
    bound: Bound,
    value: Option<f64>,
    /// The last value is beyond the limit, or there was none for too long.
    is_beyond: bool,
    /// That was found by a look which no decision has followed yet.
    is_news: bool,
    /// Since when there is no value, and why.
    missing: Option<(Duration, String)>,
    /// Since when the signal is on.
    begun: Option<Duration>,
    /// Since when it is clearly within its limit.
    calm: Option<Duration>,
    /// Since when it is within its limit at all.
    within: Option<Duration>,
    /// What to do about that it is not shown.
    hidden: Option<String>,
    /// Its beginning has been told.
    is_told: bool,
}

impl State {
    fn new(watched: Watched, bound: Bound) -> State {
        State {
            watched,
            bound,
            value: None,
            is_beyond: false,
            is_news: false,
            missing: None,
            begun: None,
            calm: None,
            within: None,
            hidden: None,
            is_told: false,
        }
    }

    fn look(&mut self, now: Duration, reading: Reading) {
        self.hidden = None;
        match reading {
            Reading::Value(value) if value.is_finite() => self.value(now, value),
            Reading::Fading(value) if value.is_finite() => {
                self.value(now, value);
                self.is_news = false;
            }
            Reading::Value(value) | Reading::Fading(value) => {
                self.unknown(now, format!("{value} is no number"))
            }
            Reading::Unknown(why) => self.unknown(now, why),
            Reading::Hidden(what) => {
                *self = State { hidden: Some(what), ..State::new(self.watched.clone(), self.bound) }
            }
        }
    }

    fn value(&mut self, now: Duration, value: f64) {
        (self.value, self.missing) = (Some(value), None);
        self.is_beyond = self.bound.is_exceeded(value);
        self.is_news = self.is_beyond;
        if self.is_beyond {
            self.begun.get_or_insert(now);
            (self.calm, self.within) = (None, None);
            return;
        }
        let since = |from: &mut Option<Duration>| now.saturating_sub(*from.get_or_insert(now));
        let within = since(&mut self.within);
        let calm = if self.bound.is_calm(value) { since(&mut self.calm) } else { Duration::ZERO };
        if !self.bound.is_calm(value) {
            self.calm = None;
        }
        if calm >= CALM || within >= WITHIN {
            self.begun = None;
        }
    }

    fn unknown(&mut self, now: Duration, why: String) {
        let since = self.missing.as_ref().map_or(now, |(since, _)| *since);
        self.missing = Some((since, why));
        (self.calm, self.within) = (None, None);
        if now.saturating_sub(since) >= UNKNOWN_MAX {
            (self.is_beyond, self.is_news) = (true, true);
            self.begun.get_or_insert(since);
        }
    }

    /// Nothing may be given back while it is so.
    fn holds(&self) -> bool {
        self.begun.is_some() || self.missing.is_some()
    }

    fn reason(&self, now: Duration) -> Reason {
        let overdue = self.missing.as_ref().filter(|_| self.is_beyond);
        let since = overdue.map(|(since, _)| *since).or(self.begun).unwrap_or(now);
        Reason {
            watched: self.watched.clone(),
            value: self.value,
            bound: self.bound,
            lasts: now.saturating_sub(since),
            missing: overdue.map(|(_, why)| why.clone()),
            is_beyond: self.is_beyond,
        }
    }
}

/// Decides what is left to each part. Times are of any clock that only goes forward.
#[derive(Clone, Debug)]
pub struct Governor {
    states: Vec<State>,
    shares: Shares,
    automatic: bool,
    fell: Option<Duration>,
    moved: Duration,
    /// Signals that were told of, and have ended or are not there any more.
    ended: Vec<Watched>,
}

impl Default for Governor {
    fn default() -> Governor {
        Governor {
            states: Vec::new(),
            shares: Shares::default(),
            automatic: true,
            fell: None,
            moved: Duration::ZERO,
            ended: Vec::new(),
        }
    }
}

impl Governor {
    /// A look at a signal has come to this.
    pub fn look(&mut self, now: Duration, watched: &Watched, bound: Bound, reading: Reading) {
        let at = self.states.iter().position(|state| state.watched == *watched).unwrap_or_else(|| {
            self.states.push(State::new(watched.clone(), bound));
            self.states.len() - 1
        });
        let state = &mut self.states[at];
        state.bound = bound;
        state.look(now, reading);
        if state.is_told && state.begun.is_none() {
            state.is_told = false;
            self.ended.push(watched.clone());
        }
    }

    /// A look at the standbys of `side` has shown these and no others. One that is gone is forgotten, unless it was late:
    /// then it is waited for a while, because it may come back as late as it was.
    pub fn look_at_replicas(
        &mut self,
        now: Duration,
        side: Side,
        bound: Bound,
        replicas: impl IntoIterator<Item = (String, Reading)>,
    ) {
        let mut shown = Vec::new();
        for (name, reading) in replicas {
            let watched = Watched { signal: Signal::ReplicaLag, side: Some(side), name };
            self.look(now, &watched, bound, reading);
            shown.push(watched);
        }
        let ended = &mut self.ended;
        self.states.retain_mut(|state| {
            let is_gone = state.watched.signal == Signal::ReplicaLag
                && state.watched.side == Some(side)
                && !shown.contains(&state.watched);
            if !is_gone {
                return true;
            }
            let since = state.missing.get_or_insert_with(|| (now, "it is not connected".to_owned())).0;
            let is_waited_for = state.begun.is_some() && now.saturating_sub(since) < UNKNOWN_MAX;
            if !is_waited_for && state.is_told {
                ended.push(state.watched.clone());
            }
            is_waited_for
        });
    }

    /// A look at the standbys of `side` did not come to its end: of none of them anything is known.
    pub fn replicas_unknown(&mut self, now: Duration, side: Side, why: &str) {
        let is = |state: &&mut State| {
            state.watched.signal == Signal::ReplicaLag && state.watched.side == Some(side)
        };
        self.states.iter_mut().filter(is).for_each(|state| state.unknown(now, why.to_owned()));
    }

    /// A signal is not measured any more.
    pub fn forget(&mut self, watched: &Watched) {
        let ended = &mut self.ended;
        self.states.retain(|state| {
            let stays = state.watched != *watched;
            if !stays && state.is_told {
                ended.push(watched.clone());
            }
            stays
        });
    }

    /// Lets signals lower shares, or lets none but the bound of the retained log do so.
    pub fn set_automatic(&mut self, automatic: bool) {
        self.automatic = automatic;
    }

    /// Whether all signals count.
    pub fn is_automatic(&self) -> bool {
        self.automatic
    }

    /// What is left now.
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Decides anew. To be called often: it paces itself.
    pub fn decide(&mut self, now: Duration, facts: Facts) -> Decided {
        let automatic = self.automatic;
        let counts = |state: &&State| automatic || state.watched.signal == Signal::RetainedWal;
        let news: Vec<Watched> =
            self.states.iter().filter(counts).filter(|s| s.is_news).map(|s| s.watched.clone()).collect();
        let holds = self.states.iter().filter(counts).any(State::holds);
        if !automatic {
            (self.shares.verify, self.shares.stream) = (Share::FULL, Share::FULL);
        }
        if !self.stream_may_yield(facts) {
            self.shares.stream = Share::FULL;
        }
        let may_fall = self.fell.is_none_or(|fell| now.saturating_sub(fell) >= FALL_EVERY);
        if !news.is_empty() && may_fall {
            self.fall(&news, facts);
            (self.fell, self.moved) = (Some(now), now);
            self.states.iter_mut().for_each(|state| state.is_news = false);
        } else if !automatic && !holds {
            self.shares = Shares::default();
        } else if !holds && now.saturating_sub(self.moved) >= RISE_EVERY {
            self.rise();
            self.moved = now;
        }
        let mut begun = Vec::new();
        for state in self.states.iter_mut().filter(|state| state.begun.is_some() && !state.is_told) {
            state.is_told = true;
            begun.push(state.reason(now));
        }
        Decided { shares: self.shares, begun, ended: std::mem::take(&mut self.ended) }
    }

    /// Who yields for these signals: the copy; once it has nothing left to give, comparisons; then the stream.
    fn fall(&mut self, signals: &[Watched], facts: Facts) {
        let shares = &mut self.shares;
        if signals.iter().any(|watched| watched.signal == Signal::RetainedWal) {
            // The copy makes the stream wait, and no part of a bound is left to be tried out.
            shares.backfill = Share::NOTHING;
        }
        if facts.backfilling && !shares.backfill.is_nothing() {
            shares.backfill = shares.backfill.halved();
            return;
        }
        if !self.automatic {
            return;
        }
        shares.backfill = shares.backfill.halved();
        if !shares.verify.is_nothing() {
            shares.verify = shares.verify.halved();
            return;
        }
        let eased = |watched: &Watched| {
            watched.signal.is_eased_by_the_stream()
                && watched.side.is_some()
                && watched.side == facts.lands_on
        };
        if signals.iter().any(eased) && self.stream_may_yield(facts) {
            let shares = &mut self.shares;
            shares.stream = shares.stream.halved().max(Share::LEAST_OF_A_STREAM);
        }
    }

    /// Gives back in the opposite order: to the stream; then to comparisons twice as fast as to the copy.
    fn rise(&mut self) {
        let Shares { backfill, verify, stream } = &mut self.shares;
        if !stream.is_full() {
            *stream = stream.raised();
            return;
        }
        *verify = verify.raised().raised();
        *backfill = backfill.raised();
    }

    /// Not while nobody owns the writes, and not while log piles up, or might without anybody seeing it.
    fn stream_may_yield(&self, facts: Facts) -> bool {
        let forbids = |state: &State| match state.watched.signal {
            Signal::RetainedWal => {
                state.missing.is_some()
                    || state.value.is_none_or(|value| value >= state.bound.number() * RETAINED_PART)
            }
            Signal::ApplyLag => state.holds(),
            Signal::ReplicaLag
            | Signal::ActiveSessions
            | Signal::LockWaits
            | Signal::Answer
            | Signal::ProbeWrite
            | Signal::Query => false,
        };
        let is_known = self.states.iter().any(|state| state.watched.signal == Signal::RetainedWal);
        facts.lands_on.is_some() && is_known && !self.states.iter().any(forbids)
    }

    /// Why things yield, the longest-lasting first. While automatic limits are off, only what counts all the same.
    pub fn reasons(&self, now: Duration) -> Vec<Reason> {
        let counts = |state: &&State| {
            state.begun.is_some() && (self.automatic || state.watched.signal == Signal::RetainedWal)
        };
        let mut reasons: Vec<Reason> =
            self.states.iter().filter(counts).map(|state| state.reason(now)).collect();
        reasons.sort_by_key(|reason| (!reason.is_beyond, std::cmp::Reverse(reason.lasts)));
        reasons
    }

    /// Signals that are not shown to Segue's role, and so are not watched.
    pub fn unwatched(&self) -> Vec<String> {
        let words = |state: &State| {
            let what = state.hidden.as_ref()?;
            Some(format!("{} is not watched on {}: {what}", state.watched.what(), state.watched.place()))
        };
        self.states.iter().filter_map(words).collect()
    }
}
