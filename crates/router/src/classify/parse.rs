//! PostgreSQL's own parser: from a text to the trees of its statements.
//!
//! It knows what a statement is called, and nothing of what its tree means.

use super::{StatementKind, Why};
use crate::lexer::{Token, Words};
use pg_query::protobuf::RawStmt;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// While it parses, the library turns the standard error output of the whole process to itself, and back: two threads
/// at once could leave it turned away for good. Parsing takes microseconds, and what was parsed is remembered.
static PARSING: Mutex<()> = Mutex::new(());

/// One statement of a text.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) kind: StatementKind,
    /// One member, named as the type of its root. Null for what can only be the owner's.
    pub(super) tree: Value,
}

/// Why a text has no trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoTree {
    /// It never will.
    Unparsed,
    /// The process is out of something; another time it may.
    Now,
}

impl From<NoTree> for Why {
    fn from(_: NoTree) -> Why {
        Why::Unparsed
    }
}

/// Bounded on deep trees: the parser measures its stack, and no more than a hundred messages within one another are
/// decoded. Its errors are Rust's errors here, and panics of its wrapper end here.
pub(super) fn parse(sql: &[u8]) -> Result<Vec<Statement>, NoTree> {
    let text = std::str::from_utf8(sql).map_err(|_| NoTree::Unparsed)?;
    let parsed = {
        let _alone = PARSING.lock().unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(|| pg_query::parse(text, pg_query::ParserOptions::default())))
    };
    let parsed = match parsed {
        Ok(Ok(parsed)) => parsed.protobuf,
        Ok(Err(pg_query::Error::Parse(message))) if message.contains("too many open file") => {
            return Err(NoTree::Now);
        }
        Ok(Err(_)) | Err(_) => return Err(NoTree::Unparsed),
    };
    parsed.stmts.iter().map(|statement| read(sql, statement)).collect()
}

fn read(sql: &[u8], statement: &RawStmt) -> Result<Statement, NoTree> {
    use pg_query::NodeEnum::{SelectStmt, TransactionStmt};
    let from = usize::try_from(statement.stmt_location).unwrap_or_default();
    let bytes = usize::try_from(statement.stmt_len).unwrap_or_default();
    let text = sql.get(from..).ok_or(NoTree::Unparsed)?;
    let text = if bytes == 0 { text } else { text.get(..bytes).ok_or(NoTree::Unparsed)? };
    let mut words = Words::of(text);
    let first = loop {
        match words.next_token() {
            Some((Token::Word, from, to)) => break &text[from..to],
            Some(_) => {}
            None => break &text[..0],
        }
    };
    let node = statement.stmt.as_ref().and_then(|node| node.node.as_ref());
    let tree = match node.ok_or(NoTree::Unparsed)? {
        node @ (SelectStmt(_) | TransactionStmt(_)) => {
            serde_json::to_value(node).map_err(|_| NoTree::Unparsed)?
        }
        _ => Value::Null,
    };
    Ok(Statement { kind: StatementKind::of(first), tree })
}
