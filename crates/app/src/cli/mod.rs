//! The command line: what can be asked of `segue`, and the words that explain it.
//!
//! Nothing is done here. Values are checked for their form; what they mean to a migration is known elsewhere.

pub(crate) mod document;
mod init;
mod plan;
mod switch;

pub(crate) use init::Init;
pub(crate) use plan::{GrantsFor, Plan};
pub(crate) use switch::{Complete, Contain, Mirror, Overriding, Reverse, Switch, SwitchReads, SwitchWhat};

use crate::exit::Exit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use segue_model::name::QualifiedName;
use segue_model::spec;
use segue_model::stage::Stage;

const LONG_ABOUT: &str = "\
Segue moves live PostgreSQL tables from one server to another while the application keeps reading and writing, and \
proves that both sides are equal. One file describes a migration, one process (`segue run`) does it; every other \
command reaches that process through the control database, from any machine.";

const EXAMPLES: &str = "\
Examples:
  segue demo                      see it work, on two throw-away servers of its own
  segue init --source … --target …
                                  write a spec from a live pair of databases
  segue plan                      see what would be done and what stands in the way, and change nothing
  segue run                       do the migration that segue.yaml describes, or go on with it
  segue status --watch            see how far it is and what it waits for
  segue verify --table orders     compare one table on both sides
  segue wait following && deploy  go on once the target follows the source
  segue switch writes --dry-run   see what a switch would be refused for, and how long it would hold writes up
  segue switch writes             make the target the owner of the writes; `segue reverse` is the way back";

/// Examples, and the one table of exit codes.
fn after_long_help() -> String {
    let codes: String =
        Exit::ALL.iter().map(|exit| format!("\n  {}  {}", exit.code(), exit.meaning())).collect();
    format!("{EXAMPLES}\n\nExit codes:{codes}")
}

/// Moves live PostgreSQL tables, exactly once, and proves it.
#[derive(Debug, Parser)]
#[command(name = "segue", version, long_about = LONG_ABOUT, after_long_help = after_long_help(), max_term_width = 100)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// The command.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The spec: the file that describes the migration
    #[arg(
        short = 'f',
        long = "spec",
        global = true,
        help_heading = "Options of every command",
        value_name = "FILE",
        env = "SEGUE_SPEC",
        default_value = "segue.yaml"
    )]
    pub(crate) spec: PathBuf,
    /// Print one JSON object instead of text (one a line where there are several)
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub(crate) json: bool,
    /// Log more: -v for decisions, -vv for every message
    #[arg(short, long, global = true, help_heading = "Options of every command", action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(Init),
    Plan(Plan),
    Run(Run),
    Router(Router),
    Status(Status),
    Verify(Verify),
    Pause(Pause),
    Resume(Resume),
    Throttle(Throttle),
    Switch(Switch),
    Mirror(Mirror),
    Reverse(Reverse),
    Contain(Contain),
    Complete(Complete),
    Cancel(Cancel),
    Wait(Wait),
    Journal(Journal),
    Schema(Schema),
    Demo(Demo),
    DocumentCli(DocumentCli),
    DocumentErrors(DocumentErrors),
}

/// Do the migration, or go on with it
///
/// This is the one long-running process of a migration. It can be stopped and started at any time, also by kill -9 or a
/// crash: it goes on where it was. A second `segue run` for the same migration stands by and takes over if the first dies.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue run                       until stopped; the target keeps following the source
  segue run --until following     end, with 0, once all rows are copied and the stream has caught up
  segue run --new-stream          the source was failed over, or its slot is gone: go on with a new stream")]
pub(crate) struct Run {
    /// End with 0 once this stage is reached, instead of going on
    #[arg(long, value_name = "STAGE")]
    pub(crate) until: Option<StageName>,
    /// If the change stream is lost, make a new one over the rows that are there: every row is compared with the source's,
    /// and those that differ are written
    #[arg(long)]
    pub(crate) new_stream: bool,
}

/// Serve applications in place of the database, so that they do not notice a switch
///
/// Applications connect here, as to a PostgreSQL server; statements go to whoever owns the writes, and wait for a moment while
/// the writes are handed over. Any number of these can run, on any machine that reaches both databases; where the spec has
/// `router`, `segue run` is one of them. It goes on with what it knows when `segue run` or the control database is gone.
/// SIGTERM lets transactions finish, SIGHUP has users and certificates read again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue router                                serve where the spec's `router.listen` says
  segue router --listen 127.0.0.1:6433        a second one, on the same machine")]
pub(crate) struct Router {
    /// Listen here instead of where the spec says
    #[arg(long, value_name = "HOST:PORT", value_parser = listen)]
    pub(crate) listen: Option<SocketAddr>,
}

/// Show how far the migration is, what it waits for, and why
///
/// Read from the control database: it also answers when no `segue run` is alive, and says so.
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Keep showing it, until interrupted; with --json one object a line
    #[arg(short, long)]
    pub(crate) watch: bool,
}

/// Compare both sides, and show every difference that is real
///
/// Works while both sides change: a row still in flight is looked at again, never reported. Ends with 4 if a difference
/// was found (or is left after --repair).
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue verify                             digests of all tables
  segue verify --table public.orders       of one table
  segue verify --mode sample               random rows, field by field: a quick look
  segue verify --repair --dry-run          print the SQL that would mend the differences
  segue verify --repair                    write the owner's row over each difference")]
pub(crate) struct Verify {
    /// Compare only this table, named as on the source; may be given several times
    #[arg(long = "table", value_name = "TABLE", value_parser = table_name)]
    pub(crate) tables: Vec<QualifiedName>,
    /// How to compare
    #[arg(long, value_enum, default_value_t = VerifyMode::Digest)]
    pub(crate) mode: VerifyMode,
    /// Write the owner's row over each difference
    #[arg(long)]
    pub(crate) repair: bool,
    /// With --repair: print the SQL and change nothing
    #[arg(long, requires = "repair")]
    pub(crate) dry_run: bool,
}

/// How two sides are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyMode {
    /// Row counts only: cheap, and no proof
    Aggregate,
    /// Every row by hash, halving ranges that differ down to single rows
    Digest,
    /// Random rows, field by field
    Sample,
}

/// Stop copying and applying until `resume`
///
/// Nothing is lost: the source keeps its log for Segue meanwhile, so watch its disk (`segue status` shows how much).
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Why; shown by `status` and kept in the journal
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

/// Go on after `pause`
#[derive(Debug, Args)]
pub(crate) struct Resume {}

/// Limit what the copying of rows takes from the servers
///
/// Applies at once and until changed again, also over restarts. Within these limits Segue yields by itself when the servers
/// are busy with others, as the spec's `throttle` says: first the copy, then comparisons, then the stream. `segue status` says
/// why, and for how long.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("limit").required(true).multiple(true).args(["workers", "rate", "off", "auto"]),
    after_long_help = "\
Examples:
  segue throttle --workers 1             one region at a time
  segue throttle --rate 20MiB            at most 20 MiB of rows a second
  segue throttle --off                   take all there is, whoever else needs it
  segue throttle --auto                  yield by itself again"
)]
pub(crate) struct Throttle {
    /// Copy at most this many regions at a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: Option<u16>,
    /// Copy at most this many bytes a second; takes units such as 20MiB
    #[arg(long, value_name = "BYTES_PER_S", value_parser = bytes_per_second)]
    pub(crate) rate: Option<u64>,
    /// Lift every limit set here, and let automatic ones not count until --auto; the bound of the retained log stays
    #[arg(long, conflicts_with_all = ["workers", "rate", "auto"])]
    pub(crate) off: bool,
    /// Let automatic limits count again, under those set here
    #[arg(long)]
    pub(crate) auto: bool,
}

/// Give the migration up, and remove what Segue made on both sides
///
/// Removes the publication, the replication slot, triggers and the schema `segue`, and lists them. The application's own
/// tables and rows stay, on both sides, unless --drop-target-tables is given.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// Also drop the migrated tables on the target, with the rows in them
    #[arg(long)]
    pub(crate) drop_target_tables: bool,
}

/// Wait until the migration has reached a stage
///
/// Ends with 0 when it is reached, with 1 if that takes longer than --timeout or can no longer happen.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue wait following                   however long it takes
  segue wait switched                    until the target takes the writes
  segue wait following --timeout 30min")]
pub(crate) struct Wait {
    /// The stage to wait for
    #[arg(value_name = "STAGE")]
    pub(crate) stage: StageName,
    /// Give up after this long: 500ms, 30s, 10min, 2h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,
}

/// The stages that can be waited for, in the words of `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StageName {
    /// The stream's slot is being made
    Preparing,
    /// Rows are being copied
    Backfilling,
    /// All rows are there, and the target follows the source; also reached by what comes after it
    Following,
    /// The target takes the writes
    Switched,
    /// The way back is given up
    Completed,
    /// The migration was given up
    Cancelled,
}

impl StageName {
    /// The stage.
    pub(crate) fn stage(self) -> Stage {
        match self {
            StageName::Preparing => Stage::Preparing,
            StageName::Backfilling => Stage::Backfilling,
            StageName::Following => Stage::Following,
            StageName::Switched => Stage::Switched,
            StageName::Completed => Stage::Completed,
            StageName::Cancelled => Stage::Cancelled,
        }
    }
}

/// Show every decision of the migration, with time and reason
///
/// One line for each, with what matters of it; --json has all of every one.
#[derive(Debug, Args)]
pub(crate) struct Journal {}

/// Print the JSON Schema of the spec, for editors
#[derive(Debug, Args)]
#[command(after_long_help = "\
Example:
  segue schema > segue.schema.json
  then, as the first line of the spec:  # yaml-language-server: $schema=segue.schema.json")]
pub(crate) struct Schema {}

/// See it work: two throw-away servers, a shop under load, and a proof at the end
///
/// Needs PostgreSQL's server programs on this machine, but no configuration and no spec. Ends with 0 only if both sides
/// are equal and no acknowledged write is lost.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave the servers running, and print how to reach them
    #[arg(long)]
    pub(crate) keep: bool,
    /// How long the load goes on once the target follows
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// How much data: 1 is about two million rows, 0.01 the least
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = scale)]
    pub(crate) scale: f64,
}

/// Print this documentation of the command line, as it is kept in docs/cli.md
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct DocumentCli {}

/// Print the catalogue of faults, as it is kept in docs/errors.md
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct DocumentErrors {}

fn table_name(text: &str) -> Result<QualifiedName, String> {
    QualifiedName::parse(text).map_err(|error| error.to_string())
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    spec::parse_listen(text).map_err(|error| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    spec::parse_duration(text).map_err(|error| error.to_string())
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "a number is wanted".to_owned())?;
    if (0.01..=1_000.0).contains(&scale) { Ok(scale) } else { Err("0.01 to 1000".to_owned()) }
}

fn bytes_per_second(text: &str) -> Result<u64, String> {
    match spec::parse_bytes(text) {
        Ok(0) => Err("0 would stop the copy; use `segue pause` for that".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
