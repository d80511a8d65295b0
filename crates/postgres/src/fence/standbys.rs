//! Which standbys of a side have what was committed there.
//!
//! A commit waits for the standbys that the server's operator has named as synchronous. Any other can be promoted, too: if
//! it has not received that its server has handed the writes over, it takes them again, beside the new owner.

use super::Side;
use crate::asking::Asked;
use crate::error::fault_of;
use crate::health::{Standing, standings};
use segue_engine::ports::Outcome;
use std::time::{Duration, Instant};

/// Between two looks, while nobody may write.
const LOOK: Duration = Duration::from_millis(2);

/// A standby that has a slot here and is away is behind, however far. Receivers that archive the log have such slots, too.
const ABSENT: &str = "SELECT slot_name::text FROM pg_replication_slots
      WHERE slot_type = 'physical' AND NOT active AND restart_lsn IS NOT NULL ORDER BY 1";
const FLUSHED: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint";

impl Side {
    /// Whether somebody follows this server, as far as it knows: streams from it now, or has a physical slot.
    pub async fn has_standbys(&self) -> Outcome<bool> {
        Ok(!standings(&self.watcher).await?.is_empty() || !self.absent().await?.is_empty())
    }

    /// Waits until every standby that streams from here has on its disk what was committed here before, for no longer than
    /// `patience`. Returns those that do not have it then, in words, with those that are away.
    ///
    /// Nobody can tell of a standby that has no slot and is away, of one that reads from an archive, or of one that
    /// follows another standby. To see where they are, the role needs `pg_read_all_stats`.
    pub async fn standbys_without(&self, patience: Duration) -> Outcome<Vec<String>> {
        let until = Instant::now() + patience;
        let row = self.watcher.row(FLUSHED, &[]).await.map_err(|e| fault_of(&e))?;
        let committed = u64::try_from(row.get::<_, i64>(0)).unwrap_or(u64::MAX);
        loop {
            let mut without: Vec<_> = standings(&self.watcher).await?;
            without.retain(|standing| standing.flushed.is_none_or(|flushed| flushed < committed));
            // Whose place is hidden will not show it later.
            let may_come = without.iter().any(|standing| standing.flushed.is_some());
            if may_come && Instant::now() < until {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let said = |standing: Standing| match standing.flushed {
                Some(_) => standing.replica.name,
                None => format!("{} (whose place this role may not see)", standing.replica.name),
            };
            let mut names: Vec<String> = without.into_iter().map(said).collect();
            names.extend(self.absent().await?.into_iter().map(|slot| format!("whoever has the slot {slot}")));
            return Ok(names);
        }
    }

    async fn absent(&self) -> Outcome<Vec<String>> {
        let rows = self.watcher.rows(ABSENT, &[]).await.map_err(|e| fault_of(&e))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
