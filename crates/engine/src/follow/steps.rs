//! What a batch writes, step by step: computed beside the writer, so that the next batch is ready when one is written.

use crate::fault::Fault;
use crate::ports::Outcome;
use segue_model::change::{Action, Change};
use segue_model::net::{Net, collapse};
use segue_model::table::{Table, TableId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How changes are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The net effect of each table, set-wise, where there is one.
    SetWise,
    /// One by one.
    RowByRow,
}

/// One step, of one table.
#[derive(Debug)]
pub enum Step {
    /// Its net effect.
    Net(TableId, Net),
    /// Its changes, in order.
    InOrder(TableId, Vec<Change>),
}

/// The steps of `changes`: table by table, but a TRUNCATE stands between what came before it and what comes after.
pub fn steps(
    tables: &BTreeMap<TableId, Arc<Table>>,
    changes: &[Change],
    manner: Manner,
) -> Outcome<Vec<Step>> {
    let mut steps = Vec::new();
    let mut open: BTreeMap<TableId, Vec<&Change>> = BTreeMap::new();
    for change in changes {
        if !matches!(change.action, Action::Truncate { .. }) {
            open.entry(change.table).or_default().push(change);
            continue;
        }
        if let Some(before) = open.remove(&change.table) {
            steps.push(step(tables, change.table, &before, manner)?);
        }
        steps.push(step(tables, change.table, &[change], Manner::RowByRow)?);
    }
    for (table, changes) in open {
        steps.push(step(tables, table, &changes, manner)?);
    }
    Ok(steps)
}

fn step(
    tables: &BTreeMap<TableId, Arc<Table>>,
    id: TableId,
    changes: &[&Change],
    manner: Manner,
) -> Outcome<Step> {
    let unknown = || Fault::bug("SEGUE-TABLE", format!("table number {} is not in the plan", id.0));
    let table = tables.get(&id).ok_or_else(unknown)?;
    let incomplete = |e| Fault::bug("SEGUE-KEY-MISSING", format!("{}: {e}", table.source));
    let net = match manner {
        Manner::SetWise => collapse(table, changes.iter().copied()).map_err(incomplete)?,
        Manner::RowByRow => None,
    };
    let in_order = || Step::InOrder(id, changes.iter().copied().cloned().collect());
    Ok(net.map_or_else(in_order, |net| Step::Net(id, net)))
}
