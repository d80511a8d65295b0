//! Data directories: made once by `initdb` per version, then copied, because `initdb` takes a second and a copy does not.
//!
//! A copy is given a system identifier of its own, so that two clusters are two systems to whoever checks.

use super::install::{Installation, ServerUser, give};
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Raised when what a template holds changes, so that older ones are not used.
const FORMAT: u32 = 1;
/// Templates of an upgraded server are never asked for again; nobody misses a week-old one.
const STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Copies the template for `installation` to `data` (which must not exist) and returns the superuser's password.
pub(super) fn instantiate(
    base: &Path,
    installation: &Installation,
    initdb: &[String],
    data: &Path,
    user: Option<ServerUser>,
) -> String {
    let template = base.join(format!("template-{}", key(installation, initdb)));
    let lock = File::create(base.join("templates.lock")).expect("the testkit's directory is writable");
    lock.lock_shared().expect("lock the templates");
    if !template.join("complete").exists() {
        lock.unlock().expect("unlock the templates");
        lock.lock().expect("lock the templates");
        if !template.join("complete").exists() {
            remove_stale(base);
            build(&template, installation, initdb, user);
        }
    }
    copy_tree(&template.join("data"), data, user, &|_| false);
    let password = fs::read_to_string(template.join("password")).expect("a template has a password");
    drop(lock);
    renew_system_identifier(data);
    password
}

fn key(installation: &Installation, initdb: &[String]) -> String {
    let binary = fs::metadata(installation.program("postgres")).expect("the server's program is readable");
    let mut hasher = DefaultHasher::new();
    (FORMAT, &installation.bin, binary.len(), binary.modified().ok(), initdb).hash(&mut hasher);
    format!("{}-{:016x}", installation.major, hasher.finish())
}

fn build(template: &Path, installation: &Installation, initdb: &[String], user: Option<ServerUser>) {
    let _ = fs::remove_dir_all(template);
    fs::create_dir(template).expect("create the template's directory");
    give(template, user);
    let password = format!("{:032x}", rand::random::<u128>());
    let password_file = template.join("password");
    fs::write(&password_file, &password).expect("write the template's password");
    give(&password_file, user);

    let mut command = Command::new(installation.program("initdb"));
    command
        .current_dir(template)
        .env_remove("PGDATA")
        .args(["--pgdata=data", "--username=postgres", "--pwfile=password", "--no-sync", "--encoding=UTF8"])
        .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
        .args(if initdb.is_empty() { vec!["--locale=C.UTF-8".to_owned()] } else { initdb.to_vec() });
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().expect("run initdb");
    assert!(
        output.status.success(),
        "initdb of PostgreSQL {} failed:\n{}{}",
        installation.major,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(template.join("complete"), "").expect("mark the template complete");
}

fn remove_stale(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let is_template = entry.file_name().to_string_lossy().starts_with("template-");
        let age =
            entry.metadata().and_then(|m| m.modified()).map(|made| SystemTime::now().duration_since(made));
        if is_template && matches!(age, Ok(Ok(age)) if age > STALE_AFTER) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies a directory that a running server may be changing: files that vanish in between are left out.
///
/// `skip` is asked with paths relative to `from`; a skipped directory of the first level is made, but stays empty.
pub(super) fn copy_tree(from: &Path, to: &Path, user: Option<ServerUser>, skip: &dyn Fn(&Path) -> bool) {
    fn copy(root: &Path, from: &Path, to: &Path, user: Option<ServerUser>, skip: &dyn Fn(&Path) -> bool) {
        fs::create_dir(to).unwrap_or_else(|error| panic!("create {}: {error}", to.display()));
        fs::set_permissions(to, fs::metadata(from).expect("a directory has a mode").permissions())
            .expect("chmod");
        give(to, user);
        for entry in fs::read_dir(from).expect("read a data directory").flatten() {
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let skipped = skip(source.strip_prefix(root).expect("a path below its root"));
            let Ok(kind) = entry.file_type() else { continue };
            if skipped && !(kind.is_dir() && from == root) {
                continue;
            }
            if kind.is_dir() {
                copy(root, &source, &target, user, skip);
                continue;
            }
            let copied = if kind.is_symlink() {
                fs::read_link(&source).and_then(|link| std::os::unix::fs::symlink(link, &target))
            } else {
                fs::copy(&source, &target).map(drop)
            };
            match copied {
                Ok(()) => give(&target, user),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let _ = fs::remove_file(&target);
                }
                Err(error) => panic!("copy {}: {error}", source.display()),
            }
        }
    }
    copy(from, from, to, user, skip);
}

/// Writes a new system identifier into the control file (with its checksum) and into the WAL's page headers.
///
/// Source of the layout: `catalog/pg_control.h` (the identifier comes first, the CRC-32C of all before it last, at
/// an offset that differs by version and is searched for) and `access/xlog_internal.h` (`XLogLongPageHeaderData`).
fn renew_system_identifier(data: &Path) {
    let identifier = (rand::random::<u64>() >> 1).to_ne_bytes();
    let path = data.join("global/pg_control");
    let mut control = fs::read(&path).expect("read the control file");
    let crc_at = (64..1024)
        .step_by(4)
        .find(|&at| crc32c(&control[..at]).to_ne_bytes() == control[at..at + 4])
        .expect("the control file has a checksum");
    control[..8].copy_from_slice(&identifier);
    let crc = crc32c(&control[..crc_at]).to_ne_bytes();
    control[crc_at..crc_at + 4].copy_from_slice(&crc);
    // In place: a file made anew would belong to this process's user.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| f.write_all(&control))
        .expect("write it back");

    for entry in fs::read_dir(data.join("pg_wal")).expect("read the WAL directory").flatten() {
        if entry.file_name().len() != 24 {
            continue;
        }
        let mut segment =
            File::options().read(true).write(true).open(entry.path()).expect("open a WAL segment");
        let mut header = [0u8; 40];
        segment
            .seek(SeekFrom::Start(0))
            .and_then(|_| segment.read_exact(&mut header))
            .expect("read a WAL header");
        const XLP_LONG_HEADER: u16 = 0x0002;
        if u16::from_ne_bytes([header[2], header[3]]) & XLP_LONG_HEADER != 0 {
            segment.write_all_at(&identifier, 24).expect("write a WAL header");
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1)))
    })
}

/// The directory of templates, port locks and clusters of this user; `SEGUE_TESTKIT_DIR` chooses another, for example
/// on a file system in memory (an ext4 without a journal is slow to make files where many were just removed).
pub(super) fn base_dir() -> PathBuf {
    let base = std::env::var_os("SEGUE_TESTKIT_DIR").map_or_else(
        || std::env::temp_dir().join(format!("segue-testkit-{}", super::install::own_uid())),
        PathBuf::from,
    );
    fs::create_dir_all(base.join("ports"))
        .unwrap_or_else(|error| panic!("create {}: {error}", base.display()));
    let owner = fs::metadata(&base).expect("the testkit's directory is readable").uid();
    assert_eq!(owner, super::install::own_uid(), "{} belongs to somebody else", base.display());
    // Whatever the umask: the servers' user has to pass through.
    fs::set_permissions(&base, Permissions::from_mode(0o755)).expect("open the testkit's directory");
    base
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
