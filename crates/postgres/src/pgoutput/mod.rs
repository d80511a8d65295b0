//! The messages of logical replication's `pgoutput` plugin, protocol version 1, decoded without I/O.
//!
//! Strict: an unknown message or tuple kind, an unknown flag, a short read and bytes left over are errors, because
//! each of them would otherwise be a row lost in silence. Values are slices of the message's own buffer.
//! It knows nothing of tables: what a relation means is the stream's business.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats".

mod reader;
#[cfg(test)]
pub(crate) mod tests;

use bytes::Bytes;
use reader::Reader;
use segue_model::change::{Row, Value};
use segue_model::position::Position;

pub use reader::DecodeError;

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01).
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// The number of a relation in its database's catalog.
pub type RelationOid = u32;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins.
    Begin {
        /// Where its commit record starts. Not a position to checkpoint on: see [`Message::Commit::end`].
        commit_at: Position,
        /// When it committed, in microseconds since the Unix epoch.
        committed_at_us: i64,
        /// Its number, without the epoch.
        xid: u32,
    },
    /// It ends.
    Commit {
        /// Where its commit record starts.
        commit_at: Position,
        /// The position after its commit record.
        end: Position,
        /// When it committed, in microseconds since the Unix epoch.
        committed_at_us: i64,
    },
    /// The transaction was replayed here by the named replication origin.
    Origin {
        /// Where it committed on that origin.
        position: Position,
        /// The origin's name.
        name: String,
    },
    /// Describes a relation before its first row, and whenever it may have changed.
    Relation(Relation),
    /// Describes a type that is not built in.
    Type {
        /// Its number.
        oid: u32,
        /// Its schema, empty for `pg_catalog`.
        schema: String,
        /// Its name.
        name: String,
    },
    /// A new row.
    Insert {
        /// Of which relation.
        relation: RelationOid,
        /// The row.
        new: Row,
    },
    /// A changed row.
    Update {
        /// Of which relation.
        relation: RelationOid,
        /// The row before, where the server sends it.
        old: Option<Old>,
        /// The row after; values that were not touched and lie out of line are [`Value::Unchanged`].
        new: Row,
    },
    /// A removed row.
    Delete {
        /// Of which relation.
        relation: RelationOid,
        /// What is known of it.
        old: Old,
    },
    /// All rows gone.
    Truncate {
        /// Of which relations.
        relations: Vec<RelationOid>,
        /// It was written with CASCADE.
        cascade: bool,
        /// It was written with RESTART IDENTITY.
        restart_identity: bool,
    },
    /// A logical message; sent only when asked for.
    Message {
        /// It belongs to the transaction it is in.
        transactional: bool,
        /// Where it was written.
        position: Position,
        /// What kind it is.
        prefix: String,
        /// What it says.
        content: Bytes,
    },
}

/// A row as it was before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// Its identity columns; every other value is NULL.
    Key(Row),
    /// The whole image (replica identity FULL).
    Full(Row),
}

/// What a relation looks like to the change stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// Its number.
    pub oid: RelationOid,
    /// Its schema, empty for `pg_catalog`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// What its old rows carry.
    pub identity: ReplicaIdentity,
    /// Its columns, in the order of the values in its rows.
    pub columns: Vec<RelationColumn>,
}

/// A relation's replica identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// Nothing: updates and deletes fail at the source.
    Nothing,
    /// The whole row.
    Full,
    /// A chosen unique index.
    Index,
}

/// One column of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity (all are, under FULL).
    pub in_identity: bool,
    /// Its name.
    pub name: String,
    /// Its type's number.
    pub type_oid: u32,
    /// Its type's modifier, −1 for none.
    pub type_modifier: i32,
}

/// Decodes one message, which must fill `bytes` exactly.
pub fn decode(bytes: Bytes) -> Result<Message, DecodeError> {
    let mut r = Reader::new(bytes);
    let message = match r.kind("message")? {
        b'B' => Message::Begin {
            commit_at: r.position("commit position")?,
            committed_at_us: r.time("commit time")?,
            xid: r.u32("transaction number")?,
        },
        b'C' => {
            r.flags("commit flags", 0)?;
            Message::Commit {
                commit_at: r.position("commit position")?,
                end: r.position("end position")?,
                committed_at_us: r.time("commit time")?,
            }
        }
        b'O' => Message::Origin { position: r.position("origin position")?, name: r.text("origin name")? },
        b'R' => Message::Relation(relation(&mut r)?),
        b'Y' => Message::Type {
            oid: r.u32("type number")?,
            schema: r.text("type schema")?,
            name: r.text("type name")?,
        },
        b'I' => {
            let relation = r.u32("relation number")?;
            r.expect("new row", b'N')?;
            Message::Insert { relation, new: row(&mut r, Carries::Everything)? }
        }
        b'U' => update(&mut r)?,
        b'D' => {
            let relation = r.u32("relation number")?;
            let kind = r.kind("old row")?;
            Message::Delete { relation, old: old(&mut r, kind)? }
        }
        b'T' => truncate(&mut r)?,
        b'M' => Message::Message {
            transactional: r.flags("message flags", 1)? == 1,
            position: r.position("message position")?,
            prefix: r.text("message prefix")?,
            content: r.sized("message content")?,
        },
        kind => return Err(r.unknown("message", kind)),
    };
    r.end()?;
    Ok(message)
}

fn relation(r: &mut Reader) -> Result<Relation, DecodeError> {
    let oid = r.u32("relation number")?;
    let schema = r.text("relation schema")?;
    let name = r.text("relation name")?;
    let identity = match r.kind("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        kind => return Err(r.unknown("replica identity", kind)),
    };
    let count = r.u16("column count")?;
    let mut columns = Vec::with_capacity(r.at_most(count.into(), 10));
    for _ in 0..count {
        columns.push(RelationColumn {
            in_identity: r.flags("column flags", 1)? == 1,
            name: r.text("column name")?,
            type_oid: r.u32("column type")?,
            type_modifier: r.i32("column type modifier")?,
        });
    }
    Ok(Relation { oid, schema, name, identity, columns })
}

fn update(r: &mut Reader) -> Result<Message, DecodeError> {
    let relation = r.u32("relation number")?;
    let old = match r.kind("row of an update")? {
        b'N' => None,
        kind => {
            let old = old(r, kind)?;
            r.expect("new row", b'N')?;
            Some(old)
        }
    };
    Ok(Message::Update { relation, old, new: row(r, Carries::MayLackUntouched)? })
}

fn truncate(r: &mut Reader) -> Result<Message, DecodeError> {
    let count = r.u32("relation count")?;
    let flags = r.flags("truncate flags", 3)?;
    let mut relations = Vec::with_capacity(r.at_most(count as usize, 4));
    for _ in 0..count {
        relations.push(r.u32("relation number")?);
    }
    Ok(Message::Truncate { relations, cascade: flags & 1 != 0, restart_identity: flags & 2 != 0 })
}

fn old(r: &mut Reader, kind: u8) -> Result<Old, DecodeError> {
    match kind {
        b'K' => Ok(Old::Key(row(r, Carries::Everything)?)),
        b'O' => Ok(Old::Full(row(r, Carries::Everything)?)),
        kind => Err(r.unknown("row", kind)),
    }
}

/// Whether a row may leave out values that the change did not touch: only the new row of an update may.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    Everything,
    MayLackUntouched,
}

fn row(r: &mut Reader, carries: Carries) -> Result<Row, DecodeError> {
    let count = r.u16("value count")?;
    let mut values = Vec::with_capacity(r.at_most(count.into(), 1));
    for _ in 0..count {
        values.push(match r.kind("value")? {
            b'n' => Value::Null,
            b'u' if carries == Carries::MayLackUntouched => Value::Unchanged,
            b't' => Value::Text(r.sized("value")?),
            kind => return Err(r.unknown("value", kind)),
        });
    }
    Ok(values.into())
}
