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
use std::collections::{BTreeSet, HashMap, HashSet};
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

    /// Writes down everything that comes before the rows. Whoever reads it picks from it: more may be in it.
    pub(super) async fn dump(&self, source: &Endpoint, what: &Dumped) -> Outcome<Archive> {
        let directory = tempfile::tempdir().map_err(|e| unusable("a directory for the dump", &e))?;
        let file = directory.path().join("schema.dump");
        let mut arguments: Vec<OsString> = [
            "--format=custom",
            "--section=pre-data",
            // Or it would ask each sequence that is there where it stands, and list each large object.
            "--schema-only",
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
        let of = |option: &str, tables: &[QualifiedName]| -> Vec<OsString> {
            let argument = |table: &QualifiedName| {
                format!("{option}={}.{}", quote_ident(&table.schema), quote_ident(&table.name)).into()
            };
            tables.iter().map(argument).collect()
        };
        arguments.extend(match what {
            Dumped::NoTables => vec!["--exclude-table=*.*".into()],
            Dumped::Only(tables) => of("--table", tables),
            Dumped::AllBut(tables) => of("--exclude-table", tables),
        });
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

/// What a dump has. A table that it has was locked for it, which takes a right on the table; and each name costs a question.
pub(super) enum Dumped {
    /// Everything but relations.
    NoTables,
    /// These relations, what belongs to them, and nothing else.
    Only(Vec<QualifiedName>),
    /// Everything but these relations.
    AllBut(Vec<QualifiedName>),
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
    /// The entries that have to be made before.
    needs: Vec<u32>,
}

/// Those of `entries` that make one of `objects`, and those without an object of their own that belong to such entries alone:
/// what attaches a partition, or gives a sequence its owner.
pub(super) fn making(entries: Vec<Entry>, objects: &HashSet<(u32, u32)>) -> Vec<Entry> {
    /// The number of `pg_class`, which is the same everywhere.
    const RELATIONS: u32 = 1259;
    // In place of what is not in the archive, an entry names what that needs: a schema, a type.
    let relations = entries.iter().filter(|entry| entry.object.0 == RELATIONS);
    let there: HashMap<u32, bool> =
        relations.map(|entry| (entry.id, objects.contains(&entry.object))).collect();
    let is_wanted = |entry: &Entry| {
        if entry.object != (0, 0) {
            return objects.contains(&entry.object);
        }
        let mut needed = entry.needs.iter().filter_map(|id| there.get(id)).peekable();
        needed.peek().is_some() && needed.all(|wanted| *wanted)
    };
    entries.into_iter().filter(is_wanted).collect()
}

impl Archive {
    /// What is in it, in the order in which it can be made.
    pub(super) async fn contents(&self) -> Outcome<Vec<Entry>> {
        let output = self.restore(&["--list", "--verbose"]).await?;
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

/// `215; 1259 16386 TABLE public orders owner`; what it needs is said after it, as `;\tdepends on: 213 214`.
fn entries(list: &str) -> Vec<Entry> {
    let entry = |line: &str| {
        let (id, rest) = line.split_once("; ")?;
        let mut words = rest.splitn(3, ' ');
        let object = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(Entry { id: id.parse().ok()?, object, what: words.next()?.to_owned(), needs: Vec::new() })
    };
    let mut all: Vec<Entry> = Vec::new();
    for line in list.lines() {
        if let Some(entry) = entry(line) {
            all.push(entry);
        } else if let (Some(needs), Some(last)) = (line.strip_prefix(";\tdepends on:"), all.last_mut()) {
            last.needs = needs.split(' ').filter_map(|id| id.parse().ok()).collect();
        }
    }
    all
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
    fn what_a_program_says_of_its_failure_is_what_is_told() {
        use std::os::unix::process::ExitStatusExt;
        let tools = Tools { directory: PathBuf::from("/usr/bin") };
        let output = |code: i32, said: &str| Output {
            status: std::process::ExitStatus::from_raw(code << 8),
            stdout: Vec::new(),
            stderr: said.as_bytes().to_vec(),
        };
        assert_eq!(tools.succeeded("pg_dump", &output(0, "pg_dump: warning: circular\n")), Ok(()));
        let said = "pg_dump: warning: circular\n\npg_dump: error: query failed: ERROR:  permission denied for table t\npg_dump: detail: x\n";
        let fault = tools.succeeded("pg_dump", &output(1, said)).unwrap_err();
        assert_eq!(fault.code, "SEGUE-PG-DUMP");
        assert!(
            fault.what.starts_with("/usr/bin/pg_dump failed") && !fault.what.contains("circular"),
            "{fault}"
        );
        assert!(fault.what.ends_with("permission denied for table t; pg_dump: detail: x"), "{fault}");
    }

    #[test]
    fn a_table_of_contents_is_read_whatever_names_it_holds() {
        let list = ";\n; Archive created at 2026\n;     TOC Entries: 3\n215; 1259 16386 TABLE public a; b owner\n\
                    3370; 0 0 SEQUENCE OWNED BY public s owner\n;\tdepends on: 214 215\n";
        let read = entries(list);
        let objects: Vec<_> = read.iter().map(|entry| (entry.id, entry.object)).collect();
        assert_eq!(objects, [(215, (1259, 16386)), (3370, (0, 0))]);
        assert_eq!(read[0].what, "TABLE public a; b owner");
        let needs: Vec<_> = read.iter().map(|entry| entry.needs.as_slice()).collect();
        assert_eq!(needs, [&[][..], &[214, 215]]);
    }

    fn entry(id: u32, oid: u32) -> Entry {
        Entry { id, object: (1255, oid), what: String::new(), needs: Vec::new() }
    }

    #[test]
    fn what_is_no_object_comes_along_with_the_relations_that_it_is_about_and_else_stays() {
        let of = |id, object, needs: &[u32]| Entry { id, object, what: String::new(), needs: needs.into() };
        let table = |id, oid| of(id, (1259, oid), &[]);
        let about = |id, needs: &[u32]| of(id, (0, 0), needs);
        let all = vec![
            table(1, 10),
            table(2, 20),
            table(3, 30),
            of(9, (2615, 2200), &[]),
            about(4, &[1, 2]),
            about(5, &[2, 3]),
            // 99 is not in the archive, and 9 is a schema.
            about(6, &[99, 1]),
            about(7, &[99, 9]),
            about(8, &[]),
            about(10, &[1, 9]),
        ];
        // Of the same number in another catalog.
        let wanted = HashSet::from([(1259, 10), (1259, 20), (1255, 30)]);
        let made: Vec<u32> = making(all, &wanted).iter().map(|entry| entry.id).collect();
        assert_eq!(made, [1, 2, 4, 6, 10]);
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
