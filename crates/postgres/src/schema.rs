//! What Segue keeps in a database: the schema `segue`, the same in every database it writes to.
//!
//! Every object is made with IF NOT EXISTS or OR REPLACE, so that making it twice is harmless. The format
//! version is stored with it; a newer one than this build knows is refused.

use crate::error::fault_of;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio_postgres::Client;

/// Version of the tables below.
pub const FORMAT_VERSION: i32 = 1;

const DDL: &str = r#"
CREATE SCHEMA IF NOT EXISTS segue;
CREATE TABLE IF NOT EXISTS segue.format (version int NOT NULL);

-- the fencing token of a migration: who writes must hold the highest one
CREATE TABLE IF NOT EXISTS segue.token (migration text PRIMARY KEY, token bigint NOT NULL);

-- who drives a migration (control database)
CREATE TABLE IF NOT EXISTS segue.lease (
    migration text PRIMARY KEY, holder text NOT NULL, token bigint NOT NULL, taken_at timestamptz NOT NULL,
    released_at timestamptz, alive_key bigint);
CREATE TABLE IF NOT EXISTS segue.heartbeat (
    migration text PRIMARY KEY, token bigint NOT NULL, beat_at timestamptz NOT NULL);

-- signals to be found again in the change stream (published)
CREATE TABLE IF NOT EXISTS segue.signal (
    migration text PRIMARY KEY, id bigint NOT NULL, at timestamptz NOT NULL, note jsonb);

-- a row that is written to see how long a commit takes; nobody reads it
CREATE TABLE IF NOT EXISTS segue.probe (migration text PRIMARY KEY, at timestamptz NOT NULL) WITH (fillfactor = 10);

-- the source's side of a stream's identity
CREATE TABLE IF NOT EXISTS segue.slot (
    migration text, direction text, slot text NOT NULL, incarnation bigint NOT NULL, made_at timestamptz NOT NULL,
    PRIMARY KEY (migration, direction));

-- which target a migration goes to: the same mark in both databases, made before anything that is for a stream
CREATE TABLE IF NOT EXISTS segue.pair (
    migration text PRIMARY KEY, mark text NOT NULL, target text NOT NULL, system_id text NOT NULL,
    database_oid oid NOT NULL, made_at timestamptz NOT NULL);

-- the target's side: identity and checkpoint
CREATE TABLE IF NOT EXISTS segue.stream (
    migration text, direction text, slot text NOT NULL, system_id text NOT NULL, timeline int NOT NULL,
    incarnation bigint NOT NULL, position pg_lsn NOT NULL, skipped jsonb NOT NULL DEFAULT '{}',
    backfilled_at timestamptz, updated_at timestamptz NOT NULL,
    PRIMARY KEY (migration, direction));

-- copied regions, each stored in the transaction that wrote its rows
CREATE TABLE IF NOT EXISTS segue.region (
    migration text, direction text, unit int NOT NULL, extent jsonb NOT NULL, seam text NOT NULL,
    covered_by pg_lsn NOT NULL, rows bigint NOT NULL, bytes bigint NOT NULL, took_ms bigint NOT NULL,
    copied_at timestamptz NOT NULL, no bigint GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (migration, direction, unit, no));

-- a stream that was made anew over the rows of one that was lost, and what it found different, counted in the transactions
-- that mended it
CREATE TABLE IF NOT EXISTS segue.renewal (
    migration text, direction text, incarnation bigint NOT NULL, at timestamptz NOT NULL, rows bigint NOT NULL DEFAULT 0,
    missing bigint NOT NULL DEFAULT 0, changed bigint NOT NULL DEFAULT 0, extra bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (migration, direction));

-- target: the leaves of partitioned tables, those that came after the birth as units of their own;
-- source: those that have left the stream, written in the transaction that took them out of it
CREATE TABLE IF NOT EXISTS segue.unit (
    migration text, direction text, unit int, table_id int NOT NULL, relation_oid oid, schema text NOT NULL,
    name text NOT NULL, condition text NOT NULL, backfilled_at timestamptz, left_at timestamptz,
    PRIMARY KEY (migration, direction, unit, relation_oid));

-- target: what was made there because the source has it, and when it was whole
CREATE TABLE IF NOT EXISTS segue.target_schema (
    migration text PRIMARY KEY, made jsonb NOT NULL, made_at timestamptz NOT NULL, finished_at timestamptz);

-- commands to the driver and their answers (control database)
CREATE TABLE IF NOT EXISTS segue.command (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, migration text NOT NULL, verb text NOT NULL,
    arguments jsonb NOT NULL, asked_by text NOT NULL, asked_at timestamptz NOT NULL DEFAULT now(),
    taken_at timestamptz, taken_token bigint, progress jsonb, answered_at timestamptz, answer jsonb);

-- what the driver last reported (control database)
CREATE TABLE IF NOT EXISTS segue.status (
    migration text PRIMARY KEY, token bigint NOT NULL, at timestamptz NOT NULL, body jsonb NOT NULL);

-- who was seen to use the side that does not own the writes (control database)
CREATE TABLE IF NOT EXISTS segue.traffic (
    migration text PRIMARY KEY, token bigint NOT NULL, at timestamptz NOT NULL, body jsonb NOT NULL);

-- where routers send statements, and what they say of themselves (control database)
CREATE TABLE IF NOT EXISTS segue.route (
    migration text PRIMARY KEY, revision bigint NOT NULL, at timestamptz NOT NULL, body jsonb NOT NULL);
CREATE TABLE IF NOT EXISTS segue.router (
    migration text, id text, revision bigint NOT NULL, seen_at timestamptz NOT NULL, body jsonb NOT NULL,
    PRIMARY KEY (migration, id));

-- which reads the target serves, and which are compared (control database)
CREATE TABLE IF NOT EXISTS segue.reads (
    migration text PRIMARY KEY, revision bigint NOT NULL, at timestamptz NOT NULL, body jsonb NOT NULL);

-- the journal: append-only, compare-and-swap on the sequence number (control database)
CREATE TABLE IF NOT EXISTS segue.journal (
    migration text, seq bigint, version int NOT NULL, at timestamptz NOT NULL DEFAULT now(), actor text NOT NULL,
    kind text NOT NULL, body jsonb NOT NULL, PRIMARY KEY (migration, seq));

-- verification: one row a run, and the ranges it has compared
CREATE TABLE IF NOT EXISTS segue.verification (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, migration text NOT NULL, mode text NOT NULL, tables int[] NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(), ended_at timestamptz, body jsonb NOT NULL DEFAULT '{}');
CREATE TABLE IF NOT EXISTS segue.verified_range (
    verification bigint REFERENCES segue.verification ON DELETE CASCADE, table_id int, lower jsonb, upper jsonb,
    counts jsonb NOT NULL, at timestamptz NOT NULL DEFAULT now(), no bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (verification, table_id, no));

-- confirmed differences, each stored with the range it was found in, or by live verification (verification is NULL)
CREATE TABLE IF NOT EXISTS segue.divergence (
    no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, migration text NOT NULL,
    verification bigint REFERENCES segue.verification ON DELETE CASCADE, table_id int NOT NULL, key jsonb,
    class text NOT NULL, found_at timestamptz NOT NULL DEFAULT now(), repaired boolean NOT NULL, body jsonb NOT NULL,
    equal_at timestamptz);

-- (an earlier build made it without: when live verification has found the row equal since)
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = 'segue.divergence'::regclass AND a.attname = 'equal_at') THEN
        ALTER TABLE segue.divergence ADD COLUMN IF NOT EXISTS equal_at timestamptz;
    END IF;
END $$;

-- what was measured over time, for the gates of a switch (control database)
CREATE TABLE IF NOT EXISTS segue.sample (
    no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, migration text NOT NULL, series text NOT NULL,
    at timestamptz NOT NULL, part bigint NOT NULL, whole bigint NOT NULL);
CREATE INDEX IF NOT EXISTS sample_in_time ON segue.sample (migration, series, at);

-- begins a writing transaction: shuts out processes whose token is not the newest. The lock comes first, the token is
-- read by a later statement of a READ COMMITTED transaction, so a taker that holds the lock exclusively is seen.
CREATE OR REPLACE FUNCTION segue.enter(_migration text, _token bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE current bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended('segue:' || _migration, 0));
    SELECT t.token INTO current FROM segue.token t WHERE t.migration = _migration;
    IF current IS DISTINCT FROM _token THEN
        RAISE EXCEPTION 'segue: token % of migration % has been superseded by %', _token, _migration, current
            USING ERRCODE = '55006';
    END IF;
    -- until the end of the transaction: the guard against DDL lets Segue's own pass
    PERFORM set_config('segue.migration', _migration, true);
END $$;

-- shuts out every earlier process. Waits for writing transactions that hold the lock shared.
CREATE OR REPLACE FUNCTION segue.raise_token(_migration text, _token bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE current bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('segue:' || _migration, 0));
    SELECT t.token INTO current FROM segue.token t WHERE t.migration = _migration;
    IF current > _token THEN
        RAISE EXCEPTION 'segue: token % of migration % has been superseded by %', _token, _migration, current
            USING ERRCODE = '55006';
    END IF;
    INSERT INTO segue.token VALUES (_migration, _token)
        ON CONFLICT (migration) DO UPDATE SET token = excluded.token;
END $$;

-- moves a stream's checkpoint: a compare-and-swap on position and incarnation
CREATE OR REPLACE FUNCTION segue.advance(_migration text, _direction text, _incarnation bigint, _from pg_lsn, _to pg_lsn, _skipped jsonb)
RETURNS void LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
DECLARE current pg_lsn;
BEGIN
    UPDATE segue.stream s SET position = _to, skipped = _skipped, updated_at = clock_timestamp()
     WHERE s.migration = _migration AND s.direction = _direction AND s.incarnation = _incarnation AND s.position = _from;
    IF NOT FOUND THEN
        SELECT s.position INTO current FROM segue.stream s WHERE s.migration = _migration AND s.direction = _direction;
        RAISE EXCEPTION 'segue: checkpoint of % (%) is at %, not at %', _migration, _direction, current, _from
            USING ERRCODE = '55006';
    END IF;
END $$;
"#;

/// The statements that make the schema, with all tables and functions.
const MAKING: [&str; 3] = [DDL, crate::fence::DDL, crate::ddl_guard::DDL];

/// What [`ensure`] runs: the statements that make the schema, and a comment that tells by which ones it was made.
pub fn statements() -> Vec<String> {
    let comment = format!("COMMENT ON TABLE segue.format IS {}", quote_literal(&imprint()));
    MAKING.into_iter().map(str::to_owned).chain([comment]).collect()
}

/// What tells a schema that these statements have made from any other.
fn imprint() -> String {
    let mut hasher = DefaultHasher::new();
    (FORMAT_VERSION, MAKING).hash(&mut hasher);
    format!("made by segue: {:016x}", hasher.finish())
}

/// The names of what the statements make with these words, as they stand behind them; not of what functions make later.
fn made_with(words: &str) -> Vec<&'static str> {
    let name = |rest: &'static str| rest.split([' ', '(', '\n']).next().unwrap_or_default();
    let names = MAKING.into_iter().flat_map(|sql| sql.split(words).skip(1)).map(name);
    names.filter(|name| !name.contains('%')).collect()
}

/// Refuses a version that this build does not know.
fn known(version: Option<i32>) -> Outcome<()> {
    match version.filter(|version| *version > FORMAT_VERSION) {
        None => Ok(()),
        Some(version) => Err(Fault::operator(
            "SEGUE-FORMAT",
            format!("the schema segue has format {version}, this build knows up to {FORMAT_VERSION}"),
            "use the newer segue that made it",
        )),
    }
}

/// Why this build could not use the schema that is there, if one is.
pub(crate) async fn refusal(client: &Client) -> Outcome<Option<Fault>> {
    let during = |e| fault_of(&e).during("looking at the schema segue");
    let there = client.query_one("SELECT to_regclass('segue.format') IS NOT NULL", &[]).await;
    if !there.map_err(during)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_one("SELECT max(version) FROM segue.format", &[]).await.map_err(during)?;
    Ok(known(row.get(0)).err())
}

/// Whether exactly these statements have made what is there, and nothing of it is gone since: what [`ensure`] would do again
/// takes a start some 20 ms for each database. Waits for whoever makes it, or removes it.
async fn is_made(client: &mut Client) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT obj_description(to_regclass('segue.format'), 'pg_class') IS NOT DISTINCT FROM $1
            AND NOT EXISTS (SELECT FROM unnest($2::text[]) made(name) WHERE to_regclass(made.name) IS NULL)
            AND NOT EXISTS (SELECT FROM unnest($3::text[]) made(name) WHERE NOT EXISTS (
                SELECT FROM pg_proc p WHERE p.pronamespace = n.oid AND 'segue.' || p.proname = made.name))
        FROM pg_namespace n WHERE n.nspname = 'segue'";
    let tables = made_with("CREATE TABLE IF NOT EXISTS ").into_iter().map(str::to_owned);
    let indexes = made_with("CREATE INDEX IF NOT EXISTS ").into_iter().map(|name| format!("segue.{name}"));
    let relations: Vec<String> = tables.chain(indexes).collect();
    let functions = made_with("CREATE OR REPLACE FUNCTION ");
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("SELECT pg_advisory_xact_lock_shared(hashtextextended('segue:schema', 0))")
        .await?;
    let row = transaction.query_opt(sql, &[&imprint(), &relations, &functions]).await?;
    transaction.rollback().await?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Makes the schema, or checks that the one there is of a version this build knows.
pub async fn ensure(client: &mut Client) -> Outcome<()> {
    let during = |e| fault_of(&e).during("making the schema segue");
    if is_made(client).await.map_err(during)? {
        return Ok(());
    }
    let transaction = client.transaction().await.map_err(during)?;
    transaction
        // A process that is stopped or cut off in here must not keep all others out.
        .batch_execute(
            "SET LOCAL idle_in_transaction_session_timeout = '10s';
             SELECT pg_advisory_xact_lock(hashtextextended('segue:schema', 0))",
        )
        .await
        .map_err(during)?;
    let exists: bool = transaction
        .query_one("SELECT to_regclass('segue.format') IS NOT NULL", &[])
        .await
        .map_err(during)?
        .get(0);
    if exists {
        let version =
            transaction.query_opt("SELECT max(version) FROM segue.format", &[]).await.map_err(during)?;
        known(version.and_then(|row| row.get(0)))?;
    }
    // Nothing of an earlier build reads or changes the later ones, so the format stays what it is.
    for statements in statements() {
        transaction.batch_execute(&statements).await.map_err(during)?;
    }
    transaction
        .execute(
            "INSERT INTO segue.format SELECT $1 WHERE NOT EXISTS (SELECT FROM segue.format)",
            &[&FORMAT_VERSION],
        )
        .await
        .map_err(during)?;
    transaction.commit().await.map_err(during)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_made_has_its_name_read() {
        let tables = made_with("CREATE TABLE IF NOT EXISTS ");
        assert!(tables.contains(&"segue.token") && tables.contains(&"segue.owner"), "{tables:?}");
        let functions = made_with("CREATE OR REPLACE FUNCTION ");
        assert!(functions.contains(&"segue.enter") && functions.contains(&"segue.open"), "{functions:?}");
        assert_eq!(made_with("CREATE INDEX IF NOT EXISTS "), ["sample_in_time"]);
        assert!(
            tables.iter().chain(&functions).all(|name| name.starts_with("segue.") && !name.contains('%')),
            "{tables:?} {functions:?}"
        );
    }
}
