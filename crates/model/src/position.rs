//! A place in a source's log. Only the adapter that made it knows what the number means;
//! everyone else compares and stores it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A place in one side's log, totally ordered within one incarnation of that log.
///
/// For PostgreSQL it is an LSN; written `X/Y` in hexadecimal as PostgreSQL writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// How many bytes of log lie between `earlier` and this position; 0 when it is not earlier.
    pub fn bytes_since(self, earlier: Position) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not of the form `X/Y` with hexadecimal numbers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a log position of the form X/Y")]
pub struct NotAPosition(pub String);

impl FromStr for Position {
    type Err = NotAPosition;
    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let high = u32::from_str_radix(high, 16).ok()?;
            let low = u32::from_str_radix(low, 16).ok()?;
            Some(Position((u64::from(high) << 32) | u64::from(low)))
        };
        parse().ok_or_else(|| NotAPosition(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for p in [Position(0), Position(0x16_B374D848), Position(u64::MAX)] {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        assert_eq!(Position(0x16_B374_D848).to_string(), "16/B374D848");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "16", "16/", "/1", "G/1", "123456789/1"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }
}
