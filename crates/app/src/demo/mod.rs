//! `segue demo`: a shop moves from one server to another while it is open, and everything about it is proved.
//!
//! The demo uses Segue as anybody would: it writes a spec and starts this very program's commands. What it knows of
//! the shop and of acknowledged writes, the migration does not know, and the other way round.

mod error;
mod load;
mod narrator;
mod report;
mod segue;
mod servers;
mod shop;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::Client;

use crate::cli;
use crate::exit::Exit;
use error::DemoError;
use load::{Load, Loaded, Pace, Verdict};
use narrator::{Narrator, count, of, time};
use report::{Move, Report};
use segue::{Running, Segue, Status, Verified};
use servers::Servers;
use shop::Size;

/// For the stage `following`, at scale 1.
const FOLLOWING_LIMIT: Duration = Duration::from_secs(120);
/// For the last write to reach the target. The lag is milliseconds; this is for machines that do much else.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);
const ARRIVAL_POLL: Duration = Duration::from_millis(2);
/// Clients that were told to go elsewhere have arrived there after this time.
const NOTICED: Duration = Duration::from_millis(1000);
/// How often the changing line changes.
const TICK: Duration = Duration::from_millis(500);
/// The last write: a row of the ledger that moves nothing.
const LAST_WRITE: &str =
    "INSERT INTO shop.ledger (writer, number, from_account, to_account, amount) VALUES (0, 0, 1, 1, 0)";
const LAST_WRITE_ARRIVED: &str = "SELECT count(*) FROM shop.ledger WHERE writer = 0 AND number = 0";

/// Shows the demo, and ends with 0 only if both sides are equal and no acknowledged write is lost.
pub(crate) fn run(options: &cli::Demo, global: &cli::Global) -> Exit {
    let narrator = Arc::new(Narrator::new(global.json));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return Exit::Fault;
        }
    };
    let told = runtime.block_on(async {
        tokio::select! {
            told = tell(options, &narrator) => Some(told),
            () = interrupted() => None,
        }
    });
    let Some((outcome, farewell)) = told else {
        narrator.line("\nInterrupted: the servers are stopped, and their data removed.");
        return Exit::Fault;
    };
    let exit = match outcome {
        Ok(report) => conclude(&report, &narrator, global.json),
        Err(error) => {
            narrator.line("");
            eprintln!("{error}");
            Exit::Fault
        }
    };
    if let Some(farewell) = farewell {
        narrator.line(&farewell);
    }
    exit
}

/// What `--json` prints of a demo that went well, for the documentation.
pub(crate) fn example() -> serde_json::Value {
    Report::example().json()
}

fn conclude(report: &Report, narrator: &Narrator, as_json: bool) -> Exit {
    narrator.line(&report.text(narrator));
    if as_json && writeln!(std::io::stdout(), "{:#}", report.json()).is_err() {
        return Exit::Fault;
    }
    if report.is_clean() { Exit::Done } else { Exit::Divergence }
}

/// By Ctrl-C, or by whatever else ends programs politely.
async fn interrupted() {
    let wait_for = async |kind| match signal(kind) {
        Ok(mut signals) => drop(signals.recv().await),
        Err(_) => std::future::pending().await,
    };
    tokio::select! {
        () = wait_for(SignalKind::interrupt()) => {}
        () = wait_for(SignalKind::terminate()) => {}
        () = wait_for(SignalKind::hangup()) => {}
    }
}

/// The whole story: how it went, and with `--keep` how to go on. Whatever else it started is gone when it ends, or is
/// dropped.
async fn tell(options: &cli::Demo, narrator: &Arc<Narrator>) -> (Result<Report, DemoError>, Option<String>) {
    narrator.line(&narrator.paint(
        narrator::Tone::Strong,
        "segue demo: a shop moves to another PostgreSQL server while it is open",
    ));
    narrator.step(1, "Start two servers");
    let begun = Instant::now();
    let servers = match Servers::start(options.keep).await {
        Ok(servers) => servers,
        Err(error) => return (Err(error), None),
    };
    narrator.detail(&format!(
        "PostgreSQL {}: source on {}, target on {} ({})",
        servers.version,
        servers.source.address(),
        servers.target.address(),
        time(begun.elapsed())
    ));
    let story = Story {
        spec: servers.dir().join("segue.yaml"),
        servers,
        size: Size::of_scale(options.scale),
        load_at_least: Duration::from_secs(options.seconds.into()),
        following_limit: FOLLOWING_LIMIT.mul_f64(options.scale.max(1.0)),
        keeps: options.keep,
        narrator: Arc::clone(narrator),
        begun,
    };
    let outcome = story.go_on().await;
    let farewell = options.keep.then(|| story.leave());
    (outcome, farewell)
}

struct Story {
    servers: Servers,
    spec: PathBuf,
    size: Size,
    load_at_least: Duration,
    following_limit: Duration,
    keeps: bool,
    narrator: Arc<Narrator>,
    begun: Instant,
}

/// What is known when the load has ended and all of it has arrived.
struct Moved {
    copied_in: Duration,
    verified: [Verified; 2],
    loaded: Loaded,
    verdict: Verdict,
    last_write_after: Duration,
    status: Status,
    moves: Vec<Move>,
}

impl Story {
    async fn go_on(&self) -> Result<Report, DemoError> {
        self.open_the_shop().await?;
        self.narrator.step(3, "Let customers in");
        let pace = Pace::default();
        let urls = [self.servers.source.url(), self.servers.target.url()];
        let load = Load::start(urls, self.size, pace);
        self.narrator.detail(&format!(
            "{} clients order, pay, edit and delete, {} transactions a second, and remember every answer",
            pace.clients, pace.per_second
        ));

        self.narrator.step(4, "Move the shop");
        write_spec(&self.spec, &self.servers)?;
        let segue = Segue::new(&self.spec, Arc::clone(&self.narrator), self.servers.guard())?;
        self.narrator.detail(&format!("$ segue run -f {}", self.spec.display()));
        let mut running = segue.run()?;
        let moved = tokio::select! {
            moved = self.migrate(&segue, load) => moved,
            early = running.ends_early() => Err(early),
        }?;
        let left_behind = self.clean_up(&segue, running).await?;
        Ok(Report {
            copied_in: moved.copied_in,
            status: moved.status,
            verified: moved.verified,
            acknowledged: moved.loaded.oracle.acknowledged(),
            unknown: moved.loaded.oracle.unknown(),
            verdict: moved.verdict,
            moves: moved.moves,
            tally: moved.loaded.tally,
            load_lasted: moved.loaded.lasted,
            last_write_after: moved.last_write_after,
            left_behind,
            took: self.begun.elapsed(),
        })
    }

    /// Tables on both sides, rows on the source.
    async fn open_the_shop(&self) -> Result<(), DemoError> {
        let (narrator, rows) = (&self.narrator, self.size.rows());
        narrator.step(2, "Open the shop on the source");
        let begun = Instant::now();
        let progress = |made| narrator.progress(&format!("{} of {} rows", count(made), count(rows)));
        progress(0);
        tokio::try_join!(
            shop::create_full(&self.servers.source, self.size, &progress),
            shop::create_empty(&self.servers.target),
        )?;
        narrator.detail(&format!(
            "{} tables with {} rows, and the same tables, empty, on the target ({})",
            shop::tables(),
            count(rows),
            time(begun.elapsed())
        ));
        narrator
            .detail("partitions, a table without a key, texts out of line, quoted names, generated columns");
        Ok(())
    }

    /// From the first copied row to the proof.
    async fn migrate(&self, segue: &Segue, load: Load) -> Result<Moved, DemoError> {
        let narrator = &self.narrator;
        let begun = Instant::now();
        self.watched(&load, segue.wait("following", self.following_limit)).await?;
        let copied_in = begun.elapsed();
        narrator.detail(&format!(
            "The target follows after {}. The shop was open all the time: {} so far.",
            time(copied_in),
            of(load.acknowledged(), "transaction", "transactions")
        ));

        narrator.step(5, "Compare both sides while the shop is open");
        narrator.detail("$ segue verify");
        let following = Instant::now();
        let under_load = self.watched(&load, segue.verify()).await?;
        self.tell_verified(under_load, following.elapsed());
        let rest = self.load_at_least.saturating_sub(following.elapsed());
        self.watched(&load, tokio::time::sleep(rest)).await;

        let status = segue.status().await?;
        let moves = self.hand_over(segue, &load).await?;

        narrator.step(7, "Close the shop, and ask the target for everything that was acknowledged");
        let loaded = load.stop().await;
        let last_write_after = self.last_write().await?;
        narrator.detail(&format!(
            "The last write was on the source, which follows now, after {}.",
            time(last_write_after)
        ));
        let verdict = self.judge(&loaded).await?;
        let begun = Instant::now();
        narrator.detail("$ segue verify");
        let at_rest = segue.verify().await?;
        self.tell_verified(at_rest, begun.elapsed());
        let verified = [under_load, at_rest];
        Ok(Moved { copied_in, verified, loaded, verdict, last_write_after, status, moves })
    }

    /// The writes change hands under load: a rehearsal, there, back, and there again.
    async fn hand_over(&self, segue: &Segue, load: &Load) -> Result<Vec<Move>, DemoError> {
        let narrator = &self.narrator;
        narrator.step(6, "Hand the writes over, and back, and over again, while the shop is open");
        let orders: [(&'static [&'static str], &str); 4] = [
            (&["switch", "writes", "--dry-run"], "rehearsed"),
            (&["switch", "writes"], "to the target"),
            (&["reverse"], "back to the source"),
            (&["switch", "writes"], "to the target again"),
        ];
        let mut moves = Vec::new();
        for (order, what) in orders {
            narrator.detail(&format!("$ segue {}", order.join(" ")));
            load.moving(true);
            let done = self.watched(load, segue.hand_over(order)).await?;
            // What clients notice of it comes a moment later.
            self.watched(load, tokio::time::sleep(NOTICED)).await;
            let gap = load.moving(false);
            narrator.detail(&format!(
                "{what}: the {} takes the writes; {} without an acknowledged write",
                done.owner,
                time(gap)
            ));
            moves.push(Move { what: what.to_owned(), stall_ms: done.stall_ms, gap });
        }
        Ok(moves)
    }

    /// Shows how the load goes on while something else is waited for.
    async fn watched<T>(&self, load: &Load, what: impl Future<Output = T>) -> T {
        let mut what = pin!(what);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut what => return done,
                _ = tick.tick() => self.narrator.progress(&format!(
                    "the shop is open: {} transactions acknowledged, {}/s",
                    count(load.acknowledged()),
                    load.per_second()
                )),
            }
        }
    }

    fn tell_verified(&self, verified: Verified, lasted: Duration) {
        let verdict = match verified.divergences {
            0 => "none differs".to_owned(),
            divergences => of(divergences, "row differs", "rows differ"),
        };
        self.narrator.detail(&format!(
            "{} compared on both sides, {verdict} ({})",
            of(verified.rows_compared, "row", "rows"),
            time(lasted)
        ));
    }

    /// Writes one more row to the owner and waits for it on the other side. Transactions arrive in the order of their commits, so all
    /// others are there as well.
    async fn last_write(&self) -> Result<Duration, DemoError> {
        let (owner, other) = (self.servers.target.connect().await?, self.servers.source.connect().await?);
        let fault = |error| DemoError::sql("waiting for the last write", &error);
        owner.batch_execute(LAST_WRITE).await.map_err(fault)?;
        let begun = Instant::now();
        while begun.elapsed() < ARRIVAL_LIMIT {
            let arrived: i64 = other
                .query_one(LAST_WRITE_ARRIVED, &[])
                .await
                .and_then(|row| row.try_get(0))
                .map_err(fault)?;
            if arrived > 0 {
                return Ok(begun.elapsed());
            }
            tokio::time::sleep(ARRIVAL_POLL).await;
        }
        Err(DemoError::NotArrived { limit: ARRIVAL_LIMIT })
    }

    /// Both sides are asked: the owner, and the one that the writes can go back to.
    async fn judge(&self, loaded: &Loaded) -> Result<Verdict, DemoError> {
        let oracle = &loaded.oracle;
        let mut verdict = oracle.check(&self.servers.target.connect().await?).await?;
        let back = oracle.check(&self.servers.source.connect().await?).await?;
        verdict.lost += back.lost;
        verdict.shown.extend(back.shown);
        let lost = match verdict.lost {
            0 => "each is as it was acknowledged".to_owned(),
            lost => format!("{} not as acknowledged", of(lost, "is", "are")),
        };
        self.narrator.detail(&format!(
            "{} wrote {}: {lost}.",
            of(oracle.acknowledged(), "acknowledged transaction", "acknowledged transactions"),
            of(verdict.checked, "row", "rows")
        ));
        Ok(verdict)
    }

    /// Gives the migration up, and says what is left of it; with `--keep` it stays as it is.
    async fn clean_up(&self, segue: &Segue, mut running: Running) -> Result<Option<Vec<String>>, DemoError> {
        if self.keeps {
            running.kill().await;
            return Ok(None);
        }
        self.narrator.step(8, "Go back once more, give it up, and leave nothing behind");
        self.narrator.detail("$ segue reverse");
        segue.hand_over(&["reverse"]).await?;
        self.narrator.detail("$ segue cancel");
        segue.cancel().await?;
        let mut left = Vec::new();
        if !running.end().await {
            left.push("a `segue run` that did not end by itself".to_owned());
        }
        for (server, side) in [(&self.servers.source, "source"), (&self.servers.target, "target")] {
            let found = left_on(&server.connect().await?).await?;
            left.extend(found.into_iter().map(|what| format!("{what} on the {side}")));
        }
        self.narrator.detail(&if left.is_empty() {
            "Neither side has anything of Segue's left.".to_owned()
        } else {
            format!("Left behind: {}", left.join(", "))
        });
        Ok(Some(left))
    }

    /// Says how to go on with the servers, which stay.
    fn leave(self) -> String {
        let (source, target) = (self.servers.source.url(), self.servers.target.url());
        let stop = self.servers.keep();
        // As it was called: most who see the demo have not put it on PATH.
        let program = std::env::args().next().unwrap_or_else(|| "segue".to_owned());
        let segue = |command| format!("{program} {command} -f {}", self.spec.display());
        format!(
            "\nThe servers stay. Look around:\n   \
             psql {source}\n   psql {target}\n\
             The migration stays too. Go on with it, look at it, give it up:\n   \
             {}\n   {}\n   {}\n\
             Stop both servers and remove their data:\n   {stop}",
            segue("run"),
            segue("status"),
            segue("cancel"),
        )
    }
}

/// Everything that Segue may make in a database, or beside it: all of it, because the servers are the demo's own.
async fn left_on(client: &Client) -> Result<Vec<String>, DemoError> {
    let sql = "SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'segue' \
               UNION ALL SELECT 'publication ' || pubname FROM pg_publication \
               UNION ALL SELECT 'replication slot ' || slot_name FROM pg_replication_slots \
               UNION ALL SELECT 'replication origin ' || roname FROM pg_replication_origin \
               UNION ALL SELECT 'event trigger ' || evtname FROM pg_event_trigger \
               UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE NOT tgisinternal";
    let rows = client.query(sql, &[]).await;
    let names = rows.and_then(|rows| rows.iter().map(|row| row.try_get(0)).collect());
    names.map_err(|error| DemoError::sql("looking for what Segue left behind", &error))
}

/// The spec that a user would write, but for the passwords.
fn spec_text(source: &str, target: &str) -> String {
    format!(
        "# Written by `segue demo` for its two throw-away servers. In a real spec, keep passwords out of the file:\n\
         # postgres: \"${{SOURCE_URL}}\" is read from the environment.\n\
         migration: demo\n\
         profile: dev\n\
         source: {{ postgres: \"{source}\" }}\n\
         target: {{ postgres: \"{target}\" }}\n\
         tables:\n  - shop.*\n"
    )
}

fn write_spec(path: &Path, servers: &Servers) -> Result<(), DemoError> {
    let text = spec_text(&servers.source.url(), &servers.target.url());
    // It has passwords in it.
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| DemoError::io("writing", path, error))
}

#[cfg(test)]
mod tests;
