//! What a contestant took: wall time, processor time of everybody involved, peak memory. And medians.

use super::pair::Pair;
use std::time::Instant;

/// One turn of one contestant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Wall time.
    pub(super) seconds: f64,
    /// Processor time of both servers and of all clients.
    pub(super) cpu_seconds: f64,
}

/// A turn that is being measured.
pub(super) struct Turn {
    began: Instant,
    cpu_before: f64,
    seconds: Option<f64>,
}

impl Turn {
    pub(super) fn begin(pair: &Pair) -> Turn {
        Turn { cpu_before: cpu(pair), began: Instant::now(), seconds: None }
    }

    /// The clock stops here; what follows (ending a process, say) only counts as processor time.
    pub(super) fn reached(&mut self) {
        self.seconds = Some(self.began.elapsed().as_secs_f64());
    }

    pub(super) fn end(mut self, pair: &Pair) -> Sample {
        if self.seconds.is_none() {
            self.reached();
        }
        Sample { seconds: self.seconds.unwrap_or_default(), cpu_seconds: cpu(pair) - self.cpu_before }
    }
}

/// Processor seconds so far: both servers with all they ever started, and every client that has ended.
fn cpu(pair: &Pair) -> f64 {
    let ended_clients = stat("self").map_or(0.0, |s| s.waited_for);
    let server = |pid: Option<u32>| pid.map_or(0.0, cpu_of_server);
    ended_clients + server(pair.source.pid()) + server(pair.target.pid())
}

/// Processor seconds that a server has taken so far, with all it ever started.
fn cpu_of_server(pid: u32) -> f64 {
    let ended = stat(&pid.to_string()).map_or(0.0, |s| s.own + s.waited_for);
    let running = children_of(pid).filter_map(|child| stat(&child)).map(|s| s.own + s.waited_for);
    ended + running.sum::<f64>()
}

/// What a server has taken so far, with all it ever started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Taken {
    pub(super) cpu_seconds: f64,
    /// Bytes of files, whether or not the kernel had them in memory; sockets do not count. What went to the disk is not to
    /// be had: where the kernel's cache has large folios, a whole one counts for each byte written to it.
    pub(super) read_bytes: f64,
    pub(super) written_bytes: f64,
}

impl Taken {
    /// By the server whose first process this is.
    pub(super) fn by_server(pid: u32) -> Taken {
        // A process has in its own figures what its ended children had, once it has waited for them.
        let mut taken = Taken { cpu_seconds: cpu_of_server(pid), ..Taken::NOTHING };
        for one in std::iter::once(pid.to_string()).chain(children_of(pid)) {
            // It may have ended since: then it is among its parent's.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{one}/io")) else { continue };
            taken.read_bytes += field(&text, "rchar:");
            taken.written_bytes += field(&text, "wchar:");
        }
        // A process has read its own program; its processor time may be less than a tick.
        assert!(taken.read_bytes > 0.0, "nothing is known of process {pid}");
        taken
    }

    const NOTHING: Taken = Taken { cpu_seconds: 0.0, read_bytes: 0.0, written_bytes: 0.0 };

    /// What was taken since, for each of `count`.
    pub(super) fn since(self, before: Taken, count: f64) -> Taken {
        self.minus(before).map(|all| all / count)
    }

    pub(super) fn minus(self, other: Taken) -> Taken {
        Taken {
            cpu_seconds: self.cpu_seconds - other.cpu_seconds,
            read_bytes: self.read_bytes - other.read_bytes,
            written_bytes: self.written_bytes - other.written_bytes,
        }
    }

    fn map(self, change: impl Fn(f64) -> f64) -> Taken {
        Taken {
            cpu_seconds: change(self.cpu_seconds),
            read_bytes: change(self.read_bytes),
            written_bytes: change(self.written_bytes),
        }
    }
}

/// A line's number; 0 without the line.
fn field(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or_default()
}

/// Processor seconds that one process has taken so far.
pub(super) fn cpu_of(pid: u32) -> f64 {
    stat(&pid.to_string()).map_or(0.0, |stat| stat.own)
}

struct Stat {
    parent: u32,
    own: f64,
    waited_for: f64,
}

fn stat(pid: &str) -> Option<Stat> {
    /// Clock ticks in a second; the kernel's interface has been 100 everywhere for decades.
    const TICKS: f64 = 100.0;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let number = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        own: (number(11)? + number(12)?) / TICKS,
        waited_for: (number(13)? + number(14)?) / TICKS,
    })
}

fn children_of(parent: u32) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter(move |pid| {
        pid.bytes().all(|b| b.is_ascii_digit()) && stat(pid).is_some_and(|s| s.parent == parent)
    })
}

/// The most memory a process has held so far, in KiB; `None` when it is gone.
pub(super) fn peak_memory_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmHWM:")
}

/// The memory a process holds now, in KiB; `None` when it is gone.
pub(super) fn memory_kib(pid: u32) -> Option<u64> {
    status_kib(pid, "VmRSS:")
}

fn status_kib(pid: u32, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The middle value, or the mean of the two middle ones; 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 1 => sorted[half],
        (_, half) => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The value below which `share` of the values lie; 0 of nothing.
pub(super) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_percentiles_of_few_values() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (0.0, 2.0, 2.5));
        assert_eq!((percentile(&[5.0, 1.0, 3.0], 0.5), percentile(&[5.0, 1.0, 3.0], 1.0)), (3.0, 5.0));
    }

    #[test]
    fn what_an_ended_child_took_is_its_parents() {
        let own = std::process::id();
        let before = Taken::by_server(own);
        let child = std::process::Command::new("head").args(["-c", "5000000", "/dev/zero"]).output();
        assert!(child.is_ok_and(|output| output.status.success()));
        let taken = Taken::by_server(own).since(before, 1.0);
        assert!(taken.written_bytes >= 5e6 && taken.read_bytes >= 5e6, "{taken:?}");
    }

    #[test]
    fn this_process_has_a_stat_and_a_peak() {
        assert!(stat("self").is_some());
        assert!(peak_memory_kib(std::process::id()).is_some_and(|kib| kib > 100));
    }
}
