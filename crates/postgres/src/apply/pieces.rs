//! The net effect on one table, cut into pieces of which each is one statement, its parameters in the form in which they
//! travel. Pure: it is done while the session is busy with the batch before.

use super::value::Param;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::change::{Row, Value};
use segue_model::key::KeyText;
use segue_model::net::{MoveGroup, Net, UpdateGroup};
use segue_model::table::{Key, Table};
use std::sync::Arc;

/// Fewer rows than this are sent as single statements: no array to take apart, and all of them in one round trip.
const SET_ROWS_MIN: usize = 5;
/// Rows in one statement.
const SET_ROWS_MAX: usize = 5_000;
/// Text in one statement: quoted in an array it may double, and the server holds it several times.
const SET_BYTES_MAX: usize = 8 << 20;
/// A row with more text than this goes alone, as plain parameters, which may be as large as the server allows.
const ROW_BYTES_MAX: usize = 1 << 20;

/// The pieces, in the order in which they are written: deletes, updates, changes of keys, inserts.
#[derive(Debug)]
pub struct Pieces(pub(super) Vec<Piece>);

/// One statement.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) work: Work,
    /// Many rows in arrays, or one in plain parameters.
    pub(super) many: bool,
    pub(super) params: Vec<Param>,
    /// Rows it must find.
    pub(super) rows: u64,
    /// Text in the parameters.
    pub(super) bytes: usize,
}

/// What a piece does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Delete,
    /// Sets these columns; of rows that change their keys, those of the key among them.
    Update(Arc<[usize]>),
    /// Puts a row in the place of the one with its key: a column that cannot be updated may have changed.
    Replace(Arc<Row>),
    Present,
    Absent,
    Insert,
}

impl Work {
    /// What is wrong when another number of rows was found.
    pub(super) fn wrong(&self, expected: u64, found: u64) -> String {
        match self {
            Work::Delete => format!("{found} of {expected} rows to be deleted were there"),
            Work::Update(_) | Work::Replace(_) | Work::Present => {
                format!("{found} of {expected} rows to be updated were there")
            }
            Work::Absent => format!("of the new keys {found} were already there"),
            Work::Insert => format!("{found} of {expected} rows were inserted"),
        }
    }
}

impl Pieces {
    /// Cuts the net effect on `table`.
    pub(super) fn of(table: &Table, net: Net) -> Outcome<Pieces> {
        let mut pieces = Pieces(Vec::new());
        if let Some(key) = table.key() {
            let texts = |text: KeyText| text.0.into_iter().map(Value::Text).collect();
            let deletes: Vec<Row> = net.deletes.into_iter().map(texts).collect();
            let columns: Vec<usize> = (0..key.columns.len()).collect();
            pieces.write(&Work::Delete, deletes.iter(), &columns);
            for group in &net.updates {
                pieces.update(table, key, group);
            }
            for group in &net.moves {
                pieces.rekey(key, group);
            }
            if key.target_deferrable {
                pieces.test(&Work::Absent, &net.inserts.iter().collect::<Vec<_>>(), key);
            }
        } else if !net.deletes.is_empty() || !net.updates.is_empty() || !net.moves.is_empty() {
            return Err(without_key(table));
        }
        let all: Vec<usize> = (0..table.columns.len()).collect();
        pieces.write(&Work::Insert, net.inserts.iter(), &all);
        Ok(pieces)
    }

    fn update(&mut self, table: &Table, key: &Key, group: &UpdateGroup) {
        let fixed = |i: usize| table.columns[i].identity_always && !key.columns.contains(&i);
        let carries_fixed = |row: &&Row| (0..row.len()).any(|i| fixed(i) && row[i] != Value::Unchanged);
        let (replaced, plain): (Vec<&Row>, Vec<&Row>) = group.rows.iter().partition(carries_fixed);
        for row in replaced {
            let bytes = row.iter().map(Value::len_bytes).sum();
            let work = Work::Replace(Arc::new(row.clone()));
            self.0.push(Piece { work, many: false, params: Vec::new(), rows: 1, bytes });
        }
        if group.set.is_empty() {
            return self.test(&Work::Present, &plain, key);
        }
        let columns: Vec<usize> = key.columns.iter().chain(&group.set).copied().collect();
        self.write(&Work::Update(group.set.clone().into()), plain.into_iter(), &columns);
    }

    /// Each row is found by the key that it has, and gets the new one with the rest.
    fn rekey(&mut self, key: &Key, group: &MoveGroup) {
        if key.target_deferrable {
            let rows: Vec<&Row> = group.rows.iter().map(|(_, row)| row).collect();
            self.test(&Work::Absent, &rows, key);
        }
        let found_and_set = |(from, row): &(KeyText, Row)| {
            let from = from.0.iter().map(|text| Value::Text(text.clone()));
            from.chain(group.set.iter().map(|&i| row[i].clone())).collect()
        };
        let rows: Vec<Row> = group.rows.iter().map(found_and_set).collect();
        let columns: Vec<usize> = (0..key.columns.len() + group.set.len()).collect();
        self.write(&Work::Update(group.set.clone().into()), rows.iter(), &columns);
    }

    /// Tests which of the rows are there; keys are small, and the statement takes any number of them.
    fn test(&mut self, work: &Work, rows: &[&Row], key: &Key) {
        for chunk in rows.chunks(SET_ROWS_MAX) {
            let bytes = chunk.iter().map(|row| size(row, &key.columns)).sum();
            self.push_set(work, chunk, &key.columns, bytes);
        }
    }

    /// `columns` of `rows`: in arrays where that pays, else row by row.
    fn write<'r>(&mut self, work: &Work, rows: impl ExactSizeIterator<Item = &'r Row>, columns: &[usize]) {
        let set_wise = !columns.is_empty() && rows.len() >= SET_ROWS_MIN;
        let mut held: Vec<&Row> = Vec::new();
        let mut bytes = 0;
        for row in rows {
            let size = size(row, columns);
            if !set_wise || size > ROW_BYTES_MAX {
                let params = columns.iter().map(|&i| Param::One(row[i].clone())).collect();
                self.0.push(Piece { work: work.clone(), many: false, params, rows: 1, bytes: size });
                continue;
            }
            if held.len() == SET_ROWS_MAX || bytes + size > SET_BYTES_MAX {
                self.push_set(work, &held, columns, bytes);
                held.clear();
                bytes = 0;
            }
            bytes += size;
            held.push(row);
        }
        if !held.is_empty() {
            self.push_set(work, &held, columns, bytes);
        }
    }

    fn push_set(&mut self, work: &Work, rows: &[&Row], columns: &[usize], bytes: usize) {
        let params = columns.iter().map(|&i| Param::many(rows.iter().map(|row| &row[i]))).collect();
        let expected = if *work == Work::Absent { 0 } else { rows.len() as u64 };
        self.0.push(Piece { work: work.clone(), many: true, params, rows: expected, bytes });
    }
}

/// Only inserts can be collapsed without a key.
pub(super) fn without_key(table: &Table) -> Fault {
    Fault::bug("SEGUE-APPLY", format!("{}: a net effect without a key", table.target))
}

fn size(row: &Row, columns: &[usize]) -> usize {
    columns.iter().map(|&i| row[i].len_bytes() + 4).sum()
}
