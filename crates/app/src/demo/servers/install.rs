//! Which PostgreSQL is installed here, and as whom its servers may run.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::demo::DemoError;

/// The oldest major that can be a target.
const MAJOR_MIN: u32 = 14;

/// The server programs of one version.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    bin: PathBuf,
    pub(super) major: u32,
    /// For people: `15.14`.
    pub(super) version: String,
}

impl Installation {
    /// The newest there is where packages put them, else what `PATH` leads to.
    pub(super) fn find() -> Result<Self, DemoError> {
        let mut packaged: Vec<Self> = ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"]
            .iter()
            .flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten())
            .filter_map(|entry| Self::at(entry.path().join("bin")))
            .collect();
        packaged.sort_by_key(|found| found.major);
        let path = std::env::var_os("PATH").unwrap_or_default();
        packaged
            .pop()
            .or_else(|| std::env::split_paths(&path).find_map(Self::at))
            .ok_or(DemoError::NoPostgres { major_min: MAJOR_MIN })
    }

    fn at(bin: PathBuf) -> Option<Self> {
        if !bin.join("initdb").exists() {
            return None;
        }
        let answer = Command::new(bin.join("postgres")).arg("--version").output().ok()?;
        let version = version_in(&String::from_utf8_lossy(&answer.stdout))?;
        let major = version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        (major >= MAJOR_MIN).then_some(Self { bin, major, version })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// From `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`.
fn version_in(answer: &str) -> Option<String> {
    answer.split_once("(PostgreSQL) ")?.1.split_whitespace().next().map(str::to_owned)
}

/// Who owns a server's files and runs it, where that is not who runs the demo: root must not.
#[derive(Debug, Clone, Copy)]
pub(super) struct ServerUser {
    uid: u32,
    gid: u32,
}

impl ServerUser {
    /// `None`: the owner of `dir`, which this process has just made, is not root and runs the servers.
    pub(super) fn instead_of_owner(dir: &Path) -> Result<Option<Self>, DemoError> {
        let owner = std::fs::metadata(dir).map_err(|error| DemoError::io("looking at", dir, error))?.uid();
        if owner != 0 {
            return Ok(None);
        }
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let found = ["postgres", "nobody"].iter().find_map(|name| entry_of(&passwd, name));
        let user = found.ok_or(DemoError::NoServerUser)?;
        if user.can_enter(dir) { Ok(Some(user)) } else { Err(DemoError::Unreachable { dir: dir.to_owned() }) }
    }

    fn can_enter(self, dir: &Path) -> bool {
        let mut test = Command::new("test");
        test.arg("-x").arg(dir).uid(self.uid).gid(self.gid).stdin(Stdio::null());
        test.status().is_ok_and(|status| status.success())
    }

    pub(super) fn runs(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    pub(super) fn owns(self, path: &Path) -> Result<(), DemoError> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(|error| DemoError::io("giving away", path, error))
    }
}

fn entry_of(passwd: &str, name: &str) -> Option<ServerUser> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(ServerUser { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_say() {
        for (answer, version) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some("15.14")),
            ("postgres (PostgreSQL) 18beta1\n", Some("18beta1")),
            ("bash: postgres: command not found", None),
        ] {
            assert_eq!(version_in(answer).as_deref(), version);
        }
    }

    #[test]
    fn users_are_found_in_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/usr/sbin/nologin\n";
        let nobody = entry_of(passwd, "nobody").unwrap();
        assert_eq!((nobody.uid, nobody.gid), (65534, 65533));
        assert!(entry_of(passwd, "postgres").is_none());
    }
}
