//! The words of `segue plan`.

use clap::{Args, ValueEnum};
use segue_postgres::changes::On;

/// Show everything that the migration would do, and what stands in its way; change nothing
///
/// Connects to both sides and asks: can it begin, what has to be mended before, what would go wrong later; how much there is
/// to move and how long that takes; every statement that will ever change something on either side, and when; and until
/// when all of it can be taken back. To be run as often as wanted, also while the migration runs.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue plan                                             what would be done, and what stands in the way
  segue plan --all                                       every finding, every table, every statement
  segue plan --grants=source | psql -h db1 -d shop       give a role of its own what it needs, as a superuser")]
pub(crate) struct Plan {
    /// Show every finding, table and statement in full, instead of the first few
    #[arg(long)]
    pub(crate) all: bool,
    /// Print the statements that give Segue's role what it lacks, and nothing more; for one side, or all
    #[arg(
        long,
        value_name = "SIDE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all",
        conflicts_with = "all"
    )]
    pub(crate) grants: Option<GrantsFor>,
    /// Print the statements by which tables that the target lacks would be created, and nothing more
    #[arg(long, conflicts_with_all = ["all", "grants"])]
    pub(crate) schema_only_plan: bool,
    /// The role that --grants is about; by default the one that the spec logs in with, or `segue` where that is a superuser
    #[arg(long, value_name = "ROLE", requires = "grants")]
    pub(crate) role: Option<String>,
}

/// Where grants are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GrantsFor {
    /// Everywhere
    All,
    /// On the source
    Source,
    /// On the target
    Target,
    /// In the control database, where it is one of its own
    Control,
}

impl GrantsFor {
    /// Whether those of `on` are wanted.
    pub(crate) fn includes(self, on: On) -> bool {
        match self {
            GrantsFor::All => true,
            GrantsFor::Source => on == On::Source,
            GrantsFor::Target => on == On::Target,
            GrantsFor::Control => on == On::Control,
        }
    }
}
