//! The `segue` binary: reads the command line and hands over to the command.

mod cli;
mod demo;
mod exit;
mod load;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Global};
use exit::Exit;

fn main() -> ExitCode {
    // clap ends with 2 by itself when the command line is wrong.
    let cli = Cli::parse();
    dispatch(&cli).into()
}

fn dispatch(cli: &Cli) -> Exit {
    match &cli.command {
        Command::Schema(_) => schema(),
        Command::Demo(demo) => demo::run(demo, &cli.global),
        Command::Run(_) => with_spec(&cli.global, "run"),
        Command::Status(_) => with_spec(&cli.global, "status"),
        Command::Verify(_) => with_spec(&cli.global, "verify"),
        Command::Pause(_) => with_spec(&cli.global, "pause"),
        Command::Resume(_) => with_spec(&cli.global, "resume"),
        Command::Throttle(_) => with_spec(&cli.global, "throttle"),
        Command::Cancel(_) => with_spec(&cli.global, "cancel"),
        Command::Wait(_) => with_spec(&cli.global, "wait"),
        Command::Journal(_) => with_spec(&cli.global, "journal"),
    }
}

/// Loads the spec, as every command of a migration does first.
fn with_spec(global: &Global, name: &str) -> Exit {
    match load::load(&global.spec) {
        Ok(_spec) => not_built_yet(name),
        Err(error) => {
            eprintln!("{error}");
            Exit::Usage
        }
    }
}

fn not_built_yet(name: &str) -> Exit {
    eprintln!("`segue {name}` cannot be done by this build");
    Exit::Fault
}

fn schema() -> Exit {
    let text = format!("{:#}\n", segue_model::spec::json_schema());
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Done,
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            eprintln!("cannot write the schema: {error}");
            Exit::Fault
        }
    }
}
