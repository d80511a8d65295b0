//! Which tables move: what the spec lists, and what that comes to among the tables of a source.

use std::collections::HashMap;
use std::fmt;

use super::problem::{did_you_mean, nearest};
use crate::name::{Pattern, QualifiedName};

/// How one source table becomes one target table. For now under the same or another name, in the same shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The table on the source.
    pub source: QualifiedName,
    /// The table on the target.
    pub target: QualifiedName,
}

/// One item under `tables`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableEntry {
    /// Its line in the spec, from 1.
    pub line: usize,
    /// What it asks for.
    pub choice: TableChoice,
}

/// What an item under `tables` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChoice {
    /// One table, by name.
    One(Mapping),
    /// All tables of the source that match, each to its own name.
    Matching(Pattern),
}

/// The source's side of the choice, as it can be written in a spec.
impl fmt::Display for TableChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TableChoice::One(mapping) => mapping.source.fmt(f),
            TableChoice::Matching(pattern) => pattern.fmt(f),
        }
    }
}

/// The tables that a spec asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// What is listed, in the order of the spec. No table by name, and no target, is there twice.
    pub tables: Vec<TableEntry>,
    /// What the patterns leave out. None of these matches a table that is listed by name.
    pub exclude: Vec<Pattern>,
}

/// Why a selection does not fit the tables of a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectionError {
    /// A table listed by name is not there.
    #[error("line {line}: the source has no table `{table}`{}", hint(.help))]
    NoSuchTable {
        /// The line in the spec.
        line: usize,
        /// The table as listed.
        table: QualifiedName,
        /// The nearest name that is there.
        help: Option<String>,
    },
    /// A pattern matches nothing that is not excluded.
    #[error("line {line}: no table of the source matches `{pattern}`")]
    NoMatch {
        /// The line in the spec.
        line: usize,
        /// The pattern as listed.
        pattern: Pattern,
    },
    /// A table found by a pattern goes where another table goes too.
    #[error("line {line}: `{source_table}` and `{other}` would both go to `{target}`; exclude one of them")]
    SameTarget {
        /// The line in the spec of the pattern that found the table.
        line: usize,
        /// The table found.
        source_table: QualifiedName,
        /// The other table.
        other: QualifiedName,
        /// Where both would go.
        target: QualifiedName,
    },
}

fn hint(help: &Option<String>) -> String {
    help.as_ref().map(|help| format!("; {help}")).unwrap_or_default()
}

impl Selection {
    /// The mappings that this selection comes to, given all tables of the source (roots of partitioned tables, not
    /// their leaves). Tables listed by name come first, in the order of the spec; then what patterns find, by name.
    /// A table that is listed by name is not found again by a pattern; tables of PostgreSQL and of Segue never are.
    pub fn resolve(&self, on_source: &[QualifiedName]) -> Result<Vec<Mapping>, Vec<SelectionError>> {
        let mut errors = Vec::new();
        let mut mappings: Vec<Mapping> = Vec::new();
        for entry in &self.tables {
            if let TableChoice::One(mapping) = &entry.choice {
                if on_source.contains(&mapping.source) {
                    mappings.push(mapping.clone());
                } else {
                    errors.push(no_such_table(entry.line, &mapping.source, on_source));
                }
            }
        }
        let mut takers: HashMap<QualifiedName, QualifiedName> =
            mappings.iter().map(|m| (m.target.clone(), m.source.clone())).collect();
        let named: Vec<QualifiedName> = mappings.iter().map(|m| m.source.clone()).collect();
        let mut candidates: Vec<&QualifiedName> =
            on_source.iter().filter(|table| !is_off_limits(table) && !self.excludes(table)).collect();
        candidates.sort();
        for entry in &self.tables {
            let TableChoice::Matching(pattern) = &entry.choice else { continue };
            let found: Vec<&QualifiedName> =
                candidates.iter().copied().filter(|table| pattern.matches(table)).collect();
            if found.is_empty() {
                errors.push(SelectionError::NoMatch { line: entry.line, pattern: pattern.clone() });
            }
            for table in found.into_iter().filter(|table| !named.contains(table)) {
                match takers.get(table) {
                    // An earlier pattern found it too.
                    Some(taker) if taker == table => {}
                    Some(taker) => errors.push(SelectionError::SameTarget {
                        line: entry.line,
                        source_table: table.clone(),
                        other: taker.clone(),
                        target: table.clone(),
                    }),
                    None => {
                        takers.insert(table.clone(), table.clone());
                        mappings.push(Mapping { source: table.clone(), target: table.clone() });
                    }
                }
            }
        }
        if errors.is_empty() { Ok(mappings) } else { Err(errors) }
    }

    fn excludes(&self, table: &QualifiedName) -> bool {
        self.exclude.iter().any(|pattern| pattern.matches(table))
    }
}

fn no_such_table(line: usize, table: &QualifiedName, on_source: &[QualifiedName]) -> SelectionError {
    let names: Vec<String> = on_source.iter().map(QualifiedName::to_string).collect();
    let help = nearest(&table.to_string(), names.iter().map(String::as_str)).map(did_you_mean);
    SelectionError::NoSuchTable { line, table: table.clone(), help }
}

/// Whether a table is PostgreSQL's or Segue's own.
pub(super) fn is_off_limits(table: &QualifiedName) -> bool {
    // PostgreSQL reserves the prefix `pg_` for itself.
    table.schema.starts_with("pg_") || table.schema == "information_schema" || table.schema == "segue"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(tables: &[(&str, Option<&str>)], exclude: &[&str]) -> Selection {
        let entry = |(at, (from, to)): (usize, &(&str, Option<&str>))| {
            let pattern = Pattern::parse(from).unwrap();
            let choice = match pattern.exact() {
                Some(source) => {
                    let target = to.map_or_else(|| source.clone(), |to| QualifiedName::parse(to).unwrap());
                    TableChoice::One(Mapping { source, target })
                }
                None => TableChoice::Matching(pattern),
            };
            TableEntry { line: at + 1, choice }
        };
        Selection {
            tables: tables.iter().enumerate().map(entry).collect(),
            exclude: exclude.iter().map(|text| Pattern::parse(text).unwrap()).collect(),
        }
    }

    fn names(texts: &[&str]) -> Vec<QualifiedName> {
        texts.iter().map(|text| QualifiedName::parse(text).unwrap()).collect()
    }

    fn resolved(selection: &Selection, on_source: &[&str]) -> Result<Vec<String>, Vec<String>> {
        selection
            .resolve(&names(on_source))
            .map(|mappings| mappings.iter().map(|m| format!("{} > {}", m.source, m.target)).collect())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn patterns_add_what_is_not_named_and_not_excluded() {
        let selection =
            selection(&[("public.*", None), ("public.b", Some("crm.b")), ("*.*", None)], &["public.x_*"]);
        let on_source = [
            "public.c",
            "public.a",
            "public.b",
            "public.x_1",
            "other.t",
            "segue.region",
            "pg_catalog.pg_class",
        ];
        assert_eq!(
            resolved(&selection, &on_source).unwrap(),
            ["public.b > crm.b", "public.a > public.a", "public.c > public.c", "other.t > other.t"]
        );
    }

    #[test]
    fn what_is_not_there_is_named_with_the_nearest_that_is() {
        let selection =
            selection(&[("public.ordrs", None), ("crm.*", None), ("public.nothing_like_it", None)], &[]);
        assert_eq!(
            resolved(&selection, &["public.orders"]).unwrap_err(),
            [
                "line 1: the source has no table `public.ordrs`; did you mean `public.orders`?",
                "line 3: the source has no table `public.nothing_like_it`",
                "line 2: no table of the source matches `crm.*`",
            ]
        );
    }

    #[test]
    fn a_pattern_cannot_send_a_second_table_to_one_target() {
        let selection = selection(&[("public.old", Some("public.new")), ("public.*", None)], &[]);
        assert_eq!(
            resolved(&selection, &["public.old", "public.new"]).unwrap_err(),
            ["line 2: `public.new` and `public.old` would both go to `public.new`; exclude one of them"]
        );
    }
}
