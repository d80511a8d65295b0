//! Nothing of the demo outlives it, however it ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
pub(super) struct Watchdog(Child);

impl Watchdog {
    pub(super) fn over(dir: &Path) -> Result<Self, DemoError> {
        Command::new("sh")
            .args(["-c", SCRIPT, "segue-demo-watchdog"])
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A terminal's Ctrl-C is not meant for it.
            .process_group(0)
            .spawn()
            .map(Watchdog)
            .map_err(|error| DemoError::io("starting a watchdog over", dir, error))
    }

    /// Ends the process too, if the demo is killed.
    pub(super) fn guard(&mut self, pid: u32) {
        self.tell(&format!("guard {pid}\n"));
    }

    /// Has nothing to do any more: all is cleaned up, or shall stay.
    pub(super) fn release(&mut self) {
        self.tell("release\n");
        let _ = self.0.wait();
    }

    fn tell(&mut self, line: &str) {
        // A watchdog that is gone cannot be helped, and the demo cleans up by itself as long as it lives.
        if let Some(pipe) = self.0.stdin.as_mut() {
            let _ = pipe.write_all(line.as_bytes());
        }
    }
}
