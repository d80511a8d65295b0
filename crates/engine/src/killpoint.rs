//! Named places where a test lets the process die, as `kill -9` would.
//!
//! Compiled in under the feature `killpoints` only. `SEGUE_KILL_AT=name[:n]` aborts at the n-th passage
//! (default the first) by SIGKILL; `SEGUE_KILL_REPORT=1` prints each passage to standard error. `SEGUE_STOP_FILE=path`
//! freezes the process (SIGSTOP) at the point that the file names, if it is there, until someone lets the process go on:
//! so a test puts something into exactly this moment. The file is removed first, and `stopped at name` is said.

/// Passes the named point.
#[cfg(not(feature = "killpoints"))]
#[inline(always)]
pub fn pass(_name: &'static str) {}

/// Passes the named point, or dies there.
#[cfg(feature = "killpoints")]
pub fn pass(name: &'static str) {
    use std::collections::HashMap;
    use std::sync::{LazyLock, Mutex, PoisonError};
    static PASSED: LazyLock<Mutex<HashMap<&'static str, u64>>> = LazyLock::new(Mutex::default);
    let nth = {
        let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
        let count = passed.entry(name).or_default();
        *count += 1;
        *count
    };
    if std::env::var_os("SEGUE_KILL_REPORT").is_some() {
        eprintln!("killpoint {name}");
    }
    stop_where_wanted(name);
    let Ok(wanted) = std::env::var("SEGUE_KILL_AT") else { return };
    let (wanted_name, wanted_nth) = match wanted.rsplit_once(':') {
        Some((name, n)) => (name, n.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if wanted_name == name && nth == wanted_nth {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way; nothing more may happen here.
        loop {
            std::thread::park();
        }
    }
}

#[cfg(feature = "killpoints")]
fn stop_where_wanted(name: &'static str) {
    let Some(file) = std::env::var_os("SEGUE_STOP_FILE") else { return };
    let wanted = std::fs::read_to_string(&file).is_ok_and(|wanted| wanted == name);
    // Of several that pass the point at once, the one that removes the file stops.
    if !wanted || std::fs::remove_file(&file).is_err() {
        return;
    }
    eprintln!("stopped at {name}");
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
    // Another thread may be the one that takes the signal, a moment later: this one must not run on until then.
    std::thread::sleep(std::time::Duration::from_millis(100));
}

/// Every named point, so that a test can walk them all.
pub const ALL: &[&str] = &[
    "schema.tables",
    "schema.remembered",
    "schema.created",
    "schema.index",
    "schema.mended",
    "schema.finished",
    "birth.paired",
    "birth.fenced",
    "birth.incarnation",
    "birth.slot",
    "birth.barrier",
    "birth.claimed",
    "renew.ordered",
    "renew.cleared",
    "renew.succeeded",
    "renew.compared",
    "region.marked",
    "region.seam",
    "region.copied",
    "region.durable",
    "region.stored",
    "region.committed",
    "repair.begun",
    "backlog.relayed",
    "batch.begun",
    "batch.written",
    "batch.committed",
    "batch.acknowledged",
    "idle.committed",
    "lost.removed",
    "outdated.removed",
    "stray.met",
    "stray.told",
    "backfill.signalled",
    "backfill.passed",
    "backfill.forgotten",
    "leaf.gone",
    "leaf.stored",
    "leaf.published",
    "leaf.copied",
    "leaf.detached",
    "switch.arm.before",
    "switch.arm.after",
    "switch.hold.before",
    "switch.hold.after",
    "switch.fence.before",
    "switch.fence.after",
    "switch.drain.before",
    "switch.drain.after",
    "switch.settle.before",
    "switch.settle.after",
    "switch.flip.before",
    "switch.flip.after",
    "switch.open.before",
    "switch.open.after",
    "switch.opened",
    "switch.undo",
    "complete.begun",
    "complete.streams",
    "complete.archived",
    "complete.source",
    "complete.target",
    "complete.dropped",
    "complete.forgotten",
    "complete.recorded",
    "rollback.triggered",
    "cancel.dropped",
];
