//! `cargo xtask bench`: how fast Segue is beside its peers and floors, all measured in one run.
//!
//! Machines are shared and drift, so contestants take turns within each round and what counts is the ratio within a
//! round; of those, and of the times, the medians are shown. The servers' durability settings are those of production.
//! A measurement that cannot be made ends the run with a panic: nothing is reported that was not measured.

mod copy;
mod digest;
mod drain;
mod latency;
mod measure;
mod pair;
mod pgbouncer;
mod plan;
mod report;
mod router;
mod source;
mod switch;
mod throttle;

use crate::tidy::this_workspace;
use report::Section;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Fewer rounds give no median worth the name.
const ROUNDS_MIN: usize = 3;

/// What to measure, and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    parts: Vec<Part>,
    rounds: usize,
    /// Share of the whole size.
    scale: f64,
}

/// One benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Copy,
    Drain,
    Latency,
    Digest,
    Switch,
    Router,
    Plan,
    Throttle,
    Source,
}

impl Part {
    const ALL: [Part; 9] = [
        Part::Copy,
        Part::Drain,
        Part::Latency,
        Part::Digest,
        Part::Switch,
        Part::Router,
        Part::Plan,
        Part::Throttle,
        Part::Source,
    ];

    fn name(self) -> &'static str {
        match self {
            Part::Copy => "copy",
            Part::Drain => "drain",
            Part::Latency => "latency",
            Part::Digest => "digest",
            Part::Switch => "switch",
            Part::Router => "router",
            Part::Plan => "plan",
            Part::Throttle => "throttle",
            Part::Source => "source",
        }
    }
}

impl Options {
    /// Reads the command line after `bench`.
    pub fn parse(arguments: &[String]) -> Result<Options, String> {
        let mut options = Options { parts: Vec::new(), rounds: ROUNDS_MIN, scale: 1.0 };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--rounds" => {
                    options.rounds = value()?.parse().map_err(|e| format!("--rounds: {e}"))?;
                    if options.rounds == 0 {
                        return Err("--rounds: at least 1".to_owned());
                    }
                }
                "--scale" => {
                    options.scale = value()?.parse().map_err(|e| format!("--scale: {e}"))?;
                    if !(options.scale > 0.0 && options.scale <= 10.0) {
                        return Err("--scale: more than 0, at most 10".to_owned());
                    }
                }
                "all" => options.parts.extend(Part::ALL),
                name => {
                    let part = Part::ALL.into_iter().find(|part| part.name() == name);
                    options.parts.push(part.ok_or_else(|| format!("no benchmark `{name}`"))?);
                }
            }
        }
        if options.parts.is_empty() {
            options.parts.extend(Part::ALL);
        }
        Ok(options)
    }

    /// `whole` at this scale, at least 1.
    fn scaled(&self, whole: u64) -> u64 {
        ((whole as f64 * self.scale) as u64).max(1)
    }

    /// Only the whole size with enough rounds is worth remembering.
    fn is_whole(&self) -> bool {
        self.scale == 1.0 && self.rounds >= ROUNDS_MIN
    }

    fn command(&self, part: Part) -> String {
        let mut command = format!("cargo xtask bench {}", part.name());
        if self.rounds != ROUNDS_MIN {
            command.push_str(&format!(" --rounds {}", self.rounds));
        }
        if self.scale != 1.0 {
            command.push_str(&format!(" --scale {}", self.scale));
        }
        command
    }
}

/// Is one of the proxies that are measured: each is a process of its own, whose processor time tells its cost.
pub fn serve_proxy(arguments: &[String]) -> ExitCode {
    match router::serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints, and writes what is whole to `docs/benchmarks.md`.
pub fn run(options: &Options) -> ExitCode {
    // The router is measured without it.
    if options.parts.iter().any(|part| *part != Part::Router) && !build_segue() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("xtask: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let page = this_workspace().join("docs/benchmarks.md");
    for &part in &options.parts {
        let section = runtime.block_on(measure(part, options));
        println!("{}", section.markdown());
        if options.is_whole()
            && let Err(error) = report::store(&page, &section)
        {
            eprintln!("xtask: cannot write {}: {error}", page.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn measure(part: Part, options: &Options) -> Section {
    let body = match part {
        Part::Copy => copy::measure(options).await,
        Part::Drain => drain::measure(options).await,
        Part::Latency => latency::measure(options).await,
        Part::Digest => digest::measure(options).await,
        Part::Switch => switch::measure(options).await,
        Part::Router => router::measure(options).await,
        Part::Plan => plan::measure(options).await,
        Part::Throttle => throttle::measure(options).await,
        Part::Source => source::measure(options).await,
    };
    Section { name: part.name(), command: options.command(part), rounds: options.rounds, body }
}

/// The release build of the binary that is measured, put beside this program.
fn build_segue() -> bool {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let program = pair::segue_program();
    let Some(target) = program.parent().and_then(Path::parent) else { return false };
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "segue", "--target-dir"])
        .arg(target)
        .current_dir(this_workspace())
        .status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_name_everything_is_measured_at_full_size() {
        let options = parse("").unwrap();
        assert_eq!(options.parts, Part::ALL);
        assert!(options.is_whole());
    }

    #[test]
    fn a_command_says_what_was_asked_for() {
        let options = parse("drain copy --rounds 5 --scale 0.1").unwrap();
        assert_eq!(options.parts, [Part::Drain, Part::Copy]);
        assert_eq!(options.command(Part::Copy), "cargo xtask bench copy --rounds 5 --scale 0.1");
        assert!(!options.is_whole());
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for line in ["speed", "--rounds", "--rounds 0", "--scale -1", "--scale x"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
