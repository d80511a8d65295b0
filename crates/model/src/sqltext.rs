//! The two ways in which text becomes part of an SQL statement.
//!
//! Every identifier and every literal that Segue writes into SQL goes through here; nothing else may put quotes around
//! a name or a value.

/// `name` as a quoted SQL identifier: always in double quotes, inner ones doubled.
///
/// PostgreSQL identifiers cannot hold NUL; such a name never comes from a server and is refused by the server.
pub fn quote_ident(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('"');
    for c in name.chars() {
        if c == '"' {
            quoted.push('"');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

/// `value` as an SQL string literal that reads the same whatever `standard_conforming_strings` says.
///
/// A value with a backslash becomes `E'…'` with backslashes doubled, any other `'…'`; quotes are doubled in both.
pub fn quote_literal(value: &str) -> String {
    let escaped = value.contains('\\');
    let mut quoted = String::with_capacity(value.len() + 3);
    quoted.push_str(if escaped { "E'" } else { "'" });
    for c in value.chars() {
        if c == '\'' || c == '\\' {
            quoted.push(c);
        }
        quoted.push(c);
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identifiers_are_always_quoted() {
        for (name, quoted) in [
            ("orders", r#""orders""#),
            ("Order Items", r#""Order Items""#),
            (r#"a"b"#, r#""a""b""#),
            (r#"""#, r#""""""#),
            (r"back\slash", r#""back\slash""#),
            ("größe", r#""größe""#),
        ] {
            assert_eq!(quote_ident(name), quoted);
        }
    }

    #[test]
    fn literals_take_the_escape_form_only_for_backslashes() {
        for (value, quoted) in [
            ("", "''"),
            ("plain", "'plain'"),
            ("it's", "'it''s'"),
            (r"a\b", r"E'a\\b'"),
            (r"\'", r"E'\\'''"),
            ("line\nbreak", "'line\nbreak'"),
        ] {
            assert_eq!(quote_literal(value), quoted);
        }
    }

    /// Reads a quoted text back by PostgreSQL's lexical rules; `None` when it ends early or late.
    fn unquote(text: &str, quote: char, backslashes: bool) -> Option<String> {
        let mut chars = text.strip_prefix(quote)?.chars();
        let mut value = String::new();
        loop {
            match chars.next()? {
                '\\' if backslashes => value.push(chars.next()?),
                c if c == quote => match chars.next() {
                    None => return Some(value),
                    Some(next) if next == quote => value.push(quote),
                    Some(_) => return None,
                },
                c => value.push(c),
            }
        }
    }

    proptest! {
        #[test]
        fn an_identifier_reads_back_as_itself(name in "\\PC*") {
            prop_assert_eq!(unquote(&quote_ident(&name), '"', false), Some(name));
        }

        #[test]
        fn a_literal_reads_back_as_itself(value in any::<String>()) {
            let quoted = quote_literal(&value);
            let read = match quoted.strip_prefix('E') {
                Some(rest) => unquote(rest, '\'', true),
                None => unquote(&quoted, '\'', false),
            };
            prop_assert_eq!(read, Some(value));
        }

        #[test]
        fn a_literal_means_the_same_without_standard_conforming_strings(value in "[a'\\\\E]*") {
            let quoted = quote_literal(&value);
            let body = quoted.strip_prefix('E').unwrap_or(&quoted);
            prop_assert_eq!(unquote(body, '\'', true), Some(value));
        }
    }
}
