//! The gates, measured on two real servers.

use super::*;
use crate::drive::plan;
use segue_engine::verify::ports::{DivergenceId, Store as _};
use segue_engine::verify::report::{Mode, Report};
use segue_model::name::QualifiedName;
use segue_model::switch::gates::blockers;
use segue_postgres::birth::Direction;
use segue_postgres::catalog;
use segue_postgres::connect::Endpoint;
use segue_postgres::control::{Acquired, NewEntry, shut_out};
use segue_postgres::fence::{Role, prepare};
use segue_postgres::schema;
use segue_postgres::verify::PgStore;
use segue_testkit::{Cluster, Options};
use serde_json::json;
use tokio_postgres::Client;

const MIGRATION: &str = "m";
const DDL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY)";

struct World {
    source: Cluster,
    target: Cluster,
    sides: Sides,
    control: Arc<Control>,
    lease: Lease,
}

impl World {
    /// A migration whose stream was born; the control database is the target.
    async fn start() -> World {
        let (source, target) =
            tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
        let at = |cluster: &Cluster| Endpoint::parse(&cluster.url("postgres")).unwrap();
        let sides =
            Sides { source: at(&source), target: at(&target), control: at(&target), control_is_target: true };
        let control = Arc::new(Control::connect(&sides.control, MIGRATION).await.unwrap());
        let Acquired::Lease(lease) = control.acquire("test").await.unwrap() else { panic!("held") };
        let names = ["t", "u"].map(|name| QualifiedName::new("public", name));
        let mut clients = Vec::new();
        for (endpoint, role) in [(&sides.source, Role::Owner), (&sides.target, Role::Follower)] {
            let mut client = endpoint.connect("test").await.unwrap();
            client.batch_execute(&format!("SET search_path = public; {DDL}")).await.unwrap();
            schema::ensure(&mut client).await.unwrap();
            shut_out(endpoint, MIGRATION, lease.token, true).await.unwrap();
            prepare(&client, (MIGRATION, lease.token), &names, role, "elsewhere").await.unwrap();
            clients.push(client);
        }
        let pairs = names.map(|name| (name.clone(), name));
        let [from, to] = &mut clients[..] else { unreachable!() };
        let planned = catalog::read(from, to, &pairs).await.unwrap();
        assert_eq!(planned.refusals, []);
        let body = json!({ "plan": plan::remembered(&planned.tables) });
        let entry = NewEntry { version: 1, actor: "test".into(), kind: "born".into(), body };
        control.append(&lease, 0, &entry).await.unwrap();
        World { source, target, sides, control, lease }
    }

    async fn gates(&self) -> Gates<'_> {
        Gates::over(self.control.clone(), &self.lease, &self.sides, Profile::Dev, MIGRATION).await.unwrap()
    }

    async fn app(&self, cluster: &Cluster) -> Client {
        let client = cluster.connect("postgres").await;
        client.batch_execute("SET application_name = 'shop'").await.unwrap();
        client
    }

    /// A full verification of both tables, as it is stored.
    async fn verified(&self) {
        let tables = [0, 1].map(|id| json!({ "table_id": id, "complete": true, "counts": { "hot": 0 } }));
        let body = json!({ "report": { "tables": tables } });
        let sql = format!(
            "INSERT INTO segue.verification (migration, mode, tables, ended_at, body)
             VALUES ('{MIGRATION}', 'digest', '{{0,1}}', clock_timestamp(), '{body}')"
        );
        self.target.execute(&sql).await;
    }
}

fn measured(owner: Side) -> Measured {
    Measured {
        lag_ms: 20,
        live: LiveVerification::default(),
        opposite: Some(Opposite { is_armed: true, is_lost: false, behind_bytes: 0, stands_still: false }),
        sequences_unready: Some(vec![]),
        rehearsed_us: None,
        owner,
    }
}

fn red(gates: &Gates<'_>, what: Move) -> Vec<Gate> {
    gates.state(what).iter().filter(|gate| !gate.green).map(|gate| gate.gate).collect()
}

/// Looks until nothing is red any more.
async fn until_green(gates: &mut Gates<'_>, what: Move, owner: Side) -> Evidence {
    for _ in 0..200 {
        let evidence = gates.look(measured(owner)).await.unwrap();
        if red(gates, what).is_empty() {
            return evidence;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{:#?}", gates.state(what))
}

#[tokio::test]
async fn gates_open_one_by_one_as_what_they_ask_for_is_done() {
    let world = World::start().await;
    let mut gates = world.gates().await;
    assert_eq!(gates.state(Move::Writes), []);
    let first = gates.look(Measured { opposite: None, ..measured(Side::Source) }).await.unwrap();
    assert_eq!(red(&gates, Move::Writes), [Gate::Verified, Gate::WayBack, Gate::Drift]);
    assert_eq!(first.verified.unwrap().tables_left, 2);

    world.verified().await;
    gates.look(measured(Side::Source)).await.unwrap();
    assert_eq!(red(&gates, Move::Writes), [Gate::Drift]);
    // Counting compares no row, whatever its report says.
    let counted = Report { mode: Mode::Aggregate, rows: 1000, complete: true, ..Report::default() };
    gates.comparisons().reported(&counted).await.unwrap();
    gates.look(measured(Side::Source)).await.unwrap();
    assert_eq!(world.control.samples(VERIFICATIONS, Bounds::WINDOW_MAX).await.unwrap().len(), 0);
    gates.comparisons().reported(&Report { mode: Mode::Digest, ..counted }).await.unwrap();
    let evidence = until_green(&mut gates, Move::Writes, Side::Source).await;
    assert_eq!(blockers(Move::Writes, &Bounds::of(Profile::Dev), &evidence, &[]), []);
    assert_eq!(gates.trouble(), [""; 0]);
    let state = gates.state(Move::Writes);
    let since = |gate: Gate| state.iter().find(|state| state.gate == gate).unwrap().since_us;
    assert_eq!(since(Gate::Replicas), first.now_us, "green from the first look on");
    assert!(since(Gate::Drift) > first.now_us && since(Gate::Drift) <= evidence.now_us);
    // What is looked at more strictly says what is missing there.
    let prod: Vec<Gate> = blockers(Move::Writes, &Bounds::of(Profile::Prod), &evidence, &[])
        .iter()
        .map(|blocker| blocker.gate)
        .collect();
    assert_eq!(prod, [Gate::Drift, Gate::Matches, Gate::Lag, Gate::Rehearsal]);
}

#[tokio::test]
async fn each_side_is_asked_what_it_will_be_after_the_switch() {
    let world = World::start().await;
    let mut gates = world.gates().await;
    for (owner, old) in [(Side::Source, &world.source), (Side::Target, &world.target)] {
        let app = world.app(old).await;
        app.batch_execute(
            "SELECT pg_advisory_lock(5); BEGIN; SELECT pg_advisory_lock(6); LOCK TABLE u IN SHARE MODE",
        )
        .await
        .unwrap();
        let evidence = gates.look(measured(owner)).await.unwrap();
        let transactions = evidence.transactions.unwrap();
        let [(age, who)] = &transactions[..] else { panic!("{transactions:?}") };
        assert!(*age < Duration::from_secs(60) && who.contains("'shop'"), "{who}");
        assert_eq!(evidence.sessions_with_state.unwrap(), [""; 0], "the locks may be the transaction's");
        assert_eq!(evidence.connections.unwrap().needed, 1);
        app.batch_execute("COMMIT").await.unwrap();
        let evidence = gates.look(measured(owner)).await.unwrap();
        assert_eq!(evidence.transactions.unwrap(), []);
        let state = evidence.sessions_with_state.unwrap();
        assert!(state.len() == 1 && state[0].ends_with("holds the advisory locks 5, 6"), "{state:?}");
        app.batch_execute("BEGIN").await.unwrap();
        let evidence = gates.look(measured(owner)).await.unwrap();
        assert_eq!(evidence.sessions_with_state.unwrap(), state, "they were not");
    }
}

#[tokio::test]
async fn a_change_of_either_sides_tables_closes_the_gate_until_it_is_taken_back() {
    let world = World::start().await;
    let mut gates = world.gates().await;
    let mut ddl = async |owner| {
        gates.expire();
        gates.look(measured(owner)).await.unwrap().ddl_differences.unwrap()
    };
    assert_eq!(ddl(Side::Source).await, [""; 0]);
    world.target.execute("ALTER TABLE t ADD COLUMN w int").await;
    assert_eq!(ddl(Side::Source).await, [r#"public.t has a new column "w" on the target"#]);
    world.target.execute("ALTER TABLE t DROP COLUMN w").await;
    assert_eq!(ddl(Side::Source).await, [""; 0]);
    world.source.execute("ALTER TABLE t ALTER v TYPE varchar(9)").await;
    let found = ddl(Side::Source).await;
    assert_eq!(
        found[0],
        r#"public.t has the column "v" as character varying(9), and not as text any more on the source"#
    );
    world.source.execute("ALTER TABLE t ALTER v TYPE text").await;
    // What no comparison of columns shows.
    world.target.execute("ALTER TABLE u DROP CONSTRAINT u_pkey").await;
    let found = ddl(Side::Source).await;
    assert!(found.len() == 1 && found[0].starts_with("public.u "), "{found:?}");
    world.target.execute("ALTER TABLE u ADD PRIMARY KEY (id)").await;
    for owner in Side::ALL {
        assert_eq!(ddl(owner).await, [""; 0], "{owner}");
    }
}

#[tokio::test]
async fn a_side_that_is_away_leaves_its_gates_unmeasured_and_is_measured_again_when_it_is_back() {
    let world = World::start().await;
    let mut gates = world.gates().await;
    gates.look(measured(Side::Source)).await.unwrap();
    world.source.stop_immediate().await;
    gates.expire();
    let evidence = gates.look(measured(Side::Source)).await.unwrap();
    let old = (&evidence.transactions, &evidence.sessions_with_state, &evidence.wraparound_vacuums);
    assert_eq!(
        (old, &evidence.connections, &evidence.ddl_differences),
        ((&None, &None, &None), &None, &None)
    );
    assert_eq!(evidence.replicas, Some(vec![]), "the other side is there");
    let trouble = gates.trouble();
    assert!(trouble[0].starts_with("the source could not be looked at: "), "{trouble:?}");
    world.source.start_again().await;
    let evidence = gates.look(measured(Side::Source)).await.unwrap();
    assert_eq!(evidence.transactions, Some(vec![]));
    assert_eq!(evidence.ddl_differences, Some(vec![]), "what failed is asked again at once");
    assert_eq!(gates.trouble(), [""; 0]);
}

#[tokio::test]
async fn divergences_and_what_was_measured_outlive_the_attempt() {
    let world = World::start().await;
    let found = |verification: &str| {
        format!(
            "INSERT INTO segue.divergence (migration, verification, table_id, key, class, repaired, body)
             VALUES ('{MIGRATION}', {verification}, 0, '[1]', 'changed', false, '{{}}')"
        )
    };
    {
        let mut gates = world.gates().await;
        gates.comparisons().compared(1000, 3).await.unwrap();
        world.target.execute(&found("NULL")).await;
        let live = LiveVerification { compared: 5, divergent: 1, open: 1, hot: 0 };
        let evidence = gates.look(Measured { live, ..measured(Side::Source) }).await.unwrap();
        assert_eq!(evidence.divergences_open, Some(1));
        assert_eq!(evidence.drift.0[0].value, Share { part: 4, whole: 1005 });
        // Whoever found it may have forgotten it: what is stored counts.
        let evidence = gates.look(measured(Side::Source)).await.unwrap();
        assert_eq!(evidence.divergences_open, Some(1), "nobody has said that it is equal");
        let store = PgStore::new(world.sides.control.clone(), MIGRATION.into(), Direction::Forward);
        store.found_equal(&[DivergenceId(1)]).await.unwrap();
        let evidence = gates.look(measured(Side::Source)).await.unwrap();
        assert_eq!(evidence.divergences_open, Some(0), "it was found equal since");
        world.target.execute(&found("NULL")).await;
    }
    let mut gates = world.gates().await;
    let evidence = gates.look(measured(Side::Source)).await.unwrap();
    assert_eq!(evidence.divergences_open, Some(1), "nobody has found it equal: a verification has to say so");
    assert_eq!(evidence.drift.0[0].value, Share { part: 3, whole: 1000 });
    world.verified().await;
    assert_eq!(gates.look(measured(Side::Source)).await.unwrap().divergences_open, Some(0));
}

/// What the source did while all was quiet is kept in the journal, over restarts of the driver, and what it does when a
/// hand-over begins is told beside it.
#[tokio::test]
async fn the_owner_is_compared_with_the_baseline_of_the_source() {
    let world = World::start().await;
    let app = world.app(&world.source).await;
    let ids = std::sync::atomic::AtomicI32::new(0);
    // For so long as a baseline, and a comparison, take at least.
    let at_work = async |gates: &mut Gates<'_>, then: &str| {
        gates.look(measured(Side::Source)).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5_200) {
            // Enough beside the looks themselves, on a busy machine too.
            let id = ids.fetch_add(10, std::sync::atomic::Ordering::Relaxed);
            let ten = (id..id + 10).map(|id| format!("BEGIN; INSERT INTO t VALUES ({id}, 'x'); {then};"));
            app.batch_execute(&ten.collect::<String>()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            gates.slowly.compared = Last::default();
            if id % 400 == 0 {
                gates.look(measured(Side::Source)).await.unwrap();
            }
        }
        gates.expire();
        gates.look(measured(Side::Source)).await.unwrap();
    };
    {
        let mut gates = world.gates().await;
        at_work(&mut gates, "COMMIT").await;
        let body = gates.new_baseline().expect("a baseline was taken");
        assert_eq!(gates.new_baseline(), None, "it is journalled once");
        assert!(body["source"]["rows_per_s"].as_f64().unwrap() > 10.0, "{body:#}");
        let last = world.control.last_record().await.unwrap();
        let entry = NewEntry { version: 1, actor: "test".into(), kind: BASELINE.into(), body };
        world.control.append(&world.lease, last, &entry).await.unwrap();
    }
    let mut gates = world.gates().await;
    at_work(&mut gates, "ROLLBACK").await;
    assert_eq!(gates.new_baseline(), None, "one is enough");
    let (body, unlike) = gates.environment();
    assert!(body["baseline"]["failed_share"].as_f64().unwrap() < 0.1, "{body:#}");
    assert!(body["now"]["failed_share"].as_f64().unwrap() > 0.3, "{body:#}");
    let fails = |line: &String| line.starts_with("source: ") && line.contains("% of all transactions fail");
    assert!(unlike.iter().any(fails) && gates.trouble().iter().any(fails), "{unlike:?}");
    assert_eq!(body["unlike"], json!(unlike));
}

#[tokio::test]
async fn ten_seconds_of_looks_are_one_stored_sample_and_a_superseded_driver_stores_none() {
    let world = World::start().await;
    let mut gates = world.gates().await;
    let now_us = gates.look(measured(Side::Source)).await.unwrap().now_us;
    let stored = || async { world.control.samples(LAG, Duration::from_secs(60)).await.unwrap() };
    assert_eq!(stored().await.len(), 0);
    // As if this look came eleven seconds later.
    gates.measurements.measured(now_us + 11_000_000, 70, Share::default());
    gates.store(now_us + 11_000_000).await.unwrap();
    assert_eq!(stored().await.iter().map(|sample| sample.part).collect::<Vec<_>>(), [70]);
    world.control.release(&world.lease).await.unwrap();
    let Acquired::Lease(next) = world.control.acquire("other").await.unwrap() else { panic!("held") };
    shut_out(&world.sides.control, MIGRATION, next.token, true).await.unwrap();
    assert_eq!(gates.comparisons().compared(1, 0).await.unwrap_err().code, "SEGUE-SUPERSEDED");
}
