//! What is proved of statements by PostgreSQL's own parser and a catalog: that they read migrated tables only.
//!
//! A text is a read only if every node of its tree is known to be harmless ([`walk`]), every table is migrated, and
//! every function, operator and view is harmless by what the [`Catalog`] knows. Everything else is the owner's, with
//! a word on why. What was proved is remembered by the text without its constants ([`shape`], [`cache`]).
//!
//! It sees the text alone. Whoever asks must know that the session has no temporary tables, that
//! `information_schema` is not in its search path, and that its text is UTF-8: ASCII is, under any `client_encoding`.
//! It does not do I/O, and does not know which side serves what.

mod cache;
mod catalog;
mod kind;
mod names;
mod order;
mod parse;
mod shape;
mod walk;

pub use catalog::{Catalog, CatalogError};
pub(crate) use kind::{StatementKind, Why};
pub(crate) use order::Order;

use crate::effects;
use cache::Cache;
use parse::{NoTree, Statement};
use serde_json::Value;
use shape::Shape;
use std::sync::{Arc, PoisonError, RwLock};
use walk::Walk;

/// What is remembered: this many texts, and about this many bytes.
const ENTRIES_MAX: usize = 10_000;
const BYTES_MAX: usize = 32 << 20;

/// What an entry takes beside its key: a class with its shape, and its place in the map.
const VALUE_BYTES: usize = 1_400;

/// What is proved of a string of statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) unit: Unit,
    /// What order its rows come in; of several statements, and of anything but a read, none is known.
    pub(crate) order: Order,
    /// Which rows come, or what is in them, may depend on chance: limits, windows, aggregates that depend on the order
    /// of their input, and functions like `random`. False proves nothing: a sum of floats depends on the order too.
    pub(crate) limited: bool,
    /// The same for all texts that differ in constants only, in every process.
    pub(crate) fingerprint: u64,
    /// The text without its constants, for people: no more than 1 KiB.
    pub(crate) shape: Box<str>,
    /// Of the strongest statement.
    pub(crate) kind: StatementKind,
    /// All texts of this shape do nothing to their session; whether they can be sent again then.
    pub(crate) plain: Option<bool>,
}

/// Where a string of statements may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Every statement is a read of migrated tables, and none controls the transaction.
    Read,
    /// It begins a transaction that is stated to be read-only, at READ COMMITTED if a level is stated; nothing else.
    BeginReadOnly,
    /// It ends a transaction, without beginning the next; nothing else.
    End,
    /// Everything else.
    Owner(Why),
}

/// Classifies statements; shared by all sessions.
#[derive(Debug)]
pub(crate) struct Classifier {
    known: RwLock<Arc<Known>>,
}

/// A catalog, and what was proved by it.
#[derive(Debug)]
struct Known {
    catalog: Option<Arc<Catalog>>,
    proved: Cache<Proved>,
}

#[derive(Debug, Clone)]
enum Proved {
    Class(Arc<Class>),
    /// Constants matter: what is proved is remembered by the text as it is.
    ByText,
}

impl Classifier {
    pub(crate) fn new() -> Classifier {
        Classifier { known: RwLock::new(Known::of(None)) }
    }

    /// Takes another catalog; what was proved by the old one is forgotten.
    pub(crate) fn set_catalog(&self, catalog: Option<Arc<Catalog>>) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known::of(catalog);
    }

    /// Without a catalog everything is the owner's.
    pub(crate) fn class(&self, sql: &[u8]) -> Arc<Class> {
        let shape = Shape::of(sql);
        if let Some(why) = shape.refused {
            return Arc::new(class(&shape, Proof::owner(shape.kind(), why), None));
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(class) = known.remembered(sql, &shape) {
            return class;
        }
        // A proof that takes long belongs to the catalog that it was begun with, and goes when that goes.
        let begun_with = Arc::clone(&known);
        drop(known);
        begun_with.prove(sql, &shape)
    }
}

impl Known {
    fn of(catalog: Option<Arc<Catalog>>) -> Arc<Known> {
        Arc::new(Known { catalog, proved: Cache::new(ENTRIES_MAX, BYTES_MAX) })
    }

    /// What is remembered of it.
    fn remembered(&self, sql: &[u8], shape: &Shape) -> Option<Arc<Class>> {
        let proved = match self.proved.get(shape.bytes())? {
            // No shape that is remembered begins like this: it would begin with a constant.
            Proved::ByText => self.proved.get(&[&[0], sql].concat())?,
            proved @ Proved::Class(_) => proved,
        };
        match proved {
            Proved::Class(class) => Some(class),
            Proved::ByText => None,
        }
    }

    fn prove(&self, sql: &[u8], shape: &Shape) -> Arc<Class> {
        let plain = effects::plain(sql);
        let catalog = match (shape.kind().is_owners(), &self.catalog) {
            (None, Some(catalog)) => catalog,
            (why, _) => {
                let proof = Proof::owner(shape.kind(), why.unwrap_or(Why::NoCatalog));
                let class = Arc::new(class(shape, proof, plain));
                if !shape.begins_with_constant() {
                    self.proved.insert(shape.bytes(), Proved::Class(class.clone()));
                }
                return class;
            }
        };
        let statements = match parse::parse(sql) {
            Ok(statements) => statements,
            Err(reason) => {
                let class = Arc::new(class(shape, Proof::owner(shape.kind(), reason.into()), plain));
                if reason == NoTree::Unparsed {
                    self.proved.insert(shape.bytes(), Proved::Class(class.clone()));
                }
                return class;
            }
        };
        let class = Arc::new(class(shape, prove(catalog, &statements), plain));
        let proved = Proved::Class(class.clone());
        if matches!(&statements[..], [one] if order::is_positional(&one.tree)) {
            self.proved.insert(shape.bytes(), Proved::ByText);
            self.proved.insert(&[&[0], sql].concat(), proved);
        } else {
            self.proved.insert(shape.bytes(), proved);
        }
        class
    }
}

/// What can be told without parsing: which statements begin as none that could be a read.
fn refused(shape: &Shape) -> Option<Why> {
    shape.refused.or_else(|| shape.kind().is_owners())
}

/// Without remembering anything.
fn unit(catalog: &Catalog, sql: &[u8]) -> Unit {
    if let Some(why) = refused(&Shape::of(sql)) {
        return Unit::Owner(why);
    }
    match parse::parse(sql) {
        Ok(statements) => prove(catalog, &statements).unit,
        Err(reason) => Unit::Owner(reason.into()),
    }
}

/// What is proved, before it is put into words.
struct Proof {
    unit: Unit,
    order: Order,
    limited: bool,
    kind: StatementKind,
}

impl Proof {
    fn owner(kind: StatementKind, why: Why) -> Proof {
        Proof { unit: Unit::Owner(why), order: Order::None, limited: false, kind }
    }
}

fn class(shape: &Shape, proof: Proof, plain: Option<bool>) -> Class {
    Class {
        unit: proof.unit,
        order: proof.order,
        limited: proof.limited,
        fingerprint: shape.fingerprint(),
        shape: shape.shown(),
        kind: proof.kind,
        plain,
    }
}

fn prove(catalog: &Catalog, statements: &[Statement]) -> Proof {
    let kind = statements.iter().map(|statement| statement.kind).max().unwrap_or(StatementKind::Other);
    if let [Statement { tree, .. }] = statements
        && let Some(transaction) = tree.get("TransactionStmt")
    {
        let unit = match transaction_unit(transaction) {
            Unit::BeginReadOnly if catalog.has_levels => Unit::Owner(Why::Transaction),
            unit => unit,
        };
        return Proof { unit, ..Proof::owner(kind, Why::Transaction) };
    }
    let mut proof = Proof { unit: Unit::Read, ..Proof::owner(kind, Why::Empty) };
    for statement in statements {
        let mut walk = Walk::new(catalog);
        let outcome = match (statement.tree.get("SelectStmt"), statement.tree.is_null()) {
            (Some(_), _) => walk.statement(&statement.tree),
            (None, true) => Err(statement.kind.is_owners().unwrap_or(Why::Utility)),
            (None, false) => Err(Why::Transaction),
        };
        proof.kind = proof.kind.max(walk.strongest());
        proof.limited |= walk.found().chance;
        let outcome = outcome.and_then(|()| if walk.found().tables { Ok(()) } else { Err(Why::NoTable) });
        if let (Err(why), Unit::Read) = (outcome, proof.unit) {
            proof.unit = Unit::Owner(why);
        }
        proof.order = match (statements.len(), statement.tree.get("SelectStmt")) {
            (1, Some(select)) => order::order(select),
            _ => Order::Hidden,
        };
    }
    if statements.is_empty() {
        proof.unit = Unit::Owner(Why::Empty);
    }
    if let Unit::Owner(_) = proof.unit {
        proof.order = Order::None;
    }
    proof
}

/// From the numbers of the parser's `TransactionStmtKind`, and the options that its grammar makes.
fn transaction_unit(transaction: &Value) -> Unit {
    use pg_query::protobuf::TransactionStmtKind as Kind;
    let kind = transaction["kind"].as_i64().and_then(|kind| Kind::try_from(i32::try_from(kind).ok()?).ok());
    let is_chained = transaction["chain"] != Value::Bool(false);
    match kind {
        Some(Kind::TransStmtCommit | Kind::TransStmtRollback) if !is_chained => Unit::End,
        Some(Kind::TransStmtBegin | Kind::TransStmtStart) if begins_read_only(transaction) => {
            Unit::BeginReadOnly
        }
        _ => Unit::Owner(Why::Transaction),
    }
}

fn begins_read_only(transaction: &Value) -> bool {
    let mut is_read_only = false;
    let Some(options) = transaction["options"].as_array() else { return false };
    let holds = options.iter().all(|option| {
        let option = &option["node"]["DefElem"];
        let value = &option["arg"]["node"]["AConst"]["val"];
        match option["defname"].as_str() {
            Some("transaction_read_only") => {
                is_read_only = true;
                value["Ival"]["ival"] == 1
            }
            Some("transaction_isolation") => value["Sval"]["sval"] == "read committed",
            _ => false,
        }
    });
    holds && is_read_only
}

#[cfg(test)]
mod tests;
