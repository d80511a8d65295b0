//! The commands that move the writes, and the one that stops everything that writes to the side that does not own them.

use super::duration;
use clap::{Args, Subcommand};
use segue_model::switch::Side;
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
/// Makes the way back first, if it is not there yet; it stays, whatever comes next. Then it looks at the gates, and refuses if
/// one is red; holds the source's writes up, waits until the target has applied everything, hands the writes over, and lets the
/// target take them. Until the hand-over every failure is undone, and the source takes writes again; after it, it only goes
/// forward. Given again, it does nothing. The order goes on if this command is interrupted.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue switch writes --dry-run    the rehearsal: do all but the hand-over, undo it, and say how long writes were held
  segue switch writes
  segue switch writes --override rehearsal --override drift --reason \"agreed with the owner of orders\"")]
pub(crate) struct SwitchWrites {
    /// Do all but the hand-over, then undo it: writes are held up as by a real switch, and stay where they are
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Gates that are gone through although they are red.
    #[command(flatten)]
    pub(crate) overriding: Overriding,
}

/// Serve a share of the reads from the target
///
/// While the source owns the writes, routers send so many of the sessions to the target for their reads, or of the tenants
/// where sessions say who they are (by `SET segue.tenant`, the option `-c segue.tenant=NAME`, or a comment
/// `/*segue_tenant='NAME'*/`). Only what is proved to read migrated tables goes there, and only once the target shows all
/// that the session, or its tenant, has written or seen; whatever the target does not answer in time the source does. For more
/// reads on the target the gates are looked at; fewer are never refused. The share outlives restarts, and `complete` and
/// `cancel` end it; once the target owns the writes it serves everything.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue switch reads 0 --tenant acme=target      one tenant first
  segue switch reads 10
  segue switch reads 100 --tenant acme=default   everybody, and no rule for acme any more
  segue switch reads 0                           back, at once")]
pub(crate) struct SwitchReads {
    /// The share that the target serves
    #[arg(value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) percent: u8,
    /// Who serves a tenant's reads, whatever the share: source or target, or default for no rule any more; may be given
    /// several times
    #[arg(long = "tenant", value_name = "NAME=SIDE", value_parser = tenant)]
    pub(crate) tenants: Vec<(String, Option<Side>)>,
    /// Gates that are gone through although they are red.
    #[command(flatten)]
    pub(crate) overriding: Overriding,
}

/// Repeat a share of the reads on the other side, and compare the answers
///
/// Routers do so after the application has its answer, and once the other side shows what it was: nothing is delayed by it, and
/// nothing fails. What differs is shown by `segue status`, with an explanation, and closes the gate `mirror`; `0` ends it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue mirror 5
  segue status                     what was compared, and which statements differ
  segue mirror 0")]
pub(crate) struct Mirror {
    /// The share that is compared
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
  segue reverse --dry-run          rehearse it, and undo it
  segue reverse --override lag --reason \"the target is failing\"")]
pub(crate) struct Reverse {
    /// Rehearse: everything up to the point of no return, then undo it
    #[arg(long)]
    pub(crate) dry_run: bool,
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

/// A tenant's longest name: rules are told to every router as a whole.
const TENANT_CHARS_MAX: usize = 200;

fn tenant(text: &str) -> Result<(String, Option<Side>), String> {
    let wanted = "NAME=source, NAME=target or NAME=default is wanted";
    let (name, side) = text.rsplit_once('=').ok_or_else(|| wanted.to_owned())?;
    if name.is_empty() || name.chars().count() > TENANT_CHARS_MAX {
        return Err(format!("a tenant's name has 1 to {TENANT_CHARS_MAX} characters"));
    }
    let side = match side {
        "source" => Some(Side::Source),
        "target" => Some(Side::Target),
        "default" => None,
        _ => return Err(wanted.to_owned()),
    };
    Ok((name.to_owned(), side))
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
