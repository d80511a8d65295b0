//! A text without its constants: what texts that differ in nothing else have in common.
//!
//! Where a constant stood there is a byte that no text can hold, so that nothing else looks like it. Comments and
//! spaces are one space. A list of constants behind IN is one constant. It knows no grammar.

use super::{StatementKind, Why};
use crate::lexer::{Token, Words};

/// Longer texts are not looked into: an application's statements are shorter, and its bulk loads are no reads.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;

/// Longer shapes are not looked into: they are hardly ever met again, and parsing them would hold up a thread.
pub(super) const SHAPE_BYTES_MAX: usize = 8 << 10;

/// What is shown to people.
const SHOWN_BYTES_MAX: usize = 1 << 10;

/// Stands for a constant.
const CONSTANT: u8 = 0;

#[derive(Debug)]
pub(super) struct Shape {
    bytes: Vec<u8>,
    /// Its first word, quotes and all.
    first: (usize, usize),
    /// Why it can only be the owner's, if that is known already.
    pub(super) refused: Option<Why>,
}

/// Where in a list behind IN.
#[derive(Clone, Copy, PartialEq)]
enum List {
    Outside,
    /// Behind the word.
    In,
    /// Behind the opening parenthesis, or a comma that is not written yet.
    Wanted {
        first: bool,
    },
    /// Behind a constant.
    Item,
}

impl Shape {
    pub(super) fn of(sql: &[u8]) -> Shape {
        let is_long = sql.len() > TEXT_BYTES_MAX;
        let sql = &sql[..sql.len().min(TEXT_BYTES_MAX)];
        let mut shape = Shape {
            bytes: Vec::with_capacity(sql.len().min(SHAPE_BYTES_MAX) + 8),
            first: (0, 0),
            refused: None,
        };
        let mut words = Words::of(sql);
        let mut list = List::Outside;
        let mut behind = 0;
        while let Some((token, from, to)) = words.next_token() {
            if shape.bytes.len() > SHAPE_BYTES_MAX {
                break;
            }
            list = shape.put(list, token, &sql[from..to], from > behind);
            behind = to;
        }
        shape.refused = match () {
            () if sql.contains(&0) => Some(Why::Unparsed),
            () if is_long || shape.bytes.len() > SHAPE_BYTES_MAX => Some(Why::TooLong),
            () if shape.bytes.iter().all(|&byte| byte == b';' || byte == b' ') => Some(Why::Empty),
            () if words.is_doubtful() => Some(Why::Unparsed),
            () => None,
        };
        shape
    }

    fn put(&mut self, list: List, token: Token, text: &[u8], apart: bool) -> List {
        let is_item = matches!(token, Token::String | Token::Digits | Token::Parameter);
        match (list, text) {
            (List::Wanted { first }, _) if is_item => {
                if first {
                    self.bytes.push(CONSTANT);
                }
                return List::Item;
            }
            (List::Item, b",") => return List::Wanted { first: false },
            (List::Wanted { first: false }, _) => self.bytes.push(b','),
            _ => {}
        }
        if apart && !self.bytes.is_empty() {
            self.bytes.push(b' ');
        }
        if matches!(token, Token::String | Token::Digits) {
            self.bytes.push(CONSTANT);
        } else {
            if token == Token::Word && self.first.1 == 0 {
                self.first = (self.bytes.len(), self.bytes.len() + text.len());
            }
            self.bytes.extend_from_slice(text);
        }
        match (list, text) {
            (_, word) if token == Token::Word && word.eq_ignore_ascii_case(b"in") => List::In,
            (List::In, b"(") => List::Wanted { first: true },
            _ => List::Outside,
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn begins_with_constant(&self) -> bool {
        self.bytes.first() == Some(&CONSTANT)
    }

    /// By its first word.
    pub(super) fn kind(&self) -> StatementKind {
        StatementKind::of(&self.bytes[self.first.0..self.first.1])
    }

    /// For people: bounded, and with a sign that can be read for each constant.
    pub(super) fn shown(&self) -> Box<str> {
        let part = &self.bytes[..self.bytes.len().min(SHOWN_BYTES_MAX)];
        let part: Vec<u8> = part.iter().map(|&byte| if byte == CONSTANT { b'?' } else { byte }).collect();
        let mut text = String::from_utf8_lossy(&part).into_owned();
        // A character that was cut in two is written as a longer one.
        let end = (0..=SHOWN_BYTES_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
        text.truncate(end.unwrap_or(0));
        text.into_boxed_str()
    }

    /// FNV-1a: the same in every process, for figures that are put side by side.
    pub(super) fn fingerprint(&self) -> u64 {
        self.bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(sql: &str) -> String {
        Shape::of(sql.as_bytes()).shown().into()
    }

    #[test]
    fn constants_and_comments_are_left_out() {
        for (sql, shape) in [
            ("SELECT 1,'a''b' , E'\\'' FROM t /* x */ -- y\n WHERE a=$1", "SELECT ?,? , ? FROM t WHERE a=$1"),
            ("SELECT $$ x $$, $a$ $$ $a$, 1.5e3, t1.c2", "SELECT ?, ?, ?.?e3, t1.c2"),
            ("SELECT \"a 1\", U&'x', B'1', N'a'", "SELECT \"a 1\", U&?, B?, N?"),
            (
                "SELECT a FROM t WHERE b IN (1, 2,3) AND c IN ($1,$2)",
                "SELECT a FROM t WHERE b IN (?) AND c IN (?)",
            ),
            ("SELECT a FROM t WHERE b in (1, d, -2)", "SELECT a FROM t WHERE b in (?, d, -?)"),
            ("SELECT 1 --\rFROM t", "SELECT ? FROM t"),
            ("SELECT 1from t", "SELECT ?from t"),
        ] {
            assert_eq!(shown(sql), shape, "{sql}");
        }
    }

    #[test]
    fn texts_of_one_shape_share_a_fingerprint_and_others_do_not() {
        let print = |sql: &str| Shape::of(sql.as_bytes()).fingerprint();
        assert_eq!(print("select a from t where b = 1"), print("select a from t  where b = '/*'"));
        assert_ne!(print("select a from t where b = ? c"), print("select a from t where b = 1 c"));
        assert_ne!(print("select a from t where b < = 1"), print("select a from t where b <= 1"));
    }

    #[test]
    fn what_has_no_certain_end_is_refused() {
        for (sql, why) in [
            ("select 'a", Why::Unparsed),
            ("select \"a", Why::Unparsed),
            ("select $a$ b", Why::Unparsed),
            ("select a /* b", Why::Unparsed),
            // Its end depends on standard_conforming_strings.
            ("select a from t where b = '\\' /*' ; delete from t; --*/", Why::Unparsed),
            ("select E'a'\n'\\' ; delete from t; --'", Why::Unparsed),
            ("select a\0", Why::Unparsed),
            (" ; -- a\n;", Why::Empty),
            ("", Why::Empty),
        ] {
            assert_eq!(Shape::of(sql.as_bytes()).refused, Some(why), "{sql}");
        }
        assert_eq!(Shape::of(b"select '\\d' from t").refused, None);
    }

    #[test]
    fn it_is_bounded() {
        let long = format!("select {}", "a, ".repeat(20_000));
        let shape = Shape::of(long.as_bytes());
        assert_eq!((shape.refused, shape.shown().len()), (Some(Why::TooLong), SHOWN_BYTES_MAX));
        assert!(shape.bytes().len() <= SHAPE_BYTES_MAX + 64);
        let many = format!("select a from t where b in ({}1)", "1, ".repeat(20_000));
        assert_eq!(Shape::of(many.as_bytes()).bytes().len(), "select a from t where b in (?)".len());
        assert!(Shape::of("é".repeat(1_000).as_bytes()).shown().len() <= SHOWN_BYTES_MAX);
    }
}
