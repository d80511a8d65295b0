//! Which PostgreSQL majors are installed, where, and as whom their servers run.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// One installed PostgreSQL major.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    pub(super) major: u16,
    pub(super) bin: PathBuf,
    /// From the distribution, hence with `psql`, `pg_basebackup` and the like.
    pub(super) distro: bool,
}

impl Installation {
    /// The installation of `major`; the distribution's wins over the one from `scripts/setup`.
    pub(super) fn of(major: u16) -> Installation {
        installed().into_iter().find(|found| found.major == major).unwrap_or_else(|| {
            panic!("PostgreSQL {major} is not installed (have {:?}): run scripts/setup", available_majors())
        })
    }

    /// The distribution's newest major, or else the newest there is.
    pub(super) fn preferred() -> Installation {
        let mut all = installed();
        all.sort_by_key(|found| (found.distro, found.major));
        all.pop().expect("no PostgreSQL server is installed: run scripts/setup")
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The installed majors that a [`Cluster`](super::Cluster) can run, in ascending order.
pub fn available_majors() -> Vec<u16> {
    let mut majors: Vec<u16> = installed().iter().map(|found| found.major).collect();
    majors.sort_unstable();
    majors
}

/// A client program (`psql`, `pgbench`, `pg_dump`, …) of the newest installed distribution package.
pub fn client_program(name: &str) -> PathBuf {
    let mut distro: Vec<Installation> = installed().into_iter().filter(|found| found.distro).collect();
    distro.sort_by_key(|found| found.major);
    distro
        .iter()
        .rev()
        .map(|found| found.program(name))
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from(name))
}

fn installed() -> Vec<Installation> {
    let mut found: Vec<Installation> = Vec::new();
    for (root, distro) in [(PathBuf::from("/usr/lib/postgresql"), true), (cache_dir(), false)] {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let Some(major) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let bin = entry.path().join("bin");
            if bin.join("postgres").exists()
                && bin.join("initdb").exists()
                && !found.iter().any(|f| f.major == major)
            {
                found.push(Installation { major, bin, distro });
            }
        }
    }
    found
}

/// Where `scripts/setup` puts the majors that the distribution lacks; the rule is repeated there.
fn cache_dir() -> PathBuf {
    match (std::env::var_os("SEGUE_PG_CACHE"), std::env::var_os("HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(home)) if own_uid() != 0 => PathBuf::from(home).join(".cache/segue/pg"),
        _ => PathBuf::from("/var/cache/segue/pg"),
    }
}

/// The user and group that own every file of a server and run it.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl ServerUser {
    /// `None`: this process is not root, so servers run as the same user. Root runs them as `postgres`, or `nobody`.
    pub(super) fn required() -> Option<ServerUser> {
        if own_uid() != 0 {
            return None;
        }
        let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
        let entry = |name: &str| {
            let mut fields =
                passwd.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
            Some(ServerUser { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
        };
        Some(entry("postgres").or_else(|| entry("nobody")).expect("a user `postgres` or `nobody` exists"))
    }
}

/// Gives `path` to the server's user, if that is another one.
pub(super) fn give(path: &Path, user: Option<ServerUser>) {
    if let Some(user) = user {
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)).expect("root may give files away");
    }
}

pub(super) fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").expect("/proc is mounted").uid()
}
