//! Shadow reads between two real servers.

use super::links::Links;
use super::rows::Rows;
use super::run::{Statement, run};
use super::*;
use crate::auth::{ClientAuth, Users};
use crate::effects::Change;
use crate::serve::{Limits, PoolMode};
use crate::upstream::Upstream;
use segue_model::switch::ownership::Epoch;
use segue_testkit::proxy::Proxy;
use segue_testkit::{Cluster, Options};

const LIMIT: Duration = Duration::from_secs(30);

/// Two servers and what compares them.
struct Pair {
    source: Cluster,
    target: Cluster,
    config: Arc<Config>,
    fresh: watch::Sender<Option<reads::Fresh>>,
    shadow: Shadow,
}

fn settings() -> ShadowConfig {
    ShadowConfig { show_values: true, ..ShadowConfig::default() }
}

fn shows(as_of: Instant) -> Option<reads::Fresh> {
    Some(reads::Fresh { epoch: Epoch(1), as_of })
}

fn upstream(port: u16) -> Arc<Upstream> {
    Arc::new(Upstream { host: "127.0.0.1".into(), port, tls: None })
}

impl Pair {
    /// Both servers have the same, and the follower is never late.
    async fn with(sql: &str, settings: ShadowConfig) -> Pair {
        let (source, target) =
            tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
        let target_port = target.port();
        let pair = Pair::between(source, target, target_port, settings);
        pair.execute(sql).await;
        pair
    }

    fn between(source: Cluster, target: Cluster, target_port: u16, settings: ShadowConfig) -> Pair {
        let config = Arc::new(Config {
            auth: ClientAuth::Trust,
            users: Users::default(),
            tls: None,
            pool: PoolMode::Transaction,
            source: upstream(source.port()),
            target: upstream(target_port),
            databases: None,
            limits: Limits::default(),
            reads: reads::ReadLimits::default(),
            shadow: ShadowConfig::default(),
        });
        let (fresh, followed) = watch::channel(shows(Instant::now() + Duration::from_secs(3600)));
        Pair { source, target, config, fresh, shadow: Shadow::start(settings, followed) }
    }

    async fn execute(&self, sql: &str) {
        self.source.execute(sql).await;
        self.target.execute(sql).await;
    }

    /// A read as a client of the source would have been answered now.
    async fn sample(&self, sql: &str) -> Sample {
        self.answered(self.unanswered(sql)).await
    }

    fn unanswered(&self, sql: &str) -> Sample {
        Sample {
            config: Arc::clone(&self.config),
            user: "postgres".into(),
            database: "postgres".into(),
            login: Login::Password(self.source.password().to_owned()),
            settings: Arc::default(),
            startup: Arc::default(),
            text: sql.as_bytes().into(),
            parse: None,
            bind: None,
            rows: Rows::new(1 << 20),
            served_by: Side::Source,
            took: Duration::from_millis(1),
            answered_at: Instant::now(),
            fingerprint: 1,
            shape: "shape".into(),
            order: Order::None,
            limited: false,
        }
    }

    async fn answered(&self, mut sample: Sample) -> Sample {
        let links = Links::new(1);
        let (_, server) = links.take(sample.served_by, &sample).await.unwrap();
        let statement = Statement::of(&sample).unwrap();
        let (ran, _) = run(server, &statement, 1 << 20, false).await.unwrap();
        sample.rows = ran.answer.unwrap();
        sample.answered_at = Instant::now();
        sample
    }

    /// Waits until so much is true of what was found.
    async fn until(&self, is_true: impl Fn(&ShadowCounts) -> bool) -> ShadowCounts {
        let since = Instant::now();
        loop {
            let counts = self.shadow.snapshot();
            if is_true(&counts) {
                return counts;
            }
            assert!(since.elapsed() < LIMIT, "not in time: {counts:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What comes of samples, once all of them are through.
    async fn compare(&self, samples: impl IntoIterator<Item = Sample>) -> ShadowCounts {
        let before = through(&self.shadow.snapshot());
        let mut offered = 0;
        for sample in samples {
            self.shadow.offer(sample);
            offered += 1;
        }
        self.until(|counts| through(counts) == before + offered).await
    }
}

/// Samples that are not waiting any more.
fn through(counts: &ShadowCounts) -> u64 {
    counts.compared + counts.noise + counts.stale + counts.failed + counts.queue_full + counts.too_large
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, name text);
    INSERT INTO t SELECT i, 'name ' || i FROM generate_series(1, 100) i";

#[tokio::test(flavor = "multi_thread")]
async fn equal_answers_are_equal_and_a_changed_row_is_found_and_described() {
    let pair = Pair::with(TABLE, settings()).await;
    let read = "SELECT id, name FROM t WHERE id > 0";
    let mut extended = pair.unanswered("SELECT id, name FROM t WHERE id < $1");
    // An int4 in binary, and both columns in binary.
    extended.parse = Some(Bytes::from_static(b"SELECT id, name FROM t WHERE id < $1\0\0\x01\0\0\0\x17"));
    extended.bind = Some(Bytes::from_static(b"\0\x01\0\x01\0\x01\0\0\0\x04\0\0\0\x09\0\x01\0\x01"));
    let extended = || async { pair.answered(Sample { ..copy(&extended) }).await };
    let counts = pair.compare([pair.sample(read).await, extended().await]).await;
    assert_eq!((counts.equal, counts.mismatched, counts.noise, counts.failed), (2, 0, 0, 0), "{counts:?}");
    assert_eq!((counts.source.count(), counts.target.count()), (2, 2));
    assert!(counts.target.p99() > Duration::ZERO);

    pair.target.execute("UPDATE t SET name = 'other' WHERE id = 7").await;
    let counts = pair.compare([pair.sample(read).await, extended().await]).await;
    assert_eq!((counts.mismatched, counts.mismatches.len()), (2, 1), "{counts:?}");
    let mismatch = &counts.mismatches[0];
    assert_eq!((mismatch.count, mismatch.shape.as_str()), (2, "shape"));
    let mut samples = mismatch.samples.clone();
    samples.sort_by_key(|sample| sample.served_rows);
    assert_eq!(samples[1].kind.to_string(), "values differ in column name");
    assert_eq!((samples[1].served_rows, samples[1].other_rows), (100, 100));
    let pair_of = |served: &str, other: &str| {
        vec![ColumnPair { name: "name".into(), served: served.into(), other: other.into() }]
    };
    assert_eq!(samples[1].columns, pair_of("name 7", "other"));
    assert_eq!(samples[1].statement.as_deref(), Some(read));
    let statement = samples[0].statement.as_deref();
    assert_eq!(statement, Some("SELECT id, name FROM t WHERE id < $1 $1 = 00000009"));
}

fn copy(sample: &Sample) -> Sample {
    Sample {
        config: Arc::clone(&sample.config),
        user: Arc::clone(&sample.user),
        database: Arc::clone(&sample.database),
        login: sample.login.clone(),
        settings: Arc::clone(&sample.settings),
        startup: Arc::clone(&sample.startup),
        text: sample.text.clone(),
        parse: sample.parse.clone(),
        bind: sample.bind.clone(),
        rows: sample.rows.clone(),
        shape: sample.shape.clone(),
        order: sample.order.clone(),
        ..*sample
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shown_leaks_nowhere() {
    let pair = Pair::with(TABLE, ShadowConfig::default()).await;
    pair.target.execute("UPDATE t SET name = 'treasure' WHERE id = 7").await;
    let fails_there =
        "SELECT CASE name WHEN 'treasure' THEN name::int ELSE 1 END FROM t WHERE name <> 'hush'";
    let mut limited = pair.sample("SELECT name FROM t WHERE name <> 'hush' ORDER BY id LIMIT 10").await;
    (limited.fingerprint, limited.limited) = (2, true);
    let counts = pair.compare([pair.sample(fails_there).await, limited]).await;
    assert_eq!(counts.mismatched, 2, "{counts:?}");
    let told = format!("{counts:?}");
    for secret in ["treasure", "hush", "name 7"] {
        assert!(!told.contains(secret), "{told}");
    }
    let kinds: Vec<_> = counts.mismatches.iter().map(|found| found.samples[0].kind.to_string()).collect();
    assert_eq!(kinds, ["error on one side: SQLSTATE 22P02", "values differ in column name"]);
    assert!(counts.mismatches[1].samples[0].note.is_some() && counts.mismatches[0].samples[0].note.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_by_itself_is_noise_and_what_has_come_to_rest_is_compared() {
    let pair = Pair::with(TABLE, settings()).await;
    let by_chance = pair.sample("SELECT random() FROM t").await;
    let changed = pair.sample("SELECT name FROM t").await;
    pair.execute("UPDATE t SET name = 'new' WHERE id = 7").await;
    let counts = pair.compare([by_chance, changed]).await;
    assert_eq!((counts.noise, counts.equal, counts.mismatched), (1, 1, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_follower_is_waited_for_but_not_without_end() {
    let short = ShadowConfig { wait_max: Duration::from_millis(300), ..settings() };
    let mut pair = Pair::with(TABLE, short).await;
    pair.source.execute("INSERT INTO t VALUES (101, 'late')").await;
    let read = "SELECT count(*) FROM t";
    let sample = pair.sample(read).await;
    // It shows everything up to a moment ago: that is not enough.
    pair.fresh.send_replace(shows(sample.answered_at - Duration::from_millis(1)));
    assert_eq!(pair.compare([sample]).await.stale, 1);
    pair.fresh.send_replace(None);
    assert_eq!(pair.compare([pair.sample(read).await]).await.stale, 2);

    let patient = ShadowConfig { wait_max: LIMIT, ..settings() };
    pair.shadow = Shadow::start(patient, pair.fresh.subscribe());
    pair.shadow.offer(pair.sample(read).await);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(through(&pair.shadow.snapshot()), 0, "it waits");
    pair.target.execute("INSERT INTO t VALUES (101, 'late')").await;
    pair.fresh.send_replace(shows(Instant::now() + LIMIT));
    let counts = pair.until(|counts| through(counts) == 1).await;
    assert_eq!((counts.equal, counts.stale), (1, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_the_follower_shows_later_is_no_mismatch_although_it_served() {
    let pair = Pair::with(TABLE, ShadowConfig { wait_max: LIMIT, ..settings() }).await;
    let mut sample = pair.unanswered("SELECT name FROM t");
    sample.served_by = Side::Target;
    let sample = pair.answered(sample).await;
    let change = "UPDATE t SET name = 'new' WHERE id = 7";
    pair.source.execute(change).await;
    pair.fresh.send_replace(shows(sample.answered_at));
    pair.shadow.offer(sample);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        through(&pair.shadow.snapshot()),
        0,
        "the owner's answer is newer: that is not concluded from"
    );
    pair.target.execute(change).await;
    pair.fresh.send_replace(shows(Instant::now() + LIMIT));
    let counts = pair.until(|counts| through(counts) == 1).await;
    assert_eq!((counts.equal, counts.mismatched), (1, 0), "{counts:?}");
    assert_eq!((counts.source.count(), counts.target.max()), (1, Duration::from_millis(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_users_have_other_numbers_on_the_other_side() {
    let pair = Pair::with(TABLE, settings()).await;
    pair.target.execute("CREATE TYPE first AS ENUM ('x')").await;
    pair.execute("CREATE TYPE colour AS ENUM ('red', 'blue')").await;
    let mut sample = pair.unanswered("SELECT 'red'::colour AS a, ARRAY['red', 'blue']::colour[] AS b FROM t");
    sample.parse = Some([&sample.text[..], b"\0\0\0"].concat().into());
    sample.bind = Some(Bytes::from_static(b"\0\0\0\0\0\x01\0\x01"));
    let counts = pair.compare([pair.answered(sample).await]).await;
    assert_eq!((counts.equal, counts.mismatched), (1, 0), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_target_is_looked_at_and_its_plan_kept_without_constants() {
    let pair = Pair::with(TABLE, settings()).await;
    let function = "CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS
        'BEGIN PERFORM pg_sleep(SECONDS); RETURN $1; END'";
    pair.source.execute(&function.replace("SECONDS", "0")).await;
    pair.target.execute(&function.replace("SECONDS", "0.5")).await;
    pair.execute("ANALYZE t").await;
    let mut slow = pair.unanswered("SELECT f(id) FROM t WHERE id = $1 AND name <> 'hush'");
    slow.parse = Some([&slow.text[..], b"\0\0\x01\0\0\0\x17"].concat().into());
    slow.bind = Some(Bytes::from_static(b"\0\x01\0\x01\0\x01\0\0\0\x04\0\0\0\x09\0\x01\0\x01"));
    let slow = pair.answered(slow).await;
    let mut fast = pair.sample("SELECT id FROM t WHERE id = 9").await;
    // As long as the other side may take here, however busy the machine is.
    fast.took = LIMIT;
    pair.compare([slow, fast]).await;
    let counts = pair.until(|counts| !counts.slow_reads.is_empty()).await;
    assert_eq!((counts.equal, counts.slower, counts.slow_reads.len()), (2, 1, 1), "{counts:?}");
    let found = &counts.slow_reads[0];
    assert!(found.other >= Duration::from_millis(500) && found.served < found.other, "{found:?}");
    for plan in [&found.served_plan, &found.other_plan] {
        let plan = plan.as_deref().unwrap();
        assert!(plan.contains("Scan") && plan.contains(" on t"), "{plan}");
        assert!(!plan.contains("hush") && !plan.contains('9') && !plan.contains("cost"), "{plan}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_written_and_one_statement_is_all() {
    let pair = Pair::with(TABLE, settings()).await;
    pair.execute("CREATE SEQUENCE s").await;
    for sql in [
        "DELETE FROM t",
        "SELECT nextval('s')",
        "SELECT 1; DELETE FROM t",
        "COMMIT; DELETE FROM t",
        "SET TRANSACTION READ WRITE",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "COMMIT",
    ] {
        pair.compare([pair.unanswered(sql)]).await;
    }
    for cluster in [&pair.source, &pair.target] {
        assert_eq!(cluster.scalar("SELECT count(*) FROM t").await.as_deref(), Some("100"));
        assert_eq!(cluster.scalar("SELECT is_called FROM s").await.as_deref(), Some("f"));
    }
    let equal = pair.shadow.snapshot().equal;
    for sql in ["SELECT set_config('search_path', 'nowhere', false)", "SHOW search_path"] {
        pair.compare([pair.sample(sql).await]).await;
    }
    let counts = pair.shadow.snapshot();
    assert_eq!(counts.equal, equal + 2, "what a read has set went with it: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_repeated_under_its_sessions_settings_and_servers_are_used_again() {
    let pair = Pair::with(TABLE, settings()).await;
    pair.execute("CREATE SCHEMA a; CREATE TABLE a.t AS SELECT 1 AS one; CREATE ROLE reader").await;
    let mut samples = Vec::new();
    for (name, sql) in [("search_path", "SET search_path = a"), ("role", "SET ROLE reader")] {
        let mut set = Settings::default();
        set.apply(Change::Set { name: name.into(), sql: sql.into() }).unwrap();
        let text = if name == "role" { "SELECT current_user" } else { "SELECT one FROM t" };
        let mut sample = pair.unanswered(text);
        sample.settings = Arc::new(set);
        samples.push(pair.answered(sample).await);
    }
    let mut wished = pair.unanswered("SELECT current_setting('DateStyle'), now()::date > '2000-01-01'");
    wished.startup = [("DateStyle".to_owned(), "SQL, DMY".to_owned())].into();
    let wished = pair.answered(wished).await;
    assert!(wished.rows.iter().next().unwrap().starts_with(b"\0\x02\0\0\0\x08SQL, DMY"));
    let mut refused = pair.sample("SELECT 1").await;
    let mut set = Settings::default();
    set.apply(Change::Set { name: "work_mem".into(), sql: "SET work_mem = '1'".into() }).unwrap();
    refused.settings = Arc::new(set);
    samples.extend([wished, refused, pair.sample("SELECT current_user, id FROM t").await]);
    let counts = pair.compare(samples).await;
    assert_eq!((counts.equal, counts.failed), (4, 1), "{counts:?}");
    // On a busy machine the other side may have been slow, and a slow read is looked at on both.
    assert!(pair.shadow.shared.links.idle_count(Side::Target) <= 2, "one for each worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_not_reached_costs_few_tries_and_is_found_again() {
    let (source, target) =
        tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    let proxy = Proxy::start(target.port()).await;
    let pair = Pair::between(source, target, proxy.port(), settings());
    pair.execute(TABLE).await;
    let sample = pair.sample("SELECT count(*) FROM t").await;
    proxy.refuse(true);
    let counts = pair.compare((0..100).map(|_| copy(&sample))).await;
    assert_eq!((counts.failed, counts.compared), (100, 0), "{counts:?}");
    assert!(proxy.accepted() < 20, "{} tries", proxy.accepted());
    proxy.refuse(false);
    let since = Instant::now();
    while pair.compare([copy(&sample)]).await.equal == 0 {
        assert!(since.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.cut();
    // Connections that were cut are noticed before they are used, or cost one sample each.
    let counts = pair.compare((0..10).map(|_| copy(&sample))).await;
    assert!(counts.equal >= 8, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_is_dropped_and_counted() {
    let few =
        ShadowConfig { queue_max: 4, sample_bytes_max: 8 << 20, workers: 1, wait_max: LIMIT, ..settings() };
    let pair = Pair::with(TABLE, few).await;
    let sample = pair.sample("SELECT id FROM t").await;
    let mut large = copy(&sample);
    large.shape = "x".repeat(9 << 20).into();
    let mut cut = copy(&sample);
    cut.rows.cut();
    assert_eq!(pair.compare([large, cut]).await.too_large, 2);
    pair.fresh.send_replace(None);
    let mut heavy = copy(&sample);
    heavy.shape = "x".repeat(7 << 20).into();
    (0..3).for_each(|_| pair.shadow.offer(copy(&heavy)));
    assert_eq!(pair.shadow.snapshot().queue_full, 1, "three times 7 MiB are too much");
    (0..10).for_each(|_| pair.shadow.offer(copy(&sample)));
    let full = pair.shadow.snapshot().queue_full;
    assert!(full >= 7, "{full}");
    pair.fresh.send_replace(shows(Instant::now() + LIMIT));
    pair.until(|counts| through(counts) == 15).await;
    let counts = pair.compare((0..3).map(|_| copy(&sample))).await;
    assert_eq!(counts.queue_full, full, "room was given back: {counts:?}");
}
