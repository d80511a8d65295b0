//! What a database says of its tables and functions, and what is judged of them: which are harmless to read or call.
//!
//! It is read once, from one answer of the owner, and never changes. It does not ask the database itself: whoever
//! embeds the router does, and reads it again when the schema has changed. A name that it does not have is not
//! harmless.

use super::parse::{self, Statement};
use super::walk::{Found, Walk};
use super::{Unit, Why, names};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};

/// Views of views, and functions that call functions: no deeper than this.
const DEPTH_MAX: usize = 32;

/// What there is in a database, and whether it is harmless.
#[derive(Debug)]
pub struct Catalog {
    /// By name: one for each schema.
    relations: HashMap<String, Vec<Relation>>,
    /// By name: one for each schema and each list of arguments.
    functions: HashMap<String, Vec<Function>>,
    /// User-defined operators that are not harmless.
    operators: HashSet<String>,
    /// Why nothing is a read in this database.
    everything: Option<Why>,
}

/// Why a catalog could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The answer is not what [`Catalog::SQL`] asks for.
    #[error("the description of the database cannot be read; run the statement of this very version: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Debug)]
struct Relation {
    schema: String,
    verdict: Result<Found, Why>,
}

/// What is known of a function that may be called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) found: Found,
    /// An aggregate whose result depends on the order of its input, or may.
    pub(super) depends_on_order: bool,
}

#[derive(Debug)]
struct Function {
    schema: String,
    verdict: Result<Called, Why>,
    /// It can be called like a column of a row: `a.f`.
    takes_row: bool,
}

#[derive(Deserialize)]
struct Answer {
    relations: Vec<RelationRow>,
    functions: Vec<FunctionRow>,
    system_functions: Vec<SystemRow>,
    operators: Vec<OperatorRow>,
    implicit: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct RelationRow {
    oid: u32,
    schema: String,
    name: String,
    kind: String,
    row_security: bool,
    /// It is a partition of its parent, and not an heir.
    partition: bool,
    parents: Vec<u32>,
    definition: Option<String>,
}

#[derive(Deserialize)]
struct FunctionRow {
    schema: String,
    name: String,
    kind: String,
    volatility: String,
    language: String,
    takes_row: bool,
    body: Option<String>,
    /// Of its arguments, with commas between them.
    defaults: Option<String>,
    /// What an aggregate calls.
    calls: Option<Vec<(String, String)>>,
}

#[derive(Deserialize)]
struct SystemRow {
    name: String,
    volatile: bool,
    aggregate: bool,
}

#[derive(Deserialize)]
struct OperatorRow {
    name: String,
    schema: String,
    function: String,
}

/// What is judged by what it reads and calls itself.
struct Pending {
    place: Place,
    body: Body,
}

enum Place {
    Relation(String, usize),
    Function(String, usize),
}

enum Body {
    Statements(Vec<Statement>),
    /// Support functions of an aggregate.
    Calls(Vec<(String, String)>),
}

impl Catalog {
    /// One statement for the owner, returning one row with one column of text: what [`Catalog::read`] reads. For
    /// PostgreSQL 12 and newer; it needs no privileges.
    pub const SQL: &str = include_str!("catalog.sql");

    /// `json` is what [`Catalog::SQL`] returned; `migrated` are schema and name of tables that both sides have, the
    /// roots of partitioned tables.
    ///
    /// # Errors
    /// If `json` has another form.
    pub fn read(json: &str, migrated: &[(String, String)]) -> Result<Catalog, CatalogError> {
        let answer: Answer = serde_json::from_str(json)?;
        let mut catalog = Catalog {
            relations: HashMap::new(),
            functions: HashMap::new(),
            operators: HashSet::new(),
            everything: None,
        };
        let mut pending = catalog.put_relations(answer.relations, migrated);
        for row in answer.system_functions {
            catalog.put_system_function(row);
        }
        for (newer, older) in names::NEWER {
            if let (Err(_), Ok(verdict)) = (catalog.function(None, newer), catalog.function(None, older)) {
                catalog.put_system(newer, Ok(verdict));
            }
        }
        for row in answer.functions {
            pending.extend(catalog.put_function(row));
        }
        // Operators are judged by functions, and the bodies of functions use operators. As long as a function is not
        // judged its operators are not harmless, so that bodies which use one wait for it.
        catalog.judge(pending, &answer.operators);
        let implicit = |name: &String| names::is_implicit_operator(name);
        let is_harmless = |(schema, name): &(String, String)| catalog.function(Some(schema), name).is_ok();
        if catalog.operators.iter().any(implicit) || !answer.implicit.iter().all(is_harmless) {
            catalog.everything = Some(Why::Implicit);
        }
        Ok(catalog)
    }

    /// Whether a string of statements is proved to read migrated tables and to do nothing else. It sees the text
    /// alone: that the session has no temporary tables, and its text is UTF-8, is for the caller to know.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn reads(&self, sql: &str) -> Result<(), String> {
        match super::unit(self, sql.as_bytes()) {
            Unit::Read => Ok(()),
            Unit::BeginReadOnly | Unit::End => Err(Why::Transaction.to_string()),
            Unit::Owner(why) => Err(why.to_string()),
        }
    }

    /// Why nothing at all is a read.
    pub(super) fn everything(&self) -> Option<Why> {
        self.everything
    }

    /// Without a schema every relation of the name must be harmless, whatever the search path finds.
    pub(super) fn relation(&self, schema: Option<&str>, name: &str) -> Result<Found, Why> {
        if names::is_system(schema.unwrap_or(name)) {
            return Err(Why::SystemCatalog);
        }
        let named = self.relations.get(name).map_or(&[][..], Vec::as_slice);
        let verdicts = named.iter().filter(|relation| schema.is_none_or(|schema| relation.schema == schema));
        let verdicts = verdicts.map(|relation| relation.verdict);
        verdicts.reduce(|one, other| Ok(one?.and(other?))).unwrap_or(Err(Why::UnknownTable))
    }

    /// Likewise, and all functions of the name, whatever their arguments.
    pub(super) fn function(&self, schema: Option<&str>, name: &str) -> Result<Called, Why> {
        let named = self.functions.get(name).map_or(&[][..], Vec::as_slice);
        let verdicts = named.iter().filter(|function| schema.is_none_or(|schema| function.schema == schema));
        let verdicts = verdicts.map(|function| function.verdict);
        let both = |one: Result<Called, Why>, other: Result<Called, Why>| {
            let (one, other) = (one?, other?);
            Ok(Called {
                found: one.found.and(other.found),
                depends_on_order: one.depends_on_order || other.depends_on_order,
            })
        };
        verdicts.reduce(both).unwrap_or(Err(Why::UnknownFunction))
    }

    /// What `a.name` may call.
    pub(super) fn attribute(&self, name: &str) -> Result<(), Why> {
        let named = self.functions.get(name).map_or(&[][..], Vec::as_slice);
        let mut callable = named.iter().filter(|function| function.takes_row);
        callable.try_for_each(|function| function.verdict.map(|_| ()))
    }

    pub(super) fn operator(&self, name: &str) -> Result<(), Why> {
        if self.operators.contains(name) { Err(Why::Operator) } else { Ok(()) }
    }

    fn put_relations(&mut self, rows: Vec<RelationRow>, migrated: &[(String, String)]) -> Vec<Pending> {
        let tables = Tables::of(&rows, migrated);
        let verdicts: Vec<_> = rows.iter().map(|row| tables.verdict(row)).collect();
        let mut pending = Vec::new();
        for (row, mut verdict) in rows.into_iter().zip(verdicts) {
            let named = self.relations.entry(row.name.clone()).or_default();
            if row.kind == "v" {
                match row.definition.map(|definition| parse::parse(definition.as_bytes())) {
                    Some(Ok(statements)) => pending.push(Pending {
                        place: Place::Relation(row.name, named.len()),
                        body: Body::Statements(statements),
                    }),
                    Some(Err(_)) | None => verdict = Err(Why::Unparsed),
                }
            }
            named.push(Relation { schema: row.schema, verdict });
        }
        pending
    }

    fn put_system_function(&mut self, row: SystemRow) {
        let is_volatile = row.volatile && !names::is_called_volatile_wrongly(&row.name);
        let verdict = match () {
            () if names::is_about_server(&row.name) => Err(Why::AboutServer),
            () if is_volatile && !names::is_chance(&row.name) => Err(Why::Volatile),
            () => Ok(Called {
                found: Found { tables: false, chance: is_volatile },
                depends_on_order: row.aggregate && names::depends_on_order(&row.name),
            }),
        };
        self.put_system(&row.name, verdict);
    }

    fn put_system(&mut self, name: &str, verdict: Result<Called, Why>) {
        let function = Function { schema: "pg_catalog".to_owned(), verdict, takes_row: false };
        self.functions.entry(name.to_owned()).or_default().push(function);
    }

    fn put_function(&mut self, row: FunctionRow) -> Option<Pending> {
        let later = Err(Why::UnknownFunction);
        let (verdict, body) = match (&*row.volatility, &*row.language) {
            ("i", _) if row.kind == "a" => (later, row.calls.map(Body::Calls)),
            ("i" | "s", "c") if names::runs_text(&row.name) => (later, None),
            ("i" | "s", "internal" | "c") | ("i", _) if row.language != "sql" => {
                (Ok(Called::default()), None)
            }
            ("i" | "s", "sql") => {
                let parsed = row.body.and_then(|body| parse::parse(body.as_bytes()).ok());
                (later, parsed.map(Body::Statements))
            }
            ("v", "c") if names::is_chance(&row.name) => {
                (Ok(Called { found: Found { tables: false, chance: true }, depends_on_order: false }), None)
            }
            ("v", _) => (Err(Why::Volatile), None),
            _ => (later, None),
        };
        // A call that leaves arguments out evaluates their defaults.
        let (verdict, body) = match (row.defaults, verdict, body) {
            (None, verdict, body) => (verdict, body),
            (Some(defaults), Ok(_), None) => (later, with_defaults(Vec::new(), &defaults)),
            (Some(defaults), _, Some(Body::Statements(body))) => (later, with_defaults(body, &defaults)),
            (Some(_), verdict, _) => (verdict, None),
        };
        let named = self.functions.entry(row.name.clone()).or_default();
        let place = Place::Function(row.name, named.len());
        named.push(Function { schema: row.schema, verdict, takes_row: row.takes_row });
        body.map(|body| Pending { place, body })
    }

    /// Judges views, functions and operators until nothing changes any more: what calls itself is never harmless.
    fn judge(&mut self, mut pending: Vec<Pending>, operators: &[OperatorRow]) {
        for _ in 0..DEPTH_MAX {
            self.operators = operators
                .iter()
                .filter(|operator| self.function(Some(&operator.schema), &operator.function).is_err())
                .map(|operator| operator.name.clone())
                .collect();
            let mut has_changed = false;
            pending.retain(|one| {
                let verdict = self.verdict(&one.body);
                has_changed |= self.settle(&one.place, verdict);
                verdict.is_err()
            });
            if !has_changed {
                return;
            }
        }
    }

    fn verdict(&self, body: &Body) -> Result<Called, Why> {
        match body {
            Body::Statements(statements) => {
                let mut found = Found::default();
                for statement in statements {
                    if statement.tree.get("SelectStmt").is_none() {
                        return Err(statement.kind.is_owners().unwrap_or(Why::Transaction));
                    }
                    let mut walk = Walk::new(self);
                    walk.statement(&statement.tree)?;
                    found = found.and(walk.found());
                }
                Ok(Called { found, depends_on_order: false })
            }
            Body::Calls(functions) => {
                for (schema, name) in functions {
                    self.function(Some(schema), name)?;
                }
                Ok(Called { found: Found::default(), depends_on_order: true })
            }
        }
    }

    /// Whether it was another verdict before.
    fn settle(&mut self, place: &Place, verdict: Result<Called, Why>) -> bool {
        match place {
            Place::Relation(name, index) => {
                let Some(relation) = self.relations.get_mut(name).and_then(|named| named.get_mut(*index))
                else {
                    return false;
                };
                let verdict = verdict.map(|called| called.found);
                std::mem::replace(&mut relation.verdict, verdict) != verdict
            }
            Place::Function(name, index) => {
                let Some(function) = self.functions.get_mut(name).and_then(|named| named.get_mut(*index))
                else {
                    return false;
                };
                std::mem::replace(&mut function.verdict, verdict) != verdict
            }
        }
    }
}

fn with_defaults(mut body: Vec<Statement>, defaults: &str) -> Option<Body> {
    body.extend(parse::parse(format!("SELECT {defaults}").as_bytes()).ok()?);
    Some(Body::Statements(body))
}

/// Which tables are migrated, themselves or as part of another, and which read others when they are read.
struct Tables<'a> {
    rows: HashMap<u32, &'a RelationRow>,
    migrated: HashSet<(&'a str, &'a str)>,
    /// Tables below which there is one that cannot be read on the other side.
    spoilt: HashMap<u32, Why>,
}

impl<'a> Tables<'a> {
    fn of(rows: &'a [RelationRow], migrated: &'a [(String, String)]) -> Tables<'a> {
        let mut tables = Tables {
            rows: rows.iter().map(|row| (row.oid, row)).collect(),
            migrated: migrated.iter().map(|(schema, name)| (&**schema, &**name)).collect(),
            spoilt: HashMap::new(),
        };
        for row in rows {
            let Err(why) = tables.own(row) else { continue };
            let mut above = row.parents.clone();
            while let Some(oid) = above.pop() {
                if tables.spoilt.insert(oid, why).is_none() {
                    above.extend(tables.rows.get(&oid).iter().flat_map(|row| &row.parents));
                }
            }
        }
        tables
    }

    fn verdict(&self, row: &RelationRow) -> Result<Found, Why> {
        self.own(row)?;
        match self.spoilt.get(&row.oid) {
            Some(why) => Err(*why),
            None if row.row_security => Err(Why::RowSecurity),
            None => Ok(Found { tables: true, chance: false }),
        }
    }

    /// Without what is below it.
    fn own(&self, row: &RelationRow) -> Result<(), Why> {
        match &*row.kind {
            "r" | "p" if self.is_migrated(row) => Ok(()),
            _ => Err(Why::NotMigrated),
        }
    }

    /// It is listed, or is a partition, however deep, of one that is.
    fn is_migrated(&self, row: &RelationRow) -> bool {
        let mut row = Some(row);
        // A bound in case the answer names a circle.
        for _ in 0..64 {
            let Some(here) = row else { return false };
            if self.migrated.contains(&(&*here.schema, &*here.name)) {
                return true;
            }
            row = match (here.partition, &here.parents[..]) {
                (true, [parent]) => self.rows.get(parent).copied(),
                _ => None,
            };
        }
        false
    }
}

#[cfg(test)]
mod tests;
