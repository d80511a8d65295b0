//! The `segue` binary: reads the command line and hands over to the command.

mod cli;
mod commands;
mod demo;
mod drive;
mod exit;
mod load;
mod report;
mod router;
mod sides;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, SwitchWhat};
use commands::switch::Verb;
use exit::Exit;
use serde_json::json;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return not_understood(&told).into(),
    };
    log(cli.global.verbose);
    dispatch(&cli).into()
}

/// Help, and what is wrong with a command line. clap ends by itself, with 0 or 2, but has no object for a program.
fn not_understood(told: &clap::Error) -> Exit {
    if !told.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") {
        told.exit();
    }
    commands::misused(&told.to_string(), true)
}

/// Log lines go to standard error; the display has standard output to itself.
fn log(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "info,segue=debug,segue_engine=debug,segue_postgres=debug",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SEGUE_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

fn dispatch(cli: &Cli) -> Exit {
    match &cli.command {
        Command::Schema(_) => return show(&format!("{:#}\n", segue_model::spec::json_schema())),
        Command::DocumentCli(_) => return show(&cli::document::document()),
        Command::DocumentErrors(_) => return show(&cli::document::errors()),
        // It starts other `segue` processes and has a runtime of its own.
        Command::Demo(demo) => return demo::run(demo, &cli.global),
        _ => {}
    }
    let runtime = match &cli.command {
        Command::Router(_) => segue_router::runtime(),
        _ => tokio::runtime::Runtime::new(),
    };
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            commands::complain(&format!("segue: cannot start: {error}\n"));
            return Exit::Fault;
        }
    };
    let exit = runtime.block_on(command(cli));
    // Sessions that wait for a server that does not answer must not keep the process.
    runtime.shutdown_background();
    exit
}

async fn command(cli: &Cli) -> Exit {
    let json = cli.global.json;
    if let Command::Init(init) = &cli.command {
        return commands::init::run(init, &cli.global.spec, json).await;
    }
    let spec = match load::load(&cli.global.spec) {
        Ok(spec) => spec,
        Err(error) if json => {
            commands::print_json(&error.object());
            return Exit::Usage;
        }
        Err(error) => {
            commands::complain(&format!("{error}\n"));
            return Exit::Usage;
        }
    };
    match &cli.command {
        Command::Plan(plan) => commands::plan::run(&spec, plan, json).await,
        Command::Run(run) => {
            let until = run.until.map(cli::StageName::stage);
            let wanted = drive::Wanted { until, new_stream: run.new_stream };
            drive::run((spec, &cli.global.spec), wanted, json).await
        }
        Command::Router(router) => match router::Plan::new(&spec, &cli.global.spec, router.listen) {
            Ok(plan) => router::run(plan, json).await,
            Err(fault) => commands::fault(&fault, json),
        },
        Command::Status(status) => commands::status::run(&spec, status.watch, json).await,
        Command::Pause(pause) => {
            commands::order::run(&spec, "pause", &json!({ "reason": pause.reason }), json).await
        }
        Command::Resume(_) => commands::order::run(&spec, "resume", &json!({}), json).await,
        Command::Throttle(t) => {
            let limits = json!({ "workers": t.workers, "rate": t.rate, "off": t.off, "auto": t.auto });
            commands::order::run(&spec, "throttle", &limits, json).await
        }
        Command::Cancel(cancel) => commands::cancel::run(&spec, cancel.drop_target_tables, json).await,
        Command::Switch(switch) => match &switch.what {
            SwitchWhat::Reads(reads) => commands::reads::switch(&spec, reads, json).await,
            SwitchWhat::Writes(writes) => {
                commands::switch::run(&spec, Verb::Switch, writes.dry_run, &writes.overriding, json).await
            }
        },
        Command::Mirror(mirror) => commands::reads::mirror(&spec, mirror.percent, json).await,
        Command::Reverse(reverse) => {
            commands::switch::run(&spec, Verb::Reverse, reverse.dry_run, &reverse.overriding, json).await
        }
        Command::Contain(_) => commands::contain::run(&spec, json).await,
        Command::Complete(complete) => commands::complete::run(&spec, complete, json).await,
        Command::Wait(wait) => commands::wait::run(&spec, wait.stage.stage(), wait.timeout, json).await,
        Command::Journal(_) => commands::journal::run(&spec, json).await,
        Command::Verify(verify) => commands::verify::run(&spec, verify, json).await,
        Command::Init(_)
        | Command::Schema(_)
        | Command::DocumentCli(_)
        | Command::DocumentErrors(_)
        | Command::Demo(_) => Exit::Done,
    }
}

/// Prints a text that needs neither spec nor server.
fn show(text: &str) -> Exit {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Exit::Done,
        // The reader has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(error) => {
            commands::complain(&format!("segue: cannot write to standard output: {error}\n"));
            Exit::Fault
        }
    }
}
