//! What a run of hand-overs has come to, and how it is shown.

use super::super::measure::{median, percentile};
use super::clients::{Ack, CLIENTS, Seen};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Instant;

/// The steps in their order; the last one includes closing the old side for good, when the new one is open already.
const STEPS: [&str; 7] = ["arm", "hold", "fence", "drain", "settle", "flip", "open"];

/// One order, and what came of it.
#[derive(Debug)]
pub(super) struct Hand {
    pub(super) asked: Instant,
    pub(super) answered: Instant,
    pub(super) outcome: Outcome,
}

/// How an order was answered.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// The writes have moved.
    Switched {
        /// As Segue reports it.
        stall_ms: f64,
        /// A step that was repeated is there more than once.
        steps: Vec<(String, f64)>,
    },
    /// They have not, and the owner is who it was.
    Undone { why: String, stall_ms: f64 },
    /// It did not begin.
    Refused(String),
    /// The driver could not go on.
    Fault(String),
}

impl Outcome {
    pub(super) fn of(answer: &Value) -> Outcome {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let stall_ms = answer["stall_ms"].as_f64().unwrap_or_default();
        match answer["outcome"].as_str() {
            Some("switched") => {
                let steps = answer["steps"].as_array().into_iter().flatten();
                let steps =
                    steps.map(|step| (text(&step["step"]), step["took_ms"].as_f64().unwrap_or_default()));
                Outcome::Switched { stall_ms, steps: steps.collect() }
            }
            Some("undone") => Outcome::Undone { why: text(&answer["why"]), stall_ms },
            Some("refused") => Outcome::Refused(answer["blockers"].to_string()),
            _ => Outcome::Fault(answer.to_string()),
        }
    }
}

impl Hand {
    /// For whoever watches the run.
    pub(super) fn line(&self) -> String {
        let took_ms = (self.answered - self.asked).as_millis();
        match &self.outcome {
            Outcome::Switched { stall_ms, steps } => {
                let steps: Vec<String> = steps.iter().map(|(step, ms)| format!("{step} {ms:.1}")).collect();
                format!("stall {stall_ms:.1} ms of {took_ms} ms ({})", steps.join(", "))
            }
            other => format!("{other:?} in {took_ms} ms"),
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) hands: Vec<Hand>,
    /// For each hand-over, the bare commits.
    pub(super) floor_ms: Vec<f64>,
    /// In the order in which they came.
    pub(super) acks: Vec<Ack>,
    errors: BTreeMap<String, u64>,
    /// Acknowledged writes that the owner does not have.
    pub(super) lost: usize,
}

impl Found {
    pub(super) fn seen(&mut self, seen: Seen) {
        self.acks = seen.acks;
        self.acks.sort_by_key(|ack| ack.at);
        self.errors = seen.errors;
    }

    /// The longest time without any acknowledgement that touches a stretch of time.
    fn gap_between(&self, from: Instant, to: Instant) -> f64 {
        let gaps = self.acks.windows(2).filter(|pair| pair[1].at > from && pair[0].at < to);
        gaps.map(|pair| ms(pair[0].at, pair[1].at)).fold(0.0, f64::max)
    }

    fn gaps_ms(&self) -> Vec<f64> {
        self.gaps_around(self.moved())
    }

    /// Around every order, whatever came of it.
    pub(super) fn gaps_of_all_ms(&self) -> Vec<f64> {
        self.gaps_around(self.hands.iter())
    }

    fn gaps_around<'a>(&self, hands: impl Iterator<Item = &'a Hand>) -> Vec<f64> {
        hands.map(|hand| self.gap_between(hand.asked, hand.answered)).collect()
    }

    /// The gap in acknowledged writes that a share of the hand-overs does not exceed.
    pub(super) fn gap_ms(&self, share: f64) -> f64 {
        percentile(&self.gaps_ms(), share)
    }

    /// The same where nothing was handed over.
    fn quiet_ms(&self) -> Vec<f64> {
        let between = self.hands.windows(2).map(|pair| (pair[0].answered, pair[1].asked));
        between.map(|(from, to)| self.gap_between(from, to)).collect()
    }

    /// The longest that a transaction of those clients took around each hand-over.
    fn waits_ms(&self, is_of: impl Fn(&Ack) -> bool) -> Vec<f64> {
        self.waits_around(self.moved(), is_of)
    }

    /// The longest that any client's transaction took around every order, whatever came of it.
    pub(super) fn client_stalls_ms(&self) -> Vec<f64> {
        self.waits_around(self.hands.iter(), |_| true)
    }

    fn waits_around<'a>(
        &self,
        hands: impl Iterator<Item = &'a Hand>,
        is_of: impl Fn(&Ack) -> bool,
    ) -> Vec<f64> {
        let of = |hand: &Hand| {
            let touches = |ack: &&Ack| is_of(ack) && ack.touches(hand.asked, hand.answered);
            self.acks.iter().filter(touches).map(Ack::took_ms).fold(0.0, f64::max)
        };
        hands.map(of).collect()
    }

    /// How much longer than the median of those that came by no hand-over the slowest transaction of each client took
    /// around every order, whatever came of it.
    pub(super) fn added_ms(&self) -> Vec<f64> {
        let is_calm = |ack: &&Ack| !self.hands.iter().any(|hand| ack.touches(hand.asked, hand.answered));
        let calm: Vec<f64> = self.acks.iter().filter(is_calm).map(Ack::took_ms).collect();
        let usual = median(&calm);
        let of = |client| self.waits_around(self.hands.iter(), move |ack| ack.client == client);
        // Nobody has written at all in a time that is shorter than from one transaction to the next.
        (0..CLIENTS).flat_map(of).filter(|ms| *ms > 0.0).map(|ms| (ms - usual).max(0.0)).collect()
    }

    /// The median of each step, those first that came first.
    pub(super) fn steps_text(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for hand in self.moved() {
            if let Outcome::Switched { steps, .. } = &hand.outcome {
                for (name, _) in steps {
                    if !names.contains(&name.as_str()) {
                        names.push(name);
                    }
                }
            }
        }
        let each = names.iter().map(|name| format!("{name} {:.1}", median(&self.step_ms(name))));
        each.collect::<Vec<_>>().join(", ")
    }

    /// How many errors the clients met.
    pub(super) fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Which, and how often; nothing of none.
    pub(super) fn errors_text(&self) -> String {
        let errors = self.errors.iter().map(|(kind, count)| format!("{count} × `{kind}`"));
        errors.collect::<Vec<_>>().join(", ")
    }

    /// Hand-overs that came to nothing.
    pub(super) fn not_moved(&self) -> usize {
        self.hands.len() - self.moved().count()
    }

    fn moved(&self) -> impl Iterator<Item = &Hand> {
        self.hands.iter().filter(|hand| matches!(hand.outcome, Outcome::Switched { .. }))
    }

    fn stalls_ms(&self) -> Vec<f64> {
        let stalls = self.hands.iter().filter_map(|hand| match &hand.outcome {
            Outcome::Switched { stall_ms, .. } => Some(*stall_ms),
            Outcome::Undone { .. } | Outcome::Refused(_) | Outcome::Fault(_) => None,
        });
        stalls.collect()
    }

    /// All of one step in one hand-over.
    fn step_ms(&self, name: &str) -> Vec<f64> {
        let steps = self.hands.iter().filter_map(|hand| match &hand.outcome {
            Outcome::Switched { steps, .. } => Some(
                steps.iter().filter(|(step, _)| step == name).map(|(_, ms)| ms).fold(0.0, |all, ms| all + ms),
            ),
            Outcome::Undone { .. } | Outcome::Refused(_) | Outcome::Fault(_) => None,
        });
        steps.collect()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::from("| | p50 ms | p99 ms | most ms |\n|---|---:|---:|---:|\n");
        let mut line = |what: &str, values: &[f64]| {
            let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| percentile(values, share));
            text.push_str(&format!("| {what} | {p50:.1} | {p99:.1} | {most:.1} |\n"));
        };
        line("gap in acknowledged writes", &self.gaps_ms());
        line("the same, between hand-overs", &self.quiet_ms());
        line("longest wait of a client with both sessions", &self.waits_ms(Ack::keeps_sessions));
        line("longest wait of a client that connects", &self.waits_ms(|ack| !ack.keeps_sessions()));
        line("stall, as segue reports it", &self.stalls_ms());
        for step in STEPS {
            line(&format!("… step `{step}`"), &self.step_ms(step));
        }
        line("floor: bare commits", &self.floor_ms);
        let ratio = percentile(&self.stalls_ms(), 0.5) / percentile(&self.floor_ms, 0.5);
        text.push_str(&format!("\nstall ÷ floor, of the p50: **{ratio:.1}**\n\n"));
        let not_moved = self.not_moved();
        text.push_str(&format!("{} hand-overs, of which {not_moved} were not done", self.hands.len()));
        for (why, times) in self.not_done() {
            text.push_str(&format!("; {times} × {why}"));
        }
        let errors = self.errors_text();
        text.push_str(&format!(
            ". {} writes acknowledged, {} lost; both sides equal at the end. What clients met: {}.\n",
            self.acks.len(),
            self.lost,
            if errors.is_empty() { "nothing" } else { &errors },
        ));
        text
    }

    /// Why, and how often.
    fn not_done(&self) -> BTreeMap<String, u64> {
        let mut reasons = BTreeMap::new();
        for hand in &self.hands {
            let why = match &hand.outcome {
                Outcome::Switched { .. } => continue,
                Outcome::Undone { why, stall_ms } => format!("undone after {stall_ms:.0} ms: {why}"),
                Outcome::Refused(why) => format!("refused: {why}"),
                Outcome::Fault(what) => format!("fault: {what}"),
            };
            *reasons.entry(why).or_default() += 1;
        }
        reasons
    }
}

impl Ack {
    /// Whether its transaction was under way at some time of a stretch.
    fn touches(&self, from: Instant, to: Instant) -> bool {
        self.at > from && self.began < to
    }

    fn took_ms(&self) -> f64 {
        ms(self.began, self.at)
    }
}

/// Milliseconds from one moment to a later one.
pub(super) fn ms(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    fn found(acks_ms: &[(u64, u64)], asked_ms: u64, answered_ms: u64) -> Found {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let ack = |&(began, done): &(u64, u64)| Ack {
            write: 0,
            is_lone: false,
            client: 0,
            began: at(began),
            at: at(done),
        };
        let outcome = Outcome::Switched { stall_ms: 1.0, steps: Vec::new() };
        let hand = Hand { asked: at(asked_ms), answered: at(answered_ms), outcome };
        let mut found = Found { hands: vec![hand], ..Found::default() };
        found.seen(Seen { acks: acks_ms.iter().map(ack).collect(), errors: BTreeMap::new() });
        found
    }

    #[test]
    fn a_gap_counts_where_it_touches_the_hand_over() {
        let found = found(&[(0, 5), (6, 300), (6, 302), (303, 310), (311, 900)], 290, 305);
        assert_eq!(found.gaps_ms(), [295.0], "the long one after the answer is not of the hand-over");
        assert_eq!(found.waits_ms(Ack::keeps_sessions), [296.0]);
        assert_eq!(found.waits_ms(|ack| ack.client == 1), [0.0], "nobody of that kind has written");
        assert_eq!(found.client_stalls_ms(), [296.0]);
    }

    #[test]
    fn what_is_added_is_beside_the_usual_and_of_those_who_wrote() {
        let found = found(&[(0, 5), (10, 13), (20, 120), (130, 134)], 30, 40);
        assert_eq!(found.added_ms(), [96.0], "one client of all, its usual 4 ms taken off");
    }

    #[test]
    fn an_answer_is_read_as_it_is_documented() {
        let steps = json!([{ "step": "fence", "took_ms": 3.0 }, { "step": "fence", "took_ms": 4.0 }]);
        let switched = json!({ "outcome": "switched", "owner": "target", "stall_ms": 12.5, "steps": steps });
        let mut found = found(&[], 0, 1);
        found.hands[0].outcome = Outcome::of(&switched);
        assert_eq!((found.stalls_ms(), found.step_ms("fence")), (vec![12.5], vec![7.0]));
        let fault = json!({ "fault": "gone", "code": "SEGUE-X", "next_step": "look" });
        assert!(matches!(Outcome::of(&fault), Outcome::Fault(_)));
        let undone = json!({ "outcome": "undone", "why": "a lock", "stall_ms": 400.0 });
        found.hands[0].outcome = Outcome::of(&undone);
        assert!(
            found.text().contains("1 were not done; 1 × undone after 400 ms: a lock"),
            "{}",
            found.text()
        );
    }
}
