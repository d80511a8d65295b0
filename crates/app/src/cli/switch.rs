//! The commands that move the writes, and the one that stops everything that writes to the side that does not own them.

use super::duration;
use clap::{Args, Subcommand};
use segue_model::switch::gates::{Gate, OverrideRefused, TABLE};
use std::path::PathBuf;
use std::time::Duration;

/// Move the reads or the writes to the target
#[derive(Debug, Args)]
pub(crate) struct Switch {
    /// What is moved.
    #[command(subcommand)]
    pub(crate) what: SwitchWhat,
}

/// What can be moved.
#[derive(Debug, Subcommand)]
pub(crate) enum SwitchWhat {
    Writes(SwitchWrites),
    Reads(SwitchReads),
}

/// Make the target the owner of the writes, without losing one
///
/// Looks at the gates first, and refuses if one is red. Then it makes the way back, holds the source's writes up, waits
/// until the target has applied everything, hands the writes over, and lets the target take them. Until the hand-over
/// every failure is undone, and the source takes writes again; after it, it only goes forward. Given again, it does
/// nothing. The order goes on if this command is interrupted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue switch writes --dry-run    the rehearsal: do all but the hand-over, undo it, and say how long writes were held
  segue switch writes
  segue switch writes --override rehearsal --override drift --reason \"agreed with the owner of orders\"")]
pub(crate) struct SwitchWrites {
    /// Do all but the hand-over, then undo it: writes are held up as by a real switch, and nothing is changed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Gates that are gone through although they are red.
    #[command(flatten)]
    pub(crate) overriding: Overriding,
}

/// Serve a share of the reads from the target
///
/// This build refuses it: its router moves writes alone.
#[derive(Debug, Args)]
pub(crate) struct SwitchReads {
    /// The share that the target serves
    #[arg(value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) percent: u8,
}

/// Make the source the owner of the writes again, without losing one
///
/// The same steps as `switch writes` with the sides exchanged, as long as the migration is not completed. The target
/// follows the source afterwards, and the writes can be moved again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue reverse
  segue reverse --override lag --reason \"the target is failing\"")]
pub(crate) struct Reverse {
    /// Gates that are gone through although they are red.
    #[command(flatten)]
    pub(crate) overriding: Overriding,
}

/// Red gates that are gone through, and why.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Overriding {
    /// Go through this gate although it is red; may be given several times. A gate that protects data is never overridden
    #[arg(long = "override", id = "override", value_name = "GATE", requires = "reason", value_parser = gate)]
    pub(crate) gates: Vec<Gate>,
    /// Why the gates are overridden; kept in the journal, with your name
    #[arg(long, value_name = "TEXT", requires = "override", value_parser = reason)]
    pub(crate) reason: Option<String>,
}

/// Emergency: stop everything that writes to the side that does not own the writes
///
/// Stops the copying of rows, the comparison of rows, and every stream that writes to the side that does not own the
/// writes, within a second, and lists what it has stopped; a hand-over that can still be undone is undone. It stays so over
/// restarts, until `segue resume`. The owner, and the applications on it, are left alone. Nothing
/// is lost: the owner keeps its log for Segue meanwhile, so watch its disk.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue contain
  segue resume                     when it is over")]
pub(crate) struct Contain {}

/// Give the way back up, for good, and prove that the source can be done without
///
/// Refuses unless the target owns the writes and nothing has used the source's tables for a while: no write that its fence
/// refused or that came past it, no read, no session. From then on it only goes forward: what Segue has made is removed
/// from both sides, and `segue run` ends. The source's tables stay, closed to writes, unless --drop-source is given.
/// The order goes on if this command is interrupted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue complete --dry-run                             what is still missing, and what would be removed
  segue complete --window 72h
  segue complete --archive /backup/orders --drop-source")]
pub(crate) struct Complete {
    /// Prove and list everything, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// First write the source's rows to files in this directory: an absolute path on the machine of `segue run`
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub(crate) archive: Option<PathBuf>,
    /// Drop the source's tables at the end, with the rows in them
    #[arg(long)]
    pub(crate) drop_source: bool,
    /// For how long nothing may have used the source's tables: 30s, 10min, 72h; by default 7 days in profile prod, where
    /// it is an hour at least, an hour in staging, and in dev only what is there now
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) window: Option<Duration>,
}

fn gate(text: &str) -> Result<Gate, String> {
    let gate: Gate = text.parse().map_err(|error| {
        let names: Vec<&str> = TABLE.iter().filter(|l| !l.protects_data).map(|line| line.name).collect();
        format!("{error}; those that can be overridden: {}", names.join(", "))
    })?;
    if gate.line().protects_data { Err(OverrideRefused::ProtectsData(gate).to_string()) } else { Ok(gate) }
}

fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        Err("a reason is wanted: it is kept in the journal".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("an absolute path is wanted: it is on the machine of `segue run`, which need not be this one"
            .to_owned())
    }
}
