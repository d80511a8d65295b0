//! Changes of one table, one by one, in commit order.

use super::net::AHEAD_MAX;
use super::session::{Refused, Request};
use super::sql::Target;
use super::value::{LARGE_BYTES_MIN, Param};
use super::{PgApplier, State, refused_rows};
use crate::catalog::{columns, hash};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::{ApplyError, Mismatch, Outcome};
use segue_model::change::{Action, Change, Leaf, Row, Value};
use segue_model::key::{KeyIncomplete, KeyText};
use segue_model::region::{Emptied, Extent};
use segue_model::table::{Identity, Key, Table};

/// Text of one value in a report.
const SHOWN_VALUE_MAX: usize = 80;
/// Text of a whole row in a report.
const SHOWN_ROW_MAX: usize = 1_000;
/// Text sent before an answer is waited for.
const AHEAD_BYTES_MAX: usize = 16 << 20;

impl PgApplier {
    pub(super) async fn write_in_order(
        &mut self,
        table: &Table,
        changes: &[Change],
    ) -> Result<(), ApplyError> {
        let facts = self.facts(table).await?;
        let puts_back = changes.iter().any(|change| may_put_back(table, change));
        let own = if puts_back { columns::own(&self.session.client, table).await? } else { Vec::new() };
        let target = Target { table, facts: &facts, own: &own, staged: false };
        let mut begun = 0;
        while begun < changes.len() {
            let (mut requests, mut owners, mut bytes) = (Vec::new(), Vec::new(), 0);
            while begun < changes.len() && requests.len() < AHEAD_MAX && bytes < AHEAD_BYTES_MAX {
                let change = &changes[begun];
                let mut more = self.requests_for(&target, change).await?;
                let more_bytes = more.iter().map(|r| r.bytes).sum::<usize>();
                if !requests.is_empty() && bytes + more_bytes > AHEAD_BYTES_MAX {
                    break;
                }
                bytes += more_bytes;
                owners.extend(std::iter::repeat_n(begun, more.len()));
                requests.append(&mut more);
                begun += 1;
            }
            self.send_in_order(&target, changes, &requests, &owners).await?;
        }
        Ok(())
    }

    async fn send_in_order(
        &mut self,
        target: &Target<'_>,
        changes: &[Change],
        requests: &[Request],
        owners: &[usize],
    ) -> Result<(), ApplyError> {
        match self.send(requests).await {
            Ok(counts) => {
                for ((request, owner), count) in requests.iter().zip(owners).zip(counts) {
                    if request.rows.is_some_and(|expected| expected != count) {
                        let what = wrong_count(&changes[*owner].action, request.rows, count);
                        return Err(self.report(target, &changes[*owner], what).await);
                    }
                }
                Ok(())
            }
            Err(Refused { at, error }) => match (refused_rows(&error), at.and_then(|at| owners.get(at))) {
                (Some(what), Some(&owner)) => Err(self.report(target, &changes[owner], what).await),
                _ => Err(fault_of(&error).during(format_args!("writing {}", target.table.target)).into()),
            },
        }
    }

    async fn requests_for(
        &mut self,
        target: &Target<'_>,
        change: &Change,
    ) -> Result<Vec<Request>, ApplyError> {
        let staged = self.session.may_stage && is_large(&change.action);
        let target = &Target { staged, ..target.clone() };
        let table = target.table;
        let incomplete = |e: KeyIncomplete| Fault::bug("SEGUE-APPLY", format!("{}: {e}", table.target));
        let requests = match (&table.identity, &change.action) {
            (_, Action::Truncate { leaf: Some(leaf), .. }) if hash::is_untold(&leaf.condition) => {
                return Err(hash::untold(&table.source, &leaf.name).into());
            }
            (_, Action::Truncate { leaf, within }) => {
                let plain = leaf.is_none() && within.is_none() && self.may_truncate(target).await?;
                truncate_requests(target, leaf.as_ref(), within.as_deref(), plain)
                    .map_err(ApplyError::Fault)?
            }
            (Identity::WholeRow, Action::Insert { new }) => vec![insert_request(target, new)],
            (Identity::Key(key), Action::Insert { new }) => {
                let mut requests = Vec::new();
                if key.target_deferrable {
                    requests.push(absent_request(target, key, new));
                }
                requests.push(insert_request(target, new));
                requests
            }
            (Identity::Key(key), Action::Delete { old }) => {
                vec![request(target.delete_one(key), key_params(key, old), Some(1))]
            }
            (Identity::Key(key), Action::Update { old, new }) => {
                let moved = match old {
                    Some(old) => {
                        KeyText::of(key, old).map_err(incomplete)?
                            != KeyText::of(key, new).map_err(incomplete)?
                    }
                    None => false,
                };
                let moved = old.as_ref().filter(|_| moved);
                let mut requests = Vec::new();
                if let (Some(old), true) = (moved, key.target_deferrable) {
                    requests.push(free_request(target, key, old, new));
                }
                requests.push(update_request(target, key, moved, new));
                requests
            }
            (Identity::WholeRow, Action::Delete { old }) => {
                vec![request(target.delete_whole(), old.iter().cloned().map(Param::One).collect(), Some(1))]
            }
            (Identity::WholeRow, Action::Update { old: Some(old), new }) => whole_update(target, old, new),
            (Identity::WholeRow, Action::Update { old: None, .. }) => {
                let what = format!("{}: an update without the old row", table.target);
                return Err(Fault::bug("SEGUE-APPLY", what).into());
            }
        };
        Ok(requests.into_iter().map(|request| Request { staged, ..request }).collect())
    }

    /// TRUNCATE is refused when another table refers to this one, whatever the role. A table refers to itself at will.
    async fn may_truncate(&mut self, target: &Target<'_>) -> Outcome<bool> {
        let sql = "WITH RECURSIVE part(oid) AS (SELECT $1::text::regclass::oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN part p ON p.oid = i.inhparent) \
            SELECT NOT EXISTS (SELECT FROM pg_constraint c WHERE c.contype = 'f' AND c.confrelid IN (SELECT oid FROM part) \
            AND c.conrelid NOT IN (SELECT oid FROM part))";
        let name = super::qualified(target.table);
        let row = self.session.client.query_one(sql, &[&name]).await;
        let row = row.map_err(|e| fault_of(&e).during(format_args!("truncating {}", target.table.target)))?;
        Ok(row.get(0))
    }

    /// Says what the change holds and what is there. The transaction is given up, so that the committed row is seen.
    async fn report(&mut self, target: &Target<'_>, change: &Change, what: String) -> ApplyError {
        self.state = State::Over;
        let table = target.table;
        let (key_row, new) = match &change.action {
            Action::Insert { new } | Action::Update { old: None, new } => (Some(new), Some(new)),
            Action::Update { old: Some(old), new } => (Some(old), Some(new)),
            Action::Delete { old } => (Some(old), None),
            Action::Truncate { .. } => (None, None),
        };
        let key = match (table.key(), key_row) {
            (Some(key), Some(row)) => KeyText::of(key, row).ok().map(|text| (key, text)),
            _ => None,
        };
        let mut what = what;
        if let Some(row) = new.or(key_row.filter(|_| key.is_none())) {
            what = format!("{what}; the change holds {}", show(table, row));
        }
        if let Some((key, text)) = &key {
            let there = self.row_there(target, key, &text.clone().into_row(key, table.columns.len())).await;
            let side = self.authority.direction.to_side();
            what = match there {
                Ok(Some(row)) => format!("{what}; on the {side} is {}", cut(&row, SHOWN_ROW_MAX)),
                Ok(None) => format!("{what}; on the {side} is no such row"),
                Err(fault) => format!("{what}; what is on the {side} could not be read: {}", fault.what),
            };
        }
        let key = key.map(|(_, text)| cut(&text.to_string(), SHOWN_ROW_MAX));
        ApplyError::Mismatch(Mismatch { table: table.target.to_string(), key, what })
    }

    async fn row_there(&mut self, target: &Target<'_>, key: &Key, row: &Row) -> Outcome<Option<String>> {
        let client = &self.session.client;
        let read = async {
            client.batch_execute("ROLLBACK").await?;
            let rows = client.query_raw(&target.show_one(key), key_params(key, row)).await?;
            futures_util::pin_mut!(rows);
            let row = futures_util::TryStreamExt::try_next(&mut rows).await?;
            Ok(row.and_then(|row| row.get(0)))
        };
        read.await.map_err(|e| fault_of(&e))
    }
}

fn request(sql: String, params: Vec<Param>, rows: Option<u64>) -> Request {
    let bytes = params.iter().map(Param::len_bytes).sum();
    Request { sql, params, rows, bytes, staged: false }
}

/// Whether a value of the change is too large to be a parameter.
fn is_large(action: &Action) -> bool {
    match action {
        Action::Insert { new } | Action::Update { old: None, new } => has_large(new),
        Action::Update { old: Some(old), new } => has_large(old) || has_large(new),
        Action::Delete { old } => has_large(old),
        Action::Truncate { .. } => false,
    }
}

pub(super) fn has_large(row: &Row) -> bool {
    row.iter().any(|value| value.len_bytes() > LARGE_BYTES_MIN)
}

fn key_params(key: &Key, row: &Row) -> Vec<Param> {
    key.columns.iter().map(|&i| Param::One(row[i].clone())).collect()
}

fn insert_request(target: &Target<'_>, new: &Row) -> Request {
    request(target.insert_one(), new.iter().cloned().map(Param::One).collect(), Some(1))
}

fn absent_request(target: &Target<'_>, key: &Key, new: &Row) -> Request {
    let params = key.columns.iter().map(|&i| Param::many([&new[i]])).collect();
    request(target.present_many(key), params, Some(0))
}

/// Tests that no other row has the new key. The row itself may: equal keys can be written in different ways.
fn free_request(target: &Target<'_>, key: &Key, old: &Row, new: &Row) -> Request {
    let params = key_params(key, new).into_iter().chain(key_params(key, old)).collect();
    request(target.taken_by_another(key), params, Some(0))
}

/// Updates the row with `old`'s key (set if the key changes) or `new`'s, leaving alone what `new` does not carry.
pub(super) fn update_request(target: &Target<'_>, key: &Key, old: Option<&Row>, new: &Row) -> Request {
    let columns = &target.table.columns;
    let set: Vec<usize> = (0..columns.len())
        .filter(|i| new[*i] != Value::Unchanged && (old.is_some() || !key.columns.contains(i)))
        .collect();
    let mut params = key_params(key, old.unwrap_or(new));
    if set.is_empty() {
        let params = key.columns.iter().map(|&i| Param::many([&new[i]])).collect();
        return request(target.present_many(key), params, Some(1));
    }
    params.extend(set.iter().map(|&i| Param::One(new[i].clone())));
    let sql = if set.iter().any(|&i| columns[i].identity_always) {
        target.move_one(key, &set)
    } else {
        target.update_one(key, &set)
    };
    request(sql, params, Some(1))
}

/// Whether the change may take its row away and put it back, because a column that cannot be updated has another value. That of a
/// key has the same one where the key stays.
fn may_put_back(table: &Table, change: &Change) -> bool {
    let Action::Update { old, .. } = &change.action else { return false };
    let is_of_key = |i: &usize| table.key().is_some_and(|key| key.columns.contains(i));
    let mut fixed = (0..table.columns.len()).filter(|&i| table.columns[i].identity_always);
    fixed.any(|i| old.is_some() || !is_of_key(&i))
}

/// One row with the whole old image becomes the new one; with an identity column that cannot be updated, by being put back.
fn whole_update(target: &Target<'_>, old: &Row, new: &Row) -> Vec<Request> {
    let columns = &target.table.columns;
    if columns.is_empty() {
        return Vec::new();
    }
    let mut params: Vec<Param> = old.iter().cloned().map(Param::One).collect();
    let carried: Vec<usize> = (0..columns.len()).filter(|&i| new[i] != Value::Unchanged).collect();
    let is_fixed = |&i: &usize| columns[i].identity_always;
    let is_changed = |&i: &usize| old[i] != new[i];
    let set: Vec<usize> = if carried.iter().any(|i| is_fixed(i) && is_changed(i)) {
        carried
    } else {
        carried.into_iter().filter(|i| !is_fixed(i)).collect()
    };
    params.extend(set.iter().map(|&i| Param::One(new[i].clone())));
    let puts_back = set.is_empty() || set.iter().any(is_fixed);
    let sql = if puts_back { target.move_whole(&set) } else { target.update_whole(&set) };
    vec![request(sql, params, Some(1))]
}

/// A table was emptied while some of its ranges were copied, and the target may count other rows among these.
fn emptied_in_parts(table: &str) -> Fault {
    Fault::operator(
        "SEGUE-EMPTIED",
        format!(
            "{table} was emptied (TRUNCATE, or a partition that left) while it was copied, and its keys may be ordered otherwise on \
             the target: which rows there were copied before that cannot be told. Text is known to be ordered alike where both \
             sides have the same collation in the same version, or \"C\""
        ),
        "cancel the migration, with --drop-target-tables or after emptying the target's table, and start again; let nobody empty \
         that table until `segue status` says `following`",
    )
}

/// Empties a table (`plain`: by TRUNCATE), a leaf of it, or parts of either.
///
/// Ranges were cut in the source's order, and the target deletes by its own. A range that has a bound holds the same rows on
/// both only if every column of the key is ordered alike ([`Table::orders_alike`]). Otherwise a row that should go might stay, and
/// be in the way of a later one; and one that should stay might go, without anybody noticing. That the first columns are ordered
/// alike does not help: rows of the same first values, with a bound among them, may be any number. What has no bounds, and single
/// keys, are the same rows in any order.
fn truncate_requests(
    target: &Target<'_>,
    leaf: Option<&Leaf>,
    within: Option<&[Emptied]>,
    plain: bool,
) -> Outcome<Vec<Request>> {
    if plain {
        return Ok(vec![request(target.truncate(), Vec::new(), None)]);
    }
    let leaf: Vec<String> = leaf.map(|leaf| leaf.condition.clone()).into_iter().collect();
    let Some(within) = within else {
        return Ok(vec![request(target.delete_where(&leaf), Vec::new(), None)]);
    };
    let key = target.table.key();
    let is_bounded = |extent: &Extent| matches!(extent, Extent::Range { lower, upper } if lower.is_some() || upper.is_some());
    if !target.table.orders_alike() && within.iter().any(|(extent, _)| is_bounded(extent)) {
        return Err(emptied_in_parts(&target.table.source.to_string()));
    }
    within
        .iter()
        .map(|(extent, spared)| {
            let (mut conditions, mut params) = (leaf.clone(), Vec::new());
            let Some(key) = key else {
                return match extent {
                    Extent::Range { lower: None, upper: None } if spared.is_empty() => {
                        Ok(request(target.delete_where(&conditions), params, None))
                    }
                    _ => Err(Fault::bug("SEGUE-APPLY", "bounds in a table without a key")),
                };
            };
            let push = |params: &mut Vec<Param>, text: &KeyText| {
                let first = params.len() + 1;
                params.extend(text.0.iter().map(|t| Param::One(Value::Text(t.clone()))));
                first
            };
            match extent {
                Extent::Key(text) => {
                    let first = push(&mut params, text);
                    conditions.push(target.key_equals(key, first));
                }
                Extent::Range { lower, upper } => {
                    if let Some(lower) = lower {
                        let first = push(&mut params, lower);
                        conditions.push(target.key_beyond(key, ">", ">", first));
                    }
                    if let Some(upper) = upper {
                        let first = push(&mut params, upper);
                        conditions.push(target.key_beyond(key, "<", "<=", first));
                    }
                }
            }
            if !spared.is_empty() {
                conditions.push(target.key_not_among(key, params.len() + 1));
                for n in 0..key.columns.len() {
                    let values = spared.iter().map(|text| Value::Text(text.0[n].clone()));
                    params.push(Param::many(&values.collect::<Vec<_>>()));
                }
            }
            Ok(request(target.delete_where(&conditions), params, None))
        })
        .collect()
}

fn wrong_count(action: &Action, expected: Option<u64>, found: u64) -> String {
    match (action, expected) {
        (Action::Insert { .. } | Action::Update { .. }, Some(0)) => {
            "a row with the new key is already there".into()
        }
        (Action::Insert { .. }, _) => format!("{found} rows were inserted instead of one"),
        (Action::Update { .. }, _) => format!("{found} rows were found to be updated instead of one"),
        (Action::Delete { .. }, _) => format!("{found} rows were found to be deleted instead of one"),
        (Action::Truncate { .. }, _) => format!("{found} rows"),
    }
}

fn cut(text: &str, max: usize) -> String {
    cut_of(text, text.len(), max)
}

/// As [`cut`], of which `text` is the beginning, of a text of `bytes` in all.
fn cut_of(text: &str, bytes: usize, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}… ({bytes} bytes)", &text[..end])
}

fn show(table: &Table, row: &Row) -> String {
    let mut shown = String::from("(");
    for (column, value) in table.columns.iter().zip(row.iter()) {
        if shown.len() > SHOWN_ROW_MAX {
            shown.push_str(", …");
            break;
        }
        let value = match value {
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "(not sent)".to_owned(),
            Value::Text(text) => {
                let beginning = &text[..text.len().min(4 * SHOWN_VALUE_MAX)];
                cut_of(&String::from_utf8_lossy(beginning), text.len(), SHOWN_VALUE_MAX)
            }
        };
        shown = format!("{shown}{}{}: {value}", if shown.len() > 1 { ", " } else { "" }, column.target);
    }
    shown.push(')');
    shown
}
