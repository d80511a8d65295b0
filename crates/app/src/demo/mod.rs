//! `segue demo`: a shop moves from one server to another while it is open, and everything about it is proved.
//!
//! The demo uses Segue as anybody would: it writes a spec and starts this very program's commands. What it knows of
//! the shop and of acknowledged writes, the migration does not know, and the other way round.

mod ending;
mod error;
mod load;
mod moves;
mod narrator;
mod reads;
mod report;
mod role;
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

use crate::cli;
use crate::exit::Exit;
use error::DemoError;
use load::{Load, Loaded, Pace, Verdict};
use moves::Move;
use narrator::{Narrator, count, of, time};
use reads::ReadsMoved;
use report::Report;
use segue::{Segue, Status, Verified};
use servers::Servers;
use shop::Size;

/// For the stage `following`, at scale 1.
const FOLLOWING_LIMIT: Duration = Duration::from_secs(120);
/// For the last write to reach the target. The lag is milliseconds; this is for machines that do much else.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);
const ARRIVAL_POLL: Duration = Duration::from_millis(2);
/// The router's file of users, beside the spec.
const USERS: &str = "users";
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
    verified: [Verified; 4],
    reads: ReadsMoved,
    loaded: Loaded,
    verdict: Verdict,
    elsewhere: Verdict,
    last_write_after: Duration,
    status: Status,
    moves: Vec<Move>,
}

impl Story {
    async fn go_on(&self) -> Result<Report, DemoError> {
        self.open_the_shop().await?;
        self.narrator.step(3, "Let customers in");
        let pace = Pace::default();
        let source = self.servers.source.url();
        let load = Load::start([source.clone(), source], self.size, pace);
        self.narrator.detail(&format!(
            "{} clients order, pay, edit and delete, {} transactions a second, and remember every answer",
            pace.clients, pace.per_second
        ));
        self.narrator.detail("They browse in between, and look for what they have just changed.");
        self.narrator.detail("They connect to the source, as they always have.");

        self.narrator.step(4, "Move the shop");
        let segue = Segue::new(&self.spec, Arc::clone(&self.narrator), self.servers.guard())?;
        self.plan(&segue).await?;
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
            reads: moved.reads,
            acknowledged: moved.loaded.oracle.acknowledged(),
            unknown: moved.loaded.oracle.unknown(),
            verdict: moved.verdict,
            elsewhere: moved.elsewhere,
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
        let following = Instant::now();
        let under_load = self.verify(segue, Some(&load)).await?;
        // Of the stream that filled the target; later it is the other one's turn.
        let status = segue.status().await?;
        self.go_between(&load).await?;
        let reads = self.move_reads(segue, &load).await?;
        let (moves, handed_over) = self.hand_over(segue, &load).await?;
        let rest = self.load_at_least.saturating_sub(following.elapsed());
        self.watched(&load, tokio::time::sleep(rest)).await;

        narrator.step(11, "Close the shop, and ask both sides for everything that was acknowledged");
        let loaded = load.stop().await;
        let last_write_after = self.last_write().await?;
        narrator.detail(&format!(
            "The last write was on the source, which follows now, after {}.",
            time(last_write_after)
        ));
        let (verdict, elsewhere) = self.judge(&loaded).await?;
        let at_rest = self.verify(segue, None).await?;
        let verified = [under_load, reads.verified, handed_over, at_rest];
        Ok(Moved { copied_in, verified, reads, loaded, verdict, elsewhere, last_write_after, status, moves })
    }

    /// Compares both sides and tells what was found; with a load, while that goes on.
    async fn verify(&self, segue: &Segue, load: Option<&Load>) -> Result<Verified, DemoError> {
        self.narrator.detail("$ segue verify");
        let begun = Instant::now();
        let verified = match load {
            Some(load) => self.watched(load, segue.verify()).await,
            None => segue.verify().await,
        }?;
        let verdict = match verified.divergences {
            0 => "none differs".to_owned(),
            divergences => of(divergences, "row differs", "rows differ"),
        };
        self.narrator.detail(&format!(
            "{} compared on both sides, {verdict} ({})",
            of(verified.rows_compared, "row", "rows"),
            time(begun.elapsed())
        ));
        Ok(verified)
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

    /// Writes one more row to the owner and waits for it on the other side. Transactions arrive in the order of their
    /// commits, so all others are there as well.
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

    /// Asks the owner, whose answer is what counts for the clients, and the side that the writes could go back to.
    async fn judge(&self, loaded: &Loaded) -> Result<(Verdict, Verdict), DemoError> {
        let oracle = &loaded.oracle;
        let owner = oracle.check(&self.servers.target.connect().await?).await?;
        let elsewhere = oracle.check(&self.servers.source.connect().await?).await?;
        let lost = match (owner.lost, elsewhere.lost) {
            (0, 0) => "each is as it was acknowledged, on both sides".to_owned(),
            (lost, also) => {
                format!("{} on the target and {} on the source are not", count(lost), count(also))
            }
        };
        self.narrator.detail(&format!(
            "{} wrote {}: {lost}.",
            of(oracle.acknowledged(), "acknowledged transaction", "acknowledged transactions"),
            of(owner.checked, "row", "rows")
        ));
        Ok((owner, elsewhere))
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
             The migration stays too. Go on with it, look at it, hand the writes back, give it up:\n   \
             {}\n   {}\n   {}\n   {}\n\
             Stop both servers and remove their data:\n   {stop}",
            segue("run"),
            segue("status"),
            segue("reverse"),
            segue("cancel"),
        )
    }
}

/// The spec that a user would write, but for the passwords.
fn spec_text(source: &str, target: &str, router: &str) -> String {
    format!(
        "# Written by `segue demo` for its two throw-away servers. In a real spec, keep passwords out of the file:\n\
         # postgres: \"${{SOURCE_URL}}\" is read from the environment.\n\
         migration: demo\n\
         profile: dev\n\
         source: {{ postgres: \"{source}\" }}\n\
         target: {{ postgres: \"{target}\" }}\n\
         tables:\n  - shop.*\n\
         # Applications connect here instead of to a server.\n\
         router: {{ listen: \"{router}\", users: {USERS} }}\n"
    )
}

/// The spec, which logs in as `role` (by default as the superuser), and the users of the router beside it. Over an earlier
/// one.
fn write_spec(path: &Path, servers: &Servers, role: Option<&str>) -> Result<(), DemoError> {
    let [source, target] = [&servers.source, &servers.target].map(|server| server.url_as(role));
    let text = spec_text(&source, &target, &servers.router_address());
    for (path, text) in [(path.to_owned(), text), (path.with_file_name(USERS), servers.router_users())] {
        // They have passwords in them.
        // The directory is the demo's own, and closed to others' files.
        let _ = std::fs::remove_file(&path);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| DemoError::io("writing", &path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
