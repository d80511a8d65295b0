//! The archive of the source's tables: a dump by `pg_dump`, and a manifest that says what has to be in it.
//!
//! Both are of one snapshot, readable by nobody else, written beside their names and renamed when they are durable, the
//! manifest last: with it the archive is complete. The password travels in the environment, never in arguments. The dump
//! holds the fence's triggers, as it holds everything of the tables; the list beside it is for a restore without them
//! (`pg_restore -L`).

use super::Begun;
use crate::drive::{Driver, plan};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_engine::progress::now_us;
use segue_engine::verify::ports::{Comparable, Digest};
use segue_model::name::QualifiedName;
use segue_model::region::Extent;
use segue_model::sqltext::quote_ident;
use segue_model::table::Table;
use segue_postgres::client_programs::{self, Programs};
use segue_postgres::connect::Endpoint;
use segue_postgres::traffic;
use segue_postgres::verify::{Moment, PgComparable, PgSides};
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::Command;
use tokio_postgres::Client;

/// `pg_dump` waits for a lock no longer than this.
const LOCK_WAIT_MS: u32 = 30_000;
/// Of what a program says when it fails, as much is shown.
const SAID_CHARS_MAX: usize = 600;

/// The files of an archive, in the order in which they are finished.
pub(super) fn files(directory: &Path, migration: &str) -> Vec<String> {
    let name = |end: &str| directory.join(format!("{migration}-{end}")).display().to_string();
    vec![name("source.dump"), name("source.list"), name("manifest.json")]
}

/// Whether an archive can be written to `directory`: the program that would do it.
pub(super) async fn check(source: &Client, directory: &Path, migration: &str) -> Outcome<String> {
    let tool = pg_dump(source).await?;
    let next = "name another directory, on the machine of `segue run`";
    let refused = |what: String| Fault::operator("SEGUE-ARCHIVE", what, next);
    let shown = directory.display();
    if !directory.is_absolute() {
        return Err(refused(format!("{shown} is not an absolute path")));
    }
    if !directory.is_dir() {
        return Err(refused(format!("{shown} is no directory here")));
    }
    if let Some(there) = files(directory, migration).iter().find(|file| Path::new(file).exists()) {
        return Err(refused(format!("{there} is there already, and is not written over")));
    }
    // The only way to know.
    let probe = tempfile::Builder::new().prefix(".segue").tempfile_in(directory);
    probe.map_err(|e| refused(format!("nothing can be written to {shown}: {e}")))?;
    Ok(format!("{} (PostgreSQL {})", tool.directory.join("pg_dump").display(), tool.major))
}

/// The first `pg_dump` that is no older than the server.
async fn pg_dump(source: &Client) -> Outcome<Programs> {
    let row = source.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await;
    let wanted: i32 = row.map_err(|e| segue_postgres::error::fault_of(&e))?.get(0);
    let found = client_programs::found(source).await;
    if let Some(programs) = found.iter().find(|programs| programs.major >= wanted) {
        return Ok(programs.clone());
    }
    let older = |Programs { directory, major }: &Programs| {
        format!("{} is of PostgreSQL {major}", directory.join("pg_dump").display())
    };
    let found = match found.is_empty() {
        true => "there is none here".to_owned(),
        false => found.iter().map(older).collect::<Vec<_>>().join(", "),
    };
    Err(Fault::operator(
        "SEGUE-PG-DUMP",
        format!("the archive needs pg_dump and pg_restore of PostgreSQL {wanted} or later: {found}"),
        "install the client programs of that version on the machine of `segue run`; if nothing has begun, --archive can be left out",
    ))
}

/// Writes the archive, from nothing or from whatever an earlier process has left of it. Returns its files.
pub(super) async fn write(driver: &Driver, begun: &Begun, directory: &Path) -> Outcome<Vec<String>> {
    let migration = driver.spec.name.as_str();
    let names = files(directory, migration);
    let source = driver.sides.source.connect("archive").await?;
    let tool = pg_dump(&source).await?;
    let all = traffic::relations(&source, &begun.names()?).await?;
    let [dump, list, manifest] = [0, 1, 2].map(|at| Path::new(&names[at]));
    for name in &names {
        // Not complete, or not recorded: made anew.
        match fs::remove_file(partial(Path::new(name))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unwritten(Path::new(name), &error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let described = Described::open(driver, begun).await?;
    let moment = described.side.moment().await?;
    let dumped = partial(dump);
    created(&dumped)?;
    let (text, ()) = tokio::try_join!(
        described.manifest(driver, &moment, &tool),
        dump_tables(&tool, &driver.sides.source, &moment.name, &all, &dumped),
    )?;
    let listed = without_fences(&tool, &dumped, migration).await?;
    written(&partial(list), listed.as_bytes())?;
    written(&partial(manifest), text.as_bytes())?;
    for name in [dump, list, manifest] {
        durable(&partial(name)).map_err(|e| unwritten(name, &e))?;
        fs::rename(partial(name), name).map_err(|e| unwritten(name, &e))?;
    }
    durable(directory).map_err(|e| unwritten(directory, &e))?;
    Ok(names)
}

fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    PathBuf::from(name)
}

fn durable(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// A new file that nobody else can read: it holds the application's data.
fn created(path: &Path) -> Outcome<fs::File> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.map_err(|e| unwritten(path, &e))
}

fn written(path: &Path, content: &[u8]) -> Outcome<()> {
    created(path)?.write_all(content).map_err(|e| unwritten(path, &e))
}

fn unwritten(path: &Path, error: &io::Error) -> Fault {
    let what = format!("the archive cannot be written to {}: {error}", path.display());
    Fault::operator(
        "SEGUE-ARCHIVE",
        what,
        "make room, or mend the directory; then `segue run` goes on completing",
    )
}

/// A program of PostgreSQL's, with nothing of our own environment that would lead it elsewhere.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn dump_tables(
    tool: &Programs,
    source: &Endpoint,
    snapshot: &str,
    tables: &[QualifiedName],
    file: &Path,
) -> Outcome<()> {
    let mut command = program(&tool.directory.join("pg_dump"));
    command.envs(source.libpq()).env("PGAPPNAME", "segue archive");
    command.args(["--format=custom", "--no-password", &format!("--lock-wait-timeout={LOCK_WAIT_MS}")]);
    command.arg(format!("--snapshot={snapshot}")).arg("--file").arg(file);
    for table in tables {
        // Both parts quoted: no part of a name is a pattern.
        command.arg(format!("--table={}.{}", quote_ident(&table.schema), quote_ident(&table.name)));
    }
    run(command, "pg_dump").await.map(drop)
}

/// The dump's table of contents, but for the triggers of fences, whose function is not in it.
async fn without_fences(tool: &Programs, dump: &Path, migration: &str) -> Outcome<String> {
    let mut command = program(&tool.directory.join("pg_restore"));
    command.arg("--list").arg(dump);
    let listed = run(command, "pg_restore --list").await?;
    let trigger = format!(" segue_fence_{migration} ");
    let kept = listed.lines().filter(|line| !(line.contains(" TRIGGER ") && line.contains(&trigger)));
    Ok(kept.map(|line| format!("{line}\n")).collect())
}

async fn run(mut command: Command, name: &str) -> Outcome<String> {
    let failed = |what: String| {
        let next = "see what it says, and mend it; then `segue run` goes on completing";
        Fault::operator("SEGUE-ARCHIVE", format!("{name} has failed: {what}"), next)
    };
    let output = command.output().await.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said: String = String::from_utf8_lossy(&output.stderr).chars().take(SAID_CHARS_MAX).collect();
        return Err(failed(said.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The tables of an archive, and how they are read.
struct Described {
    tables: Vec<Arc<Table>>,
    side: Arc<PgComparable>,
}

impl Described {
    async fn open(driver: &Driver, begun: &Begun) -> Outcome<Described> {
        let Driver { spec, sides, .. } = driver;
        let tables: Vec<Arc<Table>> =
            plan::plan(spec, sides).await?.tables.into_iter().map(Arc::new).collect();
        let names: BTreeSet<String> = tables.iter().map(|table| table.source.to_string()).collect();
        if names != begun.tables.iter().cloned().collect() {
            return Err(Fault::operator(
                "SEGUE-ARCHIVE",
                format!("the spec has other tables than the migration: {}", begun.tables.join(", ")),
                "put them back into the spec; then `segue run` goes on completing",
            ));
        }
        let side = PgSides::open(&sides.source, &sides.target, &tables).await?.source;
        Ok(Described { tables, side })
    }

    /// What is in the tables, by the same digests that have compared them with the target's, as of the dump's snapshot.
    async fn manifest(&self, driver: &Driver, moment: &Moment, tool: &Programs) -> Outcome<String> {
        let spec = &driver.spec;
        let sql = "SELECT current_setting('server_version'), pg_current_wal_lsn()::text,
                (SELECT s.position::text FROM segue.stream s WHERE s.migration = $1 AND s.direction = 'reverse')";
        let row = moment.session.query_one(sql, &[&spec.name.as_str()]).await;
        let row = row.map_err(|e| segue_postgres::error::fault_of(&e))?;
        let mut described = Vec::new();
        for table in &self.tables {
            let digest = digest(&moment.side, table, spec.verify.range_rows).await?;
            let columns: Vec<&str> = table.columns.iter().map(|c| c.source.as_str()).collect();
            described.push(json!({ "table": table.source.to_string(), "rows": digest.rows,
                "digest": digest.sum.to_string(), "bytes": digest.bytes, "columns": columns }));
        }
        let manifest = json!({ "version": 1, "migration": spec.name.as_str(), "at_us": now_us(),
            "server": row.get::<_, String>(0), "source_position": row.get::<_, String>(1),
            "target_position": row.get::<_, Option<String>>(2), "pg_dump": tool.major,
            "hash": self.side.hash(), "tables": described });
        serde_json::to_string_pretty(&manifest)
            .map_err(|e| Fault::bug("SEGUE-ARCHIVE-MANIFEST", format!("the manifest cannot be written: {e}")))
    }
}

/// The digest of all rows, read in bounded ranges.
async fn digest(side: &PgComparable, table: &Table, rows: u64) -> Outcome<Digest> {
    let mut all = Digest::default();
    let mut lower = None;
    loop {
        let rest = Extent::Range { lower: lower.clone(), upper: None };
        let upper = match table.key() {
            Some(_) => side.bound_after(table, &rest, rows).await?,
            None => None,
        };
        let found = side.digest(table, &Extent::Range { lower, upper: upper.clone() }).await?;
        all.rows += found.rows;
        all.sum += found.sum;
        all.bytes += found.bytes;
        if upper.is_none() {
            return Ok(all);
        }
        lower = upper;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_is_named_with_what_it_says() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such table >&2; exit 1"]);
        let fault = run(command, "pg_dump").await.unwrap_err();
        assert_eq!(fault.code, "SEGUE-ARCHIVE");
        assert_eq!(fault.what, "pg_dump has failed: no such table");
        let fault = run(Command::new("/nowhere/pg_dump"), "pg_dump").await.unwrap_err();
        assert!(fault.what.starts_with("pg_dump has failed: ") && !fault.next_step.is_empty(), "{fault}");
    }
}
