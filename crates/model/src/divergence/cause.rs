//! The likely cause of one value's difference, from its two texts and its type's name.

use super::Class;
use unicode_normalization::UnicodeNormalization;

/// Time zones differ by whole quarters of an hour, and by 26 hours at most (UTC−12 to UTC+14).
const ZONE_STEP_US: i128 = 15 * 60 * 1_000_000;
const ZONE_SHIFT_US_MAX: i128 = 26 * 3600 * 1_000_000;
/// Relative difference up to which two floats are one number rounded differently.
const REAL_ROUNDING: f64 = 1e-6;
const DOUBLE_ROUNDING: f64 = 1e-14;

/// What family of types a value belongs to, as far as causes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Text,
    Exact,
    Real,
    Double,
    Moment,
    Bytes,
    Other,
}

fn family(sql_type: &str) -> Family {
    let name = sql_type.rsplit('.').next().unwrap_or(sql_type).trim_matches('"');
    match name {
        "text" | "character varying" | "varchar" | "character" | "bpchar" | "citext" | "name" | "json"
        | "xml" => Family::Text,
        "numeric" | "decimal" | "money" => Family::Exact,
        "real" | "float4" => Family::Real,
        "double precision" | "float8" => Family::Double,
        "bytea" => Family::Bytes,
        _ if name.starts_with("timestamp") || name.starts_with("time") => Family::Moment,
        _ => Family::Other,
    }
}

/// The likely cause of `owner` against `other`, which differ; `None` is NULL.
pub(super) fn cause_of(sql_type: &str, owner: Option<&[u8]>, other: Option<&[u8]>) -> Class {
    let (a, b) = match (owner, other) {
        (Some(a), Some(b)) => (a, b),
        (Some(some), None) | (None, Some(some)) => {
            return if is_default(some) { Class::NullDefault } else { Class::Changed };
        }
        (None, None) => return Class::Changed,
    };
    let family = family(sql_type);
    let (Ok(a), Ok(b)) = (std::str::from_utf8(a), std::str::from_utf8(b)) else {
        return Class::Encoding;
    };
    match family {
        Family::Text | Family::Other => text_cause(a, b, family == Family::Text),
        Family::Bytes if is_prefix(a, b) => Class::Truncation,
        Family::Exact if same_number(a, b) => Class::Precision,
        Family::Real if same_float(a, b, REAL_ROUNDING) => Class::Precision,
        Family::Double if same_float(a, b, DOUBLE_ROUNDING) => Class::Precision,
        Family::Moment => moment_cause(a, b),
        Family::Bytes | Family::Exact | Family::Real | Family::Double => Class::Changed,
    }
}

/// Values that stand in for NULL where somebody filled one in.
fn is_default(text: &[u8]) -> bool {
    let zero = !text.is_empty() && text.iter().all(|b| matches!(b, b'0' | b'.')) && text[0] == b'0';
    zero || matches!(text, b"" | b"f" | b"false" | b"{}" | b"[]" | b"null" | b"\\x" | b"$0.00" | b"00:00:00")
        || text.starts_with(b"1970-01-01")
        || text.starts_with(b"0001-01-01")
}

fn is_prefix(a: &str, b: &str) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

fn text_cause(a: &str, b: &str, is_text: bool) -> Class {
    if a.trim_end_matches(' ') == b.trim_end_matches(' ') {
        return Class::TrailingSpace;
    }
    if is_other_encoding(a, b) || is_other_encoding(b, a) {
        return Class::Encoding;
    }
    if a.nfkc().eq(b.nfkc()) {
        return Class::Encoding;
    }
    if a.to_lowercase() == b.to_lowercase() {
        return Class::Case;
    }
    if is_text && is_prefix(a, b) { Class::Truncation } else { Class::Changed }
}

/// Whether `b` is `a` with a byte order mark, with its bytes read in a one-byte encoding, or with what such an
/// encoding lacks replaced by a placeholder.
fn is_other_encoding(a: &str, b: &str) -> bool {
    if b.strip_prefix('\u{FEFF}') == Some(a) {
        return true;
    }
    if a.is_ascii() {
        return false;
    }
    let latin1 = a.bytes().map(char::from);
    let windows = a.bytes().map(windows_1252);
    let placeholder = |(x, y): (char, char)| x == y || (!x.is_ascii() && matches!(y, '?' | '\u{FFFD}'));
    latin1.eq(b.chars())
        || windows.eq(b.chars())
        || (a.chars().count() == b.chars().count() && a.chars().zip(b.chars()).all(placeholder))
}

/// The character of a byte in Windows-1252; unassigned bytes as in Latin-1.
fn windows_1252(byte: u8) -> char {
    const UPPER: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8D}', 'Ž', '\u{8F}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9D}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9F => UPPER[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

fn same_float(a: &str, b: &str, rounding: f64) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) if a.is_finite() && b.is_finite() => (a - b).abs() <= rounding * a.abs().max(b.abs()),
        _ => false,
    }
}

/// A decimal number: sign, digits before and after the point.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    scale: usize,
}

impl Decimal {
    fn parse(text: &str) -> Option<Decimal> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let rest = rest.trim_start_matches('$');
        let (whole, fraction) = rest.split_once('.').unwrap_or((rest, ""));
        let digits: Vec<u8> = whole.bytes().filter(|b| *b != b',').chain(fraction.bytes()).collect();
        let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        valid.then_some(Decimal { negative, digits, scale: fraction.len() })
    }

    /// The number with digits after the point cut or added until there are `scale`, without leading zeros.
    fn at_scale(&self, scale: usize) -> Vec<u8> {
        let mut digits = self.digits.clone();
        if scale < self.scale {
            digits.truncate(digits.len() - (self.scale - scale));
        } else {
            digits.resize(digits.len() + scale - self.scale, b'0');
        }
        let zeros = digits.iter().take_while(|d| **d == b'0').count();
        digits.split_off(zeros)
    }
}

/// The next number in magnitude.
fn incremented(mut digits: Vec<u8>) -> Vec<u8> {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return digits;
        }
        *digit = b'0';
    }
    digits.insert(0, b'1');
    digits
}

/// Whether one number is the other, with another scale or rounded or cut to fewer digits after the point.
fn same_number(a: &str, b: &str) -> bool {
    let (Some(a), Some(b)) = (Decimal::parse(a), Decimal::parse(b)) else { return false };
    let (fine, coarse) = if a.scale >= b.scale { (&a, &b) } else { (&b, &a) };
    let whole = coarse.at_scale(coarse.scale);
    let cut = fine.at_scale(coarse.scale);
    let sign = fine.negative == coarse.negative || whole.is_empty();
    let rounded_up = fine.scale > coarse.scale && incremented(cut.clone()) == whole;
    sign && (cut == whole || rounded_up)
}

fn moment_cause(a: &str, b: &str) -> Class {
    let (Some((a_us, a_scale)), Some((b_us, b_scale))) = (moment_us(a), moment_us(b)) else {
        return Class::Changed;
    };
    let shift = (a_us - b_us).abs();
    if shift != 0 && shift % ZONE_STEP_US == 0 && shift <= ZONE_SHIFT_US_MAX {
        return Class::TimeZone;
    }
    let coarse_step_us = 10_i128.pow(6 - a_scale.min(b_scale).min(6));
    if a_scale != b_scale && shift < coarse_step_us { Class::Precision } else { Class::Changed }
}

/// Microseconds of a date and time, or a time alone, in ISO form, and how many digits its fraction has.
fn moment_us(text: &str) -> Option<(i128, u32)> {
    let (text, bc) = match text.strip_suffix(" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (days, time) = match text.split_once(' ') {
        Some((date, time)) => (days_of(date, bc)?, time),
        None => (0, text),
    };
    let zone_at = time.find(['+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let seconds = clock_seconds(clock)?;
    let zone_seconds = match zone.split_at_checked(1) {
        None => 0,
        Some(("-", offset)) => -clock_seconds(offset)?,
        Some((_, offset)) => clock_seconds(offset)?,
    };
    let scale = u32::try_from(fraction.len()).ok()?;
    let fraction_us: i128 = format!("{fraction:0<6}").parse().ok()?;
    Some((((days * 86_400 + seconds - zone_seconds) * 1_000_000) + fraction_us, scale))
}

/// Seconds of `hours[:minutes[:seconds]]`.
fn clock_seconds(text: &str) -> Option<i128> {
    let mut parts = text.split(':').map(|p| p.parse::<i128>().ok());
    let hours = parts.next()??;
    let minutes = parts.next().unwrap_or(Some(0))?;
    let seconds = parts.next().unwrap_or(Some(0))?;
    Some(hours * 3600 + minutes * 60 + seconds)
}

/// Days of `year-month-day` since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant's
/// `days_from_civil`).
fn days_of(date: &str, bc: bool) -> Option<i128> {
    let mut parts = date.split('-').map(|p| p.parse::<i128>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let year = if bc { 1 - year } else { year };
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}
