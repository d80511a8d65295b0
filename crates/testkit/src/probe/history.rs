//! What the accepted probes prove. Pure.
//!
//! A probe took effect at some instant between being sent and being acknowledged. One is *certainly before* another if it
//! was acknowledged before the other was sent. No assumption is made about probes whose intervals overlap, nor about those
//! that were not acknowledged, so each rule below accuses only where no order of events could be innocent:
//!
//! 1. a server that accepts a probe calls itself the owner in the same transaction;
//! 2. an epoch has one server;
//! 3. if a probe is certainly before another, its epoch is not the later one;
//! 4. by the clock alone, whatever the servers say of epochs: the longest alternating chain of probes, each certainly before
//!    the next one, changes sides no more often than the epochs seen allow. B→A→B within one epoch is what it finds.
//!
//! With a probe every few milliseconds on each side, two servers that take writes at the same time for longer than two
//! probes break the fourth rule, whatever they believe; the first two find already a single write.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Error, SimpleQueryMessage};

/// Enough to see what went on.
const VIOLATIONS_MAX: usize = 20;

/// A probe that was accepted.
#[derive(Debug, Clone, Copy)]
pub struct Accepted {
    /// The server, 0 or 1.
    pub side: usize,
    /// Its number there.
    pub n: u64,
    /// When it was sent.
    pub sent: Instant,
    /// When it was acknowledged.
    pub acked: Instant,
    /// The server said that it was the owner.
    pub is_owner: bool,
    /// The epoch that the server spoke of.
    pub epoch: i64,
}

/// Accepted probes, in the order in which they were acknowledged.
#[derive(Debug, Clone, Default)]
pub struct History {
    accepted: Vec<Accepted>,
}

impl History {
    /// Of these probes, in whatever order.
    pub fn new(mut accepted: Vec<Accepted>) -> History {
        accepted.sort_by_key(|probe| probe.acked);
        History { accepted }
    }

    /// How many probes each server has accepted.
    pub fn counts(&self) -> [usize; 2] {
        [0, 1].map(|side| self.accepted.iter().filter(|probe| probe.side == side).count())
    }

    /// Everything that contradicts "one owner at every instant"; see the module.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut owners: BTreeMap<i64, usize> = BTreeMap::new();
        for probe in &self.accepted {
            if !probe.is_owner {
                found.push(format!(
                    "accepted by a side that does not call itself the owner: {}",
                    self.show(probe)
                ));
            }
            if *owners.entry(probe.epoch).or_insert(probe.side) != probe.side {
                found.push(format!("two sides in one epoch: {}", self.show(probe)));
            }
        }
        self.check_order(&mut found);
        let (changes, epochs) = (self.certain_changes(), owners.keys().collect::<BTreeSet<_>>());
        let allowed = match (epochs.first(), epochs.last()) {
            (Some(first), Some(last)) => usize::try_from(*last - *first).unwrap_or(usize::MAX),
            _ => 0,
        };
        if changes > allowed {
            found.push(format!("the side changed {changes} times at least, within {allowed} hand-over(s)"));
        }
        found.truncate(VIOLATIONS_MAX);
        found
    }

    fn check_order(&self, found: &mut Vec<String>) {
        let mut by_sent: Vec<&Accepted> = self.accepted.iter().collect();
        by_sent.sort_by_key(|probe| probe.sent);
        let mut before = self.accepted.iter().peekable();
        let mut latest: Option<&Accepted> = None;
        for probe in by_sent {
            while let Some(earlier) = before.next_if(|earlier| earlier.acked < probe.sent) {
                latest = latest.filter(|latest| latest.epoch >= earlier.epoch).or(Some(earlier));
            }
            if let Some(latest) = latest.filter(|latest| latest.epoch > probe.epoch) {
                found.push(format!(
                    "an earlier epoch comes back: {} after {}",
                    self.show(probe),
                    self.show(latest)
                ));
            }
        }
    }

    /// How often the side must have changed, whatever happened within the intervals. Taking the earliest end that is
    /// possible leaves most room for what follows, so the chain is a longest one; it is tried from both sides.
    fn certain_changes(&self) -> usize {
        let chain = |first: usize| {
            let (mut side, mut since, mut length) = (first, None::<Instant>, 0_usize);
            for probe in &self.accepted {
                if probe.side == side && since.is_none_or(|since| probe.sent > since) {
                    (side, since, length) = (1 - side, Some(probe.acked), length + 1);
                }
            }
            length.saturating_sub(1)
        };
        chain(0).max(chain(1))
    }

    /// The longest time between `from` and `to` in which no probe was acknowledged, and when it began.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> (Duration, Instant) {
        let inside = self.accepted.iter().map(|probe| probe.acked).filter(|acked| (from..to).contains(acked));
        let mut longest = (Duration::ZERO, from);
        let mut last = from;
        for acked in inside.chain([to]) {
            if acked - last > longest.0 {
                longest = (acked - last, last);
            }
            last = acked;
        }
        longest
    }

    /// Accepted probes that a server does not have.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn missing_on(&self, client: &Client) -> Result<Vec<String>, Error> {
        let messages = client.simple_query("SELECT side, n FROM probe.mark").await?;
        let there: BTreeSet<(usize, u64)> = messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?)),
                _ => None,
            })
            .collect();
        let lost = self.accepted.iter().filter(|probe| !there.contains(&(probe.side, probe.n)));
        Ok(lost.take(VIOLATIONS_MAX).map(|probe| self.show(probe)).collect())
    }

    fn show(&self, probe: &Accepted) -> String {
        let ms = |at: Instant| self.accepted.first().map_or(0, |first| (at - first.sent).as_millis());
        let owner = if probe.is_owner { "owner" } else { "not owner" };
        let (sent_ms, acked_ms) = (ms(probe.sent), ms(probe.acked));
        format!(
            "side {} probe {} at {sent_ms}–{acked_ms} ms, {owner} of epoch {}",
            probe.side, probe.n, probe.epoch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes as (side, sent, acked, epoch), in milliseconds.
    fn history(probes: &[(usize, u64, u64, i64)]) -> History {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let accepted = probes.iter().enumerate().map(|(n, &(side, sent, acked, epoch))| Accepted {
            side,
            n: n as u64,
            sent: at(sent),
            acked: at(acked),
            is_owner: true,
            epoch,
        });
        History::new(accepted.collect())
    }

    #[test]
    fn a_hand_over_and_back_is_innocent() {
        let moved = history(&[(0, 0, 5, 1), (0, 10, 15, 1), (1, 20, 25, 2), (1, 30, 35, 2), (0, 40, 45, 3)]);
        assert_eq!(moved.violations(), Vec::<String>::new());
        assert_eq!(moved.counts(), [3, 2]);
    }

    #[test]
    fn probes_that_overlap_the_hand_over_accuse_nobody() {
        // The last one of the old owner is acknowledged late, and took effect before.
        let late = history(&[(0, 0, 5, 1), (1, 20, 25, 2), (0, 10, 40, 1), (1, 45, 50, 2)]);
        assert_eq!(late.violations(), Vec::<String>::new());
    }

    #[test]
    fn one_late_write_on_the_old_owner_is_found() {
        let late = history(&[(0, 0, 5, 1), (1, 10, 15, 2), (0, 20, 25, 1), (1, 30, 35, 2)]);
        let found = late.violations().join("\n");
        assert!(found.contains("an earlier epoch comes back"), "{found}");
        assert!(found.contains("changed 3 times"), "{found}");
    }

    #[test]
    fn two_sides_in_one_epoch_are_found_even_if_they_never_take_turns() {
        let both = history(&[(0, 0, 5, 1), (1, 10, 15, 1)]);
        let found = both.violations().join("\n");
        assert!(found.contains("two sides in one epoch"), "{found}");
    }

    #[test]
    fn two_sides_that_lie_about_their_epochs_are_found_by_the_clock() {
        let both = history(&[(0, 0, 5, 1), (1, 10, 15, 2), (0, 20, 25, 3), (1, 30, 35, 3)]);
        let found = both.violations().join("\n");
        assert!(found.contains("changed 3 times at least, within 2"), "{found}");
    }

    #[test]
    fn the_longest_gap_reaches_to_the_ends() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let accepted = |n, ms| Accepted { side: 0, n, sent: at(ms), acked: at(ms), is_owner: true, epoch: 1 };
        let history = History::new(vec![accepted(1, 50), accepted(2, 100)]);
        assert_eq!(history.longest_gap(at(0), at(120)), (Duration::from_millis(50), at(0)));
        assert_eq!(history.longest_gap(at(40), at(400)), (Duration::from_millis(300), at(100)));
    }
}
