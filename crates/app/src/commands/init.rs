//! `segue init`: writes a spec from a live pair of databases, with what has to be decided marked in it.
//!
//! The servers are only read. The text is parsed by the spec's own parser before it is written.

use super::{fault, misused, print, print_json};
use crate::cli::Init;
use crate::exit::Exit;
use crate::report::bytes_text;
use crate::sides::Sides;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::{Lookup, MigrationName, Spec, redact};
use segue_postgres::inventory::{self, Listed};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// What stands for the passwords in the spec.
const PASSWORDS: [&str; 2] = ["SOURCE_PASSWORD", "TARGET_PASSWORD"];
/// What [`redact`] puts in the place of a password.
const MASK: &str = "***";

/// Writes the spec.
pub(crate) async fn run(asked: &Init, path: &Path, json: bool) -> Exit {
    let wanted = match Wanted::of(asked) {
        Ok(wanted) => wanted,
        Err(message) => return misused(&message, json),
    };
    match write(&wanted, path).await {
        Ok(tables) => {
            if json {
                print_json(&object(path, &tables));
            } else {
                print(&said(path, &wanted, &tables));
            }
            Exit::Done
        }
        Err(f) => fault(&f, json),
    }
}

/// What was asked for, checked.
struct Wanted {
    /// As they are to stand in the spec, without passwords.
    urls: [String; 2],
    /// Variables that stand for passwords which were given in clear.
    hidden: Vec<&'static str>,
    name: MigrationName,
    /// A spec that is good enough to connect with.
    spec: Spec,
}

impl Wanted {
    /// The problems are the user's, and are told as those of a spec.
    fn of(asked: &Init) -> Result<Wanted, String> {
        let lookup = |name: &str| std::env::var(name).ok();
        let given = [asked.source.clone(), asked.target.clone()];
        let spec = draft(&asked.migration, &given, &lookup)?;
        let mut hidden = Vec::new();
        let mut urls = given.clone();
        let mut secrets = BTreeMap::new();
        for ((url, variable), option) in urls.iter_mut().zip(PASSWORDS).zip(["--source", "--target"]) {
            let masked = redact(url);
            if masked == *url {
                continue;
            }
            let told = format!(
                "the password in {option} cannot be told from the rest of it: give all of it as a variable, as {option} '${{URL}}' with URL \
                 in the environment"
            );
            let Some((before, after)) = masked.split_once(MASK).filter(|(_, after)| !after.contains(MASK))
            else {
                return Err(told);
            };
            let secret = url.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            let secret = secret.ok_or_else(|| told.clone())?;
            // It is a variable already.
            if secret.starts_with("${") && secret.ends_with('}') {
                continue;
            }
            secrets.insert(variable, secret.to_owned());
            *url = format!("{before}${{{variable}}}{after}");
            hidden.push(variable);
        }
        // With the passwords in their place it is what was given: nothing else was hidden with them.
        let with_secrets = |name: &str| secrets.get(name).cloned().or_else(|| lookup(name));
        let again = draft(&asked.migration, &urls, &with_secrets)?;
        if [&again.source, &again.target].map(|url| url.expose())
            != [&spec.source, &spec.target].map(|url| url.expose())
        {
            return Err("a password on the command line cannot be told from the rest of its URL: give the URL as a variable, as '${URL}'".to_owned());
        }
        Ok(Wanted { urls, hidden, name: spec.name.clone(), spec })
    }
}

/// A spec that is good enough to connect with.
fn draft(migration: &str, [source, target]: &[String; 2], lookup: Lookup<'_>) -> Result<Spec, String> {
    let text = format!(
        "migration: {migration}\nsource: {{ postgres: {} }}\ntarget: {{ postgres: {} }}\ntables: [\"*.*\"]\n",
        quoted(source),
        quoted(target)
    );
    Spec::parse("the command line", &text, lookup).map_err(|error| error.to_string())
}

async fn write(wanted: &Wanted, path: &Path) -> Outcome<Vec<Listed>> {
    let sides = Sides::of(&wanted.spec)?;
    let source = sides.source.connect("init").await?;
    // Only to know that it is there.
    sides.target.connect("init").await?;
    let tables = inventory::tables(&source).await?;
    if tables.is_empty() {
        let what = format!("the database of {} has no tables", sides.source);
        return Err(Fault::operator("SEGUE-NO-TABLE", what, "name the database that has them in --source"));
    }
    let text = text(wanted, &tables);
    // A spec that moves nothing is refused until something is decided, which the user sees in it.
    if tables.iter().any(can_move) {
        check(&text)?;
    }
    let io = |error: std::io::Error| {
        let next = match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                "it is left as it is: name another file with -f, or move it away"
            }
            _ => "name another file with -f",
        };
        Fault::operator("SEGUE-SPEC-FILE", format!("cannot write {}: {error}", path.display()), next)
    };
    let mut file = std::fs::File::create_new(path).map_err(io)?;
    file.write_all(text.as_bytes()).map_err(io)?;
    Ok(tables)
}

/// What is written is a spec.
fn check(text: &str) -> Outcome<()> {
    // A password that is not set yet is no fault of the text's.
    let lookup = |name: &str| Some(std::env::var(name).unwrap_or_else(|_| "unknown".to_owned()));
    match Spec::parse("the spec", text, &lookup) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Fault::bug("SEGUE-INIT", format!("the spec that was made cannot be read: {error}")))
        }
    }
}

/// A YAML string: JSON's are.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

const HEAD: &str = "\
# How tables move from the source to the target; made by `segue init`. Next: `segue plan`.
# `segue schema > segue.schema.json` has editors complete and check this file.
";

const TAIL: &str = "
# What follows are the defaults of this profile, for those who want others.
# copy: { workers: 2, region_target: 5s }          # regions at a time, and how long one should last
# limits: { retained_wal: 10GiB, memory: 256MiB }  # what the source may keep, what Segue may take
# switch: { max_write_hold: 2s }                   # how long writes may wait for a switch, before it is undone
# guard: { ddl: true }                             # refuse DDL that the stream cannot follow, if the role may
# router: { listen: \"127.0.0.1:6432\" }             # have applications come by way of Segue: they do not notice a switch
";

fn text(wanted: &Wanted, tables: &[Listed]) -> String {
    let [source, target] = &wanted.urls;
    let mut text = HEAD.to_owned();
    let _ = writeln!(text, "migration: {}", wanted.name);
    text.push_str("profile: prod          # dev | staging | prod: decides defaults, never what is safe\n");
    let _ = writeln!(text, "source: {{ postgres: {} }}", quoted(source));
    let _ = writeln!(text, "target: {{ postgres: {} }}", quoted(target));
    text.push_str("# control: { postgres: … }   # where the journal is; the target unless it says otherwise\n\ntables:\n");
    if !tables.iter().any(can_move) {
        text.push_str("  # nothing can move as it is: decide, then take the # away\n  []\n");
    }
    for table in tables {
        describe(table, &mut text);
    }
    text.push_str(TAIL);
    text
}

fn can_move(table: &Listed) -> bool {
    table.decisions.iter().all(|decision| decision.can_move)
}

fn describe(table: &Listed, text: &mut String) {
    let name = quoted(&table.name.to_string());
    for decision in &table.decisions {
        let _ = writeln!(text, "  # DECIDE: {} {}", table.name, decision.what);
        for (at, choice) in decision.choices.iter().enumerate() {
            let _ = writeln!(text, "  #   {} {choice}", if at == 0 { "either" } else { "or    " });
        }
    }
    let size = format!("about {} rows, {}", table.rows, bytes_text(table.bytes));
    let mark = if can_move(table) { "- " } else { "# - " };
    let _ = writeln!(text, "  {mark}{name:<40} # {size}");
}

/// What was written, as an object.
pub(crate) fn object(path: &Path, tables: &[Listed]) -> Value {
    let decisions: Vec<Value> = tables
        .iter()
        .flat_map(|table| table.decisions.iter().map(move |decision| (table, decision)))
        .map(|(table, decision)| {
            json!({
                "table": table.name.to_string(),
                "what": decision.what,
                "choices": decision.choices,
                "can_move": decision.can_move,
            })
        })
        .collect();
    let moving = tables.iter().filter(|table| can_move(table)).count();
    json!({ "spec": path.display().to_string(), "tables": moving, "decisions": decisions })
}

fn said(path: &Path, wanted: &Wanted, tables: &[Listed]) -> String {
    let undecided: Vec<&Listed> = tables.iter().filter(|table| !table.decisions.is_empty()).collect();
    let moving = tables.iter().filter(|table| can_move(table)).count();
    let mut text = format!("wrote {}: {moving} tables move\n", path.display());
    if !undecided.is_empty() {
        let _ = writeln!(text, "{} need a decision, and are marked DECIDE in it:", undecided.len());
        for table in undecided {
            for decision in &table.decisions {
                let _ = writeln!(text, "  {} {}", table.name, decision.what);
            }
        }
    }
    for variable in &wanted.hidden {
        let _ = writeln!(
            text,
            "the password is not in it: set the variable {variable}. And give none on a command line, which others see"
        );
    }
    text.push_str("next: `segue plan`\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_model::name::QualifiedName;
    use segue_postgres::inventory::Decision;

    fn asked(source: &str) -> Init {
        Init { source: source.into(), target: "postgres://b/d".into(), migration: "m".into() }
    }

    fn table(name: &str, can_move: Option<bool>) -> Listed {
        let decision =
            |can_move| Decision { what: "is odd".into(), choices: vec!["a".into(), "b".into()], can_move };
        let decisions = can_move.map(decision).into_iter().collect();
        Listed { name: QualifiedName::new("public", name), rows: 3, bytes: 8192, decisions }
    }

    #[test]
    fn a_spec_has_what_moves_and_what_has_to_be_decided() {
        let wanted = Wanted::of(&asked("postgres://u:secret@a/d")).unwrap();
        let tables = [table("a", None), table("Odd: \"#", Some(false)), table("c", Some(true))];
        let text = text(&wanted, &tables);
        check(&text).unwrap();
        let spec = Spec::parse("s", &text, &|_| Some("x".to_owned())).unwrap();
        assert_eq!(spec.selection.tables.len(), 2);
        assert!(text.contains("  # DECIDE: ") && text.contains("  #   or     b"), "{text}");
        assert!(text.contains("${SOURCE_PASSWORD}") && !text.contains("secret"), "{text}");
        let said = said(Path::new("x.yaml"), &wanted, &tables);
        assert!(
            said.contains("set the variable SOURCE_PASSWORD") && said.contains("2 need a decision"),
            "{said}"
        );
    }

    #[test]
    fn no_password_is_written_and_nothing_else_is_lost_with_one() {
        let url = |source: &str| Wanted::of(&asked(source)).map(|wanted| wanted.urls[0].clone());
        assert_eq!(
            url("postgres://u:secret@a:5/d?x=1"),
            Ok("postgres://u:${SOURCE_PASSWORD}@a:5/d?x=1".into())
        );
        assert_eq!(
            url("host=a password=secret user=u"),
            Ok("host=a password=${SOURCE_PASSWORD} user=u".into())
        );
        assert_eq!(url("postgres://u:${PATH}@a/d"), Ok("postgres://u:${PATH}@a/d".into()));
        assert_eq!(
            url("postgres://u:secret@${HOME}/d"),
            Ok("postgres://u:${SOURCE_PASSWORD}@${HOME}/d".into())
        );
    }

    #[test]
    fn a_database_in_which_nothing_can_move_is_no_fault() {
        let text = text(&Wanted::of(&asked("postgres://a/d")).unwrap(), &[table("a", Some(false))]);
        assert!(text.contains("  []\n"), "{text}");
    }

    #[test]
    fn problems_of_the_command_line_are_told_as_those_of_a_spec() {
        let error = Wanted::of(&asked("mysql://a/d")).err().unwrap();
        assert!(error.contains("mysql"), "{error}");
        let error = Wanted::of(&Init { migration: "No!".into(), ..asked("postgres://a/d") }).err().unwrap();
        assert!(error.contains("migration"), "{error}");
    }
}
