//! Why the demo could not be shown to its end, and what to do about it.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A demo that ended before its report.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// There are no server programs.
    #[error(
        "no PostgreSQL server of version {major_min} or newer is installed here: run scripts/setup, or install your \
         system's package `postgresql`, or put the directory of `initdb` and `postgres` on PATH"
    )]
    NoPostgres { major_min: u32 },
    /// PostgreSQL refuses to run as root.
    #[error(
        "PostgreSQL does not run as root, and there is no user `postgres` or `nobody` here to run it as: add one, or \
         run the demo as another user"
    )]
    NoServerUser,
    /// Root's own directories are closed to the servers' user.
    #[error(
        "the servers, which do not run as root, cannot get into {}: run the demo from a directory that is open to \
         everybody, or set TMPDIR to one", .dir.display()
    )]
    Unreachable { dir: PathBuf },
    /// `--keep` was used before.
    #[error("a demo is still in {}: stop and remove it with `{stop}`, or go to another directory", .dir.display())]
    StillThere { dir: PathBuf, stop: String },
    /// Not one of a thousand.
    #[error(
        "no free port was found on 127.0.0.1 between 20000 and 32000: is anything listening on all of them?"
    )]
    NoPort,
    /// A server of the demo.
    #[error("the {name} server {what}")]
    Server { name: &'static str, what: String },
    /// A statement of the demo.
    #[error("{doing}: {what}")]
    Sql { doing: &'static str, what: String },
    /// The file system.
    #[error("{doing} {}: {error}", .path.display())]
    Io { doing: &'static str, path: PathBuf, error: io::Error },
    /// One of Segue's own commands; this is what the demo is about.
    #[error("`segue {command}` {what}")]
    Segue { command: &'static str, what: String },
    /// The stream stands still.
    #[error("the last write was not on the other side after {} s: see above what `segue run` waits for", .limit.as_secs())]
    NotArrived { limit: Duration },
}

impl DemoError {
    /// With all causes; the outermost one alone says little.
    pub(super) fn sql(doing: &'static str, error: &tokio_postgres::Error) -> Self {
        let mut what = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            what = format!("{what}: {inner}");
            cause = inner.source();
        }
        Self::Sql { doing, what }
    }

    pub(super) fn io(doing: &'static str, path: &Path, error: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), error }
    }
}
