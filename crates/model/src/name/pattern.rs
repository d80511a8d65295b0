//! Patterns over table names: `public.*`, `crm.order_*`.
//!
//! `*` stands for any run of characters, also none, and is the only wildcard; inside double quotes it is a character.

use std::fmt;

use super::{DEFAULT_SCHEMA, NameError, Part, QualifiedName, needs_quotes, split};

/// A table name in which unquoted parts may hold `*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    schema: Part,
    name: Part,
}

impl Pattern {
    /// Reads a pattern by the rules of [`QualifiedName::parse`]. Without a schema it is in `public`, but `*` alone is
    /// refused, since it reads as "every schema".
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (schema, name) = split(text)?;
        let bare = schema.is_none() && name.pieces.iter().all(String::is_empty);
        if bare {
            return Err(NameError::BareWildcard);
        }
        Ok(Self { schema: schema.unwrap_or_else(|| Part::literal(DEFAULT_SCHEMA.to_owned())), name })
    }

    /// The one table that this pattern names, or `None` if it has a wildcard.
    pub fn exact(&self) -> Option<QualifiedName> {
        Some(QualifiedName { schema: self.schema.clone().plain()?, name: self.name.clone().plain()? })
    }

    /// Whether `table` is meant by this pattern.
    pub fn matches(&self, table: &QualifiedName) -> bool {
        self.schema.matches(&table.schema) && self.name.matches(&table.name)
    }
}

impl Part {
    fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            return self.pieces.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) =
            text.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
        else {
            return false;
        };
        // Taking the leftmost place for each piece leaves the most room for the next ones.
        for piece in middle {
            match rest.find(piece.as_str()) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        true
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pieces.as_slice() {
            [only] if needs_quotes(only) => f.write_str(&crate::sqltext::quote_ident(only)),
            pieces => f.write_str(&pieces.join("*")),
        }
    }
}

/// The pattern as it can be written in a spec again.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(table) = self.exact() {
            return table.fmt(f);
        }
        self.schema.write(f)?;
        f.write_str(".")?;
        self.name.write(f)
    }
}
