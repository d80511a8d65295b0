//! The runtime that a process of nothing but routing has.

use std::io;
use tokio::runtime::{Builder, Runtime};

/// Makes the runtime of a process that only routes: a thread for every second processor.
///
/// Nearly all of a query's way is the kernel's, and most of what is left is waking threads. Few that are busy wake each other
/// less often, and take more at a time, than many that are not; the other processors are for who speaks through them.
pub fn runtime() -> io::Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match processors / 2 {
        // One that shares its work with nobody needs no queue that others can take from.
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        threads => Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    }
}
