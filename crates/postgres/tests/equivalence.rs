//! The two ways of writing the same changes leave the same rows.

// A helper that fails is a failed test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use segue_engine::ports::{Applier, ApplyError, Checkpoint, Durability};
use segue_model::change::{Action, Change};
use segue_model::net::collapse;
use segue_model::position::Position;
use segue_model::table::{TableId, UnitId};
use segue_postgres::apply::PgApplier;
use segue_postgres::authority::Authority;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_testkit::{Cluster, Options};
use std::collections::BTreeSet;
use support::row;

/// Changes that fit the keys in `there`, and keep it up to date.
fn random_changes(random: &mut StdRng, there: &mut BTreeSet<u32>, count: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    while changes.len() < count {
        let (a, b) = (random.random_range(0..30u32), random.random_range(0..30u32));
        let n = changes.len();
        let tail = match random.random_range(0..4) {
            0 => format!("v{n} ~"),
            1 => format!("~ w{n}"),
            2 => "~ ~".to_owned(),
            _ => format!("- w{n}"),
        };
        let action = match random.random_range(0..4) {
            0 if there.insert(a) => Action::Insert { new: row(&format!("{a} v{n} -")) },
            1 if there.contains(&a) => Action::Update { old: None, new: row(&format!("{a} {tail}")) },
            2 if there.remove(&a) => Action::Delete { old: row(&format!("{a} - -")) },
            3 if there.contains(&a) && !there.contains(&b) => {
                there.remove(&a);
                there.insert(b);
                Action::Update { old: Some(row(&format!("{a} - -"))), new: row(&format!("{b} {tail}")) }
            }
            _ => continue,
        };
        changes.push(Change { table: TableId(0), unit: UnitId(0), action });
    }
    changes
}

#[tokio::test]
async fn net_and_in_order_leave_the_same_rows() {
    let cluster = Cluster::start(Options::default()).await;
    let mut appliers = Vec::new();
    for database in ["one", "two"] {
        cluster.execute(&format!("CREATE DATABASE {database}")).await;
        let mut client = cluster.connect(database).await;
        segue_postgres::schema::ensure(&mut client).await.unwrap();
        client
            .batch_execute(
                "CREATE TABLE t (id int PRIMARY KEY, a text, b text, mark text DEFAULT 'new'); INSERT INTO segue.token VALUES ('m', 3); \
                 INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, skipped, updated_at) VALUES ('m', 'forward', 's', '1', 1, 5, '0/0', '{}', now())",
            )
            .await
            .unwrap();
        // Origins belong to the whole server: two streams of it need two.
        let migration = "m".to_owned();
        let direction = if database == "one" { Direction::Forward } else { Direction::Reverse };
        client.execute("UPDATE segue.stream SET direction = $1", &[&direction.as_str()]).await.unwrap();
        let identity = Authority { migration, direction, token: 3, incarnation: 5 };
        // A row keeps what only the target has, and a new one has none of it, either way.
        let mut table = support::table(&client, 0, "t").await;
        table.columns.pop();
        let applier =
            PgApplier::open(&Endpoint::parse(&cluster.url(database)).unwrap(), identity).await.unwrap();
        appliers.push((applier, table, client));
    }
    let mut random = StdRng::seed_from_u64(20_261_121);
    let mut there = BTreeSet::new();
    let mut collapsed = 0;
    for batch in 0..150u64 {
        let count = random.random_range(1..25);
        let changes = random_changes(&mut random, &mut there, count);
        let mut left = Vec::new();
        for (n, (applier, table, client)) in appliers.iter_mut().enumerate() {
            let written: Result<(), ApplyError> = async {
                applier.begin().await?;
                match collapse(table, &changes).unwrap() {
                    Some(net) if n == 0 => {
                        collapsed += 1;
                        applier.net(table, &PgApplier::encode(table, net).unwrap()).await?;
                    }
                    _ => applier.in_order(table, &changes).await?,
                }
                let to = Checkpoint { position: Position(batch + 1), ..Checkpoint::default() };
                applier.commit(Position(batch), &to, Durability::Now).await
            }
            .await;
            written.unwrap_or_else(|e| panic!("batch {batch}, way {n}: {e:?}\n{changes:?}"));
            let rows = client.query_one("SELECT string_agg(t::text, ' ' ORDER BY id), count(*) FROM t", &[]);
            let rows = rows.await.unwrap();
            assert_eq!(rows.get::<_, i64>(1), there.len() as i64);
            left.push(rows.get::<_, Option<String>>(0));
            let marked = "UPDATE t SET mark = concat_ws(' ', id, a, b) WHERE mark = 'new'";
            client.batch_execute(marked).await.unwrap();
        }
        assert_eq!(left[0], left[1], "batch {batch}");
    }
    assert!(collapsed > 20, "only {collapsed} batches were collapsed: this compares nothing");
}
