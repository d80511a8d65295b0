//! Two databases with the same tables, planned by the product's own planner.

use segue_model::name::QualifiedName;
use segue_model::table::Table;
use segue_postgres::birth::Direction;
use segue_postgres::connect::Endpoint;
use segue_postgres::sequences::{Carried, MARGIN, Sequences};
use segue_postgres::{catalog, schema};
use segue_testkit::{Cluster, Options};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

pub(crate) const TOKEN: i64 = 3;

pub(crate) struct World {
    clusters: Vec<Cluster>,
    pub(crate) source: Client,
    pub(crate) target: Client,
}

impl World {
    /// Two databases of one server.
    pub(crate) async fn new(on_source: &str, on_target: &str) -> World {
        let cluster = Cluster::start(Options::default()).await;
        cluster.execute("CREATE DATABASE target").await;
        World::over(vec![cluster], on_source, on_target).await
    }

    /// Two servers.
    pub(crate) async fn between(majors: (u16, u16), on_source: &str, on_target: &str) -> World {
        let source = Cluster::start(Options::major(majors.0)).await;
        let target = Cluster::start(Options::major(majors.1)).await;
        World::over(vec![source, target], on_source, on_target).await
    }

    async fn over(clusters: Vec<Cluster>, on_source: &str, on_target: &str) -> World {
        let database = if clusters.len() == 1 { "target" } else { "postgres" };
        let source = equip(&clusters[0], "postgres", on_source).await;
        let target = equip(&clusters[clusters.len() - 1], database, on_target).await;
        World { clusters, source, target }
    }

    pub(crate) fn source_endpoint(&self) -> Endpoint {
        Endpoint::parse(&self.clusters[0].url("postgres")).unwrap()
    }

    /// The target's server.
    pub(crate) fn target_cluster(&self) -> &Cluster {
        &self.clusters[self.clusters.len() - 1]
    }

    /// Of a database on the source's server.
    pub(crate) fn source_endpoint_url(&self, database: &str) -> String {
        self.clusters[0].url(database)
    }

    pub(crate) fn ports(&self) -> (u16, u16) {
        (self.clusters[0].port(), self.clusters[self.clusters.len() - 1].port())
    }

    /// Through another port, such as a proxy's; from a world of two servers.
    pub(crate) fn url_through(&self, side: usize, port: u16) -> String {
        self.clusters[side].url_through(port, "postgres")
    }

    /// The tables as the planner has them, `source` being where rows come from.
    pub(crate) async fn plan(&mut self, names: &[(&str, &str)], direction: Direction) -> Vec<Table> {
        let name = |name: &str| QualifiedName::parse(name).unwrap();
        let pairs: Vec<_> = names.iter().map(|(from, to)| (name(from), name(to))).collect();
        let catalog = match direction {
            Direction::Forward => catalog::read(&mut self.source, &mut self.target, &pairs).await,
            Direction::Reverse => catalog::read_reverse(&mut self.source, &mut self.target, &pairs).await,
        };
        let catalog = catalog.unwrap();
        assert_eq!(catalog.refusals, []);
        catalog.tables
    }

    /// The side that rows come from, and the one that they go to.
    pub(crate) fn sides(&self, direction: Direction) -> (&Client, &Client) {
        match direction {
            Direction::Forward => (&self.source, &self.target),
            Direction::Reverse => (&self.target, &self.source),
        }
    }

    pub(crate) async fn pair_tables(&self, tables: &[Table], direction: Direction) -> Sequences {
        let (old, new) = self.sides(direction);
        Sequences::pair(old, new, tables, direction).await.unwrap()
    }

    pub(crate) async fn pair(&mut self, names: &[&str]) -> Sequences {
        let names: Vec<_> = names.iter().map(|name| (*name, *name)).collect();
        let tables = self.plan(&names, Direction::Forward).await;
        self.pair_tables(&tables, Direction::Forward).await
    }

    /// Pairs and carries to the target; all must be ready.
    pub(crate) async fn carry(&mut self, names: &[&str]) -> Vec<Carried> {
        let sequences = self.pair(names).await;
        assert_eq!(sequences.unready(), [] as [String; 0]);
        self.carry_paired(&sequences, Direction::Forward).await
    }

    pub(crate) async fn carry_paired(&self, sequences: &Sequences, direction: Direction) -> Vec<Carried> {
        let (old, new) = self.sides(direction);
        // Which sets nothing: where each one stood before is told by what follows.
        sequences.get_ready(new).await.unwrap();
        sequences.carry(old, new, ("m", TOKEN), MARGIN).await.unwrap()
    }
}

async fn equip(cluster: &Cluster, database: &str, sql: &str) -> Client {
    let mut client = Endpoint::parse(&cluster.url(database)).unwrap().connect("test").await.unwrap();
    run(&client, &format!("SET search_path = public; {sql}; SET search_path = pg_catalog")).await;
    schema::ensure(&mut client).await.unwrap();
    run(&client, &format!("INSERT INTO segue.token VALUES ('m', {TOKEN})")).await;
    client
}

pub(crate) async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The single number that a statement answers.
pub(crate) async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// What the sequence gives next.
pub(crate) async fn next(client: &Client, sequence: &str) -> i64 {
    client.query_one("SELECT nextval($1::text::regclass)", &[&sequence]).await.unwrap().get(0)
}

/// The SQLSTATE with which it gives nothing more.
pub(crate) async fn spent(client: &Client, sequence: &str) -> SqlState {
    let error =
        client.query_one("SELECT nextval($1::text::regclass)", &[&sequence]).await.expect_err("spent");
    error.code().unwrap().clone()
}

/// Where a sequence stands.
pub(crate) async fn last(client: &Client, sequence: &str) -> i64 {
    number(client, &format!("SELECT last_value FROM {sequence}")).await
}

/// The one text among `said`, which holds all of `words`.
pub(crate) fn says(said: &[String], words: &[&str]) {
    let holds = |text: &&String| words.iter().all(|word| text.contains(word));
    assert_eq!(said.iter().filter(holds).count(), 1, "{words:?} in {said:#?}");
}
