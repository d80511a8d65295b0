//! Transaction numbers and seams: which transactions a snapshot contains.
//!
//! Owns PostgreSQL's visibility rule for whole transactions and nothing else: it does not know
//! what a region is or who took the snapshot.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A full (64-bit, never reused within one incarnation of a server) transaction number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(pub u64);

/// The low 32 bits of a transaction number, as a change stream carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Xid32(pub u32);

impl Xid32 {
    /// Widens to the full number nearest to `near`.
    ///
    /// Right as long as the transaction lies within 2³¹ of `near`: PostgreSQL keeps all
    /// transaction numbers in use within that distance (manual, "Preventing Transaction ID
    /// Wraparound Failures").
    pub fn widen(self, near: Xid) -> Xid {
        let distance = self.0.wrapping_sub(near.0 as u32) as i32;
        Xid(near.0.wrapping_add_signed(i64::from(distance)))
    }
}

/// The snapshot under which a region was copied.
///
/// It answers one question, [`Seam::contains`]. Text form as `pg_snapshot`: `xmin:xmax:x,y,z`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seam {
    xmin: Xid,
    xmax: Xid,
    /// Sorted, each in `xmin..xmax`.
    in_progress: Vec<Xid>,
}

impl Seam {
    /// A seam from its parts; `in_progress` need not be sorted.
    pub fn new(xmin: Xid, xmax: Xid, mut in_progress: Vec<Xid>) -> Self {
        in_progress.sort_unstable();
        Seam { xmin, xmax, in_progress }
    }

    /// Whether the snapshot sees transaction `x`, given that `x` committed.
    ///
    /// PostgreSQL's rule (`XidInMVCCSnapshot`): everything before `xmin`, nothing from `xmax` on,
    /// and between them whatever was not in progress. An aborted transaction never appears in a
    /// change stream, so "committed" needs no check here.
    pub fn contains(&self, x: Xid) -> bool {
        x < self.xmin || (x < self.xmax && self.in_progress.binary_search(&x).is_err())
    }

    /// Every transaction below this one had ended when the snapshot was taken.
    pub fn xmin(&self) -> Xid {
        self.xmin
    }

    /// The first transaction number that had not ended anything when the snapshot was taken.
    pub fn xmax(&self) -> Xid {
        self.xmax
    }
}

impl fmt::Display for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin.0, self.xmax.0)?;
        for (i, x) in self.in_progress.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, x.0)?;
        }
        Ok(())
    }
}

/// The text was not a snapshot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a snapshot of the form xmin:xmax:xip")]
pub struct NotASeam(pub String);

impl FromStr for Seam {
    type Err = NotASeam;
    fn from_str(text: &str) -> Result<Self, NotASeam> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = Xid(parts.next()?.parse().ok()?);
            let xmax = Xid(parts.next()?.parse().ok()?);
            let list = parts.next()?;
            let in_progress = match list {
                "" => Vec::new(),
                list => list.split(',').map(|x| x.parse().map(Xid).ok()).collect::<Option<Vec<_>>>()?,
            };
            (xmin <= xmax && in_progress.iter().all(|x| (xmin..xmax).contains(x)))
                .then(|| Seam::new(xmin, xmax, in_progress))
        };
        parse().ok_or_else(|| NotASeam(text.to_owned()))
    }
}

impl TryFrom<String> for Seam {
    type Error = NotASeam;
    fn try_from(text: String) -> Result<Self, NotASeam> {
        text.parse()
    }
}

impl From<Seam> for String {
    fn from(seam: Seam) -> String {
        seam.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seam(text: &str) -> Seam {
        text.parse().expect("a seam")
    }

    #[test]
    fn contains_what_ended_before_and_nothing_in_progress_or_later() {
        let s = seam("100:105:100,103");
        for (x, inside) in [(99, true), (100, false), (101, true), (103, false), (104, true), (105, false)] {
            assert_eq!(s.contains(Xid(x)), inside, "xid {x}");
        }
    }

    #[test]
    fn malformed_snapshots_are_refused() {
        for text in ["", "1:2", "2:1:", "1:3:7", "1:3:0", "a:3:", "1:3:2,"] {
            assert!(text.parse::<Seam>().is_err(), "{text}");
        }
    }

    #[test]
    fn widening_crosses_the_epoch_in_both_directions() {
        let near = Xid((5 << 32) + 10);
        assert_eq!(Xid32(9).widen(near), Xid((5 << 32) + 9));
        assert_eq!(Xid32(u32::MAX).widen(near), Xid((5 << 32) - 1));
        assert_eq!(Xid32(3).widen(Xid((6 << 32) - 2)), Xid((6 << 32) + 3));
    }

    proptest! {
        #[test]
        fn widening_finds_every_xid_within_half_the_circle(near in (1u64 << 33)..(1 << 50), d in -(1i64 << 31)..(1i64 << 31)) {
            let x = Xid(near.wrapping_add_signed(d));
            prop_assert_eq!(Xid32(x.0 as u32).widen(Xid(near)), x);
        }

        #[test]
        fn text_form_round_trips(xmin in 3u64..1000, len in 0u64..50, picks in proptest::collection::btree_set(0u64..50, 0..8)) {
            let xip = picks.into_iter().filter(|p| *p < len).map(|p| Xid(xmin + p)).collect();
            let s = Seam::new(Xid(xmin), Xid(xmin + len), xip);
            prop_assert_eq!(s.to_string().parse(), Ok(s));
        }
    }
}
