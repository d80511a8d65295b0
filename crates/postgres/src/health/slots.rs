//! Replication slots: whose log and rows a server keeps.

use crate::asking::Asked;
use crate::error::fault_of;
use segue_engine::ports::Outcome;

/// A slot that is read keeps at most this much log before it is worth a word.
const RETAINED_BYTES_MAX: u64 = 1 << 30;
/// With less than this left before its log is removed, a slot is about to be lost.
const SAFE_BYTES_MIN: i64 = 1 << 30;
/// Rows that were dead for so many transactions, and are still kept, slow the whole server down.
const XMIN_AGE_MAX: u64 = 10_000_000;

/// A replication slot, physical or logical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Somebody reads from it now.
    pub active: bool,
    /// `reserved`, `extended`, `unreserved` or `lost`; empty before PostgreSQL 13.
    pub wal_status: String,
    /// Bytes that can still be written before its log may be removed; `None` without a bound, and before 13.
    pub safe_wal_bytes: Option<i64>,
    /// Bytes of log that are kept for it.
    pub retained_bytes: u64,
    /// How many transactions old the oldest rows are that are kept for it, those of the catalog included.
    pub xmin_age: u64,
}

impl Slot {
    /// What is wrong with it, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        let mib = |bytes: u64| bytes >> 20;
        let mut what = Vec::new();
        match self.wal_status.as_str() {
            "lost" => what.push("has lost its log and is of no more use".to_owned()),
            "unreserved" => what.push("is about to lose its log".to_owned()),
            _ => {}
        }
        if !self.active && self.wal_status != "lost" {
            what.push(format!("is read by nobody and keeps {} MiB of log", mib(self.retained_bytes)));
        } else if self.retained_bytes > RETAINED_BYTES_MAX {
            what.push(format!("keeps {} MiB of log", mib(self.retained_bytes)));
        }
        if let Some(safe) = self.safe_wal_bytes.filter(|safe| *safe < SAFE_BYTES_MIN) {
            what.push(format!("loses its log in {} MiB", mib(u64::try_from(safe).unwrap_or(0))));
        }
        if self.xmin_age > XMIN_AGE_MAX {
            what.push(format!("keeps rows that have been dead for {} transactions", self.xmin_age));
        }
        (!what.is_empty()).then(|| format!("the slot {} {}", self.name, what.join(", and ")))
    }
}

/// Every slot of the server, by name.
pub async fn slots(client: &impl Asked) -> Outcome<Vec<Slot>> {
    // A row as JSON has the columns that this version has.
    // One of ours is read by way of a copy while a backlog is.
    let sql = "SELECT s.slot_name::text, s.active OR s.slot_name LIKE 'segue\\_%' AND EXISTS (SELECT FROM pg_replication_slots c
                WHERE c.temporary AND c.active AND c.database = s.database AND c.slot_name LIKE 'segue\\_backlog\\_%'), coalesce(to_jsonb(s) ->> 'wal_status', ''),
               (to_jsonb(s) ->> 'safe_wal_size')::bigint,
               greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                                        s.restart_lsn), 0)::bigint,
               greatest(age(s.xmin), age(s.catalog_xmin), 0)::bigint
          FROM pg_replication_slots s
         WHERE NOT (s.temporary AND s.slot_name LIKE 'segue\\_backlog\\_%') ORDER BY 1";
    let rows = client.rows(sql, &[]).await.map_err(|e| fault_of(&e))?;
    let count = |row: &tokio_postgres::Row, at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
    let slot = |row: &tokio_postgres::Row| Slot {
        name: row.get(0),
        active: row.get(1),
        wal_status: row.get(2),
        safe_wal_bytes: row.get(3),
        retained_bytes: count(row, 4),
        xmin_age: count(row, 5),
    };
    Ok(rows.iter().map(slot).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_says_what_is_wrong_with_it() {
        let good = Slot {
            name: "s".into(),
            active: true,
            wal_status: "reserved".into(),
            safe_wal_bytes: None,
            retained_bytes: 5 << 20,
            xmin_age: 100,
        };
        let cases = [
            (good.clone(), None),
            (
                Slot { active: false, ..good.clone() },
                Some("the slot s is read by nobody and keeps 5 MiB of log"),
            ),
            (
                Slot { active: false, wal_status: "lost".into(), ..good.clone() },
                Some("the slot s has lost its log and is of no more use"),
            ),
            (
                Slot { wal_status: "unreserved".into(), safe_wal_bytes: Some(-1), ..good.clone() },
                Some("the slot s is about to lose its log, and loses its log in 0 MiB"),
            ),
            (Slot { retained_bytes: 3 << 30, ..good.clone() }, Some("the slot s keeps 3072 MiB of log")),
            (
                Slot { xmin_age: 20_000_000, ..good },
                Some("the slot s keeps rows that have been dead for 20000000 transactions"),
            ),
        ];
        for (slot, expected) in cases {
            assert_eq!(slot.trouble().as_deref(), expected);
        }
    }
}
