//! DDL that the stream cannot follow is refused, on every form of table; everything else passes.

use crate::statements::{PASSES, REFUSED};
use crate::world::World;

async fn refuses_and_lets_pass(major: u16) {
    let world = World::guarded(major).await;
    world.client.batch_execute("CREATE TABLE parent2 (id int)").await.unwrap();
    let form = "SELECT md5(string_agg(format('%s %s %s', a.attrelid::regclass, a.attname, a.atttypid), ';' ORDER BY a.attrelid, a.attnum)) || string_agg(DISTINCT c.relreplident::text || c.relname, ',')
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace IN ('public'::regnamespace, 'other'::regnamespace)";
    let before = world.cluster.scalar(form).await;
    for (sql, table, what) in REFUSED {
        let error = world.refused(sql).await;
        let said = error.message();
        assert_eq!(error.code().code(), "55006", "{major}: {sql}: {said}");
        let subject = format!("segue does not let {table} be ");
        let rows = format!("segue does not let the rows of {table} be ");
        assert!(said.starts_with(&subject) || said.starts_with(&rows), "{major}: {sql}: {said}");
        assert!(said.contains(what) && said.contains("migration m"), "{major}: {sql}: {said}");
        assert!(error.hint().unwrap().contains("ALTER EVENT TRIGGER segue_guard_m DISABLE"), "{error:?}");
    }
    assert_eq!(world.cluster.scalar(form).await, before, "nothing was changed");
    for (since, sql) in PASSES {
        if major >= *since {
            world.passes(sql).await;
        }
    }
    // What became of the tables meanwhile is what is guarded now.
    for (sql, table, what) in [
        ("ALTER TABLE ev_one REPLICA IDENTITY FULL", "public.ev_one of public.ev", "replica identity"),
        ("ALTER TABLE plain DROP CONSTRAINT plain_again", "public.plain", "the key (id)"),
        ("ALTER TABLE whole_keyed ALTER id DROP NOT NULL", "public.whole_keyed", "the key (id)"),
    ] {
        let said = world.refused(sql).await.message().to_owned();
        assert!(said.contains(table) && said.contains(what), "{major}: {sql}: {said}");
    }
}

#[tokio::test]
async fn ddl_is_refused_or_passes_on_12() {
    refuses_and_lets_pass(12).await;
}

#[tokio::test]
async fn ddl_is_refused_or_passes_on_15() {
    refuses_and_lets_pass(15).await;
}

#[tokio::test]
async fn ddl_is_refused_or_passes_on_18() {
    refuses_and_lets_pass(18).await;
}

#[tokio::test]
async fn a_refusal_rolls_back_its_transaction_and_nothing_else() {
    let world = World::guarded(15).await;
    let app = world.cluster.connect("postgres").await;
    app.batch_execute("INSERT INTO plain VALUES (1, 'before', 1)").await.unwrap();
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (2, 'within', 1); CREATE TABLE new (a int)")
        .await
        .unwrap();
    app.batch_execute("ALTER TABLE plain ADD COLUMN more int").await.unwrap_err();
    app.batch_execute("COMMIT").await.unwrap();
    app.batch_execute("BEGIN; INSERT INTO plain VALUES (3, 'kept', 1); SAVEPOINT s").await.unwrap();
    app.batch_execute("ALTER TABLE plain ADD COLUMN more int").await.unwrap_err();
    app.batch_execute("ROLLBACK TO s; COMMIT").await.unwrap();
    let rows = "SELECT string_agg(v, ' ' ORDER BY id) || coalesce(to_regclass('new')::text, '') FROM plain";
    assert_eq!(world.cluster.scalar(rows).await.as_deref(), Some("before kept"));
}

#[tokio::test]
async fn an_owner_without_rights_to_anything_of_segues_is_refused_and_cannot_slip_anything_in() {
    let world = World::guarded(15).await;
    world
        .client
        .batch_execute("ALTER TABLE plain OWNER TO app; GRANT TEMP ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app")
        .await
        .unwrap();
    let app = world.app().await;
    let traps = "
        CREATE FUNCTION pg_temp.trap() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped as %', current_user; END $$;
        CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.trap());
        CREATE DOMAIN pg_temp.oid AS pg_catalog.oid CHECK (pg_temp.trap());
        CREATE TEMP VIEW pg_class AS SELECT *, pg_temp.trap() FROM pg_catalog.pg_class;
        CREATE TEMP VIEW pg_event_trigger AS SELECT * FROM pg_catalog.pg_event_trigger WHERE pg_temp.trap();
        CREATE TEMP TABLE pg_inherits (inhrelid int)";
    app.batch_execute(traps).await.unwrap();
    let error = app.batch_execute("ALTER TABLE plain ADD COLUMN more int").await.unwrap_err();
    let said = error.as_db_error().unwrap().message();
    assert!(said.contains("public.plain") && said.contains("column more would be added"), "{said}");
    app.batch_execute("CREATE INDEX ON plain (v); ALTER TABLE plain ALTER v SET STORAGE EXTERNAL")
        .await
        .unwrap();
}

#[tokio::test]
async fn segues_own_transactions_pass() {
    let world = World::guarded(15).await;
    let segue = world.cluster.connect("postgres").await;
    segue
        .batch_execute("BEGIN; SELECT segue.enter('m', 3); ALTER TABLE plain ADD COLUMN more int; COMMIT")
        .await
        .unwrap();
    let error = segue.batch_execute("ALTER TABLE plain ADD COLUMN another int").await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("column another would be added"), "{error:?}");
}
