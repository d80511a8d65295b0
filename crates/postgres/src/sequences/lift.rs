//! Where a sequence has to stand on the new side: pure arithmetic, without a database.
//!
//! The *margin* is counted in steps of the sequence. It is for values that are still taken on the old side after it was
//! read: a sequence cannot be fenced, and an application may write a row on the new side under a value that it got from
//! the old one. Whoever calls `nextval` takes `cache` values, so [`SESSIONS`] sessions that call it once more are always
//! covered. The margin is a gap in the numbers and shortens the life of the sequence, so it is never more than a
//! [`SHARE`]th of what is left.

use super::read::Count;

/// How many sessions may take one more block of cached values: PostgreSQL's usual number of connections.
const SESSIONS: i128 = 100;
/// The margin's bound, as a share of the values that are left. What remains must still feed the application.
const SHARE: i128 = 10;

/// Where a sequence stands, as its relation has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    /// The last value that was given, or set aside for a session's cache; the next one, if `is_called` is false.
    pub last_value: i64,
    /// Whether `last_value` has been given.
    pub is_called: bool,
}

/// What holds for both sides of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// From one value to the next: not zero.
    pub(super) increment: i64,
    /// The old side's cache.
    pub(super) cache: i64,
    /// After `end` comes `first`.
    pub(super) cycle: bool,
    /// The nearest end of the range, in the direction of the increment.
    pub(super) first: i64,
    /// The farthest value that the sequence gives on both sides, and that its columns hold.
    pub(super) end: i64,
}

/// Rows whose values the sequence has not given: put there by hand, and in the way of a margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowsAhead {
    /// The nearest one, when they were looked for.
    pub(super) nearest: i64,
    /// The farthest one.
    pub(super) farthest: i64,
}

/// Where the new side has to stand at least, and how many steps of margin there are in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lift {
    pub(super) stand: Stand,
    pub(super) margin: u64,
}

impl Rule {
    pub(super) fn of(count: &Count, first: i64, end: i64) -> Rule {
        Rule { increment: count.increment, cache: count.cache, cycle: count.cycle, first, end }
    }

    /// How far `b` is past `a`, in the direction in which the sequence counts; negative before it.
    pub(super) fn past(&self, a: i64, b: i64) -> i128 {
        (i128::from(b) - i128::from(a)) * i128::from(self.increment.signum())
    }

    /// How many steps lead from `from` to the end.
    fn steps(&self, from: i64) -> i128 {
        (self.past(from, self.end) / i128::from(self.increment).abs()).max(0)
    }

    /// How many values a sequence that does not cycle has still to give.
    pub(super) fn left(&self, stand: Stand) -> i128 {
        if self.past(stand.last_value, self.end) < 0 {
            return 0;
        }
        self.steps(stand.last_value) + i128::from(!stand.is_called)
    }

    fn margin(&self, old: Stand, asked: u64, rows: Option<RowsAhead>) -> i128 {
        let asked = i128::from(asked).max(i128::from(self.cache) * SESSIONS);
        let left = if self.cycle { self.steps(self.first) + 1 } else { self.left(old) };
        let margin = asked.min(left / SHARE);
        // In a circle rows are always ahead.
        let in_the_way = |rows: RowsAhead| {
            let reach = margin * 2 * i128::from(self.increment).abs();
            self.past(old.last_value, rows.farthest) > 0 && self.past(old.last_value, rows.nearest) <= reach
        };
        if !self.cycle && rows.is_some_and(in_the_way) { 0 } else { margin }
    }

    /// Where the new side has to stand, when the old one stands at `old` and a margin of `asked` steps is wanted.
    pub(super) fn lift(&self, old: Stand, asked: u64, rows: Option<RowsAhead>) -> Lift {
        let margin = self.margin(old, asked, rows);
        let steps = self.steps(old.last_value);
        let value = if self.cycle && margin > steps {
            i128::from(self.first) + (margin - steps - 1) * i128::from(self.increment)
        } else {
            i128::from(old.last_value) + margin * i128::from(self.increment)
        };
        // Past what a column holds, inserts fail on the old side as they will on the new one.
        let spent = !self.cycle && self.past(old.last_value, self.end) < 0;
        let stand = Stand {
            last_value: if spent { self.end } else { i64::try_from(value).unwrap_or(self.end) },
            is_called: spent || old.is_called,
        };
        Lift { stand, margin: u64::try_from(margin).unwrap_or(0) }
    }

    /// Whether `a` is farther than `b` on a line.
    pub(super) fn is_farther(&self, a: Stand, b: Stand) -> bool {
        let next = |stand: Stand| {
            i128::from(stand.last_value) + i128::from(stand.is_called) * i128::from(self.increment)
        };
        (next(a) - next(b)) * i128::from(self.increment.signum()) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(increment: i64, first: i64, end: i64) -> Rule {
        Rule { increment, cache: 1, cycle: false, first, end }
    }

    fn lifted(rule: Rule, last_value: i64, is_called: bool, asked: u64) -> (i64, bool, u64) {
        let lift = rule.lift(Stand { last_value, is_called }, asked, None);
        (lift.stand.last_value, lift.stand.is_called, lift.margin)
    }

    const UP: Rule = Rule { increment: 1, cache: 1, cycle: false, first: 1, end: i64::MAX };

    #[test]
    fn the_margin_is_counted_in_steps() {
        assert_eq!(lifted(UP, 41, true, 1000), (1041, true, 1000));
        assert_eq!(lifted(UP, 1, false, 1000), (1001, false, 1000));
        assert_eq!(lifted(rule(50, 1, i64::MAX), 101, true, 1000), (50_101, true, 1000));
        assert_eq!(lifted(rule(-2, -1, i64::MIN), -7, true, 1000), (-2007, true, 1000));
    }

    #[test]
    fn cached_blocks_of_many_sessions_fit_into_it() {
        assert_eq!(lifted(Rule { cache: 50, ..UP }, 100, true, 1000), (5100, true, 5000));
    }

    #[test]
    fn near_the_end_it_is_a_share_of_what_is_left() {
        let small = rule(1, 1, 32_767);
        assert_eq!(lifted(small, 32_000, true, 1000), (32_076, true, 76));
        assert_eq!(lifted(small, 32_760, true, 1000), (32_760, true, 0));
        assert_eq!(lifted(small, 32_767, true, 1000), (32_767, true, 0));
        assert_eq!(lifted(small, 32_767, false, 1000), (32_767, false, 0), "one is left");
        assert_eq!(lifted(rule(10, 1, 100), 95, true, 1000), (95, true, 0));
        assert_eq!(lifted(rule(-1, -1, -100), -50, true, 1000), (-55, true, 5));
        assert_eq!(lifted(UP, i64::MAX, true, 1000), (i64::MAX, true, 0));
        assert_eq!(lifted(rule(-1, 0, i64::MIN), i64::MIN, true, u64::MAX), (i64::MIN, true, 0));
    }

    #[test]
    fn what_is_past_what_the_columns_hold_is_spent() {
        assert_eq!(lifted(rule(1, 1, 100), 5_000, true, 1000), (100, true, 0));
        assert_eq!(rule(1, 1, 100).left(Stand { last_value: 101, is_called: false }), 0);
        assert_eq!(rule(1, 1, 100).left(Stand { last_value: 100, is_called: true }), 0);
        assert_eq!(rule(1, 1, 100).left(Stand { last_value: 100, is_called: false }), 1);
    }

    #[test]
    fn a_circle_is_followed_past_its_end() {
        let circle = Rule { cycle: true, ..rule(1, 1, 100) };
        assert_eq!(lifted(circle, 50, true, 1000), (60, true, 10));
        assert_eq!(lifted(circle, 90, true, 1000), (100, true, 10));
        assert_eq!(lifted(circle, 95, true, 1000), (5, true, 10));
        assert_eq!(lifted(circle, 100, true, 1000), (10, true, 10));
        // The second lap begins at the end of the range, whatever the first one began with.
        let odd = Rule { cycle: true, ..rule(10, 1, 1000) };
        assert_eq!(lifted(odd, 985, true, 5), (81, true, 10));
        let down = Rule { cycle: true, ..rule(-1, 100, 1) };
        assert_eq!(lifted(down, 3, true, 1000), (93, true, 10));
        let whole = Rule { cycle: true, ..rule(1, i64::MIN, i64::MAX) };
        assert_eq!(lifted(whole, i64::MAX, true, 1000), (i64::MIN + 999, true, 1000));
    }

    #[test]
    fn rows_put_there_by_hand_are_not_run_into() {
        let with = |nearest, farthest, last_value| {
            let stand = Stand { last_value, is_called: true };
            UP.lift(stand, 1000, Some(RowsAhead { nearest, farthest })).margin
        };
        assert_eq!(with(1500, 9000, 100), 0, "the margin would end just before them");
        assert_eq!(with(1500, 9000, 2000), 0, "there may be more of them between");
        assert_eq!(with(1500, 9000, 9000), 1000, "they are all behind");
        assert_eq!(with(1_000_000, 1_000_000, 100), 1000, "they are far away");
    }

    #[test]
    fn what_was_lifted_once_is_not_lifted_again() {
        for (rule, last) in [(UP, 7), (rule(1, 1, 32_767), 32_000), (rule(-3, -1, -1000), -100)] {
            let old = Stand { last_value: last, is_called: true };
            let once = rule.lift(old, 1000, None).stand;
            assert!(!rule.is_farther(rule.lift(old, 1000, None).stand, once));
            assert!(rule.is_farther(once, old));
        }
    }

    #[test]
    fn a_value_that_was_not_given_yet_is_behind_the_same_one_given() {
        let given = Stand { last_value: 7, is_called: true };
        assert!(UP.is_farther(given, Stand { is_called: false, ..given }));
        assert!(!UP.is_farther(given, Stand { last_value: 8, is_called: false }), "both give 8 next");
    }
}
