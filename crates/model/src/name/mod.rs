//! Names of tables: how they are read, compared, printed and matched.
//!
//! A name here is what the catalog holds, already folded and unquoted. Whether such a table exists is not known here.

mod pattern;

pub use pattern::Pattern;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest identifier PostgreSQL keeps (`NAMEDATALEN - 1`), in bytes. It would silently cut what is longer.
pub const IDENTIFIER_BYTES_MAX: usize = 63;

/// The schema of a table that is written without one.
pub const DEFAULT_SCHEMA: &str = "public";

/// Why a text is not the name of a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or a dot with nothing beside it.
    #[error("a name is empty")]
    Empty,
    /// A quoted part whose closing quote is missing.
    #[error("a double quote is not closed")]
    Unclosed,
    /// Text directly after a closing quote.
    #[error("`{0}` follows a closing quote; only a dot can")]
    AfterQuote(char),
    /// A character that an unquoted identifier cannot hold.
    #[error("`{character}` cannot stand in an unquoted name; write \"{part}\" in double quotes")]
    Unquotable {
        /// The offending character.
        character: char,
        /// The part of the name it stands in.
        part: String,
    },
    /// A wildcard where one table must be named.
    #[error("`*` is a wildcard, and exactly one table must be named here")]
    Wildcard,
    /// `*` alone: it would be easy to take it for every schema.
    #[error("`*` does not say which schema")]
    BareWildcard,
    /// More than `schema.table`.
    #[error("it has more than two parts; write schema.table (the URL names the database)")]
    TooManyParts,
    /// Longer than PostgreSQL keeps.
    #[error(
        "`{0}` is longer than {IDENTIFIER_BYTES_MAX} bytes, which is all that PostgreSQL keeps of a name"
    )]
    TooLong(String),
    /// NUL cannot be part of any PostgreSQL text.
    #[error("a name cannot hold the NUL character")]
    Nul,
}

/// A table by schema and name, as the catalog spells them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct QualifiedName {
    /// The schema (`pg_namespace.nspname`).
    pub schema: String,
    /// The table (`pg_class.relname`).
    pub name: String,
}

impl QualifiedName {
    /// A name from catalog values, taken as they are: nothing is folded or checked.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }

    /// Reads `table`, `schema.table` or `"Schema"."Table"`, the way SQL does: unquoted parts are folded to lower case,
    /// a doubled quote stands for one, and a table without a schema is in [`DEFAULT_SCHEMA`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (schema, name) = split(text)?;
        let plain = |part: Part| part.plain().ok_or(NameError::Wildcard);
        let schema = schema.map(plain).transpose()?.unwrap_or_else(|| DEFAULT_SCHEMA.to_owned());
        Ok(Self { schema, name: plain(name)? })
    }

    /// The name for SQL text, both parts quoted.
    pub fn sql(&self) -> String {
        format!("{}.{}", crate::sqltext::quote_ident(&self.schema), crate::sqltext::quote_ident(&self.name))
    }
}

/// `schema.table` for people: quotes only where reading it back, here or in SQL, needs them.
impl fmt::Display for QualifiedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A reserved word is allowed after the dot, but not before it.
        let schema_is_reserved = RESERVED.contains(&self.schema.as_str());
        write_part(f, &self.schema, schema_is_reserved)?;
        f.write_str(".")?;
        write_part(f, &self.name, false)
    }
}

fn write_part(f: &mut fmt::Formatter<'_>, part: &str, reserved: bool) -> fmt::Result {
    if reserved || needs_quotes(part) {
        f.write_str(&crate::sqltext::quote_ident(part))
    } else {
        f.write_str(part)
    }
}

fn needs_quotes(part: &str) -> bool {
    let mut chars = part.chars();
    !chars.next().is_some_and(starts_identifier)
        || !chars.all(continues_identifier)
        // Servers with a single-byte encoding fold these too, so they are quoted although PostgreSQL on UTF-8 would not.
        || part.chars().any(char::is_uppercase)
}

fn starts_identifier(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || (!c.is_ascii() && !c.is_whitespace())
}

fn continues_identifier(c: char) -> bool {
    starts_identifier(c) || c.is_ascii_digit() || c == '$'
}

/// One part of a name as written: text with wildcards, which only unquoted text can hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Part {
    /// The literal stretches; a `*` stands between each two.
    pieces: Vec<String>,
}

impl Part {
    fn literal(text: String) -> Self {
        Self { pieces: vec![text] }
    }

    fn has_wildcard(&self) -> bool {
        self.pieces.len() > 1
    }

    fn plain(mut self) -> Option<String> {
        if self.has_wildcard() { None } else { self.pieces.pop() }
    }
}

/// Splits `[schema.]table` into its parts.
fn split(text: &str) -> Result<(Option<Part>, Part), NameError> {
    let text = text.trim();
    if text.contains('\0') {
        return Err(NameError::Nul);
    }
    let (first, rest) = take_part(text)?;
    if rest.is_empty() {
        return Ok((None, first));
    }
    let (second, rest) = take_part(rest)?;
    if rest.is_empty() && !text.ends_with('.') {
        Ok((Some(first), second))
    } else {
        Err(NameError::TooManyParts)
    }
}

/// Reads one part; the rest is what follows the dot after it, and empty at the end of the text.
fn take_part(text: &str) -> Result<(Part, &str), NameError> {
    let (part, rest) = match text.strip_prefix('"') {
        Some(quoted) => take_quoted(quoted)?,
        None => {
            let end = text.find(['.', '"']).unwrap_or(text.len());
            (read_unquoted(&text[..end])?, &text[end..])
        }
    };
    if part.pieces.iter().map(String::len).sum::<usize>() > IDENTIFIER_BYTES_MAX {
        return Err(NameError::TooLong(part.pieces.join("*")));
    }
    match rest.chars().next() {
        None => Ok((part, rest)),
        Some('.') if rest.len() > 1 => Ok((part, &rest[1..])),
        Some('.') => Err(NameError::Empty),
        Some(other) => Err(NameError::AfterQuote(other)),
    }
}

fn take_quoted(text: &str) -> Result<(Part, &str), NameError> {
    let mut name = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            name.push(c);
        } else if chars.next_if(|(_, next)| *next == '"').is_some() {
            name.push('"');
        } else if name.is_empty() {
            return Err(NameError::Empty);
        } else {
            return Ok((Part::literal(name), &text[at + 1..]));
        }
    }
    Err(NameError::Unclosed)
}

fn read_unquoted(text: &str) -> Result<Part, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    for (at, character) in text.char_indices() {
        let allowed = character == '*'
            || if at == 0 { starts_identifier(character) } else { continues_identifier(character) };
        if !allowed {
            return Err(NameError::Unquotable { character, part: text.to_owned() });
        }
    }
    // As in PostgreSQL on UTF-8, only ASCII letters are folded.
    Ok(Part { pieces: text.to_ascii_lowercase().split('*').map(str::to_owned).collect() })
}

/// PostgreSQL's reserved words (18, `pg_get_keywords()` with catcode R or T): these need quotes as a schema.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "authorization",
    "binary",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "collation",
    "column",
    "concurrently",
    "constraint",
    "create",
    "cross",
    "current_catalog",
    "current_date",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "default",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "freeze",
    "from",
    "full",
    "grant",
    "group",
    "having",
    "ilike",
    "in",
    "initially",
    "inner",
    "intersect",
    "into",
    "is",
    "isnull",
    "join",
    "lateral",
    "leading",
    "left",
    "like",
    "limit",
    "localtime",
    "localtimestamp",
    "natural",
    "not",
    "notnull",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "outer",
    "overlaps",
    "placing",
    "primary",
    "references",
    "returning",
    "right",
    "select",
    "session_user",
    "similar",
    "some",
    "symmetric",
    "system_user",
    "table",
    "tablesample",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "verbose",
    "when",
    "where",
    "window",
    "with",
];

#[cfg(test)]
mod tests;
