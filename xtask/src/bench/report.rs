//! The page of figures: one section for each benchmark, replaced when it is measured anew.

use super::measure::{Sample, median};
use segue_testkit::cluster::client_program;
use std::path::Path;
use std::process::Command;

const HEAD: &str = "# Benchmarks

Segue beside the floor and its peers, measured in one run by `cargo xtask bench`, which also writes this page. In each
round every contestant takes its turn, in alternating order, on the same two servers (loopback TCP, one machine); times are
medians over the rounds, ratios are medians of the ratios within a round. *CPU* is the processor time of both
servers and all clients together: on a machine that others use too it is steadier than the clock.
The servers run with `fsync`, `full_page_writes` and `synchronous_commit` on, `shared_buffers = 512MB`,
`max_wal_size = 16GB`, `wal_level = logical`.
";

/// What one benchmark found.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) command: String,
    pub(super) rounds: usize,
    pub(super) body: String,
}

impl Section {
    pub(super) fn markdown(&self) -> String {
        let Section { name, command, rounds, body } = self;
        let machine = machine();
        format!("## {name}\n\n`{command}`: {rounds} rounds; {machine}\n\n{}\n", body.trim_end())
    }
}

/// Puts a section in its place on the page, or at its end.
pub(super) fn store(page: &Path, section: &Section) -> std::io::Result<()> {
    let text = std::fs::read_to_string(page).unwrap_or_else(|_| HEAD.to_owned());
    std::fs::write(page, replaced(&text, section.name, &section.markdown()))
}

fn replaced(page: &str, name: &str, section: &str) -> String {
    let title = format!("\n## {name}\n");
    let Some(begin) = page.find(&title) else { return format!("{}\n\n{section}", page.trim_end()) };
    let after = begin + title.len();
    let end = page[after..].find("\n## ").map_or(page.len(), |at| after + at);
    format!("{}\n{section}{}", &page[..begin], &page[end..])
}

/// Who took how long in each round.
pub(super) struct Contest {
    contestants: Vec<(String, Vec<Sample>)>,
}

impl Contest {
    pub(super) fn new(names: &[&str]) -> Contest {
        Contest { contestants: names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.contestants.len()
    }

    /// The order of turns in a round: each contestant is first equally often.
    pub(super) fn order(&self, round: usize) -> Vec<usize> {
        let count = self.contestants.len();
        (0..count).map(|i| (i + round) % count).collect()
    }

    pub(super) fn add(&mut self, contestant: usize, sample: Sample) {
        let (name, samples) = &mut self.contestants[contestant];
        eprintln!("bench: {name}: {:.2} s, {:.2} s CPU", sample.seconds, sample.cpu_seconds);
        samples.push(sample);
    }

    /// A table; `amount` in `unit`s is what each turn got done, ratios are rates over that of contestant `base`.
    pub(super) fn table(&self, amount: f64, unit: &str, base: usize) -> String {
        let base_name = &self.contestants[base].0;
        let mut table = format!(
            "| contestant | s | min–max | {unit}/s | CPU s | rate ÷ {base_name} |\n|---|---:|---:|---:|---:|---:|\n"
        );
        for (i, (name, samples)) in self.contestants.iter().enumerate() {
            let seconds: Vec<f64> = samples.iter().map(|s| s.seconds).collect();
            let cpu: Vec<f64> = samples.iter().map(|s| s.cpu_seconds).collect();
            let least = seconds.iter().copied().fold(f64::INFINITY, f64::min);
            let most = seconds.iter().copied().fold(0.0, f64::max);
            table.push_str(&format!(
                "| {name} | {:.2} | {least:.2}–{most:.2} | {:.0} | {:.1} | {:.2} |\n",
                median(&seconds),
                amount / median(&seconds),
                median(&cpu),
                self.ratio(i, base),
            ));
        }
        table
    }

    /// Median of a contestant's times.
    pub(super) fn seconds(&self, contestant: usize) -> f64 {
        median(&self.contestants[contestant].1.iter().map(|sample| sample.seconds).collect::<Vec<_>>())
    }

    /// The least of all others' medians.
    pub(super) fn best_seconds(&self, but: usize) -> f64 {
        (0..self.len())
            .filter(|other| *other != but)
            .map(|other| self.seconds(other))
            .fold(f64::INFINITY, f64::min)
    }

    /// Median over the rounds of how many times as fast `contestant` was as the fastest of all others in that round.
    pub(super) fn best_ratio(&self, contestant: usize) -> f64 {
        let mut ratios = Vec::new();
        for (round, own) in self.contestants[contestant].1.iter().enumerate() {
            let others = self.contestants.iter().enumerate().filter(|(other, _)| *other != contestant);
            let best = others.map(|(_, (_, samples))| samples[round].seconds).fold(f64::INFINITY, f64::min);
            ratios.push(best / own.seconds);
        }
        median(&ratios)
    }

    /// Median over the rounds of how many times as fast `contestant` was as `base`.
    pub(super) fn ratio(&self, contestant: usize, base: usize) -> f64 {
        let rounds = self.contestants[base].1.iter().zip(&self.contestants[contestant].1);
        median(&rounds.map(|(base, one)| base.seconds / one.seconds).collect::<Vec<_>>())
    }
}

/// One line that says whether a target was met.
pub(super) fn verdict(what: &str, found: f64, wanted: f64, more_is_better: bool) -> String {
    let met = if more_is_better { found >= wanted } else { found <= wanted };
    let sign = if more_is_better { "≥" } else { "≤" };
    format!("{what}: **{found:.2}** (target {sign} {wanted}: {})\n", if met { "met" } else { "not met" })
}

/// Processor, memory, and the versions of everything measured.
fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = after(&cpuinfo, "model name").unwrap_or_default();
    let memory = after(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let memory_gib =
        memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1048576.0;
    let server = version(&client_program("postgres").to_string_lossy());
    let segue = env!("CARGO_PKG_VERSION");
    format!("{cores} × {model}, {memory_gib:.0} GiB; {server}; segue {segue}")
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    text.split(" (Debian").next().unwrap_or_default().replace("postgres (PostgreSQL)", "PostgreSQL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_in_place_and_a_new_one_appended() {
        let page = "# B\n\nhead\n\n## copy\n\nold\n\n## drain\n\nkept\n";
        assert_eq!(
            replaced(page, "copy", "## copy\n\nnew\n"),
            "# B\n\nhead\n\n## copy\n\nnew\n\n## drain\n\nkept\n"
        );
        assert_eq!(replaced("# B\n", "copy", "## copy\n\nnew\n"), "# B\n\n## copy\n\nnew\n");
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let mut contest = Contest::new(&["floor", "segue"]);
        for (round, [floor, segue]) in [[1.0, 2.0], [10.0, 5.0], [4.0, 4.0]].into_iter().enumerate() {
            for contestant in contest.order(round) {
                let seconds = [floor, segue][contestant];
                contest.add(contestant, Sample { seconds, cpu_seconds: 0.0 });
            }
        }
        assert_eq!(contest.ratio(1, 0), 1.0);
        assert!(contest.table(8.0, "rows", 0).contains("| segue | 4.00 | 2.00–5.00 | 2 | 0.0 | 1.00 |"));
    }
}
