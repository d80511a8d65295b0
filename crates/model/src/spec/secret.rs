//! Connection strings, which hold passwords, and taking passwords out of text that is shown.
//!
//! Whether a server answers, or whether its parameters make sense, is not known here.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// What stands where a password stood.
const MASK: &str = "***";

/// How to reach a PostgreSQL server: a `postgres://` URL or `key=value` pairs, as libpq takes them.
///
/// `Debug` and `Display` show it without its password; the text with it comes out of [`Self::expose`] only.
#[derive(Clone)]
pub struct ConnectionUrl(SecretString);

/// Why a text cannot be a connection string. Never holds the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionUrlError {
    /// Nothing but white space.
    #[error("the connection string is empty")]
    Empty,
    /// The URL of something else.
    #[error("`{0}://` is not PostgreSQL")]
    OtherScheme(String),
    /// Neither form.
    #[error("this is neither a postgres:// URL nor key=value pairs")]
    Unrecognised,
}

impl ConnectionUrl {
    /// Takes a connection string by its form; its parts are checked when it is used.
    pub fn parse(text: &str) -> Result<Self, ConnectionUrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ConnectionUrlError::Empty);
        }
        let keyword = text.split('=').next().unwrap_or("").trim();
        let is_pairs = text.contains('=') && is_word(keyword);
        match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) if !rest.is_empty() => Ok(Self(text.to_owned().into())),
            Some(("postgres" | "postgresql", _)) => Err(ConnectionUrlError::Empty),
            _ if is_pairs => Ok(Self(text.to_owned().into())),
            Some((scheme, _)) if is_word(scheme) => Err(ConnectionUrlError::OtherScheme(scheme.to_owned())),
            _ => Err(ConnectionUrlError::Unrecognised),
        }
    }

    /// The whole string, password and all: for the client that connects, never for output.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(self.expose()))
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionUrl({self})")
    }
}

/// `text` with the passwords of all URLs and `key=value` pairs in it masked.
///
/// Meant for single lines. Where it cannot tell how far a password reaches, it hides more rather than less.
pub fn redact(text: &str) -> String {
    Redacted::of(text).text
}

/// A line with its passwords masked, and where its columns went.
pub(super) struct Redacted {
    pub(super) text: String,
    /// Start and length of each masked stretch of the original, in characters.
    masked: Vec<(usize, usize)>,
}

impl Redacted {
    pub(super) fn of(text: &str) -> Self {
        let mut secrets = url_passwords(text);
        secrets.extend(pair_passwords(text));
        secrets.sort_unstable();
        let mut redacted = Self { text: String::with_capacity(text.len()), masked: Vec::new() };
        let mut shown = 0;
        for (start, end) in secrets {
            // Two rules can find the same password: what is hidden once stays hidden.
            if start < shown {
                continue;
            }
            redacted.text.push_str(&text[shown..start]);
            redacted.text.push_str(MASK);
            redacted.masked.push((text[..start].chars().count(), text[start..end].chars().count()));
            shown = end;
        }
        redacted.text.push_str(&text[shown..]);
        redacted
    }

    /// Where the original's column (from 1) is in the redacted text; a column inside a password is at its mask.
    pub(super) fn column(&self, column: usize) -> usize {
        let mut shifted = column;
        for &(start, width) in &self.masked {
            let start = start + 1;
            if column >= start + width {
                shifted = shifted + MASK.len() - width;
            } else if column > start {
                shifted -= column - start;
            }
        }
        shifted
    }
}

/// The byte ranges of `user:password@` passwords. A raw `@`, `/` or space inside one still counts as part of it, so the
/// password reaches to the last `@` before the next URL.
fn url_passwords(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let starts: Vec<usize> = text.match_indices("://").map(|(at, _)| at + 3).collect();
    for (index, &start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).map_or(text.len(), |next| next - 3);
        let Some(at) = text[start..end].rfind('@') else { continue };
        if let Some(colon) = text[start..start + at].find(':') {
            found.push((start + colon + 1, start + at));
        }
    }
    found
}

/// The byte ranges of values after `password =`, in connection strings and in URL queries.
fn pair_passwords(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    // ASCII lower case keeps every byte where it is.
    for (at, word) in text.to_ascii_lowercase().match_indices("password") {
        let after = &text[at + word.len()..];
        let Some(value) = after.trim_start().strip_prefix('=') else { continue };
        let value = value.trim_start();
        let start = text.len() - value.len();
        let length = match value.chars().next() {
            None => continue,
            // How quotes nest depends on what the text is quoted in: hide the rest of it.
            Some('\'' | '"') => value.len(),
            Some(_) => unquoted_length(value),
        };
        found.push((start, start + length));
    }
    found
}

fn unquoted_length(value: &str) -> usize {
    let mut escaped = false;
    value
        .find(|c: char| {
            let ends = !escaped && (c.is_whitespace() || c == '&');
            escaped = !escaped && c == '\\';
            ends
        })
        .unwrap_or(value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings_are_taken_by_their_form() {
        for (text, expected) in [
            ("postgres://u@h/d", Ok(())),
            ("postgresql:///d?host=/tmp", Ok(())),
            ("host=/tmp dbname=x", Ok(())),
            ("host = h password=a://b", Ok(())),
            ("", Err(ConnectionUrlError::Empty)),
            ("  ", Err(ConnectionUrlError::Empty)),
            ("postgres://", Err(ConnectionUrlError::Empty)),
            ("mysql://u:p@h/d", Err(ConnectionUrlError::OtherScheme("mysql".into()))),
            ("db.example", Err(ConnectionUrlError::Unrecognised)),
            ("u:p@h://x", Err(ConnectionUrlError::Unrecognised)),
        ] {
            assert_eq!(ConnectionUrl::parse(text).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn passwords_are_masked_wherever_they_can_stand() {
        for (text, shown) in [
            ("postgres://u:secret@h:5432/d", "postgres://u:***@h:5432/d"),
            ("postgres://u:se@cr/et?@h/d", "postgres://u:***@h/d"),
            ("postgres://u@h:5432/d", "postgres://u@h:5432/d"),
            ("postgres://h:5432/d", "postgres://h:5432/d"),
            ("postgres://u:a secret@h/d", "postgres://u:***@h/d"),
            (
                "postgres://h/d?user=u&password=secret&sslmode=require",
                "postgres://h/d?user=u&password=***&sslmode=require",
            ),
            ("host=h password=secret user=u", "host=h password=*** user=u"),
            ("host=h PASSWORD = secret user=u", "host=h PASSWORD = *** user=u"),
            (r"password=se\ cret user=u", "password=*** user=u"),
            ("password='se cret' user=u", "password=***"),
            ("host=h sslpassword=secret", "host=h sslpassword=***"),
            ("a postgres://u:x@h b postgres://v:y@i c", "a postgres://u:***@h b postgres://v:***@i c"),
            ("the password is missing", "the password is missing"),
            ("größe postgres://ü:ß@h", "größe postgres://ü:***@h"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn a_connection_string_never_prints_its_password() {
        let url = ConnectionUrl::parse("postgres://u:secret@h/d").unwrap();
        assert_eq!(format!("{url}"), "postgres://u:***@h/d");
        assert_eq!(format!("{url:?}"), "ConnectionUrl(postgres://u:***@h/d)");
        assert_eq!(url.expose(), "postgres://u:secret@h/d");
    }

    #[test]
    fn columns_follow_the_text_around_a_mask() {
        let redacted = Redacted::of("a: postgres://u:secret@h # x");
        assert_eq!(redacted.text, "a: postgres://u:***@h # x");
        let column = |c: char| "a: postgres://u:secret@h # x".find(c).unwrap() + 1;
        assert_eq!(redacted.column(1), 1);
        assert_eq!(redacted.column(column('s')), column('s'));
        assert_eq!(redacted.column(column('#')), column('#') - 3);
        let inside = "a: postgres://u:sec".len() + 1;
        assert_eq!(redacted.column(inside), "a: postgres://u:".len() + 1);
    }
}
