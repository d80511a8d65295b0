//! The net effect on one table, set-wise: deletes, updates, inserts.

use super::order::{has_large, update_request};
use super::session::{Refused, Request};
use super::sql::Target;
use super::value::Param;
use super::{PgApplier, refused_rows};
use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::{ApplyError, Mismatch};
use segue_model::change::{Row, Value};
use segue_model::name::QualifiedName;
use segue_model::net::{Net, UpdateGroup};
use segue_model::table::{Key, Table};

/// Fewer rows than this are sent as single statements: no array to take apart, and all of them in one round trip.
const SET_ROWS_MIN: usize = 5;
/// Rows in one statement.
const SET_ROWS_MAX: usize = 5_000;
/// Text in one statement: quoted in an array it may double, and the server holds it several times.
const SET_BYTES_MAX: usize = 8 << 20;
/// A row with more text than this goes alone, as plain parameters, which may be as large as the server allows.
const ROW_BYTES_MAX: usize = 1 << 20;
/// Text sent before an answer is waited for.
const AHEAD_BYTES_MAX: usize = 16 << 20;
/// Requests sent before an answer is waited for.
pub(super) const AHEAD_MAX: usize = 64;

/// What a request does, for the message when its count is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Delete,
    Update,
    Present,
    Absent,
    Insert,
}

impl Step {
    fn wrong(self, expected: u64, found: u64) -> String {
        match self {
            Step::Delete => format!("{found} of {expected} rows to be deleted were there"),
            Step::Update | Step::Present => format!("{found} of {expected} rows to be updated were there"),
            Step::Absent => format!("{found} rows to be inserted were already there"),
            Step::Insert => format!("{found} of {expected} rows were inserted"),
        }
    }
}

impl PgApplier {
    pub(super) async fn write_net(&mut self, table: &Table, net: &Net) -> Result<(), ApplyError> {
        let facts = self.facts(table).await?;
        let target = &Target { table, facts: &facts, staged: false };
        let mut batch = Batch { applier: self, target };
        if let Some(key) = table.key() {
            let deletes = net.deletes.iter().map(|k| k.clone().into_row(key, table.columns.len()));
            let deletes: Vec<Row> = deletes.collect();
            let one = |target: &Target<'_>| target.delete_one(key);
            batch.write(Step::Delete, &deletes, &key.columns, one, target.delete_many(key)).await?;
            for group in &net.updates {
                batch.update(key, group).await?;
            }
            if key.target_deferrable {
                batch.test(Step::Absent, &net.inserts, key).await?;
            }
        } else if !net.deletes.is_empty() || !net.updates.is_empty() {
            return Err(
                Fault::bug("SEGUE-APPLY", format!("{}: a net effect without a key", table.target)).into()
            );
        }
        let all: Vec<usize> = (0..table.columns.len()).collect();
        let one = |target: &Target<'_>| target.insert_one();
        batch.write(Step::Insert, &net.inserts, &all, one, target.insert_many()).await
    }

    /// Sends what is held, and checks every row count.
    pub(super) async fn flush(&mut self) -> Result<(), ApplyError> {
        let Held { requests, steps, .. } = std::mem::take(&mut self.held);
        if requests.is_empty() {
            return Ok(());
        }
        let mismatch = |at: usize, what| {
            let table = steps.get(at).map_or_else(|| "?".to_owned(), |(_, table)| table.to_string());
            ApplyError::Mismatch(Mismatch { table, key: None, what })
        };
        let counts = match self.send(&requests).await {
            Ok(counts) => counts,
            Err(Refused { error, at }) => {
                let at = at.unwrap_or(0);
                return Err(match (refused_rows(&error), steps.get(at)) {
                    (Some(what), _) => mismatch(at, what),
                    (None, Some((_, table))) => {
                        fault_of(&error).during(format_args!("writing {table}")).into()
                    }
                    (None, None) => fault_of(&error).into(),
                });
            }
        };
        for (at, ((request, (step, _)), count)) in requests.iter().zip(&steps).zip(counts).enumerate() {
            match request.rows {
                Some(expected) if expected != count => {
                    return Err(mismatch(at, step.wrong(expected, count)));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

/// Requests of one transaction that wait to be sent together, of all its tables: the server works on the first while the
/// others are on their way.
#[derive(Default)]
pub(super) struct Held {
    requests: Vec<Request>,
    /// What each does, and on which table.
    steps: Vec<(Step, QualifiedName)>,
    bytes: usize,
}

struct Batch<'a> {
    applier: &'a mut PgApplier,
    target: &'a Target<'a>,
}

impl Batch<'_> {
    async fn update(&mut self, key: &Key, group: &UpdateGroup) -> Result<(), ApplyError> {
        let target = self.target;
        let fixed = |i: usize| target.table.columns[i].identity_always && !key.columns.contains(&i);
        let carries_fixed = |row: &Row| (0..row.len()).any(|i| fixed(i) && row[i] != Value::Unchanged);
        // A column that cannot be updated and is not the key may have changed: such rows are replaced one by one.
        let (replaced, plain): (Vec<Row>, Vec<Row>) = group.rows.iter().cloned().partition(carries_fixed);
        for row in &replaced {
            let staged = self.applier.session.may_stage && has_large(row);
            let request = update_request(&Target { staged, ..target.clone() }, key, None, row);
            self.push(Step::Update, Request { staged, ..request }).await?;
        }
        if group.set.is_empty() {
            return self.test(Step::Present, &plain, key).await;
        }
        let columns: Vec<usize> = key.columns.iter().chain(&group.set).copied().collect();
        let one = |target: &Target<'_>| target.update_one(key, &group.set);
        self.write(Step::Update, &plain, &columns, one, target.update_many(key, &group.set)).await
    }

    /// Tests which of the rows are there; keys are small, and the statement takes any number of them.
    async fn test(&mut self, step: Step, rows: &[Row], key: &Key) -> Result<(), ApplyError> {
        let many = self.target.present_many(key);
        let size = |row: &Row| key.columns.iter().map(|&i| row[i].len_bytes() + 4).sum::<usize>();
        for chunk in rows.chunks(SET_ROWS_MAX) {
            let bytes = chunk.iter().map(size).sum();
            self.push_set(step, &chunk.iter().collect::<Vec<_>>(), &key.columns, &many, bytes).await?;
        }
        Ok(())
    }

    /// Sends `columns` of `rows`: by `many` in arrays where that pays, else by `one`.
    async fn write(
        &mut self,
        step: Step,
        rows: &[Row],
        columns: &[usize],
        one: impl Fn(&Target<'_>) -> String,
        many: String,
    ) -> Result<(), ApplyError> {
        let size = |row: &Row| columns.iter().map(|&i| row[i].len_bytes() + 4).sum::<usize>();
        let set_wise = !columns.is_empty() && rows.len() >= SET_ROWS_MIN;
        let mut held: Vec<&Row> = Vec::new();
        let mut bytes = 0;
        for row in rows {
            if !set_wise || size(row) > ROW_BYTES_MAX {
                let staged = self.applier.session.may_stage && has_large(row);
                let sql = one(&Target { staged, ..self.target.clone() });
                let params = columns.iter().map(|&i| Param::One(row[i].clone())).collect();
                self.push(step, Request { sql, params, rows: Some(1), bytes: size(row), staged }).await?;
                continue;
            }
            if held.len() == SET_ROWS_MAX || bytes + size(row) > SET_BYTES_MAX {
                self.push_set(step, &held, columns, &many, bytes).await?;
                held.clear();
                bytes = 0;
            }
            bytes += size(row);
            held.push(row);
        }
        if held.is_empty() { Ok(()) } else { self.push_set(step, &held, columns, &many, bytes).await }
    }

    async fn push_set(
        &mut self,
        step: Step,
        rows: &[&Row],
        columns: &[usize],
        many: &str,
        bytes: usize,
    ) -> Result<(), ApplyError> {
        let array = |&i: &usize| Param::Many(rows.iter().map(|row| row[i].clone()).collect());
        let params = columns.iter().map(array).collect();
        let expected = if step == Step::Absent { 0 } else { rows.len() as u64 };
        self.push(step, Request { sql: many.to_owned(), params, rows: Some(expected), bytes, staged: false })
            .await
    }

    async fn push(&mut self, step: Step, request: Request) -> Result<(), ApplyError> {
        let held = &self.applier.held;
        if held.bytes + request.bytes > AHEAD_BYTES_MAX || held.requests.len() >= AHEAD_MAX {
            self.applier.flush().await?;
        }
        let held = &mut self.applier.held;
        held.bytes += request.bytes;
        held.requests.push(request);
        held.steps.push((step, self.target.table.target.clone()));
        Ok(())
    }
}
