//! `cargo xtask TASK`: hands over to the task.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage:
  cargo xtask tidy [ROOT]    check the rules of the source tree (of another checkout: ROOT)
  cargo xtask bench [copy|drain|latency|digest|switch|router|plan|throttle|source|all] [--rounds N] [--scale F]
                             measure beside the peers; the whole size goes to docs/benchmarks.md
  cargo xtask scale          how long 10 TB under load would take, by what a row costs";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match (task.as_deref(), rest.as_slice()) {
        (Some("tidy"), []) => xtask::tidy::run(&xtask::tidy::this_workspace()),
        (Some("tidy"), [root]) => xtask::tidy::run(&PathBuf::from(root)),
        (Some("bench"), options) => match xtask::bench::Options::parse(options) {
            Ok(options) => xtask::bench::run(&options),
            Err(why) => usage(&why),
        },
        (Some("scale"), []) => {
            println!("{}", xtask::scale::table());
            ExitCode::SUCCESS
        }
        // Started by the benchmark of the router.
        (Some("bench-proxy"), arguments) => xtask::bench::serve_proxy(arguments),
        _ => usage("no such task"),
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("xtask: {why}\n{USAGE}");
    ExitCode::from(2)
}
