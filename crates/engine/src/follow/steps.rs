//! What a batch writes, step by step: computed beside the writer, so that the next batch is ready when one is written.

use crate::fault::Fault;
use crate::ports::{Applier, Outcome, Target};
use segue_model::change::{Action, Change};
use segue_model::net::collapse;
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
pub enum Step<E> {
    /// Its net effect, encoded.
    Net(TableId, E),
    /// Its changes, in order.
    InOrder(TableId, Vec<Change>),
}

/// The steps of `changes`: table by table, but a TRUNCATE stands between what came before it and what comes after.
pub fn steps<A: Applier>(
    tables: &BTreeMap<TableId, Arc<Table>>,
    changes: &[Change],
    manner: Manner,
) -> Outcome<Vec<Step<A::Encoded>>> {
    let mut steps = Vec::new();
    let mut open: BTreeMap<TableId, Vec<&Change>> = BTreeMap::new();
    for change in changes {
        if !matches!(change.action, Action::Truncate { .. }) {
            open.entry(change.table).or_default().push(change);
            continue;
        }
        if let Some(before) = open.remove(&change.table) {
            steps.push(step::<A>(tables, change.table, &before, manner)?);
        }
        steps.push(step::<A>(tables, change.table, &[change], Manner::RowByRow)?);
    }
    for (table, changes) in open {
        steps.push(step::<A>(tables, table, &changes, manner)?);
    }
    Ok(steps)
}

/// Has the rows brought near that the steps will change.
pub fn warm<T: Target>(
    target: &T,
    tables: &BTreeMap<TableId, Arc<Table>>,
    steps: &[Step<<T::Applier as Applier>::Encoded>],
) {
    for step in steps {
        if let Step::Net(table, net) = step
            && let Some(table) = tables.get(table)
        {
            target.warm(table, net);
        }
    }
}

fn step<A: Applier>(
    tables: &BTreeMap<TableId, Arc<Table>>,
    id: TableId,
    changes: &[&Change],
    manner: Manner,
) -> Outcome<Step<A::Encoded>> {
    let unknown = || Fault::bug("SEGUE-TABLE", format!("table number {} is not in the plan", id.0));
    let table = tables.get(&id).ok_or_else(unknown)?;
    let incomplete = |e| Fault::bug("SEGUE-KEY-MISSING", format!("{}: {e}", table.source));
    let net = match manner {
        Manner::SetWise => collapse(table, changes.iter().copied()).map_err(incomplete)?,
        Manner::RowByRow => None,
    };
    Ok(match net {
        Some(net) => Step::Net(id, A::encode(table, net)?),
        None => Step::InOrder(id, changes.iter().copied().cloned().collect()),
    })
}
