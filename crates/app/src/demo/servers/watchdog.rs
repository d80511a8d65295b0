//! Nothing of the demo outlives it, however it ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::demo::DemoError;

/// Reads lines from a pipe that only the demo holds; the kernel closes it even when the demo is killed. Then, unless
/// it was told `release`, ends the processes it was told to guard and the servers, and removes the directory `$1`.
/// A process is only ended if its command line names that directory: its number may be another's by now.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
children=
while read -r word pid; do
    case $word in
        guard) children="$children $pid" ;;
        release) exit 0 ;;
    esac
done
ours() { { tr '\0' ' ' <"/proc/$1/cmdline" || ps -o command= -p "$1"; } 2>/dev/null | grep -qF "$dir"; }
end() { if ours "$2"; then kill -s "$1" "$2"; fi; }
dir=$1
for pid in $children; do end KILL "$pid"; done
for side in source target; do
    { read -r pid <"$dir/$side/data/postmaster.pid"; } 2>/dev/null && {
        end QUIT "$pid"
        i=0; while ours "$pid" && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
        end KILL "$pid"
    }
done
rm -rf "$dir"
"#;

/// A small shell that outlives a killed demo. (A parent-death signal would not do: it follows the *thread* that started
/// a child.)
#[derive(Debug)]
pub(super) struct Watchdog {
    shell: Child,
    guard: Guard,
}

/// Tells the watchdog whom to end if the demo is killed.
#[derive(Debug, Clone)]
pub(in crate::demo) struct Guard(Arc<Mutex<Option<ChildStdin>>>);

impl Watchdog {
    pub(super) fn over(dir: &Path) -> Result<Self, DemoError> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "segue-demo-watchdog"])
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C is not meant for it.
            .process_group(0)
            .spawn()
            .map_err(|error| DemoError::io("starting a watchdog over", dir, error))?;
        let guard = Guard(Arc::new(Mutex::new(shell.stdin.take())));
        Ok(Self { shell, guard })
    }

    pub(super) fn guard(&self) -> Guard {
        self.guard.clone()
    }

    /// As if the demo were killed.
    #[cfg(test)]
    pub(super) fn hang_up(&self) {
        *self.guard.0.lock().unwrap() = None;
    }

    /// Has nothing to do any more: all is cleaned up, or shall stay.
    pub(super) fn release(&mut self) {
        self.guard.tell("release\n");
        let _ = self.shell.wait();
    }
}

impl Guard {
    /// Over a process whose command line names the watchdog's directory.
    pub(in crate::demo) fn over(&self, pid: Option<u32>) {
        if let Some(pid) = pid {
            self.tell(&format!("guard {pid}\n"));
        }
    }

    fn tell(&self, line: &str) {
        // A watchdog that is gone cannot be helped, and the demo cleans up by itself as long as it lives.
        if let Some(pipe) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let _ = pipe.write_all(line.as_bytes());
        }
    }
}
