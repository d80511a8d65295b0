//! What the source takes more for being followed, by a subscription and by segue, under the same load.

use super::super::Options;
use super::super::drain::{PEER, both_follow_with, disable};
use super::super::measure::{Taken, median};
use super::super::pair::{DATABASE, Pair, Writers, must, until_true};
use super::super::report::verdict;
use std::time::Duration;
use tokio_postgres::Client;

/// What is written meanwhile, in transactions a second.
const WRITES_PER_S: u64 = 500;
/// How long each turn is watched, in seconds …
const WATCHED_S: u64 = 40;
/// … after so long of the same load.
const WARM_UP: Duration = Duration::from_secs(8);
/// Pages of the tables have room from the beginning: else what a transaction costs would change from turn to turn.
const FILLED: &str = "-F 80";
/// How much more than the subscription segue may take.
const MORE_MAX: f64 = 1.1;

/// Who follows the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follower {
    Nobody,
    Subscription,
    Segue,
    /// Without its comparing of rows that have just been applied, which a subscription does not do.
    SegueBlind,
}

impl Follower {
    const ALL: [Follower; 4] =
        [Follower::Nobody, Follower::Subscription, Follower::Segue, Follower::SegueBlind];

    fn name(self) -> &'static str {
        match self {
            Follower::Nobody => "nobody",
            Follower::Subscription => "PostgreSQL's subscription",
            Follower::Segue => "segue",
            Follower::SegueBlind => "segue, `verify.live: false`",
        }
    }
}

/// One figure of what is taken.
type Figure = fn(&Taken) -> f64;
const CPU: Figure = |taken| taken.cpu_seconds * 1e6;
const READ: Figure = |taken| taken.read_bytes / 1024.0;
const WRITTEN: Figure = |taken| taken.written_bytes / 1024.0;
const BYTES: Figure = |taken| READ(taken) + WRITTEN(taken);

pub(super) async fn measure(options: &Options) -> String {
    let pair = Pair::start().await;
    both_follow_with(&pair, FILLED).await;
    // As production has it, and nothing that falls into one's turn and not into another's.
    pair.target.execute("ALTER SYSTEM RESET wal_receiver_status_interval").await;
    for server in [&pair.source, &pair.target] {
        server.execute("ALTER SYSTEM SET autovacuum = off").await;
        server.execute("SELECT pg_reload_conf()").await;
    }
    let watched = Duration::from_secs(options.scaled(WATCHED_S).max(10));
    let mut found = Found { taken: Default::default(), reached: Vec::new() };
    let mut mark = 0;
    for round in 0..options.rounds {
        for turn in 0..Follower::ALL.len() {
            let follower = Follower::ALL[(round + turn) % Follower::ALL.len()];
            mark += 1;
            let (taken, per_s) = turn_of(&pair, follower, mark, watched).await;
            eprintln!(
                "bench: followed by {}: {taken:?} for each of {per_s:.0} transactions/s",
                follower.name()
            );
            found.taken[follower as usize].push(taken);
            found.reached.push(per_s);
        }
    }
    found.told(watched)
}

/// What the source takes for each transaction, and how many a second there were.
async fn turn_of(pair: &Pair, follower: Follower, mark: i64, watched: Duration) -> (Taken, f64) {
    let live = if follower == Follower::SegueBlind { "verify: { live: false }\n" } else { "" };
    pair.write_spec_with("prod", DATABASE, &["*"], live);
    let source = Pair::connect(&pair.source, DATABASE).await;
    must(source.execute("INSERT INTO mark VALUES ($1)", &[&mark]).await, "mark where it begins");
    match follower {
        Follower::Nobody => under_load(pair, watched).await,
        Follower::Subscription => {
            let target = Pair::connect(&pair.target, PEER).await;
            must(target.batch_execute("ALTER SUBSCRIPTION peer ENABLE").await, "enable the subscription");
            has_come(&target, mark).await;
            let found = under_load(pair, watched).await;
            assert_follows(pair, &target, mark).await;
            disable(pair, &target).await;
            found
        }
        Follower::Segue | Follower::SegueBlind => {
            let target = Pair::connect(&pair.target, DATABASE).await;
            let process = pair.segue(&["run"]);
            has_come(&target, mark).await;
            let found = under_load(pair, watched).await;
            assert_follows(pair, &target, mark).await;
            pair.end_segue(process).await;
            found
        }
    }
}

async fn under_load(pair: &Pair, watched: Duration) -> (Taken, f64) {
    let Some(server) = pair.source.pid() else { panic!("the source does not run") };
    pair.settle().await;
    let writers = Writers::start(pair, WRITES_PER_S).await;
    tokio::time::sleep(WARM_UP).await;
    let written = Writers::written(pair).await;
    let before = Taken::by_server(server);
    tokio::time::sleep(watched).await;
    let after = Taken::by_server(server);
    let written = (Writers::written(pair).await - written) as f64;
    writers.end(pair).await;
    let per_s = written / watched.as_secs_f64();
    assert!(per_s > 0.9 * WRITES_PER_S as f64, "pgbench has reached {per_s} transactions/s only");
    (after.since(before, written), per_s)
}

fn come(mark: i64) -> String {
    format!("SELECT EXISTS (SELECT FROM mark WHERE id = {mark})")
}

async fn has_come(target: &Client, mark: i64) {
    until_true(target, &come(mark)).await;
}

/// Who was watched has followed all the time: what was written last is there at once.
async fn assert_follows(pair: &Pair, target: &Client, mark: i64) {
    /// What one row may take to get there.
    const AT_ONCE: Duration = Duration::from_secs(2);
    let source = Pair::connect(&pair.source, DATABASE).await;
    must(source.execute("INSERT INTO mark VALUES ($1)", &[&-mark]).await, "mark where it ends");
    let there = tokio::time::timeout(AT_ONCE, has_come(target, -mark)).await;
    assert!(there.is_ok(), "it has not followed, but is behind");
}

/// What was taken for each transaction, in each round, by who follows.
struct Found {
    taken: [Vec<Taken>; 4],
    reached: Vec<f64>,
}

impl Found {
    /// Median over the rounds.
    fn of(&self, follower: Follower, figure: Figure) -> f64 {
        median(&self.taken[follower as usize].iter().map(figure).collect::<Vec<_>>())
    }

    /// What is taken more than with nobody, in each round.
    fn extra(&self, follower: Follower, figure: Figure) -> Vec<f64> {
        let alone = &self.taken[Follower::Nobody as usize];
        let pairs = self.taken[follower as usize].iter().zip(alone);
        pairs.map(|(taken, alone)| figure(&taken.minus(*alone))).collect()
    }

    /// Median over the rounds of how many times as much more it is as for the subscription.
    fn more(&self, follower: Follower, figure: Figure) -> f64 {
        let peer = self.extra(Follower::Subscription, figure);
        let ratios = self.extra(follower, figure).into_iter().zip(peer).map(|(own, peer)| {
            assert!(peer > 0.0, "the subscription costs nothing that can be measured");
            own / peer
        });
        median(&ratios.collect::<Vec<_>>())
    }

    fn told(&self, watched: Duration) -> String {
        let mut text = format!(
            "The source is written to by {WRITES_PER_S} transactions a second (`pgbench -b tpcb-like`, scale 50, 8 clients; {:.0} \
             were reached), {} s in each turn, from {} s after a checkpoint on; no autovacuum. What all processes of the \
             source's server take for each transaction: processor time, and bytes of files that were read and written, also where \
             the kernel had them in memory; sockets are not counted. In brackets: more than with nobody. Medians of the rounds, ratios within a round.\n\n\
             | followed by | CPU µs | read KiB | written KiB |\n|---|---:|---:|---:|\n",
            median(&self.reached),
            watched.as_secs(),
            WARM_UP.as_secs()
        );
        for follower in Follower::ALL {
            text.push_str(&format!("| {} |", follower.name()));
            for figure in [CPU, READ, WRITTEN] {
                let all = self.of(follower, figure);
                text.push_str(&match follower {
                    Follower::Nobody => format!(" {all:.1} |"),
                    _ => format!(" {all:.1} ({:+.1}) |", median(&self.extra(follower, figure))),
                });
            }
            text.push('\n');
        }
        text.push('\n');
        for (name, follower) in
            [("segue", Follower::Segue), ("segue without live verification", Follower::SegueBlind)]
        {
            for (what, figure) in [("CPU", CPU), ("bytes read and written", BYTES)] {
                let what = format!("the source's extra {what}: {name} ÷ subscription");
                text.push_str(&verdict(&what, self.more(follower, figure), MORE_MAX, false));
                text.push('\n');
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_is_more_than_with_nobody_and_compared_within_a_round() {
        let taken = |cpu_seconds, read_bytes| Taken { cpu_seconds, read_bytes, written_bytes: 0.0 };
        let found = Found {
            taken: [
                vec![taken(1.0, 0.0), taken(2.0, 0.0)],
                vec![taken(2.0, 1024.0), taken(4.0, 1024.0)],
                vec![taken(3.0, 2048.0), taken(4.0, 2048.0)],
                vec![taken(2.0, 0.0), taken(3.0, 0.0)],
            ],
            reached: vec![500.0],
        };
        assert_eq!(found.more(Follower::Segue, CPU), 1.5);
        assert_eq!(found.more(Follower::SegueBlind, CPU), 0.75);
        assert_eq!(found.more(Follower::Segue, BYTES), 2.0);
    }
}
