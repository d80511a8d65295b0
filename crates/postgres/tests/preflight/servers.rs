//! Checks that are about whole servers, or about databases made otherwise: settings, standbys, locales, sizes.

use crate::world::{AS_EVER, Found, How, Place, World, fires_and_is_cured, more};
use segue_model::switch::Side;
use segue_testkit::cluster::{Cluster, StandbyOptions};
use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, chown};
use std::time::{Duration, Instant};

/// The checks that have their case here.
pub(crate) const CHECKS: &[&str] = &[
    "wal-level",
    "limits",
    "recovery",
    "synchronous-standby",
    "synchronous-commit",
    "kept-log",
    "encoding",
    "collations",
    "replicas",
    "failover",
    "ddl-guard",
    "locks",
    "snapshots",
    "disk",
];

/// The pair with which every case begins, and what is found there.
struct Clean {
    world: World,
    place: Place,
    ever: Found,
}

impl Clean {
    async fn start() -> Clean {
        let world = World::start().await;
        let place = world.place(AS_EVER).await;
        let ever = world.look(&place, AS_EVER).await;
        Clean { world, place, ever }
    }

    async fn now(&self) -> Found {
        more(self.world.look(&self.place, AS_EVER).await, &self.ever)
    }

    /// `spoil` on the source, the remedies, and `after`.
    async fn case(&self, check: &str, also: &[&str], says: &str, spoil: &str, after: &str) {
        self.world.run(Side::Source, &self.place, spoil).await;
        let cure = async |found| self.world.apply_remedies(&self.place, &found).await;
        fires_and_is_cured((check, also, says), async || self.now().await, cure).await;
        self.world.run(Side::Source, &self.place, after).await;
    }
}

#[tokio::test]
async fn settings_of_servers() {
    let clean = Clean::start().await;
    let keep = "ALTER SYSTEM SET max_slot_wal_keep_size = ";
    let back = format!("{keep}'64GB'; SELECT pg_reload_conf()");
    let endless = format!("{keep}'-1'; SELECT pg_reload_conf()");
    clean.case("kept-log", &[], "without a bound", &endless, &back).await;
    let tight = format!("{keep}'1GB'; SELECT pg_reload_conf()");
    clean.case("kept-log", &[], "more than 1024 MiB", &tight, &back).await;

    let hasty = "ALTER SYSTEM SET wal_sender_timeout = '5s'; SELECT pg_reload_conf()";
    clean.case("timeouts", &[], "wal_sender_timeout is 5000ms on the source", hasty, "").await;

    let standbys = |names: &str| {
        format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'; SELECT pg_reload_conf()")
    };
    clean.case("synchronous-commit", &[], "none of them is connected", &standbys("absent"), "").await;
    clean.world.run(Side::Source, &clean.place, &standbys("*")).await;
    let cure = async |found: Found| {
        // The remedy names a standby that is not there.
        assert!(found[0].1.remedy.contains("ALTER SYSTEM SET synchronous_standby_names"), "{found:?}");
        clean.world.run(Side::Source, &clean.place, &standbys("")).await;
    };
    fires_and_is_cured(
        ("synchronous-standby", &[], "counts Segue's own session"),
        async || clean.now().await,
        cure,
    )
    .await;

    let taken =
        "SELECT pg_replication_origin_create('o' || i), pg_replication_origin_advance('o' || i, '0/1')
        FROM generate_series(1, current_setting('max_replication_slots')::int) i";
    clean.world.run(Side::Target, &clean.place, taken).await;
    let cure = async |_| {
        let free = "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin";
        clean.world.run(Side::Target, &clean.place, free).await;
    };
    let check = ("limits", &[][..], "all 20 replication origins of the target are taken");
    fires_and_is_cured(check, async || clean.now().await, cure).await;

    // What needs a restart shares one.
    let cramped = "ALTER SYSTEM SET wal_level = 'replica'; ALTER SYSTEM SET max_wal_senders = 0; ALTER SYSTEM SET max_replication_slots = 0";
    clean.world.run(Side::Source, &clean.place, cramped).await;
    clean.world.source.restart().await;
    let cure = async |found| {
        clean.world.apply_remedies(&clean.place, &found).await;
        clean.world.source.restart().await;
    };
    let check = ("wal-level", &["limits"][..], "wal_level is replica on the source");
    fires_and_is_cured(check, async || clean.now().await, cure).await;
    clean
        .world
        .run(
            Side::Source,
            &clean.place,
            "SELECT pg_create_physical_replication_slot('s' || i)
               FROM generate_series(1, current_setting('max_replication_slots')::int) i",
        )
        .await;
    let fired = clean.now().await;
    let said: Vec<&str> =
        fired.iter().filter(|(check, _)| *check == "limits").map(|(_, f)| f.what.as_str()).collect();
    assert!(
        matches!(said[..], [what] if what.ends_with("replication slots of the source are taken, and the stream needs one")),
        "{fired:#?}"
    );
}

#[tokio::test]
async fn room_for_locks() {
    let clean = Clean::start().await;
    let (world, place) = (&clean.world, &clean.place);
    let many = "DO $$ BEGIN FOR n IN 2..1101 LOOP
        EXECUTE format('CREATE TABLE more_%s PARTITION OF parts FOR VALUES FROM (%s) TO (%s)', n, n * 100, n * 100 + 100);
        END LOOP; END $$";
    for side in Side::ALL {
        world.run(side, place, many).await;
    }
    assert_eq!(clean.now().await, [], "there is room for as many by default");
    world.run(Side::Source, place, "ALTER SYSTEM SET max_locks_per_transaction = 10").await;
    world.source.restart().await;
    let cure = async |found| {
        world.apply_remedies(place, &found).await;
        world.source.restart().await;
    };
    let says = "takes 1105 locks at once on the source";
    fires_and_is_cured(("locks", &[], says), async || clean.now().await, cure).await;

    // Each takes its time.
    let hasty = How { max_write_hold: Duration::from_millis(500), ..AS_EVER };
    let found = more(world.look(place, hasty).await, &clean.ever);
    let [("locks", finding)] = &found[..] else { panic!("{found:#?}") };
    assert!(finding.what.contains("would hold writes for about 442 ms; 500 ms are allowed"), "{finding:?}");
    assert_eq!(finding.remedy, "in the spec: switch: { max_write_hold_ms: 2000 }");

    // Making them takes more.
    world.target.execute("CREATE DATABASE bare").await;
    let bare = Place { source: place.source.clone(), target: "bare".into() };
    let making = How { creates_missing: true, ..AS_EVER };
    let said = async || {
        let found = world.look(&bare, making).await.into_iter();
        found.filter(|(check, _)| *check == "locks").map(|(_, finding)| finding.what).collect::<Vec<_>>()
    };
    assert_eq!(said().await, Vec::<String>::new(), "14,080 are enough");
    world.target.execute("ALTER SYSTEM SET max_locks_per_transaction = 32").await;
    world.target.restart().await;
    let said = said().await;
    assert!(
        matches!(&said[..], [what] if what.starts_with("making the tables in one transaction takes 6630 locks")),
        "{said:?}"
    );
}

#[tokio::test]
async fn standbys() {
    let clean = Clean::start().await;
    let (world, place) = (&clean.world, &clean.place);
    let standby = Cluster::standby_of(&world.source, StandbyOptions::named("b")).await;
    let found = more(world.look_from(&standby, place, AS_EVER).await, &clean.ever);
    let said: Vec<_> = found.iter().map(|(check, finding)| (*check, finding.what.as_str())).collect();
    let [("recovery", what)] = said[..] else { panic!("{found:#?}") };
    assert!(what.starts_with("the source is a standby") && what.contains("[SEGUE-STANDBY]"), "{what}");

    let said = clean.now().await;
    assert!(
        matches!(&said[..], [("failover", finding)] if finding.what.contains("standbys (b)")),
        "{said:#?}"
    );
    let beside = async || {
        let found = clean.now().await.into_iter();
        found.filter(|(check, _)| *check != "failover").collect::<Found>()
    };
    let waits = |names: &str| {
        format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'; SELECT pg_reload_conf()")
    };
    world.run(Side::Source, place, &waits("b")).await;
    let cure = async |_| world.run(Side::Source, place, &waits("")).await;
    fires_and_is_cured(("synchronous-commit", &[], "on the target for none"), beside, cure).await;

    let ignoring = async |name| {
        let found =
            more(world.look(place, How { replica_ignored: Some(name), ..AS_EVER }).await, &clean.ever);
        found.into_iter().filter(|(check, _)| *check == "replicas").map(|(_, f)| f.what).collect::<Vec<_>>()
    };
    let misspelt = ignoring("bb").await;
    assert!(matches!(&misspelt[..], [what] if what.contains("is called so now (there: b)")), "{misspelt:?}");

    standby.pause().await;
    world.source.execute("CREATE TABLE written_now (id int)").await;
    let cure = async |_| standby.unpause();
    fires_and_is_cured(("replicas", &[], "the source's replica b is "), beside, cure).await;
    standby.pause().await;
    world.source.execute("CREATE TABLE written_then (id int)").await;
    let behind =
        "SELECT now() - reply_time > interval '1.5s' FROM pg_stat_replication WHERE application_name = 'b'";
    while world.source.scalar(behind).await.as_deref() != Some("t") {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(ignoring("b").await, Vec::<String>::new());
    standby.unpause();
    let cure = async |_| standby.stop_fast().await;
    let after = async || {
        let found = clean.now().await.into_iter();
        // Its slot is left.
        found.filter(|(check, _)| *check != "slots").collect::<Found>()
    };
    fires_and_is_cured(("failover", &[], "a failover loses the stream"), after, cure).await;
}

#[tokio::test]
async fn databases_made_otherwise() {
    let clean = Clean::start().await;
    let world = &clean.world;
    let made = async |source: &str, target: &str| {
        for (cluster, locale) in [(&world.source, source), (&world.target, target)] {
            cluster.execute("DROP DATABASE IF EXISTS other").await;
            cluster.execute(&format!("CREATE DATABASE other TEMPLATE template0 {locale}")).await;
            cluster.connect("other").await.batch_execute(crate::world::SCHEMA).await.expect("the schema");
        }
        Place { source: "other".into(), target: "other".into() }
    };
    let plain = "ENCODING 'UTF8' LOCALE 'C'";
    let found = async |place: &Place| more(world.look(place, AS_EVER).await, &clean.ever);

    let place = made(plain, "ENCODING 'LATIN1' LOCALE 'C'").await;
    let fired = found(&place).await;
    assert!(
        matches!(&fired[..], [("encoding", f)] if f.what.contains("LATIN1") && f.remedy.contains("UTF8")),
        "{fired:#?}"
    );
    let place = made("ENCODING 'SQL_ASCII' LOCALE 'C'", plain).await;
    let fired = found(&place).await;
    assert!(matches!(&fired[..], [("encoding", f)] if f.what.contains("SQL_ASCII")), "{fired:#?}");
    let place = made(plain, plain).await;
    assert_eq!(found(&place).await, []);

    let place = made("ENCODING 'UTF8' LOCALE 'C.UTF-8'", plain).await;
    let fired = found(&place).await;
    assert!(
        matches!(&fired[..], [("collations", f)] if f.what.contains("libc C.UTF-8 on the source and libc C on")),
        "{fired:#?}"
    );
    let icu = "ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'de'";
    let place = made(icu, icu).await;
    assert_eq!(found(&place).await, []);
    world.run(Side::Source, &place, "UPDATE pg_database SET datcollversion = '1' WHERE datname = 'other';
        CREATE COLLATION swedish (provider = icu, locale = 'sv'); UPDATE pg_collation SET collversion = '1' WHERE collname = 'swedish';
        ALTER TABLE customers ALTER email TYPE text COLLATE swedish").await;
    world.run(Side::Target, &place, "CREATE COLLATION swedish (provider = icu, locale = 'sv'); ALTER TABLE customers ALTER email TYPE text COLLATE swedish").await;
    let cure = async |fired: Found| {
        assert_eq!(fired.len(), 2, "the default, and a column's own: {fired:#?}");
        world.apply_remedies(&place, &fired).await;
    };
    fires_and_is_cured(
        ("collations", &[], "were built under version 1 of its collation"),
        async || found(&place).await,
        cure,
    )
    .await;
}

#[tokio::test]
async fn rights_and_sizes() {
    let clean = Clean::start().await;
    let (world, place) = (&clean.world, &clean.place);
    let humble = How { mover: true, ..AS_EVER };
    let handed_over = world.place(humble).await;
    let look = async || more(world.look(&handed_over, humble).await, &clean.ever);
    // The remedy is a person's promise; what makes the check green is a role that may.
    let cure = async |_: Found| {
        for side in Side::ALL {
            world.run(side, &handed_over, "ALTER ROLE mover SUPERUSER").await;
        }
    };
    fires_and_is_cured(("ddl-guard", &[], "may not make event triggers on the source"), look, cure).await;

    // An hour passes in a moment.
    let fake =
        "CREATE SCHEMA fake; CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
        $$SELECT pg_catalog.clock_timestamp() + interval '1 hour'$$";
    world.run(Side::Source, place, fake).await;
    let forgotten = world.session(Side::Source, place).await;
    forgotten
        .batch_execute("SET application_name = 'forgotten'; BEGIN; SELECT 'a secret'")
        .await
        .expect("a transaction");
    let later = How { prelude: "SET search_path = fake, pg_catalog", ..AS_EVER };
    let look = async || more(world.look(place, later).await, &clean.ever);
    let cure = async |fired: Found| {
        let fired: Found = fired.into_iter().filter(|(check, _)| *check == "transactions").collect();
        assert!(fired.iter().all(|(_, finding)| !finding.what.contains("secret")), "{fired:#?}");
        world.apply_remedies(place, &fired).await;
        world.run(Side::Source, place, "DROP SCHEMA fake CASCADE").await;
    };
    fires_and_is_cured(("transactions", &["clocks"], "'forgotten', idle in transaction"), look, cure).await;

    grow(world, place, "customers", 300 << 20).await;
    let cure = async |_| world.run(Side::Source, place, "TRUNCATE customers CASCADE").await;
    fires_and_is_cured(
        ("snapshots", &[], "public.customers (300 MiB) is copied under one snapshot"),
        async || clean.now().await,
        cure,
    )
    .await;
    grow(world, place, "orders", 11 << 30).await;
    let cure = async |_| world.run(Side::Source, place, "TRUNCATE orders").await;
    fires_and_is_cured(
        ("disk", &[], "the tables take 11264 MiB on the source"),
        async || clean.now().await,
        cure,
    )
    .await;
}

/// Makes an empty table as large as that, of pages that were never written: they take no room.
async fn grow(world: &World, place: &Place, table: &str, bytes: u64) {
    const SEGMENT: u64 = 1 << 30;
    let client = world.session(Side::Source, place).await;
    let path: String = client
        .query_one("SELECT pg_relation_filepath($1::text::regclass)", &[&table])
        .await
        .expect("a path")
        .get(0);
    let first = world.source.data_dir().join(path);
    let owner = first.metadata().expect("the table's file");
    for no in 0..bytes.div_ceil(SEGMENT) {
        let file = if no == 0 { first.clone() } else { first.with_extension(no.to_string()) };
        let opened =
            OpenOptions::new().create(true).write(true).truncate(false).open(&file).expect("a segment");
        opened.set_len((bytes - no * SEGMENT).min(SEGMENT)).expect("room for it");
        chown(&file, Some(owner.uid()), Some(owner.gid())).expect("given to the server");
    }
}

#[tokio::test]
async fn thousands_of_partitions_are_checked_in_seconds() {
    let world = World::start().await;
    let (roots, leaves) = (40, 25);
    let many = format!(
        "DO $$ BEGIN FOR i IN 1..{roots} LOOP
            EXECUTE format('CREATE TABLE s%s (id int PRIMARY KEY, v text DEFAULT ''x'', CHECK (id >= 0)) PARTITION BY RANGE (id)', i);
            FOR j IN 1..{leaves} LOOP
                EXECUTE format('CREATE TABLE s%s_%s PARTITION OF s%s FOR VALUES FROM (%s) TO (%s)', i, j, i, j, j + 1);
            END LOOP; END LOOP; END $$"
    );
    let place = world.place(AS_EVER).await;
    tokio::join!(world.run(Side::Source, &place, &many), world.run(Side::Target, &place, &many));
    let names: Vec<String> = (1..=roots).map(|i| format!("s{i}")).collect();
    let began = Instant::now();
    let found = world.look_at(&world.source, &place, &names, AS_EVER).await;
    let took = began.elapsed();
    assert_eq!(found.iter().map(|(check, _)| *check).collect::<Vec<_>>(), ["disk"], "{found:#?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    println!("{} partitions: {} ms", roots * leaves, took.as_millis());
}
