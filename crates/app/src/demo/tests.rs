//! The demo's own parts on real servers: what it says about a migration is worth no more than they are.

use super::*;
use segue_model::spec::Spec;
use tokio_postgres::Client;

#[test]
fn the_spec_is_one_that_segue_takes() {
    let [source, target] = [20001, 20002].map(|port| format!("postgres://postgres:p@127.0.0.1:{port}/shop"));
    let text = spec_text(&source, &target, "127.0.0.1:20003");
    let spec = Spec::parse("segue.yaml", &text, &|_| None).unwrap();
    assert_eq!(spec.name.as_str(), "demo");
}

async fn copy_by_hand(source: &Client, target: &Client, table: &str) {
    use futures_util::{SinkExt, StreamExt};
    let columns: String = source
        .query_one(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute \
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND attgenerated = ''",
            &[&table],
        )
        .await
        .unwrap()
        .get(0);
    let rows = source.copy_out(&format!("COPY (SELECT {columns} FROM {table}) TO STDOUT")).await.unwrap();
    let sink = target.copy_in(&format!("COPY {table} ({columns}) FROM STDIN")).await.unwrap();
    let (mut rows, mut sink) = (pin!(rows), pin!(sink));
    while let Some(row) = rows.next().await {
        sink.send(row.unwrap()).await.unwrap();
    }
    sink.close().await.unwrap();
}

async fn tables_of(client: &Client) -> Vec<String> {
    let sql = "SELECT oid::regclass::text FROM pg_class \
               WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oracle_knows_a_true_copy_from_one_that_lacks_a_write() {
    let servers = Servers::start(false).await.unwrap();
    let dir = servers.dir().to_owned();
    let size = Size::TINY;
    shop::create_full(&servers.source, size, &|_| ()).await.unwrap();
    shop::create_empty(&servers.target).await.unwrap();

    let load =
        Load::start([servers.source.url(), servers.target.url()], size, Pace { clients: 4, per_second: 600 });
    let until = Instant::now() + Duration::from_secs(60);
    while load.acknowledged() < 1_200 {
        assert!(Instant::now() < until, "only {} transactions were acknowledged", load.acknowledged());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let loaded = load.stop().await;
    assert_eq!(loaded.tally.errors.len(), 0, "{:?}", loaded.tally.errors);
    assert_eq!(loaded.oracle.unknown(), 0);
    let browsing = &loaded.tally.browsing;
    assert_eq!(browsing.stale, 0, "{:?}", browsing.stale_shown);
    assert!(browsing.reads > browsing.read_back && browsing.read_back > 20, "{browsing:?}");

    let source = servers.source.connect().await.unwrap();
    let verdict = loaded.oracle.check(&source).await.unwrap();
    assert_eq!(verdict.lost, 0, "{:?}", verdict.shown);
    assert!(verdict.checked > loaded.oracle.acknowledged() / 2);

    let target = servers.target.connect().await.unwrap();
    assert!(loaded.oracle.check(&target).await.unwrap().lost > 500, "an empty target has lost everything");
    target.batch_execute("SET session_replication_role = replica").await.unwrap();
    let tables = tables_of(&source).await;
    assert_eq!(tables.len(), shop::tables());
    for table in &tables {
        copy_by_hand(&source, &target, table).await;
    }
    let verdict = loaded.oracle.check(&target).await.unwrap();
    assert_eq!(verdict.lost, 0, "{:?}", verdict.shown);

    for harm in [
        "DELETE FROM shop.ledger WHERE (writer, number) = (SELECT writer, min(number) FROM shop.ledger WHERE writer > 0 GROUP BY writer LIMIT 1)",
        "UPDATE shop.accounts SET balance = balance + 1 WHERE id = 1",
        "INSERT INTO shop.ledger VALUES (1, -1 + (SELECT max(number) + 2 FROM shop.ledger WHERE writer = 1), 1, 1, 0)",
        "UPDATE shop.documents SET body = '' WHERE id = (SELECT max(id) FROM shop.documents WHERE revision > 0)",
        "UPDATE shop.sessions SET hits = hits + 1 WHERE id = (SELECT id FROM shop.sessions WHERE hits > 0 LIMIT 1)",
        "DELETE FROM shop.audit WHERE ctid = (SELECT max(ctid) FROM shop.audit WHERE what = 'new')",
        "DELETE FROM shop.order_items WHERE order_id = (SELECT max(id) FROM shop.orders) AND line = 1",
    ] {
        target.batch_execute("BEGIN").await.unwrap();
        assert_eq!(target.execute(harm, &[]).await.unwrap(), 1, "{harm}");
        target.batch_execute("COMMIT").await.unwrap();
        assert!(loaded.oracle.check(&target).await.unwrap().lost > 0, "not noticed: {harm}");
        // Whole again for the next harm.
        for table in &tables {
            target.batch_execute(&format!("TRUNCATE {table} CASCADE")).await.unwrap();
        }
        for table in &tables {
            copy_by_hand(&source, &target, table).await;
        }
    }
    drop(servers);
    assert!(!dir.exists(), "the data are removed");
}

/// What clients have written to the ledger of a server.
async fn ledger_rows(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM shop.ledger WHERE writer > 0", &[]).await.unwrap().get(0)
}

/// Waits until clients have written to the ledger of `server`.
async fn written_to(server: &Client) {
    let until = Instant::now() + Duration::from_secs(20);
    while ledger_rows(server).await == 0 {
        assert!(Instant::now() < until, "no client has come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_a_fence_and_a_lost_connection_and_no_other_refusal() {
    let servers = Servers::start(false).await.unwrap();
    let size = Size::TINY;
    shop::create_full(&servers.source, size, &|_| ()).await.unwrap();
    shop::create_full(&servers.target, size, &|_| ()).await.unwrap();
    let (source, target) = (servers.source.connect().await.unwrap(), servers.target.connect().await.unwrap());
    let open = || {
        let urls = [servers.source.url(), servers.target.url()];
        Load::start(urls, size, Pace { clients: 4, per_second: 400 })
    };
    let refuse = |with: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION shop.refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '25006'{with}; END $$;
             CREATE OR REPLACE TRIGGER refuse BEFORE INSERT ON shop.ledger EXECUTE FUNCTION shop.refuse()"
        )
    };
    let told =
        |loaded: &Loaded, kind: &str| loaded.tally.errors.iter().any(|(error, _)| error.contains(kind));

    source.batch_execute(&refuse("")).await.unwrap();
    let load = open();
    // Those that do not write to the ledger.
    while load.acknowledged() < 50 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let loaded = load.stop().await;
    assert!(told(&loaded, "no (SQLSTATE 25006)"), "{:?}", loaded.tally.errors);
    assert!(!told(&loaded, "the other server"), "{:?}", loaded.tally.errors);
    let there = ledger_rows(&target).await;
    assert_eq!(there, 0, "a server that is read-only for another reason sends nobody away");

    source.batch_execute(&refuse(", CONSTRAINT = 'segue:demo'")).await.unwrap();
    let load = open();
    written_to(&target).await;
    let loaded = load.stop().await;
    assert!(told(&loaded, "the other server"), "{:?}", loaded.tally.errors);
    assert_eq!(ledger_rows(&source).await, 0, "what was refused has not happened");

    target.batch_execute("DELETE FROM shop.ledger WHERE writer > 0").await.unwrap();
    source.batch_execute("DROP TRIGGER refuse ON shop.ledger").await.unwrap();
    let load = open();
    written_to(&source).await;
    // So many that each client remembers several which nobody writes again.
    while load.acknowledged() < 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ledger_rows(&target).await, 0, "nobody leaves a server that takes writes");
    source
        .batch_execute("UPDATE pg_database SET datallowconn = false WHERE datname = current_database()")
        .await
        .unwrap();
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    source.execute(cut, &[]).await.unwrap();
    written_to(&target).await;
    // Each client remembers its last writes until others take their place, and reads many times a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let loaded = load.stop().await;
    assert!(!told(&loaded, "the other server"), "{:?}", loaded.tally.errors);
    let browsing = &loaded.tally.browsing;
    assert!(
        browsing.stale > 0,
        "what was acknowledged elsewhere is missing, and that is noticed: {browsing:?}"
    );
}
