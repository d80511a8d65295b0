//! PostgreSQL's own tools: `pg_dump` writes down what the source has, `pg_restore` says it as SQL, an entry at a time.
//!
//! The archive's table of contents names each object by the number of its catalog and its own, so that none has to be found
//! by the spelling of its name. It does not know which entries are wanted, nor for what.

use crate::client_programs::{self, Programs};
use crate::connect::Endpoint;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::sqltext::quote_ident;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use tempfile::TempDir;
use tokio::process::Command;
use tokio_postgres::Client;

/// A table that somebody keeps locked is named after this long, not waited for.
const LOCK_WAIT_MS: u32 = 20_000;
/// `pg_dump` and `pg_restore` of one version.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    directory: PathBuf,
}

/// The best of what was found: of the target's version, or else the oldest that can read the source.
fn choose(found: &[Programs], source: i32, target: i32) -> Option<&Programs> {
    let able = found.iter().filter(|programs| programs.major >= source);
    able.min_by_key(|programs| (programs.major != target, programs.major))
}

impl Tools {
    /// Finds programs that can read the `server`, of version `source`.
    pub(super) async fn find(server: &Client, source: i32, target: i32) -> Outcome<Tools> {
        let found = client_programs::found(server).await;
        let chosen =
            choose(&found, source, target).map(|programs| Tools { directory: programs.directory.clone() });
        chosen.ok_or_else(|| {
            let has: BTreeSet<i32> = found.iter().map(|programs| programs.major).collect();
            let has: Vec<String> = has.iter().map(ToString::to_string).collect();
            let has = if has.is_empty() { "none".to_owned() } else { has.join(", ") };
            let wanted = target.max(source);
            Fault::operator(
                "SEGUE-PG-DUMP",
                format!(
                    "the tables are to be created on the target, and there is no pg_dump here that can read PostgreSQL {source} \
                     (found: {has})"
                ),
                format!(
                    "install PostgreSQL's client programs, version {wanted} (Debian: apt install postgresql-client-{wanted}), or \
                     put its pg_dump and pg_restore into PATH; or create the tables yourself and leave `schema` out of the spec"
                ),
            )
        })
    }

    /// Writes down everything that comes before the rows: of `tables` and sequences, or, without any, of everything but them.
    pub(super) async fn dump(&self, source: &Endpoint, tables: Option<&[QualifiedName]>) -> Outcome<Archive> {
        let directory = tempfile::tempdir().map_err(|e| unusable("a directory for the dump", &e))?;
        let file = directory.path().join("schema.dump");
        let mut arguments: Vec<OsString> = [
            "--format=custom",
            "--section=pre-data",
            "--no-privileges",
            "--no-comments",
            "--no-security-labels",
            "--no-publications",
            "--no-subscriptions",
            "--no-password",
            "--encoding=UTF8",
            "--quote-all-identifiers",
            "--exclude-schema=segue",
        ]
        .map(OsString::from)
        .to_vec();
        arguments.push(format!("--lock-wait-timeout={LOCK_WAIT_MS}").into());
        match tables {
            Some(tables) => arguments.extend(tables.iter().map(|table| {
                format!("--table={}.{}", quote_ident(&table.schema), quote_ident(&table.name)).into()
            })),
            // Without tables none is locked, and no right on any is needed.
            None => arguments.push("--exclude-table=*.*".into()),
        }
        let mut command = self.command("pg_dump");
        command.args(arguments).arg("--file").arg(&file);
        command.envs(source.libpq()).env("PGAPPNAME", "segue pg_dump");
        let output = command.output().await.map_err(|e| unusable("pg_dump", &e))?;
        self.succeeded("pg_dump", &output)?;
        Ok(Archive { tools: self.clone(), file, _directory: directory })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.directory.join(program));
        // Nothing of our own environment leads it elsewhere.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    fn succeeded(&self, program: &str, output: &Output) -> Outcome<()> {
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let first = errors.iter().position(|line| line.contains("error:")).unwrap_or(0);
        Err(Fault::operator(
            "SEGUE-PG-DUMP",
            format!(
                "{} failed while the tables' definitions were read: {}",
                self.directory.join(program).display(),
                errors.get(first..).unwrap_or_default().join("; ")
            ),
            "mend what it names, then start again; nothing has been changed on the target",
        ))
    }
}

fn unusable(what: &str, error: &std::io::Error) -> Fault {
    Fault::operator(
        "SEGUE-PG-DUMP",
        format!("{what} cannot be used: {error}"),
        "see why, then start again; nothing has been changed on the target",
    )
}

/// A dump; its file is removed with it.
pub(super) struct Archive {
    tools: Tools,
    file: PathBuf,
    _directory: TempDir,
}

/// A line of the table of contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its number in the archive.
    pub(super) id: u32,
    /// The catalog and the object; 0 and 0 for what is no object of its own.
    pub(super) object: (u32, u32),
    /// Kind, schema and name, for people.
    pub(super) what: String,
}

impl Archive {
    /// What is in it, in the order in which it can be made.
    pub(super) async fn contents(&self) -> Outcome<Vec<Entry>> {
        let output = self.restore(&["--list"]).await?;
        Ok(entries(&String::from_utf8_lossy(&output.stdout)))
    }

    /// The statements of some entries, each with its own.
    pub(super) async fn statements(&self, entries: &[Entry]) -> Outcome<Vec<String>> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let together = self.said(entries).await?;
        if let Some(pieces) = pieces(&together, entries) {
            return Ok(pieces);
        }
        // Something in a definition looks like the beginning of another: one by one there is nothing to mistake.
        let mut all = Vec::new();
        for entry in entries {
            let alone = self.said(std::slice::from_ref(entry)).await?;
            all.push(alone_of(&alone, entry).ok_or_else(|| {
                Fault::bug("SEGUE-CATALOG", format!("pg_restore does not say how {} is made", entry.what))
            })?);
        }
        Ok(all)
    }

    async fn said(&self, entries: &[Entry]) -> Outcome<String> {
        let wanted: String = entries.iter().map(|entry| format!("{};\n", entry.id)).collect();
        let list = self.file.with_extension("list");
        tokio::fs::write(&list, wanted).await.map_err(|e| unusable("the list for pg_restore", &e))?;
        let list = list.display().to_string();
        let arguments = ["--verbose", "--no-owner", "--no-privileges", "--no-tablespaces", "--file=-"];
        let output = self.restore(&[&arguments[..], &["--use-list", &list]].concat()).await?;
        String::from_utf8(output.stdout)
            .map_err(|_| Fault::bug("SEGUE-CATALOG", "pg_restore did not write UTF-8"))
    }

    async fn restore(&self, arguments: &[&str]) -> Outcome<Output> {
        let mut command = self.tools.command("pg_restore");
        let output = command.args(arguments).arg(&self.file).output().await;
        let output = output.map_err(|e| unusable("pg_restore", &e))?;
        self.tools.succeeded("pg_restore", &output)?;
        Ok(output)
    }
}

/// `215; 1259 16386 TABLE public orders owner`; comments begin with `;`.
fn entries(list: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let (id, rest) = line.split_once("; ")?;
        let mut words = rest.splitn(3, ' ');
        let object = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Entry { id: id.parse().ok()?, object, what: words.next()?.to_owned() })
    };
    list.lines().filter_map(entry).collect()
}

/// How the piece of an entry is announced.
fn marker(entry: &Entry) -> String {
    format!("\n-- TOC entry {} (class {} OID {})\n", entry.id, entry.object.0, entry.object.1)
}

/// The script, cut at the announcements; `None` unless they are exactly those of `entries`, in their order.
fn pieces(script: &str, entries: &[Entry]) -> Option<Vec<String>> {
    if script.matches("\n-- TOC entry ").count() != entries.len() {
        return None;
    }
    let mut pieces = Vec::new();
    let (_, mut rest) = script.split_once(marker(entries.first()?).as_str())?;
    for next in entries.get(1..)? {
        let (piece, after) = rest.split_once(marker(next).as_str())?;
        pieces.push(plain(piece));
        rest = after;
    }
    pieces.push(last(rest, script));
    Some(pieces)
}

fn alone_of(script: &str, entry: &Entry) -> Option<String> {
    script.split_once(marker(entry).as_str()).map(|(_, rest)| last(rest, script))
}

/// The last piece without what newer versions say to psql at the end: `\unrestrict` and the key from the beginning.
fn last(piece: &str, script: &str) -> String {
    let key = script.lines().find_map(|line| line.strip_prefix(r"\restrict "));
    match key {
        Some(key) => plain(&piece.replace(&format!("\n\\unrestrict {key}\n"), "\n")),
        None => plain(piece),
    }
}

/// Without the comments before the statement and after it.
fn plain(piece: &str) -> String {
    let is_comment = |line: &&str| line.trim().is_empty() || line.starts_with("--");
    let lines: Vec<&str> = piece.lines().skip_while(is_comment).collect();
    let end = lines.iter().rposition(|line| !is_comment(line)).map_or(0, |at| at + 1);
    lines[..end].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(major: i32) -> Programs {
        Programs { directory: PathBuf::from(major.to_string()), major }
    }

    #[test]
    fn programs_are_of_the_targets_version_or_the_oldest_that_can_read_the_source() {
        let found = [tools(18), tools(14), tools(16), tools(15)];
        assert_eq!(choose(&found, 13, 16), Some(&tools(16)));
        assert_eq!(choose(&found, 15, 17), Some(&tools(15)));
        assert_eq!(choose(&found, 15, 14), Some(&tools(15)), "never older than the source");
        assert_eq!(choose(&found[1..], 17, 18), None);
    }

    #[test]
    fn a_table_of_contents_is_read_whatever_names_it_holds() {
        let list = ";\n; Archive created at 2026\n;     TOC Entries: 3\n215; 1259 16386 TABLE public a; b owner\n\
                    3370; 0 0 SEQUENCE OWNED BY public s owner\n";
        let read = entries(list);
        let objects: Vec<_> = read.iter().map(|entry| (entry.id, entry.object)).collect();
        assert_eq!(objects, [(215, (1259, 16386)), (3370, (0, 0))]);
        assert_eq!(read[0].what, "TABLE public a; b owner");
    }

    fn entry(id: u32, oid: u32) -> Entry {
        Entry { id, object: (1255, oid), what: String::new() }
    }

    const SCRIPT: &str = "SET transaction_timeout = 0;\n\\restrict k1\n--\n-- TOC entry 7 (class 1255 OID 70)\n-- Name: f\n--\n\n\
        CREATE FUNCTION f() AS 'x\n-- no end\n';\n\n\n--\n-- TOC entry 9 (class 1255 OID 90)\n-- Name: g\n--\n\nCREATE g;\n\n\n\
        -- Completed\n\n\\unrestrict k1\n";

    #[test]
    fn a_script_is_cut_into_its_statements_without_what_is_meant_for_psql() {
        let pieces = pieces(SCRIPT, &[entry(7, 70), entry(9, 90)]);
        let expected = ["CREATE FUNCTION f() AS 'x\n-- no end\n';".to_owned(), "CREATE g;".to_owned()];
        assert_eq!(pieces, Some(expected.to_vec()));
    }

    #[test]
    fn a_definition_that_looks_like_an_announcement_is_not_cut() {
        let body = SCRIPT.replace("-- no end", "-- TOC entry 9 (class 1255 OID 90)");
        assert_eq!(pieces(&body, &[entry(7, 70), entry(9, 90)]), None);
        assert_eq!(pieces(SCRIPT, &[entry(9, 90), entry(7, 70)]), None, "another order is another script");
        let alone =
            "\n-- TOC entry 7 (class 1255 OID 70)\n--\nCREATE 'x\n-- TOC entry 9 (class 1255 OID 90)\n';\n";
        let expected = "CREATE 'x\n-- TOC entry 9 (class 1255 OID 90)\n';";
        assert_eq!(alone_of(alone, &entry(7, 70)).as_deref(), Some(expected));
    }
}
