//! The net effect on one table, set-wise: deletes, updates, inserts.

use super::order::{has_large, update_request};
use super::pieces::{Piece, Pieces, Work, without_key};
use super::session::{Refused, Request};
use super::sql::Target;
use super::{PgApplier, refused_rows};
use crate::catalog::columns;
use crate::error::fault_of;
use segue_engine::ports::{ApplyError, Mismatch, Outcome};
use segue_model::name::QualifiedName;
use segue_model::table::Table;

/// Text sent before an answer is waited for.
const AHEAD_BYTES_MAX: usize = 16 << 20;
/// Requests sent before an answer is waited for.
pub(super) const AHEAD_MAX: usize = 64;

impl PgApplier {
    pub(super) async fn write_net(&mut self, table: &Table, net: &Pieces) -> Result<(), ApplyError> {
        let known = self.facts(table).await?;
        let puts_back = net.0.iter().any(|piece| matches!(piece.work, Work::Replace(_)));
        let own = if puts_back { columns::own(&self.session.client, table).await? } else { Vec::new() };
        let target = Target { table, facts: &known, own: &own, staged: false };
        for piece in &net.0 {
            let request = self.request_for(&target, piece)?;
            if self.held.bytes + request.bytes > AHEAD_BYTES_MAX || self.held.requests.len() >= AHEAD_MAX {
                self.flush().await?;
            }
            self.held.bytes += request.bytes;
            self.held.requests.push(request);
            self.held.steps.push((piece.work.clone(), table.target.clone()));
        }
        Ok(())
    }

    fn request_for(&self, target: &Target<'_>, piece: &Piece) -> Outcome<Request> {
        let Piece { work, many, params, rows, bytes } = piece;
        let large = match work {
            Work::Replace(row) => has_large(row),
            Work::Delete | Work::Update(_) | Work::Present | Work::Absent | Work::Insert => {
                params.iter().any(|param| param.large().is_some())
            }
        };
        let staged = self.session.may_stage && large;
        let target = &Target { staged, ..target.clone() };
        let table = target.table;
        let key = || table.key().ok_or_else(|| without_key(table));
        let sql = match (work, many) {
            (Work::Delete, true) => target.delete_many(key()?),
            (Work::Delete, false) => target.delete_one(key()?),
            (Work::Update(set), true) => target.update_many(key()?, set),
            (Work::Update(set), false) => target.update_one(key()?, set),
            (Work::Replace(row), _) => {
                return Ok(Request { staged, ..update_request(target, key()?, None, row) });
            }
            (Work::Present | Work::Absent, _) => target.present_many(key()?),
            (Work::Insert, true) => target.insert_many(),
            (Work::Insert, false) => target.insert_one(),
        };
        Ok(Request { sql, params: params.clone(), rows: Some(*rows), bytes: *bytes, staged })
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
        for (at, ((request, (work, _)), count)) in requests.iter().zip(&steps).zip(counts).enumerate() {
            match request.rows {
                Some(expected) if expected != count => {
                    return Err(mismatch(at, work.wrong(expected, count)));
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
    steps: Vec<(Work, QualifiedName)>,
    bytes: usize,
}
