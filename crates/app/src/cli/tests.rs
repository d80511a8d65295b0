//! Which lines are understood, and which are refused.

use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;

fn parse(line: &str) -> Result<Cli, ErrorKind> {
    Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
}

#[test]
fn the_declaration_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_documented_lines_are_understood() {
    for line in [
        "segue run",
        "segue run --until following -v",
        "segue -f other.yaml run",
        "segue status --watch --json --spec other.yaml",
        "segue verify --table public.orders --table customers --mode sample",
        "segue verify --repair --dry-run",
        "segue pause --reason lunch",
        "segue resume",
        "segue throttle --workers 2 --rate 20MiB",
        "segue throttle --off",
        "segue throttle --auto --workers 2",
        "segue cancel --drop-target-tables",
        "segue wait following --timeout 30min",
        "segue wait switched",
        "segue wait completed --json",
        "segue run --until switched",
        "segue switch writes",
        "segue switch writes --dry-run --json",
        "segue switch writes --override rehearsal --override lag --reason agreed",
        "segue switch reads 50",
        "segue reverse --override lag --reason agreed",
        "segue contain",
        "segue complete --dry-run",
        "segue complete --archive /backup --drop-source --window 72h",
        "segue document-cli",
        "segue journal --json",
        "segue schema",
        "segue demo --keep --seconds 5 --scale 1",
    ] {
        assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, kind) in [
        ("segue verify --dry-run", ErrorKind::MissingRequiredArgument),
        ("segue verify --table a.b.c", ErrorKind::ValueValidation),
        ("segue throttle", ErrorKind::MissingRequiredArgument),
        ("segue throttle --off --workers 1", ErrorKind::ArgumentConflict),
        ("segue throttle --off --auto", ErrorKind::ArgumentConflict),
        ("segue throttle --workers 0", ErrorKind::ValueValidation),
        ("segue throttle --rate 0", ErrorKind::ValueValidation),
        ("segue wait", ErrorKind::MissingRequiredArgument),
        ("segue wait somewhere", ErrorKind::InvalidValue),
        ("segue wait following --timeout soon", ErrorKind::ValueValidation),
        ("segue demo --scale 0", ErrorKind::ValueValidation),
        ("segue switch", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("segue switch everything", ErrorKind::InvalidSubcommand),
        ("segue switch reads", ErrorKind::MissingRequiredArgument),
        ("segue switch reads 101", ErrorKind::ValueValidation),
        ("segue switch writes --override lag", ErrorKind::MissingRequiredArgument),
        ("segue switch writes --reason agreed", ErrorKind::MissingRequiredArgument),
        ("segue switch writes --override moon --reason agreed", ErrorKind::ValueValidation),
        ("segue switch writes --override verified --reason agreed", ErrorKind::ValueValidation),
        ("segue reverse --override way-back --reason agreed", ErrorKind::ValueValidation),
        ("segue reverse --override lag --reason=", ErrorKind::ValueValidation),
        ("segue complete --archive backup", ErrorKind::ValueValidation),
        ("segue complete --window soon", ErrorKind::ValueValidation),
        ("segue rnu", ErrorKind::InvalidSubcommand),
    ] {
        assert_eq!(parse(line).err(), Some(kind), "{line}");
    }
}

#[test]
fn every_command_and_option_is_explained() {
    fn check(command: &clap::Command) {
        for child in command.get_subcommands() {
            assert!(child.get_about().is_some(), "{}", child.get_name());
            for argument in child.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", child.get_name(), argument.get_id());
            }
            check(child);
        }
    }
    check(&Cli::command());
}

fn refusal(line: &str) -> String {
    Cli::try_parse_from(line.split(' ')).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn an_unknown_gate_is_answered_with_those_that_there_are() {
    let text = refusal("segue switch writes --override moon --reason agreed");
    for part in ["`moon` is not a gate", "drift", "long-transactions", "sessions"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("way-back"), "what cannot be overridden is not offered: {text}");
}

#[test]
fn a_gate_that_protects_data_is_refused_with_the_reason() {
    let text = refusal("segue switch writes --override verified --reason agreed");
    assert!(text.contains("the gate `verified` protects data and cannot be overridden"), "{text}");
}
