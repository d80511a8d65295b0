//! When two values that differ in their bytes are the same all the same: floats and timestamps within what was
//! configured, and arrays whose elements are of a user's type, which has another number on each side.
//!
//! What it cannot read is not the same.

use std::time::Duration;

/// Types from here on are a user's, and numbered differently in each database.
pub(super) const USER_TYPE_MIN: u32 = 16_384;
const FLOAT4: u32 = 700;
const FLOAT8: u32 = 701;
const TIMESTAMP: u32 = 1_114;
const TIMESTAMPTZ: u32 = 1_184;
/// PostgreSQL allows no more.
const DIMENSIONS_MAX: u32 = 6;

/// What may differ, where anything may.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tolerance {
    /// Relative.
    pub(super) float: Option<f64>,
    pub(super) timestamp: Option<Duration>,
}

/// How the values of one column are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    Bytes,
    Float {
        relative: f64,
        is_binary: bool,
    },
    Timestamp {
        us_max: u64,
        is_binary: bool,
    },
    /// In binary an array names the type of its elements.
    UserArray,
}

impl Rule {
    pub(super) fn of(type_oid: u32, is_binary: bool, tolerance: &Tolerance) -> Rule {
        match (type_oid, tolerance) {
            (FLOAT4 | FLOAT8, Tolerance { float: Some(relative), .. }) => {
                Rule::Float { relative: *relative, is_binary }
            }
            (TIMESTAMP | TIMESTAMPTZ, Tolerance { timestamp: Some(apart), .. }) => {
                let us_max = u64::try_from(apart.as_micros()).unwrap_or(u64::MAX);
                Rule::Timestamp { us_max, is_binary }
            }
            (USER_TYPE_MIN.., _) if is_binary => Rule::UserArray,
            _ => Rule::Bytes,
        }
    }

    pub(super) fn same(&self, a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
        if a == b {
            return true;
        }
        let (Some(a), Some(b)) = (a, b) else { return false };
        match *self {
            Rule::Bytes => false,
            Rule::Float { relative, is_binary } => {
                matches!((float(a, is_binary), float(b, is_binary)), (Some(a), Some(b)) if near(a, b, relative))
            }
            Rule::Timestamp { us_max, is_binary } => {
                let both = (timestamp(a, is_binary), timestamp(b, is_binary));
                matches!(both, (Some(a), Some(b)) if a.abs_diff(b) <= us_max)
            }
            Rule::UserArray => same_user_array(a, b),
        }
    }
}

fn near(a: f64, b: f64, relative: f64) -> bool {
    a == b
        || (a.is_nan() && b.is_nan())
        || (a.is_finite() && b.is_finite() && (a - b).abs() <= relative * a.abs().max(b.abs()))
}

fn float(value: &[u8], is_binary: bool) -> Option<f64> {
    if !is_binary {
        return std::str::from_utf8(value).ok()?.parse().ok();
    }
    match *value {
        [a, b, c, d] => Some(f32::from_be_bytes([a, b, c, d]).into()),
        _ => Some(f64::from_be_bytes(value.try_into().ok()?)),
    }
}

/// Microseconds since some moment that is the same for all of one column; infinities are none.
fn timestamp(value: &[u8], is_binary: bool) -> Option<i64> {
    if is_binary {
        return Some(i64::from_be_bytes(value.try_into().ok()?))
            .filter(|us| !matches!(*us, i64::MIN | i64::MAX));
    }
    timestamp_text(std::str::from_utf8(value).ok()?)
}

/// Reads `2024-02-29 12:00:00.5+05:30`, the ISO style; others cannot be told from each other.
fn timestamp_text(text: &str) -> Option<i64> {
    let (date, rest) = text.split_once(' ')?;
    let mut date = date.split('-').map(number);
    let (Some(year), Some(month), Some(day), None) = (date.next()?, date.next()?, date.next()?, date.next())
    else {
        return None;
    };
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (time, zone) = match rest.find(['+', '-']) {
        Some(at) => {
            let sign = if rest[at..].starts_with('-') { -1 } else { 1 };
            (&rest[..at], sign * seconds(&rest[at + 1..])?)
        }
        None => (rest, 0),
    };
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let us = match fraction.len() {
        0 => 0,
        digits @ 1..=6 => number(fraction)? * 10_i64.pow(6 - u32::try_from(digits).ok()?),
        _ => return None,
    };
    let seconds = days(year, month, day).checked_mul(86_400)?.checked_add(seconds(time)? - zone)?;
    seconds.checked_mul(1_000_000)?.checked_add(us)
}

fn number(text: &str) -> Option<i64> {
    let is_number = (1..=7).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// `hours[:minutes[:seconds]]`.
fn seconds(text: &str) -> Option<i64> {
    let parts = text.split(':').map(number).collect::<Option<Vec<_>>>()?;
    match parts[..] {
        [hours] => Some(hours * 3_600),
        [hours, minutes] => Some(hours * 3_600 + minutes * 60),
        [hours, minutes, seconds] => Some(hours * 3_600 + minutes * 60 + seconds),
        _ => None,
    }
}

/// Days of the Gregorian calendar since 1 March of the year 0.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap + (month * 153 + 2) / 5 + day - 1
}

/// Dimensions, flags, the element's type, then the rest: only the type may differ, and only if both are a user's.
fn same_user_array(a: &[u8], b: &[u8]) -> bool {
    fn parts(value: &[u8]) -> Option<(u32, &[u8], u32, &[u8])> {
        let (dimensions, rest) = value.split_first_chunk::<4>()?;
        let (flags, rest) = rest.split_at_checked(4)?;
        let (element, rest) = rest.split_first_chunk::<4>()?;
        Some((u32::from_be_bytes(*dimensions), flags, u32::from_be_bytes(*element), rest))
    }
    let (Some(a), Some(b)) = (parts(a), parts(b)) else { return false };
    let is_array = a.0 <= DIMENSIONS_MAX && matches!(a.1, [0, 0, 0, 0 | 1]);
    is_array && (a.0, a.1, a.3) == (b.0, b.1, b.3) && a.2 >= USER_TYPE_MIN && b.2 >= USER_TYPE_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { float: Some(1e-6), timestamp: Some(Duration::from_millis(1)) };

    fn same(type_oid: u32, is_binary: bool, a: &[u8], b: &[u8]) -> bool {
        Rule::of(type_oid, is_binary, &TOLERANCE).same(Some(a), Some(b))
    }

    #[test]
    fn floats_are_the_same_within_what_was_configured() {
        for (a, b, expected) in [
            ("1", "1.0000001", true),
            ("1", "1.00001", false),
            ("-1e300", "-1.0000001e300", true),
            ("NaN", "NaN", true),
            ("Infinity", "1e308", false),
            ("Infinity", "-Infinity", false),
            ("0", "1e-30", false),
            ("0", "-0", true),
            ("x", "1", false),
        ] {
            assert_eq!(same(FLOAT8, false, a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
            let binary = |text: &str| text.parse::<f64>().map(f64::to_be_bytes);
            if let (Ok(a), Ok(b)) = (binary(a), binary(b)) {
                assert_eq!(same(FLOAT8, true, &a, &b), expected, "{a:?} {b:?}");
            }
        }
        assert!(same(FLOAT4, true, &1f32.to_be_bytes(), &1.000_000_1_f32.to_be_bytes()));
        assert!(!same(FLOAT4, true, &1f32.to_be_bytes(), &1.1_f32.to_be_bytes()));
        assert!(!same(25, false, b"1", b"1.0000001"), "text is no float");
        let strict = Rule::of(FLOAT8, false, &Tolerance::default());
        assert!(!strict.same(Some(b"1"), Some(b"1.0")) && strict.same(Some(b"1"), Some(b"1")));
    }

    #[test]
    fn timestamps_are_the_same_within_what_was_configured() {
        for (a, b, expected) in [
            ("2024-02-29 23:59:59.9999", "2024-03-01 00:00:00.0001", true),
            ("2024-02-29 23:59:59", "2024-03-01 00:00:00", false),
            ("2024-01-01 12:00:00+00", "2024-01-01 17:30:00.0005+05:30", true),
            ("2024-01-01 12:00:00+00", "2024-01-01 12:00:00-01", false),
            ("1999-12-31 23:59:59.9995", "2000-01-01 00:00:00", true),
            ("infinity", "-infinity", false),
            ("0044-03-15 00:00:00 BC", "0044-03-15 00:00:00.0001 BC", false),
            ("29/02/2024 12:00:00", "29/02/2024 12:00:00.0001", false),
            ("2024-13-01 00:00:00", "2024-13-01 00:00:00.0001", false),
        ] {
            assert_eq!(same(TIMESTAMPTZ, false, a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        }
        let at = |us: i64| us.to_be_bytes();
        assert!(same(TIMESTAMP, true, &at(0), &at(1_000)) && !same(TIMESTAMP, true, &at(0), &at(1_001)));
        assert!(!same(TIMESTAMP, true, &at(i64::MAX), &at(i64::MAX - 1)), "an infinity is near nothing");
    }

    #[test]
    fn an_array_of_a_users_type_may_name_it_by_another_number() {
        let array = |element: u32, value: &[u8]| {
            [&1u32.to_be_bytes()[..], &[0; 4], &element.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 1], value]
                .concat()
        };
        let (a, b) = (array(16_400, b"on"), array(17_000, b"on"));
        assert!(same(16_401, true, &a, &b));
        assert!(!same(16_401, true, &a, &array(17_000, b"no")));
        assert!(!same(16_401, true, &a, &array(23, b"on")), "a built-in type is another one");
        assert!(!same(16_401, false, b"on", b"no") && !same(1_009, true, &a, &b));
    }

    #[test]
    fn null_is_the_same_as_null_only() {
        let rule = Rule::of(FLOAT8, false, &TOLERANCE);
        assert!(rule.same(None, None) && !rule.same(None, Some(b"0")));
    }
}
