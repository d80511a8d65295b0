//! The words of `segue init`.

use clap::Args;

/// Write a spec from a live pair of databases
///
/// Lists the source's tables with their sizes, and marks those that need a decision, with the choices: no key, unlogged, large
/// objects, foreign tables. Both servers are only read. The file is the one of -f, and is never overwritten.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  segue init --source postgres://segue@db1/shop --target postgres://segue@db2/shop
  segue init --source '${SOURCE_URL}' --target '${TARGET_URL}' -f shop.yaml
                                         variables are kept as they are, and read when the spec is")]
pub(crate) struct Init {
    /// Where the tables are: a URL or key=value pairs, as libpq takes them; without a password the one in PGPASSWORD; `${NAME}` is a variable of the environment
    #[arg(long, value_name = "URL")]
    pub(crate) source: String,
    /// Where they go
    #[arg(long, value_name = "URL")]
    pub(crate) target: String,
    /// The migration's name
    #[arg(long, value_name = "NAME", default_value = "move")]
    pub(crate) migration: String,
}
