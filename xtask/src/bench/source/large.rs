//! One transaction that is larger than segue's memory, while it follows.

use super::super::Options;
use super::super::pair::{DATABASE, Pair, must, options as settings, until_true};
use super::super::report::verdict;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes of text in a row: not so many that the server would take them out of the row and compress them.
const ROW_BYTES: u64 = 1_000;
const ROWS: u64 = 10_000_000;
/// What a row is cut from.
const POOL_BYTES: usize = 4_000;
/// All of it together on one disk, for each byte of the transaction's text: the source's table, its log, what its decoder
/// spills, what segue spills, and the target's table; measured at a tenth of the size.
const DISK_BYTES_EACH: f64 = 5.0;
/// What stays free: a full disk would end the servers, and everything beside them.
const FREE_BYTES: f64 = 15e9;
const MEMORY_MIB_MAX: f64 = 512.0;
const LOOK: Duration = Duration::from_millis(100);

const MAKE: &str = "CREATE TABLE large (id bigint PRIMARY KEY, note text NOT NULL); CREATE TABLE mark (id bigint PRIMARY KEY)";
/// How a side tells its rows: what stands in them counts too.
const TOLD: &str = "SELECT concat(count(*), ' ', sum(id), ' ', sum(hashtextextended(note, 0))) FROM large";

pub(super) async fn measure(options: &Options) -> String {
    let rows = options.scaled(ROWS);
    let bytes = (rows * ROW_BYTES) as f64;
    // A target keeps log for as long as it likes: not here, where everything is on one disk.
    let pair = Pair::start_with(settings(), settings().with("max_wal_size", "1GB")).await;
    assert_room(&pair, bytes);
    for server in [&pair.source, &pair.target] {
        must(Pair::connect(server, DATABASE).await.batch_execute(MAKE).await, "make the tables");
    }
    // The log of this one transaction is more than segue would otherwise let a source keep for it.
    pair.write_spec_with("prod", DATABASE, &["*"], "limits: { retained_wal_bytes_max: 64GiB }\n");
    let process = pair.segue(&["run"]);
    pair.segue_to_end(&["wait", "following"]).await;
    let disk = Disk::watch(&pair, process.pid());
    let (written_s, arrived_s) = write(&pair, rows).await;
    let disk = disk.end();
    pair.end_segue(process).await;
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let mut text = format!(
        "\n### a large transaction\n\nOne transaction of {:.1} GB: {rows} rows with {ROW_BYTES} bytes of text, inserted while segue \
         follows. It takes {written_s:.0} s to be written; all rows are on the target, and equal, {arrived_s:.0} s after its \
         commit. Meanwhile the source's decoder keeps {:.1} GiB in files, and segue {:.1} GiB in its temporary directory.\n\n",
        bytes / 1e9,
        gib(disk.decoder),
        gib(disk.segue)
    );
    text.push_str(&verdict("Peak memory of segue, MiB", pair.peak_mib(), MEMORY_MIB_MAX, false));
    text
}

/// Writes them, and waits until they have come; the seconds of each.
async fn write(pair: &Pair, rows: u64) -> (f64, f64) {
    let source = Pair::connect(&pair.source, DATABASE).await;
    let target = Pair::connect(&pair.target, DATABASE).await;
    let spread = POOL_BYTES as u64 - ROW_BYTES;
    let insert = format!(
        "INSERT INTO large SELECT i, substr('{}', (i % {spread})::int + 1, {ROW_BYTES}) FROM generate_series(1, {rows}) i",
        pool()
    );
    eprintln!("bench: writing {rows} rows in one transaction");
    let began = Instant::now();
    must(source.batch_execute(&insert).await, "write the rows");
    let written_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    until_true(&target, &format!("SELECT EXISTS (SELECT FROM large WHERE id = {rows})")).await;
    let arrived_s = began.elapsed().as_secs_f64();
    let (here, there) = tokio::join!(source.query_one(TOLD, &[]), target.query_one(TOLD, &[]));
    let (here, there) = (must(here, "count the source"), must(there, "count the target"));
    assert_eq!(here.get::<_, String>(0), there.get::<_, String>(0), "the rows have come as they were");
    (written_s, arrived_s)
}

/// Letters in no order (a linear congruential generator's, Knuth's constants).
fn pool() -> String {
    let mut state: u64 = 1;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + (state >> 59) as u8 % 26)
    };
    (0..POOL_BYTES).map(|_| letter()).collect()
}

/// Ends the run before it fills the disk.
fn assert_room(pair: &Pair, bytes: f64) {
    let output = std::process::Command::new("df")
        .args(["--block-size=1", "--output=avail"])
        .arg(pair.source.data_dir())
        .output();
    let text = String::from_utf8_lossy(&must(output, "ask for the room").stdout).into_owned();
    let free: f64 = must(text.lines().last().unwrap_or_default().trim().parse(), "read the room");
    let wanted = bytes * DISK_BYTES_EACH + FREE_BYTES;
    assert!(
        free >= wanted,
        "{:.0} GB are free, and a transaction of {:.0} GB takes {:.0}",
        free / 1e9,
        bytes / 1e9,
        wanted / 1e9
    );
}

/// The most bytes that were in files at any time.
#[derive(Debug, Clone, Copy)]
struct Disk {
    decoder: u64,
    segue: u64,
}

struct Watch {
    most: Arc<[AtomicU64; 2]>,
    task: tokio::task::JoinHandle<()>,
}

impl Disk {
    fn watch(pair: &Pair, segue: u32) -> Watch {
        let most: Arc<[AtomicU64; 2]> = Arc::default();
        let (seen, slots) = (most.clone(), pair.source.data_dir().join("pg_replslot"));
        let task = tokio::spawn(async move {
            loop {
                seen[0].fetch_max(bytes_under(&slots), Ordering::Relaxed);
                seen[1].fetch_max(bytes_without_name(segue), Ordering::Relaxed);
                tokio::time::sleep(LOOK).await;
            }
        });
        Watch { most, task }
    }
}

impl Watch {
    fn end(self) -> Disk {
        self.task.abort();
        let [decoder, segue] = [0, 1].map(|one: usize| self.most[one].load(Ordering::Relaxed));
        assert!(decoder > 0 && segue > 0, "nothing was kept in files: {decoder} and {segue} bytes");
        Disk { decoder, segue }
    }
}

/// Of the files in a directory's directories.
fn bytes_under(directory: &Path) -> u64 {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let files = entries(directory).flat_map(|slot| entries(&slot.path()));
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// Of the files that a process has open and that have no name any more.
fn bytes_without_name(pid: u32) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let files = open.filter_map(|one| std::fs::metadata(one.path()).ok());
    files.filter(|file| file.is_file() && file.nlink() == 0).map(|file| file.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_from_letters() {
        let pool = pool();
        assert!(pool.len() == POOL_BYTES && pool.bytes().all(|byte| byte.is_ascii_lowercase()));
    }
}
