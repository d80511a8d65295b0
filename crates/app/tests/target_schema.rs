//! A target that has none of the tables gets them as the source has them, whatever is killed meanwhile.
#![cfg(feature = "killpoints")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use segue_engine::killpoint;
use segue_model::name::QualifiedName;
use segue_postgres::connect::Endpoint;
use segue_postgres::target_schema;
use segue_testkit::Cluster;
use segue_testkit::kill::{Process, kill_at};
use serde_json::Value;
use std::collections::BTreeSet;
use support::definitions::definitions;
use support::slow::until;
use support::{PATIENCE, Pair};

const TABLES: &[&str] = &["shop.*"];
const CREATE: &str = "schema: { create: missing }\n";

/// Some of everything.
const SHOP: &str = r#"
    CREATE ROLE clerk; CREATE ROLE auditor;
    CREATE SCHEMA shop; CREATE SCHEMA kinds;
    GRANT USAGE ON SCHEMA shop TO clerk;
    CREATE TYPE kinds.state AS ENUM ('new', 'paid', 'Sent''s');
    CREATE FUNCTION kinds.is_mail(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT $1 LIKE '%@%' $$;
    CREATE DOMAIN kinds.mail AS text CHECK (kinds.is_mail(VALUE));
    CREATE TYPE kinds.place AS (street text, town kinds.mail);
    CREATE SEQUENCE kinds.free_seq;
    CREATE FUNCTION kinds.stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.changed := now(); RETURN NEW; END $$;
    CREATE FUNCTION kinds.noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE TABLE shop.customer (
        id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY, mail kinds.mail NOT NULL,
        home kinds.place, "Nick name" text DEFAULT 'it''s', score int CHECK (score >= 0) DEFAULT 0,
        free bigint DEFAULT nextval('kinds.free_seq'), doubled int GENERATED ALWAYS AS (score * 2) STORED,
        changed timestamptz,
        CONSTRAINT one_mail UNIQUE (mail), CONSTRAINT nick UNIQUE ("Nick name") DEFERRABLE INITIALLY DEFERRED);
    ALTER TABLE shop.customer ADD CONSTRAINT short CHECK (length(mail) < 90) NOT VALID;
    CREATE INDEX customer_lower ON shop.customer (lower("Nick name")) WHERE score > 1;
    ALTER TABLE shop.customer CLUSTER ON one_mail;
    CREATE INDEX customer_brin ON shop.customer USING brin (changed);
    CREATE TRIGGER stamp BEFORE UPDATE OF mail, score ON shop.customer FOR EACH ROW WHEN (OLD.score > 0)
        EXECUTE FUNCTION kinds.stamp();
    CREATE TRIGGER off AFTER INSERT ON shop.customer FOR EACH STATEMENT EXECUTE FUNCTION kinds.noted();
    ALTER TABLE shop.customer DISABLE TRIGGER off;
    CREATE STATISTICS shop.together (dependencies) ON mail, score FROM shop.customer;
    ALTER STATISTICS shop.together SET STATISTICS 77;
    ALTER TABLE shop.customer ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON shop.customer FOR SELECT TO clerk USING (mail = current_user);
    CREATE POLICY all_of ON shop.customer AS RESTRICTIVE TO PUBLIC USING (true) WITH CHECK (score < 1000);
    COMMENT ON TABLE shop.customer IS 'who buys; it''s them';
    COMMENT ON COLUMN shop.customer."Nick name" IS 'as they wish';
    COMMENT ON INDEX shop.customer_lower IS 'fast';
    COMMENT ON CONSTRAINT one_mail ON shop.customer IS 'one each';
    COMMENT ON TRIGGER stamp ON shop.customer IS 'when';
    COMMENT ON POLICY own ON shop.customer IS 'mine';
    COMMENT ON STATISTICS shop.together IS 'they go together';
    GRANT SELECT, INSERT ON shop.customer TO clerk WITH GRANT OPTION;
    GRANT UPDATE (score) ON shop.customer TO clerk;
    GRANT SELECT ON shop.customer TO PUBLIC;
    GRANT SELECT ON shop.customer TO auditor;
    CREATE TABLE shop.orders (
        id int NOT NULL, placed date NOT NULL, customer bigint NOT NULL, state kinds.state DEFAULT 'new',
        CONSTRAINT orders_key PRIMARY KEY (id, placed), CONSTRAINT by_customer UNIQUE (customer, placed, id),
        CONSTRAINT whose FOREIGN KEY (customer) REFERENCES shop.customer ON DELETE CASCADE) PARTITION BY RANGE (placed);
    CREATE TABLE shop.orders_old PARTITION OF shop.orders FOR VALUES FROM ('2020-01-01') TO ('2025-01-01');
    CREATE TABLE shop.orders_new PARTITION OF shop.orders FOR VALUES FROM ('2025-01-01') TO (MAXVALUE)
        PARTITION BY RANGE (id);
    CREATE TABLE shop.orders_low PARTITION OF shop.orders_new FOR VALUES FROM (0) TO (500);
    CREATE TABLE shop.orders_rest PARTITION OF shop.orders_new DEFAULT;
    CREATE INDEX orders_state ON shop.orders (state);
    CREATE INDEX only_old ON shop.orders_old (placed);
    CREATE TRIGGER noted AFTER INSERT OR DELETE ON shop.orders FOR EACH ROW EXECUTE FUNCTION kinds.noted();
    CREATE TABLE shop.a (id serial PRIMARY KEY, b int);
    CREATE TABLE shop.b (id int PRIMARY KEY, a int REFERENCES shop.a DEFERRABLE);
    ALTER TABLE shop.a ADD FOREIGN KEY (b) REFERENCES shop.b, ALTER id SET STATISTICS 5, SET (fillfactor = 70);
    ALTER SEQUENCE shop.a_id_seq CACHE 7; GRANT USAGE ON SEQUENCE shop.a_id_seq TO clerk;
    CREATE TABLE shop.booking (room int, during int4range, note text NOT NULL,
        EXCLUDE USING gist (during WITH &&) WHERE (room = 1));
    CREATE UNIQUE INDEX booking_note ON shop.booking (note);
    ALTER TABLE shop.booking REPLICA IDENTITY USING INDEX booking_note;
    CREATE TABLE shop.log (n int, t text); ALTER TABLE shop.log REPLICA IDENTITY FULL;
    CREATE RULE quiet AS ON UPDATE TO shop.log WHERE NEW.n < 0 DO INSTEAD NOTHING;
    CREATE VIEW shop.seen AS SELECT id FROM shop.a;
    ALTER TABLE shop.log OWNER TO clerk;
    GRANT CREATE ON SCHEMA shop TO clerk;
    COMMENT ON SCHEMA kinds IS 'kinds of things'; COMMENT ON FUNCTION kinds.stamp() IS 'stamps';
    REVOKE ALL ON FUNCTION kinds.stamp() FROM PUBLIC; GRANT EXECUTE ON FUNCTION kinds.stamp() TO clerk;
    GRANT USAGE ON SCHEMA kinds TO clerk WITH GRANT OPTION; ALTER TYPE kinds.state OWNER TO clerk;
    INSERT INTO shop.customer (mail, "Nick name", score) SELECT n || '@x', n, n % 7 FROM generate_series(1, 500) n;
    INSERT INTO shop.orders SELECT n, date '2024-01-01' + n, 100 + 5 * (n % 500), (ARRAY['new', 'paid'])[1 + n % 2]::kinds.state
        FROM generate_series(1, 900) n;
    INSERT INTO shop.b VALUES (1, NULL); INSERT INTO shop.a (b) VALUES (1);
    INSERT INTO shop.booking SELECT 2, int4range(n, n + 2), n::text FROM generate_series(1, 50) n;
    INSERT INTO shop.log SELECT n, 'x' FROM generate_series(1, 50) n;
"#;

/// What a server writes down in other words once it has been told it.
const RETOLD: &str = "
    CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TABLE t (id int PRIMARY KEY, state varchar(9) DEFAULT 'new', size int, v int, during int4range,
        CONSTRAINT known CHECK (state IN ('new', 'it''s (x)::y')),
        CONSTRAINT sized CHECK (size BETWEEN 1 AND 9 AND state <> ''),
        EXCLUDE USING gist (during WITH &&) WHERE (state IN ('new', 'old')));
    CREATE INDEX waiting ON t (v) WHERE state IN ('new', 'old');
    CREATE TRIGGER noted AFTER UPDATE ON t FOR EACH ROW WHEN (NEW.state NOT IN ('new', 'old')) EXECUTE FUNCTION noted();
    CREATE POLICY few ON t USING (state IN ('new', 'old'));
    INSERT INTO t SELECT n, 'new', 1, n / 2 FROM generate_series(1, 9) n";

/// The shop's tables, but for the one that stays.
const MOVED: [&str; 3] = ["--schema=shop", "--schema=kinds", "--exclude-table=shop.seen"];

fn points() -> Vec<&'static str> {
    killpoint::ALL.iter().copied().filter(|point| point.starts_with("schema.")).collect()
}

async fn count(cluster: &Cluster, sql: &str) -> i64 {
    cluster.scalar(sql).await.unwrap().parse().unwrap()
}

/// Runs until the process is told to end by the stage, or dies at the point.
async fn dies_at(pair: &Pair, point: &str) {
    let mut command = pair.command(&["run", "--until", "following"]);
    kill_at(&mut command, point, 1);
    let run = Process::start(command);
    let status = run.wait(PATIENCE).await.unwrap();
    assert!(!status.success(), "it did not come by {point}: {}", run.lines().join("\n"));
    let killed = run.lines().iter().any(|line| line.contains("[SEGUE-"));
    assert!(!killed, "it failed before {point}: {}", run.lines().join("\n"));
}

/// What a start that is refused says.
fn refused(pair: &Pair) -> String {
    let output = pair.command(&["run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Null before there is one.
fn status(pair: &Pair) -> Value {
    let output = pair.command(&["status", "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// Tables of the shop.
const THERE: &str =
    "SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = to_regnamespace('shop')";

fn urls(pair: &Pair) -> [String; 2] {
    [pair.source.url("postgres"), pair.target.url("postgres")]
}

fn pairs() -> Vec<(QualifiedName, QualifiedName)> {
    let names = ["customer", "orders", "a", "b", "booking", "log"];
    names.map(|name| (QualifiedName::new("shop", name), QualifiedName::new("shop", name))).into()
}

async fn nothing_is_made_where_something_cannot_be(pair: &Pair) {
    let [source, target] = urls(pair);
    pair.source
        .execute("CREATE EXTENSION citext; CREATE SCHEMA ext; CREATE TABLE ext.t (id citext PRIMARY KEY, b int REFERENCES shop.b)")
        .await;
    pair.write_spec(&source, &target, &["ext.t", "shop.a"], CREATE);
    let said = refused(pair);
    assert!(said.contains("SEGUE-TARGET-SCHEMA") && said.contains("CREATE EXTENSION citext;"), "{said}");
    assert!(said.contains("the tables need the table shop.b"), "{said}");
    assert_eq!(count(&pair.target, THERE).await, 0);
}

async fn what_would_be_made_is_said(pair: &Pair) {
    let [source, target] = urls(pair);
    let ends = [&source, &target].map(|url| Endpoint::parse(url).unwrap());
    let preview = target_schema::preview(&ends[0], &ends[1], &pairs()).await.unwrap();
    let place = |start: &str| {
        let at = preview.iter().position(|sql| sql.starts_with(start) && sql.ends_with(';'));
        at.unwrap_or_else(|| panic!("{start} is not in {preview:#?}"))
    };
    let order = [
        r#"CREATE TYPE "kinds"."state""#,
        r#"CREATE TABLE "shop"."customer""#,
        r#"ALTER TABLE ONLY shop.customer ADD CONSTRAINT "customer_pkey" PRIMARY KEY (id)"#,
        r#"CREATE INDEX CONCURRENTLY "customer_lower""#,
        r#"ALTER TABLE shop.orders ADD CONSTRAINT "whose" FOREIGN KEY"#,
        "CREATE TRIGGER stamp",
        r#"GRANT SELECT ON TABLE "shop"."customer" TO "auditor""#,
    ];
    assert!(order.map(place).is_sorted(), "{preview:#?}");
    // Checks that hold for every row come with their tables.
    let checks = |name: &str| {
        let words = format!("CONSTRAINT \"{name}\" CHECK ");
        preview.iter().filter(|sql| sql.contains(&words)).count()
    };
    assert_eq!((checks("customer_score_check"), checks("short")), (1, 1), "{preview:#?}");
    let once: BTreeSet<&String> = preview.iter().collect();
    assert_eq!(once.len(), preview.len(), "{preview:#?}");
    assert_eq!(count(&pair.target, THERE).await, 0);

    // However much else there is beside them, from which pg_dump is told to keep away, or which it is not told of.
    let others = |verb: &str, what: &str| {
        let one = |n| format!("{verb} TABLE shop.other_{n}{what};");
        (1..=40).map(one).collect::<String>()
    };
    let owned = " (id serial PRIMARY KEY, at kinds.state, whose bigint REFERENCES shop.customer)";
    pair.source.execute(&others("CREATE", owned)).await;
    assert_eq!(target_schema::preview(&ends[0], &ends[1], &pairs()).await.unwrap(), preview);
    pair.source.execute(&others("DROP", "")).await;

    // And whatever there is that the role may not touch.
    let strange = "CREATE ROLE stranger; CREATE ROLE mover LOGIN REPLICATION BYPASSRLS PASSWORD 'm' IN ROLE postgres, clerk;
        CREATE TABLE shop.private (id serial PRIMARY KEY); ALTER TABLE shop.private OWNER TO stranger;
        CREATE SCHEMA hidden AUTHORIZATION stranger; CREATE SEQUENCE hidden.s; ALTER SEQUENCE hidden.s OWNER TO stranger";
    pair.source.execute(strange).await;
    let mover = format!("postgres://mover:m@127.0.0.1:{}/postgres", pair.source.port());
    let mover = Endpoint::parse(&mover).unwrap();
    assert_eq!(target_schema::preview(&mover, &ends[1], &pairs()).await.unwrap(), preview);
    let gone = "DROP TABLE shop.private; DROP SCHEMA hidden CASCADE; DROP ROLE mover; DROP ROLE stranger";
    pair.source.execute(gone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_created_as_the_source_has_them_whatever_is_killed() {
    let pair = Pair::start(TABLES).await;
    let [source, target] = urls(&pair);
    pair.source.execute(SHOP).await;
    pair.target.execute("CREATE ROLE clerk").await;
    let said = refused(&pair);
    assert!(
        said.contains("shop.customer does not exist on the target") && said.contains("create: missing"),
        "{said}"
    );

    nothing_is_made_where_something_cannot_be(&pair).await;
    what_would_be_made_is_said(&pair).await;

    pair.write_spec(&source, &target, TABLES, CREATE);
    for point in points() {
        dies_at(&pair, point).await;
        let made = count(&pair.target, THERE).await;
        let is_before_commit = ["schema.tables", "schema.remembered"].contains(&point);
        assert_eq!(made == 0, is_before_commit, "{point}: all tables or none, not {made}");
        pair.source.execute("UPDATE shop.customer SET score = score + 1 WHERE id % 3 = 0").await;
    }
    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.source
        .execute("UPDATE shop.customer SET score = score + 1; INSERT INTO shop.log VALUES (0, 'y')")
        .await;
    pair.caught_up().await;
    pair.assert_equal(&["shop"]).await;

    // What the missing role may see is all that is lacking, and said with the SQL that makes it.
    let (from, to) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
    let lacking = target_schema::parity(&from, &to, &pairs()).await.unwrap();
    let remedies: Vec<&str> = lacking.iter().flat_map(|one| one.remedy.iter().map(String::as_str)).collect();
    assert_eq!(remedies, [r#"GRANT SELECT ON TABLE "shop"."customer" TO "auditor""#]);
    pair.target.execute(&format!("CREATE ROLE auditor; {}", remedies[0])).await;
    assert_eq!(target_schema::parity(&from, &to, &pairs()).await.unwrap(), []);
    let (expected, found) = (definitions(&pair.source, &MOVED), definitions(&pair.target, &MOVED));
    let lacking: Vec<&String> = expected.iter().filter(|part| !found.contains(part)).collect();
    let extra: Vec<&String> = found.iter().filter(|part| !expected.contains(part)).collect();
    assert!(lacking.is_empty() && extra.is_empty(), "lacking {lacking:#?}\nextra {extra:#?}");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(count(&pair.target, invalid).await, 0);

    pair.stop(&run).await;
    pair.segue(&["cancel", "--drop-target-tables"], 0);
    assert_eq!(count(&pair.target, THERE).await, 0);
    let kinds = "SELECT count(*) FROM pg_namespace WHERE nspname IN ('shop', 'kinds')";
    assert_eq!(count(&pair.target, kinds).await, 0, "what was created along goes along");
}

/// An index that waits for a transaction is built on after a kill, and what it has left is taken away first.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_cut_short_is_built_again() {
    let pair = Pair::start(&["public.t"]).await;
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["public.t"], CREATE);
    pair.source
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE INDEX t_by_v ON t (v); INSERT INTO t VALUES (1, 1);
             CREATE ROLE auditor; GRANT SELECT ON t TO auditor; CREATE PUBLICATION changes FOR TABLE t;
             CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
             CREATE TRIGGER watch AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION noted();
             ALTER TABLE t ENABLE ALWAYS TRIGGER watch",
        )
        .await;
    let old = pair.target.connect("postgres").await;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    let run = pair.run();
    let wait = async |run: &Process| {
        until("status says what is waited for", async || {
            let waits = status(&pair)["progress"]["waits"].to_string();
            assert!(run.status().is_none(), "{}", run.lines().join("\n"));
            waits.contains("0 of 1 indexes are built; now t_by_v (waiting for ")
        })
        .await;
        assert_eq!(status(&pair)["stage"], "backfilling");
    };
    wait(&run).await;
    run.kill9();
    let run = pair.run();
    wait(&run).await;
    old.batch_execute("COMMIT").await.unwrap();
    pair.reaches(&run, "following").await;
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_by_v'::regclass";
    assert_eq!(pair.target.scalar(valid).await.as_deref(), Some("t"));

    // What needs a role that is not there is left out, and said with the SQL that makes it.
    until("the missing role is warned of", async || {
        let warnings = status(&pair)["warnings"].to_string();
        // A trigger that would act on Segue's rows is made so that it does not.
        warnings.contains("role \\\"auditor\\\" does not exist")
            && warnings.contains("GRANT SELECT ON TABLE")
            && warnings.contains("ENABLE ALWAYS TRIGGER")
    })
    .await;
    let parity = async || {
        let gates = status(&pair)["gates"].clone();
        gates
            .as_array()
            .and_then(|gates| gates.iter().find(|gate| gate["gate"] == "parity").cloned())
            .unwrap_or_default()
    };
    until("the gate says it, too", async || parity().await["green"] == false).await;
    let why = parity().await["why"].to_string();
    assert!(
        !why.contains("watch")
            && why.contains("the role")
            && why.contains("publication changes does not publish it"),
        "{why}"
    );
    pair.stop(&run).await;
}

/// The source's words are told once. What the target writes down then is the same to it, and to the gate.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_writes_down_in_other_words_is_made_once() {
    let pair = Pair::start(&["public.t"]).await;
    let [source, target] = urls(&pair);
    pair.write_spec(&source, &target, &["public.t"], CREATE);
    pair.source.execute(RETOLD).await;
    let (from, to) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
    // What this leaves cannot be on the target either.
    from.batch_execute("CREATE UNIQUE INDEX CONCURRENTLY dud ON t (v)").await.unwrap_err();
    let run = pair.run();
    pair.reaches(&run, "following").await;

    let check = |name: &str| {
        format!(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{name}' AND conrelid = 't'::regclass"
        )
    };
    for words in [check("known"), check("sized"), "SELECT pg_get_indexdef('waiting'::regclass)".to_owned()] {
        let (first, again) = (pair.source.scalar(&words).await, pair.target.scalar(&words).await);
        assert!(
            first.is_some() && again.is_some() && first != again,
            "{first:?}: else nothing is tested here"
        );
    }
    let table = QualifiedName::new("public", "t");
    assert_eq!(target_schema::parity(&from, &to, &[(table.clone(), table)]).await.unwrap(), []);
    let dud = "SELECT count(*) FROM pg_class WHERE relname = 'dud'";
    assert_eq!((count(&pair.source, dud).await, count(&pair.target, dud).await), (1, 0));
    let warnings = status(&pair)["warnings"].to_string();
    assert!(!warnings.contains("in other words"), "{warnings}");
    pair.stop(&run).await;
}

/// Where the partitioned table itself is on the target already, its partitions are made as its partitions.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_attached_to_a_table_that_is_there() {
    let pair = Pair::start(&["few.p"]).await;
    let root = "CREATE SCHEMA few; CREATE TYPE few.kind AS ENUM ('a');
        CREATE TABLE few.p (id int PRIMARY KEY, k few.kind) PARTITION BY RANGE (id)";
    pair.both(root).await;
    let parts = ["p1", "p2"].map(|name| QualifiedName::new("few", name));
    for (part, from) in parts.iter().zip([0, 10]) {
        let to = from + 10;
        let sql =
            format!("CREATE TABLE {} PARTITION OF few.p FOR VALUES FROM ({from}) TO ({to})", part.sql());
        pair.source.execute(&sql).await;
    }
    let [source, target] = urls(&pair).map(|url| Endpoint::parse(&url).unwrap());
    let pairs = parts.map(|part| (part.clone(), part));
    let made = target_schema::preview(&source, &target, &pairs).await.unwrap();
    let attached = made.iter().filter(|sql| sql.contains("ATTACH PARTITION")).count();
    assert_eq!(attached, 2, "{made:#?}");
}

/// Whoever owns a schema needs no grant there, on whichever side it does.
#[tokio::test(flavor = "multi_thread")]
async fn the_owner_of_the_targets_schema_is_not_missed_among_its_grants() {
    let pair = Pair::start(&["few.t"]).await;
    let sql =
        "CREATE ROLE seller; CREATE ROLE mover; CREATE SCHEMA few; CREATE TABLE few.t (id int PRIMARY KEY)";
    pair.both(sql).await;
    pair.source.execute("ALTER SCHEMA few OWNER TO seller; GRANT USAGE ON SCHEMA few TO mover").await;
    let lacks = async || {
        let (source, target) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
        let table = QualifiedName::new("few", "t");
        let found = target_schema::parity(&source, &target, &[(table.clone(), table)]).await.unwrap();
        found.iter().map(|finding| finding.words()).filter(|words| words.contains("USAGE")).count()
    };
    assert_eq!(lacks().await, 1, "mover may use it on the source only");
    pair.target.execute("ALTER SCHEMA few OWNER TO mover").await;
    assert_eq!(lacks().await, 0);
}

/// A generated column does not travel: each side computes its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_sides_compute_otherwise_is_told_with_what_makes_them_equal() {
    let pair = Pair::start(&["few.t"]).await;
    let make = |factor: i32| {
        format!(
            "CREATE SCHEMA few; CREATE TABLE few.t (id int PRIMARY KEY, v int, more int GENERATED ALWAYS AS (v * {factor}) STORED)"
        )
    };
    pair.source.execute(&make(2)).await;
    pair.target.execute(&make(3)).await;
    let (source, target) = (pair.source.connect("postgres").await, pair.target.connect("postgres").await);
    let pairs = [(QualifiedName::new("few", "t"), QualifiedName::new("few", "t"))];
    let lacking = async || target_schema::parity(&source, &target, &pairs).await.unwrap();
    for (spoil, says) in
        [("", "and as (v * 3) on the target"), ("ALTER TABLE few.t DROP more", "and missing")]
    {
        pair.target.execute(spoil).await;
        let found = lacking().await;
        let [one] = &found[..] else { panic!("{found:#?}") };
        let words = one.words();
        assert!(
            words.contains("is computed as (v * 2) on the other side") && words.contains(says),
            "{words}"
        );
        for sql in &one.remedy {
            pair.target.execute(sql).await;
        }
        assert_eq!(lacking().await, []);
    }
}
