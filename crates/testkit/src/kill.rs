//! Running a program under test as a process, watching what it says, and killing it at chosen moments.
//!
//! **Kill points.** A program built with its feature `killpoints` names moments at which a crash is interesting.
//! `SEGUE_KILL_AT=<point>[:n]` makes it kill itself (SIGKILL) at the n-th passage of a point, the first by default.
//! `SEGUE_KILL_REPORT=1` makes it write a line `killpoint <point>` to its standard error at every passage, which
//! is how a test learns the list. `SEGUE_STOP_FILE=<path>` makes it freeze (SIGSTOP) at the point that this file names,
//! after removing it and a line `stopped at <point>`. The program's side of this lives in the program.

use crate::cluster::{is_stopped, signal};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const REPORT_PREFIX: &str = "killpoint ";
/// A program that logs without end does not take the machine's memory with it.
const LINES_MAX: usize = 200_000;
/// How long the streams of an ended program are read on for while another process holds them.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Makes the program kill itself at the `passage`-th time (from 1) it comes by `point`.
pub fn kill_at(command: &mut Command, point: &str, passage: u32) {
    command.env("SEGUE_KILL_AT", format!("{point}:{passage}"));
}

/// Freezes a program at points that are chosen while it runs.
#[derive(Debug)]
pub struct Stops(PathBuf);

impl Stops {
    /// Lets `command` be frozen by way of `file`, which must not exist.
    pub fn of(command: &mut Command, file: PathBuf) -> Stops {
        command.env("SEGUE_STOP_FILE", &file);
        Stops(file)
    }

    /// The next passage of `point` is to freeze the program; see [`Process::stopped_at`].
    pub fn at(&self, point: &str) {
        let whole = self.0.with_extension("whole");
        let written = std::fs::write(&whole, point).and_then(|()| std::fs::rename(&whole, &self.0));
        written.expect("name the point");
    }
}

/// Makes the program report the points it passes; see [`Process::points_passed`].
pub fn report_points(command: &mut Command) {
    command.env("SEGUE_KILL_REPORT", "1");
}

/// A started program; dropping it kills it, and so does the end of the test process, however it comes.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    pid: u32,
    lines: Arc<Mutex<Vec<String>>>,
    /// One for each stream; a reader ends with its stream, that is with the last process that holds it.
    readers: [JoinHandle<()>; 2],
    _watchdog: Watchdog,
}

/// What did not happen in time, with the program's last words.
#[derive(Debug, thiserror::Error)]
#[error("{missed} within {limit:?}; the program's last lines:\n{tail}")]
pub struct Overdue {
    missed: String,
    limit: Duration,
    tail: String,
}

impl Process {
    /// Starts the program with its output, both streams, captured line by line.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let pid = child.id();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let readers = [
            capture(child.stdout.take().expect("piped"), &lines),
            capture(child.stderr.take().expect("piped"), &lines),
        ];
        Process { child: Mutex::new(child), pid, lines, readers, _watchdog: Watchdog::over(pid) }
    }

    /// The process id; it is the leader of its own process group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// All lines so far, both streams in the order they were read.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// How many lines there are: give it to [`Process::wait_for_since`] to hear only of later ones.
    pub fn mark(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    /// The first line that contains `words`, waiting for it if it has not come yet.
    pub async fn wait_for(&self, words: &str, limit: Duration) -> Result<String, Overdue> {
        self.wait_for_since(0, words, limit).await
    }

    /// As [`Process::wait_for`], of the lines after a mark. Ends early when the program has.
    pub async fn wait_for_since(&self, mark: usize, words: &str, limit: Duration) -> Result<String, Overdue> {
        let deadline = Instant::now() + limit;
        let mut ended = false;
        loop {
            let found =
                self.lines.lock().unwrap().iter().skip(mark).find(|line| line.contains(words)).cloned();
            if let Some(line) = found {
                return Ok(line);
            }
            if ended || Instant::now() > deadline {
                return Err(self.overdue(format!("no line with {words:?}"), limit));
            }
            if self.status().is_some() {
                self.heard_out().await;
                ended = true;
            } else {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Returns when all that an ended program said has been read. A child of it that lives on keeps the streams open:
    /// that one is not waited for.
    async fn heard_out(&self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.readers.iter().all(JoinHandle::is_finished) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// How it ended; `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().expect("wait for the program")
    }

    /// Waits for its end, and until all that it said is in [`Process::lines`].
    pub async fn wait(&self, limit: Duration) -> Result<ExitStatus, Overdue> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.status() {
                self.heard_out().await;
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.overdue("no end".to_owned(), limit));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill9(&self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits until it has frozen itself at a point of [`Stops::at`]; [`Process::thaw`] lets it go on.
    pub async fn stopped_at(&self, point: &str, limit: Duration) -> Result<(), Overdue> {
        self.stopped_since(0, point, limit).await
    }

    /// As [`Process::stopped_at`], of a program that has been frozen before: after a [`Process::mark`].
    pub async fn stopped_since(&self, mark: usize, point: &str, limit: Duration) -> Result<(), Overdue> {
        self.wait_for_since(mark, &format!("stopped at {point}"), limit).await?;
        let deadline = Instant::now() + limit;
        while !is_stopped(self.pid) {
            if Instant::now() > deadline {
                return Err(self.overdue(format!("it is not frozen at {point}"), limit));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Freezes it (SIGSTOP), as a machine that swaps or a paused container does.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets a frozen program go on (SIGCONT).
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Asks it to read its configuration again (SIGHUP).
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    /// Says that its time is up, as its own clock does (SIGALRM): pgbench then finishes what it has begun, and reports.
    pub fn alarm(&self) {
        self.signal("ALRM");
    }

    /// What a Ctrl-C at its terminal does (SIGINT).
    pub fn interrupt(&self) {
        self.signal("INT");
    }

    fn signal(&self, name: &str) {
        // Asked first: the id of a program that has been waited for may belong to somebody else by now.
        if self.status().is_none() {
            signal(name, &[self.pid]);
        }
    }

    /// How often each kill point was passed, of a program started with [`report_points`].
    pub fn points_passed(&self) -> BTreeMap<String, u32> {
        let mut passed = BTreeMap::new();
        for line in self.lines.lock().unwrap().iter() {
            if let Some(point) = line.strip_prefix(REPORT_PREFIX) {
                *passed.entry(point.trim().to_owned()).or_insert(0) += 1;
            }
        }
        passed
    }

    fn overdue(&self, missed: String, limit: Duration) -> Overdue {
        let lines = self.lines.lock().unwrap();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        Overdue { missed, limit, tail }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Whether a status says "killed by SIGKILL", by itself at a kill point or by somebody else.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// Reads a stream line by line to its end.
fn capture(stream: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            let mut lines = lines.lock().unwrap();
            if lines.len() < LINES_MAX {
                lines.push(text);
            }
        }
    })
}

/// A shell that kills the program when this process disappears without a word.
#[derive(Debug)]
struct Watchdog(Child, Option<ChildStdin>);

impl Watchdog {
    fn over(pid: u32) -> Watchdog {
        let mut shell = Command::new("sh")
            .args(["-c", "trap '' HUP INT TERM; read -r _ || kill -s KILL \"$1\"", "segue-testkit-watchdog"])
            .arg(pid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("start the watchdog");
        let pipe = shell.stdin.take();
        Watchdog(shell, pipe)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        use std::io::Write;
        if let Some(mut pipe) = self.1.take() {
            let _ = pipe.write_all(b"ended\n");
        }
        let _ = self.0.wait();
    }
}
