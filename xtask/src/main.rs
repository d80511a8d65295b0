//! `cargo xtask TASK`: hands over to the task.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str =
    "usage: cargo xtask tidy [ROOT]    check the rules of the source tree (of another checkout: ROOT)";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let root = arguments.next().map_or_else(xtask::tidy::this_workspace, PathBuf::from);
    match (task.as_deref(), arguments.next()) {
        (Some("tidy"), None) => xtask::tidy::run(&root),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
