//! Sizes and durations as people write them: `16MiB`, `500ms`.

use std::fmt;
use std::time::Duration;

/// The units of sizes, largest first. Decimal and binary units are both taken for what they say.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// The units of durations in milliseconds, largest first.
const TIME_UNITS: &[(&str, u64)] = &[("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

/// A text that is no size or duration; says what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}; {form}")]
pub struct QuantityError {
    text: String,
    what: &'static str,
    form: &'static str,
}

/// Reads a size in bytes: a whole number with a unit, or without one for bytes.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    read(text, SIZE_UNITS).ok_or_else(|| QuantityError {
        text: text.to_owned(),
        what: "size",
        form: "write a whole number and a unit, such as 16MiB or 10GiB",
    })
}

/// Reads a duration: a whole number with a unit, or without one for milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, QuantityError> {
    read(text, TIME_UNITS).map(Duration::from_millis).ok_or_else(|| QuantityError {
        text: text.to_owned(),
        what: "duration",
        form: "write a whole number and a unit, such as 500ms, 2s or 5min",
    })
}

fn read(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let unit = unit.trim();
    let factor = match unit {
        "" => 1,
        _ => units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size in its largest even binary unit: `16MiB`.
pub struct ShownBytes(pub u64);

impl fmt::Display for ShownBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = SIZE_UNITS.iter().filter(|(name, _)| name.ends_with("iB"));
        write_even(f, self.0, binary).unwrap_or_else(|| write!(f, "{} bytes", self.0))
    }
}

/// A duration in its largest even unit: `2s`.
pub struct ShownDuration(pub Duration);

impl fmt::Display for ShownDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        write_even(f, ms, TIME_UNITS.iter()).unwrap_or_else(|| write!(f, "{ms}ms"))
    }
}

fn write_even<'u>(
    f: &mut fmt::Formatter<'_>,
    amount: u64,
    mut units: impl Iterator<Item = &'u (&'u str, u64)>,
) -> Option<fmt::Result> {
    let (name, factor) = units.find(|(_, factor)| amount > 0 && amount.is_multiple_of(*factor))?;
    Some(write!(f, "{}{name}", amount / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("16MiB", Some(16 << 20)),
            ("16 mib", Some(16 << 20)),
            ("10GB", Some(10_000_000_000)),
            ("1kB", Some(1000)),
            ("512B", Some(512)),
            ("1.5GiB", None),
            ("-1", None),
            ("MiB", None),
            ("", None),
            ("16M", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), bytes, "{text}");
        }
    }

    #[test]
    fn durations_are_whole_numbers_with_a_unit() {
        for (text, ms) in [
            ("500ms", Some(500)),
            ("2s", Some(2000)),
            ("5min", Some(300_000)),
            ("1 h", Some(3_600_000)),
            ("250", Some(250)),
            ("2m", None),
            ("two", None),
        ] {
            assert_eq!(parse_duration(text).ok(), ms.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_quantity_reads_back(amount in any::<u64>(), shift in 0..50u32) {
            let amount = amount >> shift << shift.min(30);
            let shown = ShownBytes(amount).to_string().replace(" bytes", "B");
            prop_assert_eq!(parse_bytes(&shown), Ok(amount));
            let duration = Duration::from_millis(amount);
            prop_assert_eq!(parse_duration(&ShownDuration(duration).to_string()), Ok(duration));
        }
    }
}
