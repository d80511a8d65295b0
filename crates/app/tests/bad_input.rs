//! What people get wrong, with the real binary between two real servers: one clear message, the right exit code, no secret,
//! and nothing left behind on either side.
//!
//! The messages are kept in `bad_input.snap`; `UPDATE_EXPECTED=1` writes them anew. Read the difference before it is
//! committed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod support;

use segue_testkit::Cluster;
use serde_json::Value;
use std::fmt::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::{PATIENCE, Pair};

/// What Segue makes on a server.
const MADE: &str = "SELECT coalesce(string_agg(what, ', ' ORDER BY what), '') FROM (
    SELECT 'schema ' || nspname AS what FROM pg_namespace WHERE nspname ~ '^segue'
    UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
    UNION ALL SELECT 'publication ' || pubname FROM pg_publication
    UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
    UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal) w";

const WRONG_PASSWORD: &str = "wr0ng-and-secret";

struct World {
    pair: Pair,
    /// All that was said, case by case.
    said: String,
    cases: usize,
}

/// A spec between two places.
fn spec(source: &str, target: &str, tables: &str) -> String {
    format!(
        "migration: test\nprofile: dev\nsource: {{ postgres: \"{source}\" }}\ntarget: {{ postgres: \"{target}\" }}\ntables: {tables}\n"
    )
}

/// Every run of digits after `before`, as `<name>`.
fn masked(text: &str, before: &str, name: &str) -> String {
    let mut parts = text.split(before);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let _ = write!(out, "{before}{}{rest}", if rest.len() < part.len() { name } else { "" });
    }
    out
}

impl World {
    async fn start() -> World {
        World { pair: Pair::start(&["public.*"]).await, said: String::new(), cases: 0 }
    }

    fn url(&self, side: &Cluster, user: &str, password: &str, rest: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{rest}", side.port())
    }

    /// The pair with other tables.
    fn tables(&self, tables: &str) -> String {
        spec(&self.pair.source.url("postgres"), &self.pair.target.url("postgres"), tables)
    }

    async fn made(&self) -> [String; 2] {
        let (source, target) = tokio::join!(self.pair.source.scalar(MADE), self.pair.target.scalar(MADE));
        [source, target].map(Option::unwrap_or_default)
    }

    fn masked(&self, text: &str) -> String {
        let mut text = text.replace(&self.pair.dir.path().display().to_string(), "<dir>");
        for (side, name) in [(&self.pair.source, "<source>"), (&self.pair.target, "<target>")] {
            text = text.replace(&side.port().to_string(), name);
            text = text.replace(&side.data_dir().display().to_string(), "<data>");
        }
        text = masked(&masked(&text, "127.0.0.1:", "<port>"), "in use by pid ", "<pid>");
        // Resolvers and networks have their own words.
        for host in ["nowhere.invalid:<source>", "192.0.2.1:<source>"] {
            let before = format!("connecting to postgres@{host}/postgres: ");
            if let Some((_, after)) = text.clone().split_once(&before) {
                let rest = after.split_once(" [SEGUE").map_or("", |(_, rest)| rest);
                text = format!("segue: {before}<why> [SEGUE{rest}");
            }
        }
        text
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.pair.command(arguments);
        for variable in ["SEGUE_SPEC", "SEGUE_LOG", "NOWHERE", "PGPASSWORD", "PGPASSFILE"] {
            command.env_remove(variable);
        }
        command.output().unwrap()
    }

    /// Runs one case with what the spec says now.
    async fn case_as_it_is(&mut self, name: &str, arguments: &[&str], code: i32) -> String {
        let before = self.made().await;
        let output = self.run(arguments);
        self.judge(name, arguments, code, &output);
        assert_eq!(self.made().await, before, "{name}: something is left");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn judge(&mut self, name: &str, arguments: &[&str], code: i32, output: &Output) {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{name}: {out}\n{err}");
        for secret in [self.pair.source.password(), self.pair.target.password(), WRONG_PASSWORD] {
            assert!(!out.contains(secret) && !err.contains(secret), "{name} tells a secret: {out}\n{err}");
        }
        let is_fault = err.starts_with("segue: ") && err.contains("[SEGUE-");
        assert!(is_fault || code == 2, "{name}: {err}");
        assert_eq!(err.matches("segue: ").count(), usize::from(is_fault), "{name}: one message: {err}");
        assert!(out.is_empty(), "{name}: nothing but the message: {out}");
        if is_fault {
            assert!(err.contains("\n  next: ") || err.contains("CONNECTION"), "{name}: what to do: {err}");
        }
        self.cases += 1;
        let _ = write!(
            self.said,
            "== {name}\n$ segue {}\n{}-- ends with {code}\n\n",
            arguments.join(" "),
            self.masked(&err)
        );
    }

    async fn case(&mut self, name: &str, spec: &str, arguments: &[&str], code: i32) -> String {
        std::fs::write(self.pair.spec(), spec).unwrap();
        self.case_as_it_is(name, arguments, code).await
    }

    /// A start that is refused, by `segue run` and, with the same codes, by `segue plan`.
    async fn refused(&mut self, name: &str, spec: &str, codes: &[&str]) {
        let said = self.case(name, spec, &["run"], 1).await;
        let before = self.made().await;
        let output = self.run(&["plan", "--json"]);
        assert_eq!(output.status.code(), Some(3), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let refused: Vec<&str> = plan["checks"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|check| check["findings"].as_array().unwrap())
            .filter(|finding| finding["verdict"] == "refuse")
            .map(|finding| finding["what"].as_str().unwrap())
            .collect();
        for code in codes {
            assert!(said.contains(code), "{name}: {code} is not in {said}");
            assert!(refused.iter().any(|what| what.contains(code)), "{name}: {code} is not in {refused:#?}");
        }
        assert_eq!(self.made().await, before, "{name}: a plan leaves nothing");
    }
}

async fn specs(world: &mut World) {
    let (source, target) = (world.pair.source.url("postgres"), world.pair.target.url("postgres"));
    let good = spec(&source, &target, "[public.t]");
    for (name, text) in [
        ("an empty file", String::new()),
        ("a tab", format!("{good}limits:\n\tmemory_bytes_max: 1GiB\n")),
        ("a key twice", format!("{good}profile: prod\n")),
        ("an unknown key", good.replace("profile:", "profil:")),
        ("a value of another type", good.replace("[public.t]", "{ one: two }")),
        ("a key that is missing", good.replace("tables: [public.t]", "")),
        ("a bad duration", format!("{good}switch: {{ max_write_hold_ms: soon }}\n")),
        ("bad bytes", format!("{good}limits: {{ memory_bytes_max: lots }}\n")),
        ("a variable that is not set", good.replace(&source, "${NOWHERE}")),
        ("a bad name of a table", good.replace("[public.t]", "[\"public.a.b.c.d\"]")),
        ("a quote that is not closed", good.replace("[public.t]", "[\"public.t]")),
        ("a bad name of the migration", good.replace("migration: test", "migration: Test_1")),
        ("a profile that is none", good.replace("profile: dev", "profile: development")),
        ("one database on both sides", spec(&source, &source, "[public.t]")),
    ] {
        assert_ne!(text, good, "{name}");
        world.case(name, &text, &["run"], 2).await;
    }
    std::fs::remove_file(world.pair.spec()).unwrap();
    world.case_as_it_is("no spec", &["plan"], 2).await;
    std::fs::write(world.pair.spec(), good).unwrap();
    world.case_as_it_is("an unknown option", &["run", "--frobnicate"], 2).await;
    world.case_as_it_is("an unknown command", &["rnu"], 2).await;
    world.case_as_it_is("never run", &["status"], 1).await;
    world.case_as_it_is("a stage that does not come", &["wait", "following", "--timeout", "0s"], 1).await;
}

async fn connections(world: &mut World) {
    let (source, target) = (world.pair.source.url("postgres"), world.pair.target.url("postgres"));
    let to = |from: &str| spec(from, &target, "[public.t]");
    let port = world.pair.source.port();
    let password = world.pair.source.password().to_owned();
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for (name, url, arguments, code) in [
        ("a wrong password", world.url(&world.pair.source, "postgres", WRONG_PASSWORD, "postgres"), "run", 1),
        (
            "a role that is not there",
            world.url(&world.pair.source, "nobody", WRONG_PASSWORD, "postgres"),
            "run",
            1,
        ),
        (
            "a database that is not there",
            world.url(&world.pair.source, "postgres", &password, "nowhere"),
            "run",
            1,
        ),
        ("TLS that is not offered", format!("{source}?sslmode=require"), "run", 1),
        (
            "a certificate file that is not there",
            format!("{source}?sslmode=verify-full&sslrootcert=/none.pem"),
            "run",
            2,
        ),
        ("a parameter that is none", format!("{source}?sslmode=perhaps"), "run", 2),
        ("a port that is none", format!("postgres://postgres:{password}@127.0.0.1:port/postgres"), "run", 2),
        (
            "a port where nobody listens",
            format!("postgres://postgres:{password}@{refused}/postgres"),
            "plan",
            1,
        ),
        (
            "a host that cannot be reached",
            // An address for documentation; nobody has it.
            format!("postgres://postgres:{password}@192.0.2.1:{port}/postgres?connect_timeout=1"),
            "plan",
            1,
        ),
        (
            "a host without an address",
            format!("postgres://postgres:{password}@nowhere.invalid:{port}/postgres"),
            "plan",
            1,
        ),
    ] {
        world.case(name, &to(&url), &[arguments], code).await;
    }
    let control = world.url(&world.pair.target, "postgres", world.pair.target.password(), "control");
    let text = format!("{}control: {{ postgres: \"{control}\" }}\n", to(&source));
    world.case("no control database", &text, &["run"], 1).await;
}

/// Tables, each wrong in its own way, and roles.
const SOURCE: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE typed (id int PRIMARY KEY, v timestamptz);
    CREATE TABLE wide (id int PRIMARY KEY, v text, w text);
    CREATE TABLE bare (v text);
    CREATE TABLE full_there (id int PRIMARY KEY);
    CREATE TABLE only_here (id int PRIMARY KEY);
    CREATE TABLE loose_there (id int PRIMARY KEY);
    CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
    CREATE TABLE guarded (id int PRIMARY KEY);
    ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
    CREATE ROLE plain LOGIN PASSWORD 'pl4in';
    GRANT CREATE ON DATABASE postgres TO plain;
    CREATE TABLE owned (id int PRIMARY KEY);
    ALTER TABLE owned OWNER TO plain;
    ALTER TABLE guarded OWNER TO plain;
    ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
    CREATE ROLE streams LOGIN REPLICATION PASSWORD 'pl4in';
    GRANT SELECT ON t TO streams;";
const TARGET: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE typed (id int PRIMARY KEY, v int);
    CREATE TABLE wide (id int PRIMARY KEY, v text);
    CREATE TABLE bare (v text);
    CREATE TABLE full_there (id int PRIMARY KEY);
    INSERT INTO full_there VALUES (1);
    CREATE TABLE loose_there (id int NOT NULL);
    CREATE TABLE unlogged (id int PRIMARY KEY);
    CREATE TABLE owned (id int PRIMARY KEY);
    CREATE TABLE guarded (id int PRIMARY KEY);
    CREATE ROLE plain LOGIN PASSWORD 'pl4in';";

async fn starts(world: &mut World) {
    tokio::join!(world.pair.source.execute(SOURCE), world.pair.target.execute(TARGET));
    for (name, tables, codes) in [
        ("another type on the target", "[public.typed]", &["SEGUE-COLUMN"][..]),
        ("a column that the target lacks", "[public.wide]", &["SEGUE-COLUMN"]),
        ("no key", "[public.bare]", &["SEGUE-NO-KEY"]),
        ("a target that is not empty", "[public.full_there]", &["SEGUE-NOT-EMPTY"]),
        ("a table that the target lacks", "[public.only_here]", &["SEGUE-NO-TABLE"]),
        ("a key that the target lacks", "[public.loose_there]", &["SEGUE-TARGET-KEY"]),
        ("an unlogged table", "[public.unlogged]", &["SEGUE-NOT-A-TABLE"]),
        ("several at once", "[public.bare, public.wide]", &["SEGUE-NO-KEY", "SEGUE-COLUMN"]),
    ] {
        let spec = world.tables(tables);
        world.refused(name, &spec, codes).await;
        if codes.len() > 1 {
            assert!(world.said.contains("[SEGUE-PLAN]"));
        }
    }
    let unknown = world.tables("[public.typd]");
    let said = world.case("a table that the source lacks", &unknown, &["plan"], 2).await;
    assert!(said.contains("SEGUE-SELECTION"), "{said}");

    let (source, target) = (world.pair.source.url("postgres"), world.pair.target.url("postgres"));
    let as_role = |side: &Cluster, role: &str| world.url(side, role, "pl4in", "postgres");
    let plain = spec(&as_role(&world.pair.source, "plain"), &target, "[public.owned]");
    let streams = spec(&as_role(&world.pair.source, "streams"), &target, "[public.t]");
    let guarded = spec(&as_role(&world.pair.source, "plain"), &target, "[public.guarded]");
    let writes = spec(&source, &as_role(&world.pair.target, "plain"), "[public.t]");
    world.refused("a role that may not replicate", &plain, &["SEGUE-PRIVILEGE"]).await;
    world.refused("a role that does not own the table", &streams, &["SEGUE-PRIVILEGE"]).await;
    world.refused("rows that the role does not see", &guarded, &["SEGUE-ROW-SECURITY"]).await;
    world.refused("a role that may not write on the target", &writes, &["SEGUE-PRIVILEGE"]).await;

    world.pair.target.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
    let latin = world.pair.target.url("latin");
    let client = world.pair.target.connect("latin").await;
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)").await.unwrap();
    world
        .refused("an encoding that is too small", &spec(&source, &latin, "[public.t]"), &["SEGUE-ENCODING"])
        .await;
}

/// What was there before, under Segue's names.
async fn taken_names(world: &mut World) {
    let text = world.tables("[public.t]");
    let slot = "SELECT pg_create_logical_replication_slot('segue_test_fwd', 'test_decoding')";
    world.pair.source.execute(slot).await;
    world.refused("a slot of another plugin", &text, &["SEGUE-SLOT-FOREIGN"]).await;
    world.pair.source.execute("SELECT pg_drop_replication_slot('segue_test_fwd')").await;
    // Somebody has it: a temporary slot is active as long as its session.
    let holder = world.pair.source.connect("postgres").await;
    holder.batch_execute(&slot.replace("'test_decoding'", "'pgoutput', true")).await.unwrap();
    world.refused("a slot that somebody uses", &text, &["SEGUE-SLOT-ACTIVE"]).await;
    holder.batch_execute("SELECT pg_drop_replication_slot('segue_test_fwd')").await.unwrap();
    world.pair.source.execute("CREATE PUBLICATION segue_test_fwd FOR TABLE t").await;
    world.refused("a publication of another maker", &text, &["SEGUE-PUBLICATION-FOREIGN"]).await;
    world.pair.source.execute("DROP PUBLICATION segue_test_fwd").await;
    let newer =
        "CREATE SCHEMA segue; CREATE TABLE segue.format (version int); INSERT INTO segue.format VALUES (99)";
    world.pair.target.execute(newer).await;
    world.refused("a schema of a newer build", &text, &["SEGUE-FORMAT"]).await;
    world.pair.target.execute("DROP SCHEMA segue CASCADE").await;
}

async fn certificates(world: &mut World) {
    let data = world.pair.source.data_dir();
    for name in ["server", "other"] {
        let (key, certificate, subject) =
            (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-days", "2", "-subj", &subject, "-keyout", &key, "-out", &certificate])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .current_dir(&data)
            .output()
            .expect("run openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let owner = std::fs::metadata(&data).unwrap();
    for file in ["server.crt", "server.key"] {
        chown(data.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(data.join(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    world.pair.source.set("ssl", "on").await;
    let root = data.join("other.crt");
    let query = format!("sslmode=verify-ca&sslrootcert={}", root.display());
    let url = format!("{}?{query}", world.pair.source.url("postgres"));
    let text = spec(&url, &world.pair.target.url("postgres"), "[public.t]");
    let said = world.case("a certificate that nobody trusts", &text, &["run"], 1).await;
    assert!(said.contains("SEGUE-TLS"), "{said}");
}

/// A file system of a few megabytes, or none where it may not be mounted.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, like: &Path) -> Option<Small> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(at).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let owner = std::fs::metadata(like).unwrap();
        chown(at, Some(owner.uid()), Some(owner.gid())).unwrap();
        Some(Small(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A disk that is full in the middle: the one case that leaves something, which is how the migration goes on. What is then
/// got wrong is refused, and cancelling leaves nothing.
async fn full_disk(world: &mut World) {
    let (source, target) = (&world.pair.source, &world.pair.target);
    let Some(small) = Small::mount(&target.socket_dir().join("small"), &target.data_dir()) else {
        eprintln!("skipped: no small file system can be mounted here");
        return;
    };
    source.execute("CREATE TABLE big (id int PRIMARY KEY, v text); INSERT INTO big SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n").await;
    let client = target.connect("postgres").await;
    client.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", small.0.display())).await.unwrap();
    client.batch_execute("CREATE TABLE big (id int PRIMARY KEY, v text) TABLESPACE small").await.unwrap();
    let before = world.made().await;
    let text = world.tables("[public.big]");
    std::fs::write(world.pair.spec(), &text).unwrap();
    let run = world.pair.run();
    let said = world.pair.refused(&run, "SEGUE-DISK-FULL").await;
    assert!(
        said.contains("free space on that server") && !said.contains(world.pair.target.password()),
        "{said}"
    );
    let said = world.case_as_it_is("waiting for a driver that has failed", &["wait", "following"], 1).await;
    assert!(said.contains("SEGUE-FAILED"), "{said}");
    let other = world.tables("[public.t]");
    let said = world.case("other tables than before", &other, &["run"], 1).await;
    assert!(said.contains("SEGUE-PLAN-CHANGED"), "{said}");
    world.pair.target.execute("UPDATE segue.status SET body = '{\"stage\": 7}'").await;
    let said = world.case("a status of another build", &text, &["status"], 1).await;
    assert!(said.contains("SEGUE-STATUS"), "{said}");
    assert!(world.run(&["cancel"]).status.success());
    world.pair.target.execute("DROP TABLE big").await;
    world.pair.target.execute("DROP TABLESPACE small").await;
    assert_eq!(world.made().await, before, "cancelling leaves nothing");
}

async fn settings(world: &mut World) {
    let text = world.tables("[public.t]");
    world.pair.source.execute("ALTER SYSTEM SET wal_level = 'replica'").await;
    world.pair.source.execute("ALTER SYSTEM SET max_wal_senders = 0").await;
    world.pair.source.restart().await;
    world.refused("servers that write too little", &text, &["SEGUE-WAL-LEVEL", "SEGUE-LIMIT"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_input_has_one_clear_message_and_leaves_nothing() {
    let mut world = World::start().await;
    tokio::time::timeout(3 * PATIENCE, async {
        specs(&mut world).await;
        connections(&mut world).await;
        starts(&mut world).await;
        taken_names(&mut world).await;
        certificates(&mut world).await;
        settings(&mut world).await;
    })
    .await
    .expect("a case hangs");
    assert!(world.cases >= 30, "{}", world.cases);
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_input.snap");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&kept, &world.said).unwrap();
    }
    let expected = std::fs::read_to_string(&kept).unwrap_or_default();
    let differs = world.said.lines().zip(expected.lines()).position(|(now, then)| now != then);
    assert!(
        world.said == expected,
        "the messages are others from line {differs:?} on; UPDATE_EXPECTED=1 writes them anew:\n{}",
        world.said
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_what_is_got_wrong_after_it_is_refused() {
    let mut world = World::start().await;
    world.pair.both("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    full_disk(&mut world).await;
}
