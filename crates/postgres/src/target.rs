//! The target side of a PostgreSQL migration: sessions and statements behind the engine's [`Target`] port.

use crate::apply::{Ahead, PgApplier, Pieces, ROW_SLOW};
use crate::authority::Authority;
use crate::connect::Endpoint;
use crate::copy::{PgWriter, UnitConditions};
use crate::error::fault_of;
use crate::leaves;
use segue_engine::fault::Fault;
use segue_engine::ports::{Checkpoint, Outcome, Part, Stored, StoredRegion, Target};
use segue_model::position::Position;
use segue_model::region::CopiedRegion;
use segue_model::seam::Xid;
use segue_model::table::{Table, UnitId};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Row};

/// The target of one stream, under one token.
pub struct PgTarget {
    endpoint: Endpoint,
    authority: Authority,
    /// Of the leaves that came late.
    conditions: UnitConditions,
    ahead: Ahead,
}

impl PgTarget {
    /// The target behind `endpoint`, written with `authority`.
    pub fn new(endpoint: Endpoint, authority: Authority) -> PgTarget {
        let ahead = Ahead::new(endpoint.clone(), ROW_SLOW);
        PgTarget { endpoint, authority, conditions: UnitConditions::default(), ahead }
    }

    async fn session(&self) -> Outcome<Client> {
        self.endpoint.connect("target").await
    }

    fn authority(&self) -> (&str, &str, i64) {
        (&self.authority.migration, self.authority.direction.as_str(), self.authority.token)
    }

    /// The condition by which the copy of a late leaf replaces rows.
    fn tell(&self, part: &Part) {
        if part.is_late() {
            let mut conditions = self.conditions.write().unwrap_or_else(PoisonError::into_inner);
            conditions.insert(part.unit, part.condition.clone());
        }
    }

    async fn regions(&self, client: &Client) -> Outcome<BTreeMap<UnitId, Vec<StoredRegion>>> {
        let statement = "SELECT unit, extent::text, seam, rows, bytes FROM segue.region \
             WHERE migration = $1 AND direction = $2 ORDER BY unit, no";
        let rows = client
            .query(statement, &[&self.authority.migration, &self.authority.direction.as_str()])
            .await
            .map_err(|e| fault_of(&e))?;
        let mut regions: BTreeMap<UnitId, Vec<StoredRegion>> = BTreeMap::new();
        for row in &rows {
            let (unit, region) = region_of(row)?;
            regions.entry(unit).or_default().push(region);
        }
        Ok(regions)
    }
}

fn region_of(row: &Row) -> Outcome<(UnitId, StoredRegion)> {
    let broken =
        |what: String| Fault::bug("SEGUE-REGIONS", format!("a stored region cannot be read: {what}"));
    let unit: i32 = row.get(0);
    let extent: String = row.get(1);
    let seam: String = row.get(2);
    let number = |i| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
    let copied = CopiedRegion {
        extent: serde_json::from_str(&extent).map_err(|e| broken(e.to_string()))?,
        seam: seam.parse().map_err(|e| broken(format!("{e}")))?,
    };
    let unit = UnitId(u32::try_from(unit).map_err(|e| broken(e.to_string()))?);
    Ok((unit, StoredRegion { copied, rows: number(3), bytes: number(4) }))
}

impl Target for PgTarget {
    type Writer = PgWriter;
    type Applier = PgApplier;

    async fn writer(&self) -> Outcome<PgWriter> {
        PgWriter::open(&self.endpoint, self.authority.clone(), self.conditions.clone()).await
    }

    async fn applier(&self) -> Outcome<PgApplier> {
        PgApplier::open(&self.endpoint, self.authority.clone()).await
    }

    fn warm(&self, table: &Arc<Table>, net: &Pieces) {
        self.ahead.offer(table, net);
    }

    async fn stored(&self) -> Outcome<Stored> {
        let client = self.session().await?;
        let statement = "SELECT s.position, s.skipped::text, s.backfilled_at IS NOT NULL, EXISTS (SELECT FROM segue.renewal r \
                 WHERE r.migration = s.migration AND r.direction = s.direction AND r.incarnation = s.incarnation) \
             FROM segue.stream s WHERE s.migration = $1 AND s.direction = $2 AND s.incarnation = $3";
        let authority = &self.authority;
        let row = client
            .query_opt(
                statement,
                &[&authority.migration, &authority.direction.as_str(), &authority.incarnation],
            )
            .await
            .map_err(|e| fault_of(&e))?;
        let Some(row) = row else {
            return Err(Fault::bug("SEGUE-STREAM-ROW", "no row is stored for this stream"));
        };
        let position: PgLsn = row.get(0);
        let skipped: String = row.get(1);
        let skipped: BTreeMap<UnitId, Vec<Xid>> = serde_json::from_str(&skipped).map_err(|e| {
            Fault::bug("SEGUE-STREAM-ROW", format!("the skipped transactions cannot be read: {e}"))
        })?;
        let checkpoint = Checkpoint { position: Position(position.into()), skipped };
        let (parts, late) = leaves::late(&client, &authority.migration, authority.direction.as_str()).await?;
        late.iter().for_each(|part| self.tell(part));
        let (backfilled, over_rows) = (row.get(2), row.get(3));
        Ok(Stored { checkpoint, backfilled, over_rows, regions: self.regions(&client).await?, parts })
    }

    async fn store_part(&self, part: &Part) -> Outcome<()> {
        leaves::store(&self.session().await?, self.authority(), part).await?;
        self.tell(part);
        Ok(())
    }

    async fn part_followed(&self, part: &Part) -> Outcome<()> {
        leaves::mark(&self.session().await?, self.authority(), part, leaves::Mark::Followed).await
    }

    async fn part_left(&self, part: &Part) -> Outcome<()> {
        leaves::mark(&self.session().await?, self.authority(), part, leaves::Mark::Left).await
    }

    async fn last_region(&self) -> Outcome<i64> {
        let client = self.session().await?;
        let statement =
            "SELECT coalesce(max(no), 0) FROM segue.region WHERE migration = $1 AND direction = $2";
        let authority = &self.authority;
        let row = client.query_one(statement, &[&authority.migration, &authority.direction.as_str()]).await;
        Ok(row.map_err(|e| fault_of(&e))?.get(0))
    }

    async fn forget_regions(&self, last: i64) -> Outcome<()> {
        let mut client = self.session().await?;
        let authority = &self.authority;
        let transaction = client.transaction().await.map_err(|e| fault_of(&e))?;
        let done = async {
            transaction
                .execute("SELECT segue.enter($1, $2)", &[&authority.migration, &authority.token])
                .await?;
            let direction = authority.direction.as_str();
            let whose: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&authority.migration, &direction];
            let forget = "DELETE FROM segue.region WHERE migration = $1 AND direction = $2 AND no <= $3";
            transaction.execute(forget, &[whose[0], whose[1], &last]).await?;
            let remember = "UPDATE segue.stream SET backfilled_at = coalesce(backfilled_at, clock_timestamp()) \
                 WHERE migration = $1 AND direction = $2";
            transaction.execute(remember, &whose).await
        };
        done.await.map_err(|e| fault_of(&e))?;
        transaction.commit().await.map_err(|e| fault_of(&e))
    }
}
