//! How the demo's migration ends, and the proof that nothing of it is left.

use tokio_postgres::Client;

use super::segue::{Running, Segue};
use super::{DemoError, Story};

impl Story {
    /// Ends the migration, and says what is left of it; with `--keep` it stays as it is.
    pub(super) async fn clean_up(
        &self,
        segue: &Segue,
        mut running: Running,
    ) -> Result<Option<Vec<String>>, DemoError> {
        if self.keeps {
            running.kill().await;
            return Ok(None);
        }
        let ended_well = self.complete(segue, running).await?;
        let mut left = Vec::new();
        if !ended_well {
            left.push("a `segue run` that did not end by itself".to_owned());
        }
        for (server, side) in [(&self.servers.source, "source"), (&self.servers.target, "target")] {
            let found = left_on(&server.connect().await?).await?;
            left.extend(found.into_iter().map(|what| format!("{what} on the {side}")));
        }
        self.narrator.detail(&if left.is_empty() {
            "Neither side has anything of Segue's left.".to_owned()
        } else {
            format!("Left behind: {}", left.join(", "))
        });
        Ok(Some(left))
    }

    /// Ends the migration on the target for good: what would be done, then doing it. The load has ended before, and
    /// nobody uses the source any longer. Returns whether `run` ended well.
    async fn complete(&self, segue: &Segue, running: Running) -> Result<bool, DemoError> {
        self.narrator.step(12, "Stay: give the way back up, and leave nothing behind");
        self.narrator.detail("$ segue complete --dry-run");
        segue.quoted("complete", &["complete", "--dry-run"]).await?;
        self.narrator.detail("$ segue complete");
        segue.quoted("complete", &["complete"]).await?;
        let ended_well = running.end().await;
        self.narrator.detail("The source stays closed to writers, until nobody has to be told any longer:");
        self.narrator.detail("$ segue cancel");
        segue.quoted("cancel", &["cancel"]).await?;
        Ok(ended_well)
    }
}

/// Everything that Segue may make in a database, or beside it: all of it, because the servers are the demo's own.
async fn left_on(client: &Client) -> Result<Vec<String>, DemoError> {
    let sql = "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'segue' \
               UNION ALL SELECT 'publication ' || pubname FROM pg_publication \
               UNION ALL SELECT 'replication slot ' || slot_name FROM pg_replication_slots \
               UNION ALL SELECT 'replication origin ' || roname FROM pg_replication_origin \
               UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger \
               UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal";
    let rows = client.query(sql, &[]).await;
    let names = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    names.map_err(|error| DemoError::sql("looking for what Segue left behind", &error))
}
