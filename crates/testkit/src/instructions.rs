//! How many instructions a loop takes, counted by callgrind and compared with what was recorded.
//!
//! A test that calls [`HotLoop::keeps_its_instructions`] starts itself twice more under `valgrind --tool=callgrind`, once
//! with so many rounds of its loop and once with twice as many. The difference is the loop's alone: the start, the
//! preparation and whatever is done only once are in both. No other process disturbs it, and no clock is asked.
//!
//! The record is `crates/testkit/instructions.txt`; what a count depends on beside the sources stands in each of its lines
//! ([`Build`]), and counts of different builds are not compared. The crates under test are built as the tests are, hardly
//! optimized: a count tells that a loop does more than it did, not what it takes in a release.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// By how much a count may differ from its record. From run to run the seeds of hash tables make up to 1 % of it, and
/// mostly less than 0.1 %; features of dependencies and incremental builds make up to 2.5 %.
const BAND_PERCENT: f64 = 5.0;

/// Tells a test that it is the one that is counted, and how many rounds it is to go.
const ROUNDS: &str = "SEGUE_COUNTED_ROUNDS";

/// What makes all records anew.
const RECORD: &str =
    "UPDATE_EXPECTED=1 cargo nextest run --workspace --all-features -E 'test(/keeps_its_instructions$/)'";

/// A loop that is counted, and the test that runs it.
#[derive(Debug, Clone, Copy)]
pub struct HotLoop {
    /// What it is called in the record: one word.
    pub name: &'static str,
    /// The path of its test: `concat!(module_path!(), "::the_tests_name")`.
    pub test: &'static str,
    /// One of what it works on: one word, in the singular.
    pub item: &'static str,
    /// So many of them are one round.
    pub items: usize,
    /// So many rounds are counted: enough for some ten million instructions, which take a second.
    pub rounds: usize,
}

impl HotLoop {
    /// Fails if `round` takes other than the recorded number of instructions, by more than the band.
    ///
    /// `round` must do the same each time, and leave nothing behind that makes the next one dearer.
    pub fn keeps_its_instructions(&self, mut round: impl FnMut()) {
        if let Some(rounds) = std::env::var_os(ROUNDS) {
            let rounds: usize = rounds.to_str().and_then(|rounds| rounds.parse().ok()).expect("a number");
            return (0..rounds).for_each(|_| round());
        }
        let now = Count { each: self.count(), item: self.item.to_owned(), build: Build::this() };
        let records = records();
        if is_recording() {
            record(&records, self.name, &now);
        }
        match judge(recorded(&records, self.name).as_ref(), &now) {
            Verdict::Kept(what) | Verdict::NotCompared(what) => println!("{}: {what}", self.name),
            Verdict::Changed(what) => panic!(
                "{}: {what}\nwhere they are: {ROUNDS}={} valgrind --tool=callgrind {} {} --exact, then callgrind_annotate",
                self.name,
                self.rounds,
                this_program().display(),
                self.path(),
            ),
        }
    }

    /// Instructions for each item.
    fn count(&self) -> f64 {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [once, twice] = [self.rounds, 2 * self.rounds].map(|rounds| self.run(directory.path(), rounds));
        assert!(once < twice, "{}: {once} instructions for half of what took {twice}", self.name);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
        let each = (twice - once) as f64 / (self.rounds * self.items) as f64;
        each
    }

    /// Instructions of a whole process that goes so many rounds.
    fn run(&self, directory: &Path, rounds: usize) -> u64 {
        let told = directory.join(rounds.to_string());
        let mut option = std::ffi::OsString::from("--callgrind-out-file=");
        option.push(&told);
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--tool=callgrind"]).arg(option).arg(this_program());
        // In the main thread: what another one costs would be counted too.
        valgrind.args([self.path(), "--exact", "--nocapture", "--test-threads=1"]);
        let output = valgrind.env(ROUNDS, rounds.to_string()).output().unwrap_or_else(|error| {
            panic!("valgrind, which counts the instructions, cannot be started ({error}): run scripts/setup")
        });
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "`{}` did not go {rounds} rounds under valgrind ({}):\n{said}{}",
            self.path(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let counts = std::fs::read_to_string(&told).expect("callgrind writes its counts");
        let total = counts.lines().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).expect("callgrind writes a total")
    }

    /// The test as the test program calls it: without the crate.
    fn path(&self) -> &'static str {
        self.test.split_once("::").expect("a path begins with its crate").1
    }
}

fn records() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt")
}

fn is_recording() -> bool {
    std::env::var_os("UPDATE_EXPECTED").is_some()
}

fn this_program() -> PathBuf {
    std::env::current_exe().expect("the path of this program")
}

/// What a count depends on beside the sources.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Build(String);

impl Build {
    /// Compiler, machine, C library (whose allocator is a large part of some loops), and flags if there are any.
    fn this() -> Build {
        let said = |program: &str, argument: &str| {
            let output = Command::new(program).arg(argument).output();
            output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
        };
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let profile = if cfg!(debug_assertions) { "" } else { ", release" };
        let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
            .iter()
            .filter_map(|name| std::env::var(name).ok().filter(|flags| !flags.is_empty()))
            .fold(String::new(), |all, flags| all + ", " + &flags.replace('\x1f', " "));
        Build(format!(
            "{}, {}, {}{profile}{flags}",
            said(&rustc, "-V"),
            std::env::consts::ARCH,
            said("getconf", "GNU_LIBC_VERSION"),
        ))
    }
}

/// How many instructions each item takes in a build.
#[derive(Debug, Clone, PartialEq)]
struct Count {
    each: f64,
    item: String,
    build: Build,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} each {} ({})", self.each, self.item, self.build.0)
    }
}

/// Reads what [`Count`] shows.
fn read_count(text: &str) -> Option<Count> {
    let (each, rest) = text.split_once(" each ")?;
    let (item, build) = rest.split_once(" (")?;
    let build = Build(build.strip_suffix(')')?.to_owned());
    Some(Count { each: each.trim().parse().ok()?, item: item.to_owned(), build })
}

/// What becomes of a count.
#[derive(Debug, PartialEq)]
enum Verdict {
    Kept(String),
    /// The record is of another build.
    NotCompared(String),
    Changed(String),
}

fn judge(record: Option<&Count>, now: &Count) -> Verdict {
    let Count { each, item, build } = now;
    let Some(record) = record else {
        return Verdict::Changed(format!(
            "{each:.1} instructions for each {item}, and nothing is recorded; record it: {RECORD}"
        ));
    };
    let percent = (each / record.each - 1.0) * 100.0;
    let what =
        format!("{each:.1} instructions for each {item}, {:.1} were recorded ({percent:+.1} %)", record.each);
    if record.build != *build {
        Verdict::NotCompared(format!("{what}. {}", not_compared(&record.build, build)))
    } else if percent > BAND_PERCENT {
        Verdict::Changed(format!(
            "{what}: more than the {BAND_PERCENT} % that may be.\nIf that is the price of something, record it: {RECORD}"
        ))
    } else if percent < -BAND_PERCENT {
        Verdict::Changed(format!("{what}: better. Record it, or it may be lost again unnoticed: {RECORD}"))
    } else {
        Verdict::Kept(what)
    }
}

fn not_compared(recorded: &Build, here: &Build) -> String {
    format!(
        "NOTHING IS COMPARED: the record is of another build.\n  recorded: {}\n  here:     {}\n\
         Record anew from sources that were compared with the old record: {RECORD}",
        recorded.0, here.0
    )
}

fn is_of(line: &str, name: &str) -> bool {
    line.split_whitespace().next() == Some(name)
}

fn recorded(records: &Path, name: &str) -> Option<Count> {
    let mut text = String::new();
    let mut file = File::open(records).ok()?;
    // Another test may be recording.
    file.lock_shared().expect("a lock on the records");
    file.read_to_string(&mut text).expect("the records are text");
    let line = text.lines().find(|line| is_of(line, name))?;
    let count = read_count(&line[name.len()..]);
    Some(count.unwrap_or_else(|| panic!("{} cannot be read: {line}", records.display())))
}

fn record(records: &Path, name: &str, now: &Count) {
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(records).expect("the records");
    file.lock().expect("a lock on the records");
    let mut text = String::new();
    file.read_to_string(&mut text).expect("the records are text");
    let line = format!("{name:<10}{now}");
    let mut lines: Vec<&str> = text.lines().filter(|line| !is_of(line, name)).collect();
    lines.push(&line);
    lines.sort_unstable();
    file.set_len(0).and_then(|()| file.rewind()).expect("the records are begun anew");
    file.write_all((lines.join("\n") + "\n").as_bytes()).expect("the records are written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(each: f64, build: &str) -> Count {
        Count { each, item: "row".to_owned(), build: Build(build.to_owned()) }
    }

    #[test]
    fn a_count_may_differ_from_its_record_by_the_band_and_no_more() {
        let record = count(1000.0, "a");
        for (each, kept) in [(1000.0, true), (1049.0, true), (1051.0, false), (951.0, true), (949.0, false)] {
            let verdict = judge(Some(&record), &count(each, "a"));
            assert_eq!(matches!(verdict, Verdict::Kept(_)), kept, "{each}: {verdict:?}");
            assert_eq!(matches!(verdict, Verdict::Changed(_)), !kept, "{each}: {verdict:?}");
        }
    }

    #[test]
    fn what_is_not_recorded_fails_and_another_build_is_not_compared() {
        assert!(matches!(judge(None, &count(1.0, "a")), Verdict::Changed(_)));
        let verdict = judge(Some(&count(1000.0, "a")), &count(2000.0, "b"));
        let Verdict::NotCompared(what) = verdict else { panic!("{verdict:?}") };
        assert!(what.contains("+100.0 %") && what.contains("UPDATE_EXPECTED=1"), "{what}");
    }

    /// nextest shows what it prints (`.config/nextest.toml`): that nothing is compared must not pass unseen.
    #[test]
    fn the_whole_record_is_of_one_build() {
        if is_recording() {
            return;
        }
        let text = std::fs::read_to_string(records()).unwrap();
        let count = |line: &str| read_count(line.split_once(' ')?.1);
        let builds: Vec<Build> = text.lines().map(|line| count(line).expect(line).build).collect();
        let (recorded, here) = (builds.first().expect("nothing is recorded"), Build::this());
        assert!(
            builds.iter().all(|build| build == recorded),
            "it is of several; record it as a whole: {RECORD}"
        );
        if *recorded == here {
            println!("the instructions of {} hot loops are compared with their record", builds.len());
        } else {
            println!("the instructions of hot loops: {}", not_compared(recorded, &here));
        }
    }

    #[test]
    fn what_is_recorded_is_read_again_and_the_other_lines_stay() {
        let directory = tempfile::tempdir().unwrap();
        let records = directory.path().join("records");
        assert_eq!(recorded(&records, "b"), None);
        record(&records, "b", &count(2.5, "rustc 1.90.0 (x 2025-09-14), x86_64"));
        record(&records, "ab", &count(3.0, "y"));
        record(&records, "b", &count(1.5, "z (a) (b)"));
        assert_eq!(recorded(&records, "b"), Some(count(1.5, "z (a) (b)")));
        assert_eq!(recorded(&records, "ab"), Some(count(3.0, "y")));
        assert_eq!(std::fs::read_to_string(&records).unwrap().lines().count(), 2);
    }
}
