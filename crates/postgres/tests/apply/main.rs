//! The applier against real servers.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod keys;
#[path = "../support/mod.rs"]
mod support;

use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::{Applier, ApplyError, Checkpoint, Durability, Mismatch};
use segue_model::change::{Action, Change, Leaf, Row, Value};
use segue_model::key::KeyText;
use segue_model::net::{Net, UpdateGroup, collapse};
use segue_model::position::Position;
use segue_model::region::Extent;
use segue_model::table::{Identity, Table, TableId, UnitId};
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_testkit::{Cluster, Options};
use std::sync::Arc;
use support::row;
use tokio_postgres::Client;

struct Target {
    cluster: Cluster,
    client: Client,
    applier: PgApplier,
    at: Position,
}

fn identity(token: i64) -> Authority {
    Authority { migration: "m".into(), direction: Direction::Forward, token, incarnation: 5 }
}

impl Target {
    async fn start(options: Options, ddl: &str) -> Target {
        let cluster = Cluster::start(options).await;
        let mut client = cluster.connect("postgres").await;
        segue_postgres::schema::ensure(&mut client).await.unwrap();
        client
            .batch_execute(
                "INSERT INTO segue.token VALUES ('m', 3); INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, skipped, updated_at) VALUES ('m', 'forward', 's', '1', 1, 5, '0/0', '{}', now())",
            )
            .await
            .unwrap();
        client.batch_execute(ddl).await.unwrap();
        let endpoint = Endpoint::parse(&cluster.url("postgres")).unwrap();
        let applier = PgApplier::open(&endpoint, identity(3)).await.unwrap();
        Target { cluster, client, applier, at: Position(0) }
    }

    async fn table(&self, name: &str) -> Table {
        support::table(&self.client, 0, name).await
    }

    async fn commit(&mut self) -> Result<(), ApplyError> {
        let to = Checkpoint { position: Position(self.at.0 + 1), ..Checkpoint::default() };
        self.applier.commit(self.at, &to, Durability::Now).await?;
        self.at = to.position;
        Ok(())
    }

    /// Inserts a row in a transaction of its own.
    async fn insert(&mut self, table: &Table, new: &str, durability: Durability) {
        self.applier.begin().await.unwrap();
        self.applier.in_order(table, &changes(vec![ins(new)])).await.unwrap();
        let to = Checkpoint { position: Position(self.at.0 + 1), ..Checkpoint::default() };
        self.applier.commit(self.at, &to, durability).await.unwrap();
        self.at = to.position;
    }

    async fn net(&mut self, table: &Table, net: Net) -> Result<(), ApplyError> {
        self.applier.begin().await?;
        self.applier.net(table, &PgApplier::encode(table, net).unwrap()).await?;
        self.commit().await
    }

    async fn in_order(&mut self, table: &Table, actions: Vec<Action>) -> Result<(), ApplyError> {
        self.applier.begin().await?;
        self.applier.in_order(table, &changes(actions)).await?;
        self.commit().await
    }

    /// All rows as one text.
    async fn rows(&self, table: &str) -> String {
        self.cluster
            .scalar(&format!("SELECT string_agg(t::text, ' ' ORDER BY t::text) FROM \"{table}\" t"))
            .await
            .unwrap_or_default()
    }
}

fn changes(actions: Vec<Action>) -> Vec<Change> {
    actions.into_iter().map(|action| Change { table: TableId(0), unit: UnitId(0), action }).collect()
}
fn ins(new: &str) -> Action {
    Action::Insert { new: row(new) }
}
fn upd(new: &str) -> Action {
    Action::Update { old: None, new: row(new) }
}
fn moved(old: &str, new: &str) -> Action {
    Action::Update { old: Some(row(old)), new: row(new) }
}
fn del(old: &str) -> Action {
    Action::Delete { old: row(old) }
}
fn mismatch(result: Result<(), ApplyError>) -> Mismatch {
    match result {
        Err(ApplyError::Mismatch(mismatch)) => mismatch,
        other => panic!("expected a mismatch: {other:?}"),
    }
}
fn fault(result: Result<(), ApplyError>) -> Fault {
    match result {
        Err(ApplyError::Fault(fault)) => fault,
        other => panic!("expected a fault: {other:?}"),
    }
}

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b text)";

#[tokio::test]
async fn changes_and_their_checkpoint_are_committed_together() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    target
        .in_order(
            &t,
            vec![
                ins("1 x y"),
                ins("2 x -"),
                upd("1 z ~"),
                moved("2 - -", "3 ~ w"),
                ins("4 a b"),
                del("4 - -"),
            ],
        )
        .await
        .unwrap();
    assert_eq!(target.rows("t").await, "(1,z,y) (3,x,w)");
    let position = target.cluster.scalar("SELECT position FROM segue.stream").await.unwrap();
    assert_eq!(position, "0/1");
    // Only the checkpoint moves.
    target.applier.begin().await.unwrap();
    target.commit().await.unwrap();
    // Given up: neither rows nor checkpoint.
    target.applier.begin().await.unwrap();
    target.applier.in_order(&t, &changes(vec![ins("9 x y")])).await.unwrap();
    target.applier.rollback().await.unwrap();
    assert_eq!(target.rows("t").await, "(1,z,y) (3,x,w)");
    let origin = "SELECT count(*) FROM pg_replication_origin_status s JOIN pg_replication_origin o ON o.roident = s.local_id \
                  WHERE o.roname = 'segue_m_forward'";
    assert_eq!(target.cluster.scalar(origin).await.unwrap(), "1");
}

#[tokio::test]
async fn the_net_effect_is_written_set_wise_and_one_by_one_alike() {
    for copies in [1, 40] {
        let mut target = Target::start(Options::default(), T).await;
        let t = target.table("t").await;
        let each =
            |text: &str| (0..copies).map(|i| row(&text.replace('#', &i.to_string()))).collect::<Vec<_>>();
        let inserts = [each("1# x -"), each("2# NULL {\"a\\,}")].concat();
        target.net(&t, Net { inserts, ..Net::default() }).await.unwrap();
        let key = |row: &Row| KeyText::from_texts([row[0].text().unwrap().clone()]);
        let net = Net {
            deletes: each("1# - -").iter().map(key).collect(),
            updates: vec![
                UpdateGroup { set: vec![], rows: each("2# ~ ~") },
                UpdateGroup { set: vec![2], rows: each("2# ~ new") },
            ],
            inserts: each("1# again y"),
            ..Net::default()
        };
        target.net(&t, net).await.unwrap();
        let count = |sql: &str| format!("SELECT count(*) FROM t WHERE {sql}");
        let again = target.cluster.scalar(&count("a = 'again' AND b = 'y'")).await.unwrap();
        let updated = target.cluster.scalar(&count("a = 'NULL' AND b = 'new'")).await.unwrap();
        assert_eq!((again, updated), (copies.to_string(), copies.to_string()));
        // Counts that do not come out.
        let absent = |text: &str| each(text);
        for net in [
            Net { deletes: absent("9# - -").iter().map(key).collect(), ..Net::default() },
            Net { updates: vec![UpdateGroup { set: vec![1], rows: absent("9# q -") }], ..Net::default() },
            Net { updates: vec![UpdateGroup { set: vec![], rows: absent("9# ~ ~") }], ..Net::default() },
            Net { inserts: each("2# q -"), ..Net::default() },
        ] {
            mismatch(target.net(&t, net).await);
            target.applier.rollback().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_does_not_fit_is_shown_with_both_values() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    target.in_order(&t, vec![ins("1 x y")]).await.unwrap();
    for (action, key, parts) in [
        (ins("1 p q"), "(1)", ["id: 1, a: p, b: q", "(1,x,y)"]),
        (upd("2 p ~"), "(2)", ["a: p, b: (not sent)", "no such row"]),
        (del("7 - -"), "(7)", ["0 rows", "no such row"]),
        (moved("7 - -", "8 a b"), "(7)", ["id: 8", "no such row"]),
    ] {
        let found = mismatch(target.in_order(&t, vec![ins("5 x y"), action]).await);
        assert_eq!((found.table.as_str(), found.key.as_deref()), ("public.t", Some(key)));
        for part in parts {
            assert!(found.what.contains(part), "{part} in {}", found.what);
        }
        target.applier.rollback().await.unwrap();
    }
    assert_eq!(target.rows("t").await, "(1,x,y)");
}

#[tokio::test]
async fn a_duplicate_of_a_deferrable_key_is_noticed() {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, a text); CREATE TABLE other (id int)";
    let mut target = Target::start(Options::default(), ddl).await;
    let t = target.table("t").await;
    target.in_order(&t, vec![ins("1 x"), ins("2 x")]).await.unwrap();
    mismatch(target.net(&t, Net { inserts: vec![row("1 y")], ..Net::default() }).await);
    target.applier.rollback().await.unwrap();
    for action in [ins("1 y"), moved("2 -", "1 y")] {
        mismatch(target.in_order(&t, vec![action]).await);
        target.applier.rollback().await.unwrap();
    }
    target
        .net(
            &t,
            Net { deletes: vec![KeyText::from_texts(["1"])], inserts: vec![row("1 z")], ..Net::default() },
        )
        .await
        .unwrap();
    assert_eq!(target.rows("t").await, "(1,z) (2,x)");
}

#[tokio::test]
async fn a_superseded_token_or_a_moved_checkpoint_stops_the_applier() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    target.client.batch_execute("SELECT segue.raise_token('m', 4)").await.unwrap();
    let found = fault(target.in_order(&t, vec![ins("1 x y")]).await);
    assert_eq!((found.code, found.recovery), ("SEGUE-SUPERSEDED", Recovery::Operator), "{found}");
    target.applier.rollback().await.unwrap();
    let endpoint = Endpoint::parse(&target.cluster.url("postgres")).unwrap();
    drop(target.applier);
    target.applier = PgApplier::open(&endpoint, identity(4)).await.unwrap();
    target.client.batch_execute("UPDATE segue.stream SET position = '0/9'").await.unwrap();
    let found = fault(target.in_order(&t, vec![ins("1 x y")]).await);
    assert_eq!(found.code, "SEGUE-SUPERSEDED", "{found}");
    target.applier.rollback().await.unwrap();
    assert_eq!(target.rows("t").await, "");
}

#[tokio::test]
async fn nothing_commits_outside_a_transaction_of_the_applier() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    assert_eq!(
        fault(target.applier.in_order(&t, &changes(vec![ins("1 x y")])).await).recovery,
        Recovery::Bug
    );
    let read_only = target
        .cluster
        .scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'segue apply%'")
        .await;
    assert_eq!(read_only.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_connection_lost_during_the_commit_is_ambiguous_and_before_it_is_not() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    target.applier.begin().await.unwrap();
    target.applier.in_order(&t, &changes(vec![ins("1 x y")])).await.unwrap();
    target.client.batch_execute("BEGIN; SELECT FROM segue.stream FOR UPDATE").await.unwrap();
    // The commit waits for the checkpoint's row lock; then the server dies.
    let to = Checkpoint { position: Position(1), ..Checkpoint::default() };
    let (result, ()) = tokio::join!(target.applier.commit(Position(0), &to, Durability::Now), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        target.cluster.kill9().await;
    });
    let unknown = fault(result);
    assert_eq!((unknown.recovery, unknown.code), (Recovery::Ambiguous, "SEGUE-COMMIT-UNKNOWN"));
    target.cluster.start_again().await;
    let endpoint = Endpoint::parse(&target.cluster.url("postgres")).unwrap();
    target.applier = PgApplier::open(&endpoint, identity(3)).await.unwrap();
    target.applier.begin().await.unwrap();
    target.applier.in_order(&t, &changes(vec![ins("1 x y")])).await.unwrap();
    target.cluster.kill9().await;
    let lost = target.applier.in_order(&t, &changes(vec![ins("2 x y")])).await;
    assert_eq!(fault(lost).recovery, Recovery::Retry);
}

#[tokio::test]
async fn a_commit_that_is_not_waited_for_is_made_durable_by_the_next_one_and_by_a_take_over() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    let stored = async |target: &Target| target.cluster.scalar("SELECT position FROM segue.stream").await;
    let crash = async |target: &mut Target, token: i64| {
        target.cluster.kill9().await;
        target.cluster.start_again().await;
        let endpoint = Endpoint::parse(&target.cluster.url("postgres")).unwrap();
        target.applier = PgApplier::open(&endpoint, identity(token)).await.unwrap();
    };

    target.cluster.freeze_wal_writer().await;
    target.insert(&t, "1 x y", Durability::Later).await;
    target.insert(&t, "2 x y", Durability::Later).await;
    assert_eq!(target.rows("t").await, "(1,x,y) (2,x,y)", "others see them");
    crash(&mut target, 3).await;
    assert_eq!((target.rows("t").await, stored(&target).await.as_deref()), (String::new(), Some("0/0")));
    target.at = Position(0);

    target.cluster.freeze_wal_writer().await;
    target.insert(&t, "1 x y", Durability::Later).await;
    target.insert(&t, "2 x y", Durability::Now).await;
    crash(&mut target, 3).await;
    assert_eq!(target.rows("t").await, "(1,x,y) (2,x,y)");

    // What a new driver reads, and begins from, is durable, also if the one before it has not waited.
    target.cluster.freeze_wal_writer().await;
    target.insert(&t, "3 x y", Durability::Later).await;
    let endpoint = Endpoint::parse(&target.cluster.url("postgres")).unwrap();
    segue_postgres::control::shut_out(&endpoint, "m", 4, true).await.unwrap();
    assert_eq!(stored(&target).await.as_deref(), Some("0/3"));
    crash(&mut target, 4).await;
    assert_eq!(stored(&target).await.as_deref(), Some("0/3"));
    assert_eq!(target.rows("t").await, "(1,x,y) (2,x,y) (3,x,y)");
}

#[tokio::test]
async fn a_commit_that_gave_up_waiting_for_its_standby_is_not_taken_for_durable() {
    let mut target = Target::start(Options::default(), T).await;
    let t = target.table("t").await;
    target.cluster.set("synchronous_standby_names", "nobody").await;
    target.applier.begin().await.unwrap();
    target.applier.in_order(&t, &changes(vec![ins("1 x y")])).await.unwrap();
    let to = Checkpoint { position: Position(1), ..Checkpoint::default() };
    let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let (result, ()) = tokio::join!(target.applier.commit(Position(0), &to, Durability::Now), async {
        while target.cluster.scalar(cancel).await.is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    assert_eq!(fault(result).recovery, Recovery::Ambiguous);
    assert_eq!(target.rows("t").await, "(1,x,y)", "it is committed here");
}

#[tokio::test]
async fn rows_without_a_key_are_matched_by_their_whole_image_one_at_a_time() {
    let ddl = "CREATE TABLE t (a int, b text, c numeric, d char(4)) PARTITION BY LIST (a); \
        CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1, NULL); CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)";
    let mut target = Target::start(Options::default(), ddl).await;
    let t = target.table("t").await;
    assert_eq!(t.identity, Identity::WholeRow);
    let padded = |text: &str| -> Row {
        let mut r = row(text);
        Arc::make_mut(&mut r)[3] = Value::Text("ab  ".into());
        r
    };
    let net = Net {
        inserts: vec![padded("1 x 1.0 ab"), padded("1 x 1.0 ab"), padded("1 x 1.00 ab"), row("- - - -")],
        ..Net::default()
    };
    target.net(&t, net).await.unwrap();
    let actions = vec![
        Action::Delete { old: padded("1 x 1.0 ab") },
        Action::Update { old: Some(padded("1 x 1.0 ab")), new: padded("2 y 1.0 ab") },
        Action::Update { old: Some(row("- - - -")), new: row("- q - -") },
    ];
    target.in_order(&t, actions).await.unwrap();
    assert_eq!(target.rows("t").await, "(,q,,) (1,x,1.00,\"ab  \") (2,y,1.0,\"ab  \")");
    mismatch(target.in_order(&t, vec![Action::Delete { old: padded("1 x 1.0 ab") }]).await);
}

#[tokio::test]
async fn truncate_empties_the_table_a_leaf_or_parts_without_touching_others() {
    let ddl = "CREATE TABLE t (k numeric, l numeric, a text, PRIMARY KEY (k, l)); CREATE TABLE word (k text PRIMARY KEY); \
        CREATE TABLE parent (id int PRIMARY KEY, a text); CREATE TABLE child (id int REFERENCES parent); \
        CREATE TABLE selfish (id int PRIMARY KEY, up int REFERENCES selfish)";
    let mut target = Target::start(Options::default(), ddl).await;
    let t = target.table("t").await;
    let fill = || (0..20).map(|i| ins(&format!("{} {} x", i / 4, i % 4))).collect::<Vec<_>>();
    let truncate = |leaf: Option<&str>, within| Action::Truncate {
        leaf: leaf.map(|c| Leaf { name: "leaf".into(), condition: c.into() }),
        within,
    };
    let key = |k: &'static str, l: &'static str| KeyText::from_texts([k, l]);
    target.in_order(&t, fill()).await.unwrap();
    let range = |lower, upper| Extent::Range { lower, upper };
    let within = vec![
        (range(None, Some(key("1", "1"))), vec![key("0", "2")]),
        (range(Some(key("3", "2")), None), vec![key("4", "0"), key("4", "3")]),
        (Extent::Key(key("2", "0")), vec![]),
    ];
    target.in_order(&t, vec![truncate(None, Some(within))]).await.unwrap();
    let left =
        target.cluster.scalar("SELECT string_agg(concat(k, l), ' ' ORDER BY k, l) FROM t").await.unwrap();
    assert_eq!(left, "02 12 13 21 22 23 30 31 32 40 43");
    target
        .in_order(&t, vec![truncate(Some("k >= 2"), Some(vec![(range(None, Some(key("3", "0"))), vec![])]))])
        .await
        .unwrap();
    target.in_order(&t, vec![truncate(Some("k = 4"), None)]).await.unwrap();
    let left =
        target.cluster.scalar("SELECT string_agg(concat(k, l), ' ' ORDER BY k, l) FROM t").await.unwrap();
    assert_eq!(left, "02 12 13 31 32");
    target.in_order(&t, vec![truncate(None, None), ins("9 5 b")]).await.unwrap();
    assert_eq!(target.rows("t").await, "(9,5,b)");

    let (parent, selfish) = (target.table("parent").await, target.table("selfish").await);
    target.in_order(&parent, vec![ins("1 x")]).await.unwrap();
    target.client.batch_execute("INSERT INTO child VALUES (1)").await.unwrap();
    target.in_order(&parent, vec![truncate(None, None)]).await.unwrap();
    assert_eq!((target.rows("parent").await.as_str(), target.rows("child").await.as_str()), ("", "(1)"));
    target.in_order(&selfish, vec![ins("1 1"), truncate(None, None)]).await.unwrap();
    assert_eq!(target.rows("selfish").await, "");

    // Which keys of text lie between two others each server has its own opinion of.
    let word = target.table("word").await;
    target.in_order(&word, vec![ins("a"), ins("N"), ins("z")]).await.unwrap();
    let of_words = |extent| truncate(None, Some(vec![(extent, vec![])]));
    target.in_order(&word, vec![of_words(Extent::Key(KeyText::from_texts(["N"])))]).await.unwrap();
    assert_eq!(target.rows("word").await, "(a) (z)");
    let below = Extent::Range { lower: None, upper: Some(KeyText::from_texts(["m"])) };
    assert_eq!(fault(target.in_order(&word, vec![of_words(below)]).await).code, "SEGUE-EMPTIED");
}

#[tokio::test]
async fn generated_and_identity_columns_are_the_targets_own_or_the_sources_value() {
    let ddl = "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, n int GENERATED ALWAYS AS (length(a)) STORED); \
        CREATE TABLE u (id int PRIMARY KEY, no int GENERATED BY DEFAULT AS IDENTITY, b text); \
        ALTER TABLE u ALTER no SET GENERATED ALWAYS";
    let mut target = Target::start(Options::default(), ddl).await;
    let (t, u) = (target.table("t").await, target.table("u").await);
    target
        .net(&t, Net { inserts: (1..10).map(|i| row(&format!("{i} xx"))).collect(), ..Net::default() })
        .await
        .unwrap();
    target.in_order(&t, vec![upd("1 yyy"), moved("2 -", "20 ~")]).await.unwrap();
    let rows = target.rows("t").await;
    assert!(rows.starts_with("(1,yyy,3) (20,xx,2) (3,xx,2)"), "{rows}");
    target.in_order(&u, vec![ins("1 5 x")]).await.unwrap();
    for (effect, expected) in [("1 6 ~", "(1,6,x)"), ("1 ~ y", "(1,6,y)")] {
        let net = collapse(&u, &changes(vec![upd(effect)])).unwrap().unwrap();
        target.net(&u, net).await.unwrap();
        assert_eq!(target.rows("u").await, expected);
    }
}

#[tokio::test]
async fn a_table_with_sixteen_hundred_columns_is_written_set_wise() {
    let columns: String = (1..1600).map(|i| format!(", c{i} int")).collect();
    let mut target =
        Target::start(Options::default(), &format!("CREATE TABLE t (id int PRIMARY KEY{columns})")).await;
    let t = target.table("t").await;
    let rows: Vec<Row> = (0..10).map(|i| vec![support::value(&i.to_string()); 1600].into()).collect();
    target.net(&t, Net { inserts: rows.clone(), ..Net::default() }).await.unwrap();
    let set: Vec<usize> = (1..1600).collect();
    target.net(&t, Net { updates: vec![UpdateGroup { set, rows }], ..Net::default() }).await.unwrap();
    assert_eq!(target.cluster.scalar("SELECT sum(c1599) FROM t").await.unwrap(), "45");
}

#[tokio::test]
async fn very_large_values_travel_alone() {
    let mut target = Target::start(Options::default(), "CREATE TABLE t (id int PRIMARY KEY, a text)").await;
    let t = target.table("t").await;
    let large: bytes::Bytes = "\\\"".repeat(100 << 20).into();
    let rows = (0..6).map(|i| {
        let text = if i < 2 { large.clone() } else { large.slice(..3 << 20) };
        Row::from([support::value(&i.to_string()), Value::Text(text)])
    });
    target.net(&t, Net { inserts: rows.collect(), ..Net::default() }).await.unwrap();
    let sizes =
        target.cluster.scalar("SELECT string_agg(length(a)::text, ' ' ORDER BY id) FROM t").await.unwrap();
    assert_eq!(sizes, "209715200 209715200 3145728 3145728 3145728 3145728");
}
