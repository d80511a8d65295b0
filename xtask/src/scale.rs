//! `cargo xtask scale`: how long a migration takes that no machine here can hold, by what a row costs where it was measured.
//!
//! A fluid model: in each second every part does what its processors, its one session, or the network leave it, and what is
//! left over is the backlog. It knows no disk: where that is slower than the processors, it is what bounds. It is checked against
//! the measured drain and copy (in its tests); what it says of larger machines is arithmetic, not a measurement.

use std::fmt;

/// Processor time for one row, in µs of one core, and its size.
#[derive(Debug, Clone, Copy)]
pub struct Costs {
    /// A slot reads the log and puts its transactions together, also for rows that it does not send.
    pub decode: f64,
    /// It sends a row of its own.
    pub send: f64,
    /// Segue takes it in and makes it part of a batch.
    pub follow: f64,
    /// The target applies it.
    pub apply: f64,
    /// Copying: the source reads a row, segue carries it, the target writes it and its index.
    pub copy: [f64; 3],
    /// Bytes of a row on the way, and of the source's log.
    pub bytes: [f64; 2],
}

/// As measured (docs/performance.md): TPC-B, four rows a transaction, and rows of `pgbench_accounts`.
pub const TPC_B: Costs =
    Costs { decode: 1.0, send: 2.1, follow: 2.3, apply: 3.2, copy: [1.0, 0.28, 2.0], bytes: [120.0, 180.0] };

/// Where it runs.
#[derive(Debug, Clone, Copy)]
pub struct Machines {
    /// Cores of source, segue and target that are free for the migration.
    pub cores: [f64; 3],
    /// All of them are the same ones: those of the source.
    pub shared: bool,
    /// Bytes a second between the machines, in MB.
    pub network_mb: f64,
}

/// A migration.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Rows to be copied.
    pub rows: f64,
    /// Rows written to the source in a second at the height of the day; in the depth of the night it is half of that.
    pub written_per_s: f64,
    /// Slots, each with a session that applies: so many migrations of some of the tables each.
    pub slots: f64,
    /// Sessions that copy.
    pub workers: f64,
}

/// What bounds the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// One process decodes a slot.
    Walsender,
    /// One session applies it.
    Session,
    /// The cores of source, segue or target.
    Cores,
    /// The line between them.
    Network,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::Walsender => "a slot's walsender",
            Bound::Session => "a session that applies",
            Bound::Cores => "cores",
            Bound::Network => "the network",
        })
    }
}

const US_PER_S: f64 = 1e6;
const DAY_S: f64 = 86_400.0;
/// Nothing is simulated for longer.
const LONGEST_S: f64 = 30.0 * DAY_S;

impl Migration {
    /// Core seconds that source, segue and target spend for a second of `stream` rows and `copied` rows.
    fn work(&self, costs: &Costs, stream: f64, copied: f64) -> [f64; 3] {
        let source = stream * (self.slots * costs.decode + costs.send) + copied * costs.copy[0];
        let segue = stream * costs.follow + copied * costs.copy[1];
        let target = stream * costs.apply + copied * costs.copy[2];
        [source, segue, target].map(|us| us / US_PER_S)
    }

    /// Rows a second that the stream carries at most, while nothing is copied, and what keeps it from more.
    pub fn stream_bound(&self, costs: &Costs, machines: &Machines) -> (f64, Bound) {
        let one = self.work(costs, 1.0, 0.0);
        let bounds = [
            (US_PER_S / (costs.decode + costs.send / self.slots), Bound::Walsender),
            (self.slots * US_PER_S / costs.apply, Bound::Session),
            (machines.fits(one, [0.0; 3]), Bound::Cores),
            (machines.network_mb * 1e6 / costs.bytes[0], Bound::Network),
        ];
        bounds.into_iter().fold(
            (f64::INFINITY, Bound::Cores),
            |least, bound| {
                if bound.0 < least.0 { bound } else { least }
            },
        )
    }

    /// Rows a second that are copied while the stream carries `stream` rows.
    fn copied_per_s(&self, costs: &Costs, machines: &Machines, stream: f64) -> f64 {
        let slowest = costs.copy.into_iter().fold(0.0, f64::max);
        let by_workers = self.workers * US_PER_S / slowest;
        let by_cores = machines.fits(self.work(costs, 0.0, 1.0), self.work(costs, stream, 0.0));
        let by_network = machines.network_mb * 1e6 / costs.bytes[0] - stream;
        by_workers.min(by_cores).min(by_network).max(0.0)
    }

    /// From an empty target, or with `backlog` rows of the stream behind it, until it follows; a second at a time.
    pub fn simulate(&self, costs: &Costs, machines: &Machines, backlog: f64) -> Outcome {
        let (bound, _) = self.stream_bound(costs, machines);
        let (mut left, mut behind, mut at) = (self.rows, backlog, 0.0);
        let mut outcome =
            Outcome { copied_s: 0.0, following_s: None, backlog_most: backlog, cores_most: [0.0; 3] };
        while at < LONGEST_S {
            let written = self.written_per_s * (0.75 + 0.25 * (at / DAY_S * std::f64::consts::TAU).cos());
            let stream = bound.min(behind + written);
            let carried = self.copied_per_s(costs, machines, stream);
            let copied = carried.min(left);
            // Of its last second as much as is needed.
            let is_last = left <= carried && behind + written <= bound;
            let step = if is_last { (left / carried).max(behind / bound).min(1.0) } else { 1.0 };
            behind = (behind + written - stream).max(0.0);
            left -= copied;
            at += step;
            if left > 0.0 {
                outcome.copied_s = at;
            }
            outcome.backlog_most = outcome.backlog_most.max(behind);
            for (most, now) in outcome.cores_most.iter_mut().zip(self.work(costs, stream, copied)) {
                *most = now.max(*most);
            }
            if left <= 0.0 && behind <= 0.0 {
                outcome.following_s = Some(at);
                break;
            }
        }
        outcome
    }
}

impl Machines {
    /// How much of `one` fits beside `other`.
    fn fits(&self, one: [f64; 3], other: [f64; 3]) -> f64 {
        if self.shared {
            let sum = |work: [f64; 3]| work.into_iter().sum::<f64>();
            return ((self.cores[0] - sum(other)) / sum(one)).max(0.0);
        }
        let each = |i: usize| if one[i] > 0.0 { (self.cores[i] - other[i]) / one[i] } else { f64::INFINITY };
        (0..3).map(each).fold(f64::INFINITY, f64::min).max(0.0)
    }
}

/// What became of a migration.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// When the last row was copied, in seconds.
    pub copied_s: f64,
    /// When the target followed; `None`: it never will.
    pub following_s: Option<f64>,
    /// The largest backlog, in rows.
    pub backlog_most: f64,
    /// The most cores of source, segue and target that were at work.
    pub cores_most: [f64; 3],
}

/// Rows of `pgbench_accounts` in 10 TB, with their index.
const ROWS_OF_10_TB: f64 = 10e12 / 150.0;

/// What `cargo xtask scale` prints: 10 TB, written to by 100,000 transactions of TPC-B a second, by how many slots it is moved.
pub fn table() -> String {
    let machines = Machines { cores: [16.0, 16.0, 32.0], shared: false, network_mb: 1_250.0 };
    let mut text = "| slots | the stream carries, rows/s | bound by | 10 TB copied after | following after | backlog, most | an hour's outage is made up in | cores: source, segue, target |\n\
                    |---:|---:|---|---:|---:|---:|---:|---|\n"
        .to_owned();
    for slots in [1.0, 2.0, 3.0, 4.0, 8.0] {
        let migration = Migration { rows: ROWS_OF_10_TB, written_per_s: 400_000.0, slots, workers: 8.0 };
        let (bound, by) = migration.stream_bound(&TPC_B, &machines);
        let whole = migration.simulate(&TPC_B, &machines, 0.0);
        let outage = Migration { rows: 0.0, ..migration }.simulate(&TPC_B, &machines, 3_600.0 * 400_000.0);
        let hours =
            |s: Option<f64>| s.map_or_else(|| "never".to_owned(), |s| format!("{:.1} h", s / 3_600.0));
        let [source, segue, target] = whole.cores_most;
        text.push_str(&format!(
            "| {slots} | {bound:.0} | {by} | {} | {} | {:.0} GB | {} | {source:.1}, {segue:.1}, {target:.1} |\n",
            hours(Some(whole.copied_s)),
            hours(whole.following_s),
            whole.backlog_most * TPC_B.bytes[1] / 1e9,
            hours(outage.following_s),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The machine of docs/benchmarks.md.
    const MEASURED: Machines = Machines { cores: [2.0, 0.0, 0.0], shared: true, network_mb: 5_000.0 };

    fn about(value: f64, expected: f64) -> bool {
        (value / expected - 1.0).abs() < 0.25
    }

    #[test]
    fn what_was_measured_is_what_it_says_of_that_machine() {
        // 5 million accounts by two sessions: 7.2 s, of which half a second is the start.
        let copy = Migration { rows: 5e6, written_per_s: 0.0, slots: 1.0, workers: 2.0 };
        let copied = copy.simulate(&TPC_B, &MEASURED, 0.0).following_s.unwrap();
        // 150,000 transactions of TPC-B that have piled up, read by SQL: 2.6 s, of which half a second is the start.
        let by_sql = Costs { decode: 0.56, send: 0.67, ..TPC_B };
        let drain = Migration { rows: 0.0, ..copy };
        let drained = drain.simulate(&by_sql, &MEASURED, 600_000.0).following_s.unwrap();
        assert!(about(copied + 0.5, 7.2) && about(drained + 0.5, 2.6), "{copied} {drained}");
    }

    #[test]
    fn more_slots_carry_more_but_each_reads_the_whole_log() {
        let machines = Machines { cores: [64.0; 3], shared: false, network_mb: 10_000.0 };
        let bound = |slots| {
            let migration = Migration { rows: 0.0, written_per_s: 0.0, slots, workers: 1.0 };
            migration.stream_bound(&TPC_B, &machines).0
        };
        assert!(
            bound(2.0) > 1.3 * bound(1.0) && bound(16.0) < 1.4 * bound(8.0),
            "{} {}",
            bound(1.0),
            bound(2.0)
        );
        assert!(bound(60.0) < US_PER_S / TPC_B.decode);
    }

    #[test]
    fn a_stream_that_carries_less_than_is_written_never_follows() {
        let machines = Machines { cores: [16.0; 3], shared: false, network_mb: 1_250.0 };
        let migration = Migration { rows: 1e9, written_per_s: 400_000.0, slots: 1.0, workers: 4.0 };
        let carried = migration.stream_bound(&TPC_B, &machines);
        assert_eq!(carried.1, Bound::Session);
        let busier = Migration { written_per_s: 2.0 * carried.0, ..migration };
        assert!(busier.simulate(&TPC_B, &machines, 0.0).following_s.is_none());
        assert!(Migration { slots: 4.0, ..migration }.simulate(&TPC_B, &machines, 0.0).following_s.is_some());
    }

    #[test]
    fn copying_takes_what_the_stream_leaves() {
        let machines = Machines { cores: [4.0; 3], shared: false, network_mb: 1_250.0 };
        let quiet = Migration { rows: 1e8, written_per_s: 0.0, slots: 1.0, workers: 8.0 };
        let busy = Migration { written_per_s: 200_000.0, ..quiet };
        let copied = |migration: Migration| migration.simulate(&TPC_B, &machines, 0.0).copied_s;
        assert!(copied(busy) > 1.1 * copied(quiet), "{} {}", copied(busy), copied(quiet));
    }
}
