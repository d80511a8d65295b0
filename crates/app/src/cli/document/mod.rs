//! `docs/cli.md`, made from the declarations: what clap knows of each command, and a few tables beside it.
//!
//! [`commands`] says how each command can end and which faults matter to it, [`faults`] what each means (and so
//! `docs/errors.md`), [`gates`] what
//! each gate asks for, [`objects`] what `--json` prints, as values of the very types. Pure: the same build makes the same text.

mod commands;
mod faults;
mod gates;
mod objects;

use super::Cli;
use crate::exit::Exit;
use clap::{Arg, ArgAction, Command, CommandFactory};
use commands::Facts;
use faults::FAULTS;
pub(crate) use faults::errors;
use objects::Object;
use std::fmt::Write;

const HEAD: &str = "\
# The command line

Made from the program by `segue document-cli > docs/cli.md`; a test fails when it is stale. `segue help COMMAND` says the
same on a terminal.

";

const JSON: &str = "\
With `--json` a command prints objects instead of text, one a line. Their fields are stable: new ones are added, none changes
its meaning. A command that ends with a fault prints this one, whatever else it is asked for:

";

/// The whole text.
pub(crate) fn document() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = HEAD.to_owned();
    text.push_str(&about(&root));
    text.push_str("\n## Commands\n\n| command | what it does |\n|---|---|\n");
    for (name, command) in leaves(&root) {
        let what = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "| [`segue {name}`](#{}) | {} |", anchor(&name), cell(&what));
    }
    text.push_str("\n## Options of every command\n\n");
    text.push_str(&options(root.get_arguments().filter(|a| a.is_global_set())));
    text.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "| {} | {} |", exit.code(), cell(exit.meaning()));
    }
    text.push_str("\n## Objects\n\n");
    text.push_str(JSON);
    text.push_str(&object(&objects::fault()));
    text.push('\n');
    text.push_str(&object(&objects::wrong_spec()));
    for (name, command) in leaves(&root) {
        text.push_str(&section(&name, command));
    }
    text.push_str(
        "\n## Gates\n\nWhat is looked at before reads or writes are moved. What was not measured is red.\n\n",
    );
    text.push_str(&gates::table());
    text.push_str("\n## Faults\n\n");
    text.push_str(&faults_table());
    text
}

/// The commands that do something, in the order of the help, each with its full name.
fn leaves(root: &Command) -> Vec<(String, &Command)> {
    fn gather<'c>(command: &'c Command, prefix: &str, found: &mut Vec<(String, &'c Command)>) {
        for child in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
            let name = format!("{prefix}{}", child.get_name());
            if child.has_subcommands() {
                gather(child, &format!("{name} "), found);
            } else {
                found.push((name, child));
            }
        }
    }
    let mut found = Vec::new();
    gather(root, "", &mut found);
    found
}

fn section(name: &str, command: &Command) -> String {
    let mut text = format!("\n## segue {name}\n\n{}", about(command));
    let usage = command.clone().render_usage().to_string();
    let _ = write!(text, "\n```text\n{}\n```\n", usage.trim_start_matches("Usage: ").trim());
    let own = options(command.get_arguments().filter(|a| !a.is_global_set()));
    if !own.is_empty() {
        let _ = write!(text, "\n{own}");
    }
    if let Some(examples) = examples(command) {
        let _ = write!(text, "\nExamples:\n\n```text\n{examples}\n```\n");
    }
    if command.get_arguments().any(|a| a.get_id() == "override") {
        text.push_str("\nThe gates are [below](#gates).\n");
    }
    if let Some(facts) = commands::of(name) {
        text.push_str(&ends(facts));
        for (at, shown) in (facts.objects)().iter().enumerate() {
            text.push_str(if at == 0 { "\n`--json` prints:\n\n" } else { "\n" });
            text.push_str(&object(shown));
        }
    }
    text
}

/// What a command does: its first line, and the paragraphs of its long help.
fn about(command: &Command) -> String {
    let long = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let mut text = long.trim().to_owned();
    // The long help of a command begins with its short one, which has no full stop.
    if let Some((first, rest)) = text.split_once("\n\n") {
        text = format!("{}.\n\n{rest}", first.trim_end_matches('.'));
    } else if !text.ends_with('.') {
        text.push('.');
    }
    text.push('\n');
    text
}

fn examples(command: &Command) -> Option<String> {
    let text = command.get_after_long_help()?.to_string();
    let (first, rest) = text.split_once('\n')?;
    first.starts_with("Example").then(|| {
        let lines: Vec<&str> = rest.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
        lines.join("\n").trim_end().to_owned()
    })
}

/// A table of options; empty without any.
fn options<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let own = arguments.filter(|a| !a.is_hide_set() && !matches!(a.get_id().as_str(), "help" | "version"));
    let rows: String = own.map(|a| format!("| {} | {} |\n", spelling(a), cell(&explanation(a)))).collect();
    if rows.is_empty() { rows } else { format!("| option | what it does |\n|---|---|\n{rows}") }
}

/// How an option is written: `-f`, `--spec FILE`.
fn spelling(argument: &Arg) -> String {
    let value = match argument.get_action() {
        ArgAction::Set | ArgAction::Append => {
            argument.get_value_names().map_or_else(String::new, |names| names[0].to_string())
        }
        _ => String::new(),
    };
    let long = argument.get_long().map(|long| format!("`--{long} {value}`").replace(" `", "`"));
    let short = argument.get_short().map(|short| format!("`-{short}`"));
    let words: Vec<String> = short.into_iter().chain(long).collect();
    if words.is_empty() { format!("`{value}`") } else { words.join(", ") }
}

/// What an option does, what it can be, and what it is when it is not given.
fn explanation(argument: &Arg) -> String {
    let mut text =
        argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    if argument.get_action().takes_values() {
        let values: Vec<String> = argument
            .get_possible_values()
            .iter()
            .map(|v| {
                let help = v.get_help().map(|help| format!(" ({help})")).unwrap_or_default();
                format!("`{}`{help}", v.get_name())
            })
            .collect();
        if !values.is_empty() {
            let _ = write!(text, ": {}", values.join(", "));
        }
        let defaults: Vec<_> = argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if !defaults.is_empty() {
            let _ = write!(text, "; by default `{}`", defaults.join(" "));
        }
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(text, "; also set by the variable `{}`", variable.to_string_lossy());
    }
    if argument.is_positional() && !argument.is_required_set() {
        text.push_str("; may be left out");
    }
    text
}

/// How a command can end, and the faults that matter to it.
fn ends(facts: &Facts) -> String {
    let mut text = "\nEnds with:\n\n| code | when |\n|---|---|\n".to_owned();
    for (exit, when) in facts.ends {
        let _ = writeln!(text, "| {} | {} |", exit.code(), cell(when));
    }
    if !facts.faults.is_empty() {
        let codes: Vec<String> = facts
            .faults
            .iter()
            .map(|code| format!("[`{code}`](errors.md#{})", code.to_lowercase()))
            .collect();
        let _ = write!(text, "\nFaults to know: {}.\n", codes.join(", "));
    }
    text
}

/// An example of an object, and what its fields are.
fn object(shown: &Object) -> String {
    let fields: String =
        shown.fields.iter().map(|(path, what)| format!("| `{path}` | {} |\n", cell(what))).collect();
    let table =
        if fields.is_empty() { fields } else { format!("\n| field | what it is |\n|---|---|\n{fields}") };
    format!("{}\n\n```json\n{:#}\n```\n{table}", shown.when, shown.value)
}

fn faults_table() -> String {
    let mut text = "Every fault has a code that does not change, says what happened to which object, and names the next step; \
        the step in the message is always the more exact one. All of them are in [errors.md](errors.md); the common ones:\n\n| code | what happened | what to do |\n\
        |---|---|---|\n"
        .to_owned();
    for fault in FAULTS {
        let _ = writeln!(
            text,
            "| [`{}`](errors.md#{}) | {} | {} |",
            fault.code,
            fault.code.to_lowercase(),
            cell(fault.what),
            cell(fault.next)
        );
    }
    text
}

/// Text inside a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The place of a command's section, as GitHub names it.
fn anchor(name: &str) -> String {
    format!("segue-{}", name.replace(' ', "-"))
}

#[cfg(test)]
mod tests;
