//! `segue plan` on real servers: it changes nothing, it tells all that will be changed, and the rights that it prints are
//! enough for the whole life of a migration.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::{Cluster, Options};
use serde_json::Value;
use std::collections::BTreeSet;
use support::{PATIENCE, Pair};

const TABLES: [&str; 2] = ["shop.*", "public.loose"];

/// Tables that belong to a superuser, as in many a database: partitions of partitions, an identity, a serial, a sequence
/// that no column owns.
const DDL: &str = "
    CREATE SCHEMA shop; CREATE SEQUENCE shop.free;
    CREATE TABLE shop.customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
    CREATE TABLE shop.entry (id serial PRIMARY KEY, no bigint DEFAULT nextval('shop.free'), v text);
    CREATE TABLE shop.event (id bigint NOT NULL, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE shop.event_old PARTITION OF shop.event FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
    CREATE TABLE shop.event_new PARTITION OF shop.event FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) PARTITION BY HASH (id);
    CREATE TABLE shop.event_new_0 PARTITION OF shop.event_new FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE shop.event_new_1 PARTITION OF shop.event_new FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE public.loose (a int, b text, PRIMARY KEY (a, b));
    CREATE TABLE public.beside (id int PRIMARY KEY)";
/// A type and a sequence in schemas that are not everybody's, and have no table.
const ELSEWHERE: &str = "
    CREATE SCHEMA kinds; CREATE TYPE kinds.grade AS ENUM ('new', 'good');
    CREATE SCHEMA counts; CREATE SEQUENCE counts.given;
    ALTER TABLE shop.entry ADD grade kinds.grade NOT NULL DEFAULT 'new', ALTER no SET DEFAULT nextval('counts.given')";
const ROWS: &str = "
    INSERT INTO shop.customer (name) SELECT 'c' || n FROM generate_series(1, 500) n;
    INSERT INTO shop.entry (v) SELECT 'e' || n FROM generate_series(1, 500) n;
    INSERT INTO shop.event SELECT n, date '2019-12-01' + n, 'x' FROM generate_series(1, 300) n;
    INSERT INTO public.loose SELECT n, 'b' FROM generate_series(1, 100) n";

/// Everything that a server has, but for rows and statistics.
const SHAPE: &str = "
    SELECT md5(string_agg(what, ',' ORDER BY what)) FROM (
        SELECT concat('relation ', oid, relname, relowner, reloptions) AS what FROM pg_class
        UNION ALL SELECT concat('trigger ', oid, tgenabled) FROM pg_trigger
        UNION ALL SELECT concat('event trigger ', evtname) FROM pg_event_trigger
        UNION ALL SELECT concat('function ', oid) FROM pg_proc
        UNION ALL SELECT concat('schema ', nspname, nspacl) FROM pg_namespace
        UNION ALL SELECT concat('slot ', slot_name) FROM pg_replication_slots
        UNION ALL SELECT concat('publication ', pubname) FROM pg_publication
        UNION ALL SELECT concat('origin ', roname) FROM pg_replication_origin
        UNION ALL SELECT concat('role ', rolname, rolsuper, rolreplication) FROM pg_roles) w";

fn logged() -> Options {
    Options::default().with("log_statement", "ddl").with("log_line_prefix", "%a~")
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// One space wherever there are several, and no quotes: names are quoted where they need not be.
fn words(text: &str) -> String {
    text.replace('"', "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// All that a plan says is run on one side.
fn told(plan: &Value, on: &str) -> String {
    let changes = plan["changes"].as_array().unwrap().iter().filter(|change| change["on"] == on);
    words(&changes.map(|change| change["sql"].as_str().unwrap().to_owned() + "; ").collect::<String>())
}

/// DDL that Segue's sessions have run, statement by statement, but for tables of their own session.
fn ddl_of_segue(server: &Cluster) -> BTreeSet<String> {
    let log = server.log_tail(usize::MAX);
    let mut found = BTreeSet::new();
    let mut current = String::new();
    for line in log.lines().chain(["~"]) {
        if !line.contains('~') || line.starts_with('\t') {
            current.push(' ');
            current.push_str(line);
            continue;
        }
        if let Some((_, statement)) = current.split_once("LOG: ").filter(|_| current.starts_with("segue ")) {
            let statement = statement.split_once(": ").map_or("", |(_, statement)| statement);
            let ddl = statement.split(';').map(words).filter(|part| {
                ["CREATE ", "ALTER ", "DROP ", "GRANT ", "COMMENT "].iter().any(|verb| part.starts_with(verb))
                    && !part.contains("TEMP ")
                    && !part.contains("pg_temp")
                    && !part.contains("segue_large")
            });
            found.extend(ddl);
        }
        current = line.to_owned();
    }
    found
}

/// Runs what `--grants` prints, with psql and as a superuser.
fn grant(pair: &Pair, side: &str, server: &Cluster) {
    let script = pair.segue(&["plan", &format!("--grants={side}")], 0);
    let output = server.psql(&["-v", "ON_ERROR_STOP=1", "-d", "postgres"], &script);
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_enough_for_a_role_of_its_own_and_all_that_is_run() {
    let pair = Pair::with(logged(), logged(), &TABLES).await;
    pair.both(DDL).await;
    pair.both(ELSEWHERE).await;
    lives_as_it_was_told(&pair, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_printed_is_enough_where_the_target_has_nothing() {
    let pair = Pair::with(logged(), logged(), &TABLES).await;
    pair.source.execute(DDL).await;
    let more = "schema: { create: missing }\n";
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &TABLES, more);
    lives_as_it_was_told(&pair, more).await;
    let owners = "SELECT string_agg(DISTINCT pg_get_userbyid(relowner)::text, ',') FROM pg_class
        WHERE relnamespace::regnamespace::text IN ('shop', 'public') AND relkind IN ('r', 'p')";
    assert_eq!(pair.target.scalar(owners).await.as_deref(), Some("postgres_owner"));
}

/// A whole life with a role that has what `--grants` printed. `more` is what else the spec says.
async fn lives_as_it_was_told(pair: &Pair, more: &str) {
    pair.source.execute(ROWS).await;
    let shape = async || (pair.source.scalar(SHAPE).await, pair.target.scalar(SHAPE).await);
    let before = shape().await;
    let as_superuser = object(&pair.segue(&["plan", "--json"], 0));
    assert_eq!(as_superuser["may_begin"], true, "{as_superuser:#}");
    assert_eq!(as_superuser["left_out"], serde_json::json!(["public.beside"]));
    assert!(told(&as_superuser, "source").contains("CREATE EVENT TRIGGER"), "a superuser has the guard");
    assert_eq!(shape().await, before, "a plan changes nothing");

    for (side, server) in [("source", &pair.source), ("target", &pair.target)] {
        grant(pair, side, server);
        server.execute("ALTER ROLE segue PASSWORD 'of its own'").await;
    }
    let url =
        |server: &Cluster| format!("postgres://segue:of%20its%20own@127.0.0.1:{}/postgres", server.port());
    pair.write_spec(&url(&pair.source), &url(&pair.target), &TABLES, more);
    let left = pair.segue(&["plan", "--grants"], 0);
    assert_eq!(left.matches("-- nothing is missing").count(), 2, "{left}");
    let before = shape().await;
    let plan = object(&pair.segue(&["plan", "--json"], 0));
    assert_eq!(shape().await, before);
    let privileges = plan["checks"].as_array().unwrap().iter().find(|check| check["check"] == "privileges");
    assert_eq!(privileges.unwrap()["findings"], Value::Array(vec![]));
    let text = pair.segue(&["plan"], 0);
    assert!(text.contains("  left out: 1 table of the same schemas: public.beside\n"), "{text}");
    assert!(
        text.contains("nothing refuses") && text.contains("`segue reverse` takes the writes back"),
        "{text}"
    );

    let run = pair.run();
    pair.reaches(&run, "following").await;
    pair.segue(&["verify"], 0);
    pair.segue(&["switch", "writes", "--dry-run"], 0);
    assert_carriers_are_told(pair, &plan).await;
    pair.segue(&["switch", "writes"], 0);
    pair.target.execute("INSERT INTO shop.customer (name) VALUES ('on the target'); INSERT INTO shop.entry (v) VALUES ('t')").await;
    pair.segue(&["reverse"], 0);
    pair.source.execute("INSERT INTO shop.customer (name) VALUES ('on the source')").await;
    pair.segue(&["switch", "writes"], 0);
    pair.segue(&["complete"], 0);
    let status = run.wait(PATIENCE).await.unwrap();
    assert!(status.success(), "{}", run.lines().join("\n"));
    assert_eq!(pair.target.scalar("SELECT count(*) FROM shop.customer").await.as_deref(), Some("502"));
    pair.segue(&["cancel"], 0);

    for (side, server) in [("source", &pair.source), ("target", &pair.target)] {
        // The guard is tried, and refused to this role.
        let told = told(&plan, side) + &told(&as_superuser, side);
        let run = ddl_of_segue(server);
        assert!(run.iter().any(|ddl| ddl.starts_with("CREATE PUBLICATION")), "{side}: {run:#?}");
        for ddl in &run {
            assert!(told.contains(ddl), "the plan does not say that the {side} will see: {ddl}");
        }
    }
}

/// Each trigger of the fence is one that the plan has told.
async fn assert_carriers_are_told(pair: &Pair, plan: &Value) {
    let carriers = "SELECT string_agg(format('%s ON %s.%s', t.tgname, n.nspname, c.relname), ',')
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
       WHERE t.tgname LIKE 'segue%'";
    for (side, server) in [("source", &pair.source), ("target", &pair.target)] {
        let told = told(plan, side);
        let found = server.scalar(carriers).await.unwrap();
        assert_eq!(found.split(',').count(), 8, "{found}");
        for carrier in found.split(',') {
            let (trigger, table) = carrier.split_once(" ON ").unwrap();
            let made =
                format!("CREATE TRIGGER {trigger} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} ");
            assert!(told.contains(&made), "{side}: {carrier}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_the_way_is_said_with_its_remedy_and_the_way_back_before_anything_starts() {
    let pair =
        Pair::with(Options::default().with("wal_level", "replica"), Options::default(), &["public.*"]).await;
    pair.source
        .execute("CREATE TABLE public.t (id int PRIMARY KEY, v text); CREATE TABLE public.bare (v text)")
        .await;
    pair.target.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text); CREATE TABLE public.bare (v text); INSERT INTO t VALUES (1)").await;
    pair.target.execute("ALTER SYSTEM SET wal_level = 'replica'").await;
    pair.target.restart().await;
    let plan = object(&pair.segue(&["plan", "--json"], 3));
    assert_eq!(plan["may_begin"], false);
    let checks = plan["checks"].as_array().unwrap().iter();
    let refused: Vec<&str> = checks
        .flat_map(|check| check["findings"].as_array().unwrap())
        .filter(|finding| finding["verdict"] == "refuse")
        .map(|finding| finding["what"].as_str().unwrap())
        .collect();
    for code in ["SEGUE-WAL-LEVEL", "SEGUE-NOT-EMPTY"] {
        assert!(refused.iter().any(|what| what.contains(code)), "{code} is not among {refused:#?}");
    }
    assert_eq!(plan["way_back"]["is_possible"], false);
    let text = pair.segue(&["plan"], 3);
    for part in [
        "ALTER SYSTEM SET wal_level",
        "Forward-only after the write switch",
        "nothing was changed",
        "TRUNCATE \"public\".\"t\"",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_is_written_from_a_live_pair_with_its_decisions_and_never_over_another() {
    let pair = Pair::start(&["public.*"]).await;
    pair.both(
        "CREATE TABLE public.\"Good: one\" (id int PRIMARY KEY, v text); CREATE UNLOGGED TABLE public.visit (id int PRIMARY KEY);
         CREATE TABLE public.bare (a int NOT NULL UNIQUE, b text);
         CREATE TABLE public.full_rows (a int); ALTER TABLE public.full_rows REPLICA IDENTITY FULL;
         CREATE TABLE public.held (id int PRIMARY KEY, blob oid); SELECT lo_create(0);
         CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw;
         CREATE FOREIGN TABLE public.remote (id int) SERVER other",
    )
    .await;
    let (source, target) = (pair.source.url("postgres"), pair.target.url("postgres"));
    let init = |json: bool| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_segue"));
        command.args(["init", "--source", "${FROM}", "--target", &target, "--migration", "shop-move", "-f"]);
        command.arg(pair.dir.path().join("new.yaml")).env("FROM", &source);
        command.args(json.then_some("--json"));
        command.output().unwrap()
    };
    let output = init(true);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = object(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(said["tables"], 3, "{said:#}");
    let decided: Vec<&str> =
        said["decisions"].as_array().unwrap().iter().map(|d| d["table"].as_str().unwrap()).collect();
    assert_eq!(decided, ["public.bare", "public.held", "public.remote", "public.visit"]);
    let text = std::fs::read_to_string(pair.dir.path().join("new.yaml")).unwrap();
    assert!(text.contains("${FROM}") && text.contains("${TARGET_PASSWORD}"), "{text}");
    assert!(!text.contains(pair.target.password()) && !text.contains(pair.source.password()), "{text}");
    assert!(text.contains("REPLICA IDENTITY USING INDEX \"bare_a_key\""), "{text}");

    let plan = std::process::Command::new(env!("CARGO_BIN_EXE_segue"))
        .args(["plan", "--json", "-f"])
        .arg(pair.dir.path().join("new.yaml"))
        .envs([("FROM", source.as_str()), ("TARGET_PASSWORD", pair.target.password())])
        .output()
        .unwrap();
    let planned = object(&String::from_utf8_lossy(&plan.stdout));
    assert_eq!(planned["may_begin"], true, "{planned:#}");
    assert_eq!(planned["tables"].as_array().unwrap().len(), 3);

    let again = init(false);
    assert_eq!(again.status.code(), Some(1));
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(why.contains("SEGUE-SPEC-FILE") && why.contains("left as it is"), "{why}");
    assert_eq!(std::fs::read_to_string(pair.dir.path().join("new.yaml")).unwrap(), text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_made_from_the_source_is_planned_before_it_is_there() {
    let pair = Pair::start(&["public.*"]).await;
    pair.source.execute("CREATE TABLE public.t (id int PRIMARY KEY, v text UNIQUE)").await;
    pair.source
        .execute("INSERT INTO public.t SELECT n, n FROM generate_series(1, 5000) n; ANALYZE public.t")
        .await;
    let refused = pair.segue(&["plan"], 3);
    assert!(refused.contains("SEGUE-NO-TABLE") && refused.contains("create: missing"), "{refused}");
    let more = "schema: { create: missing }\n";
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["public.*"], more);
    let plan = pair.segue(&["plan"], 0);
    assert!(plan.contains("is created there as the source has it"), "{plan}");
    assert!(plan.contains("`segue reverse` takes the writes back"), "{plan}");
    let schema = pair.segue(&["plan", "--schema-only-plan"], 0);
    let (table, unique) = (schema.find("CREATE TABLE \"public\".\"t\""), schema.find("t_v_key"));
    assert!(table.is_some() && table < unique, "{schema}");
    let told = object(&pair.segue(&["plan", "--json"], 0));
    assert!(self::told(&told, "target").contains("CREATE TABLE public.t ("), "{told:#}");
    // What is made is copied, too.
    assert_eq!((&told["tables"][0]["source"], &told["estimate"]["rows"]), (&"public.t".into(), &5000.into()));
    assert!(told["estimate"]["index_bytes"].as_u64() > Some(0), "{told:#}");
    let grants = pair.segue(&["plan", "--grants=target"], 0);
    assert!(grants.contains("GRANT USAGE, CREATE ON SCHEMA \"public\" TO \"segue\""), "{grants}");

    // Tables are given to who owns them on the source, and whoever makes them must be able to.
    pair.source.execute("CREATE ROLE keeper; ALTER TABLE public.t OWNER TO keeper").await;
    let owners = |status| {
        let plan = object(&pair.segue(&["plan", "--json"], status));
        let check = plan["checks"].as_array().unwrap().iter().find(|c| c["check"] == "privileges").unwrap();
        let findings = check["findings"].as_array().unwrap().iter();
        findings.map(|f| format!("{} next: {}", f["what"], f["remedy"])).collect::<Vec<_>>().join("\n")
    };
    let found = owners(0);
    assert!(found.contains("belong to keeper on the source, which is not there on the target"), "{found}");
    pair.target.execute("CREATE ROLE keeper").await;
    assert_eq!(owners(0), "", "a superuser may give tables to whom it likes");
    let mover = "CREATE ROLE mover LOGIN REPLICATION PASSWORD 'p'; GRANT CREATE ON SCHEMA public TO mover;
        GRANT CREATE ON DATABASE postgres TO mover";
    pair.target.execute(mover).await;
    let url = format!("postgres://mover:p@127.0.0.1:{}/postgres", pair.target.port());
    pair.write_spec(&pair.source.url("postgres"), &url, &["public.*"], more);
    let found = owners(3);
    for why in ["Segue's role mover is no member of it", "may have none in the schema public there"] {
        assert!(found.contains(why), "{why} is not in {found}");
    }
    grant(&pair, "target", &pair.target);
    assert_eq!(owners(0), "");
    pair.write_spec(&pair.source.url("postgres"), &pair.target.url("postgres"), &["public.*"], more);

    // What cannot be made is refused before anything is.
    pair.source.execute("CREATE EXTENSION citext; CREATE TABLE public.u (id citext PRIMARY KEY)").await;
    let refused = pair.segue(&["plan"], 3);
    assert!(refused.contains("target-schema: ") && refused.contains("CREATE EXTENSION citext;"), "{refused}");
    let run = pair.command(&["run"]).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.code() == Some(1) && said.contains("CREATE EXTENSION citext;"), "{said}");
    for server in [&pair.source, &pair.target] {
        assert_eq!(server.scalar("SELECT to_regnamespace('segue') IS NULL").await.as_deref(), Some("t"));
    }
    assert_eq!(pair.target.scalar("SELECT to_regclass('public.t') IS NULL").await.as_deref(), Some("t"));
}
