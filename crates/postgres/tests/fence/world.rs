//! A server with tables of every form, and one side of a migration on it.

use segue_model::name::QualifiedName;
use segue_model::position::Position;
use segue_model::switch::ownership::{Attempt, Epoch, FenceId, Ownership};
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::fence::{Answer, Limits, Role, Row, Side, prepare};
use segue_postgres::schema;
use segue_testkit::{Cluster, Options};
use std::time::Duration;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

/// `plain`, referenced `child`, partitions two levels deep, inheritance; and `outside`, which is not migrated.
pub(crate) const DDL: &str = "
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    CREATE TABLE outside (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY, o int REFERENCES outside ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);
    CREATE TABLE parts_high_1 PARTITION OF parts_high FOR VALUES FROM (100) TO (500);
    CREATE TABLE heirs (id int PRIMARY KEY, v text);
    CREATE TABLE heirs_1 () INHERITS (heirs);
    INSERT INTO plain VALUES (1, 'a'); INSERT INTO outside VALUES (1); INSERT INTO child VALUES (1, 1);
    INSERT INTO parts VALUES (1, 'a'), (200, 'b'); INSERT INTO heirs VALUES (1, 'a'); INSERT INTO heirs_1 VALUES (2, 'b');
    CREATE ROLE app LOGIN PASSWORD 'app';
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO app;";

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
    pub(crate) side: Side,
}

/// Short, so that waiting for a deadline is cheap; the margin leaves room for a slow machine's round trips.
pub(crate) fn limits(hold_ms: u64) -> Limits {
    Limits { hold: Duration::from_millis(hold_ms), margin: Duration::from_millis(50), ..Limits::default() }
}

pub(crate) fn tables() -> Vec<QualifiedName> {
    ["plain", "child", "parts", "heirs"].map(|name| QualifiedName::new("public", name)).to_vec()
}

impl World {
    pub(crate) async fn owner(options: Options, limits: Limits) -> World {
        World::start(options, limits, Role::Owner).await
    }

    pub(crate) async fn start(options: Options, limits: Limits, role: Role) -> World {
        let cluster = Cluster::start(options).await;
        let (endpoint, client) = equip(&cluster, "postgres", role).await;
        let side = Side::open_sessions(&endpoint, ("m", 3), tables(), limits).await.unwrap();
        World { cluster, endpoint, client, side }
    }

    /// A session of the application, which has no right to anything of Segue's.
    pub(crate) async fn app(&self) -> Client {
        let url = self.cluster.url("postgres");
        let at = url.find('@').unwrap();
        segue_testkit::cluster::connect(&format!("postgres://app:app{}", &url[at..])).await.unwrap()
    }

    pub(crate) async fn fenced(&self, expected: u64, attempt: u64) -> Row {
        done(self.side.fence(id(1, expected), Attempt(attempt)).await.unwrap())
    }

    pub(crate) async fn ownership(&self) -> Ownership {
        self.side.row().await.unwrap().unwrap().ownership
    }

    /// How many triggers of the fence are in this state (`O` enabled, `D` disabled).
    pub(crate) async fn triggers(&self, state: &str) -> i64 {
        let sql = "SELECT count(*) FROM pg_trigger WHERE tgname = 'segue_fence_m' AND tgenabled::text = $1";
        self.client.query_one(sql, &[&state]).await.unwrap().get(0)
    }

    pub(crate) async fn until_the_deadline(&self) {
        until_the_deadline(&self.client).await;
    }
}

/// One of two databases of a migration.
pub(crate) struct End {
    pub(crate) endpoint: Endpoint,
    pub(crate) client: Client,
    pub(crate) side: Side,
}

/// Both, with a stream to each of them that has come to [`STREAM_AT`].
pub(crate) struct Pair {
    _cluster: Cluster,
    /// Source and target.
    pub(crate) ends: [End; 2],
}

pub(crate) const STREAM_AT: Position = Position(0x100);

pub(crate) async fn pair(options: Options) -> Pair {
    let cluster = Cluster::start(options).await;
    cluster.execute("CREATE DATABASE other").await;
    let source = end(&cluster, "postgres", (Role::Owner, Direction::Reverse)).await;
    // Roles are the whole server's.
    cluster.execute("DROP OWNED BY app; DROP ROLE app").await;
    let target = end(&cluster, "other", (Role::Follower, Direction::Forward)).await;
    Pair { _cluster: cluster, ends: [source, target] }
}

async fn end(cluster: &Cluster, database: &str, (role, direction): (Role, Direction)) -> End {
    let (endpoint, client) = equip(cluster, database, role).await;
    stream_to(&client, direction).await;
    let side = Side::open_sessions(&endpoint, ("m", 3), tables(), limits(60_000)).await.unwrap();
    End { endpoint, client, side }
}

pub(crate) async fn stream_to(client: &Client, direction: Direction) {
    let sql = format!(
        "INSERT INTO segue.stream (migration, direction, slot, system_id, timeline, incarnation, position, updated_at)
         VALUES ('m', '{}', 's', '1', 1, 1, '{STREAM_AT}', now())",
        direction.as_str()
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Tables, schema and fence in one database.
pub(crate) async fn equip(cluster: &Cluster, database: &str, role: Role) -> (Endpoint, Client) {
    let endpoint = Endpoint::parse(&cluster.url(database)).unwrap();
    let mut client = cluster.connect(database).await;
    client.batch_execute(DDL).await.unwrap();
    schema::ensure(&mut client).await.unwrap();
    client.batch_execute("INSERT INTO segue.token VALUES ('m', 3)").await.unwrap();
    let (ownership, made) = prepare(&client, ("m", 3), &tables(), role, "db.example.org/shop").await.unwrap();
    assert_eq!(made.len(), 8, "roots and all that is below them: {made:?}");
    match role {
        Role::Owner => assert_eq!(ownership, owner(1, 0)),
        Role::Follower => assert_eq!(ownership, Ownership::Follower { epoch: Epoch(0) }),
    }
    (endpoint, client)
}

/// Of the fence that stands there.
pub(crate) async fn until_the_deadline(client: &Client) {
    let sql = "SELECT greatest(0, extract(epoch FROM deadline - clock_timestamp()) * 1000 + 5)::bigint FROM segue.owner";
    let ms: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await;
}

pub(crate) const fn id(epoch: u64, attempt: u64) -> FenceId {
    FenceId { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}

pub(crate) const fn owner(epoch: u64, attempt: u64) -> Ownership {
    Ownership::Owner { epoch: Epoch(epoch), attempt: Attempt(attempt) }
}

pub(crate) fn done(answer: Answer) -> Row {
    match answer {
        Answer::Done(now) => now,
        other => panic!("not done: {other:?}"),
    }
}

pub(crate) fn already(answer: Answer) -> Row {
    match answer {
        Answer::AlreadyDone(now) => now,
        other => panic!("not done before: {other:?}"),
    }
}

/// What was found instead.
pub(crate) fn refused(answer: Answer) -> Option<Ownership> {
    match answer {
        Answer::Refused { found, .. } => found.map(|row| row.ownership),
        other => panic!("not refused: {other:?}"),
    }
}

/// The SQLSTATE with which a statement failed, and `00000` if it did not.
pub(crate) async fn state_of(client: &Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "00000".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

pub(crate) const REFUSED: &str = "25006";

/// What the application is told.
pub(crate) async fn told(client: &Client, sql: &str) -> tokio_postgres::error::DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}")).clone();
    assert_eq!(*db.code(), SqlState::READ_ONLY_SQL_TRANSACTION, "{sql}: {db:?}");
    db
}
