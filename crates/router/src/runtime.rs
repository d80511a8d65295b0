//! The runtime that a process of nothing but routing has.

use std::io;
use tokio::runtime::{Builder, Runtime};

/// Makes the runtime of a process that only routes.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}
