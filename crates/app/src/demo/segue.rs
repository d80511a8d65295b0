//! The `segue` that the demo shows: this very program as a child, used as a user would, and the reading of its answers.
//!
//! All that the demo knows of the other commands' output is here.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::DemoError;
use super::narrator::Narrator;
use super::servers::Guard;

/// `verify`'s exit code for differences; any other than 0 is a fault.
const DIVERGENCE: i32 = 4;
/// How long `run` may take to see that its migration was cancelled.
const RUN_END_LIMIT: Duration = Duration::from_secs(20);

/// This program, on one spec.
#[derive(Debug)]
pub(super) struct Segue {
    program: PathBuf,
    spec: PathBuf,
    narrator: Arc<Narrator>,
    guard: Guard,
}

impl Segue {
    pub(super) fn new(spec: &Path, narrator: Arc<Narrator>, guard: Guard) -> Result<Self, DemoError> {
        let program =
            std::env::current_exe().map_err(|error| DemoError::io("finding", Path::new("segue"), error))?;
        Ok(Self { program, spec: spec.to_owned(), narrator, guard })
    }

    fn start(&self, name: &'static str, arguments: &[&str]) -> Result<Child, DemoError> {
        let child = Command::new(&self.program)
            .args(arguments)
            .arg("-f")
            .arg(&self.spec)
            .env_remove("SEGUE_SPEC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A terminal's Ctrl-C is for the demo, which then ends its children in order.
            .process_group(0)
            .spawn()
            .map_err(|error| failed(name, error.to_string()))?;
        self.guard.over(child.id());
        Ok(child)
    }

    /// Starts `segue run`, and quotes what it says.
    pub(super) fn run(&self) -> Result<Running, DemoError> {
        let mut child = self.start("run", &["run"])?;
        let quotes = [
            child.stdout.take().map(|output| self.quote(output)),
            child.stderr.take().map(|output| self.quote(output)),
        ];
        Ok(Running { child, quotes: quotes.into_iter().flatten().collect() })
    }

    fn quote(&self, output: impl tokio::io::AsyncRead + Unpin + Send + 'static) -> JoinHandle<()> {
        let narrator = Arc::clone(&self.narrator);
        tokio::spawn(async move { narrator.quote_all(output).await })
    }

    /// The statements of `segue plan --grants=SIDE`.
    pub(super) async fn grants(&self, side: &str) -> Result<Vec<String>, DemoError> {
        let answer = self.ask("plan", &["plan", side, "--json"], 0).await?;
        let statements = answer.pointer("/grants/0/statements").and_then(Value::as_array);
        let statement = |value: &Value| value.as_str().map(str::to_owned);
        statements
            .and_then(|all| all.iter().map(statement).collect())
            .ok_or_else(|| failed("plan", format!("{side} has no statements: {answer}")))
    }

    /// `segue plan`, which nothing must stand in the way of.
    pub(super) async fn plan(&self) -> Result<Value, DemoError> {
        self.ask("plan", &["plan", "--json"], 0).await
    }

    /// `segue wait STAGE`.
    pub(super) async fn wait(&self, stage: &str, limit: Duration) -> Result<(), DemoError> {
        self.ask("wait", &["wait", stage, "--timeout", &format!("{}s", limit.as_secs())], 0).await.map(drop)
    }

    /// `segue verify`.
    pub(super) async fn verify(&self) -> Result<Verified, DemoError> {
        Verified::read(&self.ask("verify", &["verify", "--json"], DIVERGENCE).await?)
            .ok_or_else(|| failed("verify", "its answer has no `rows_compared`"))
    }

    /// `segue switch writes`, `segue reverse` or a rehearsal.
    pub(super) async fn hand_over(
        &self,
        arguments: &'static [&'static str],
    ) -> Result<HandedOver, DemoError> {
        let with_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        HandedOver::read(&self.ask(arguments[0], &with_json, 0).await?)
            .ok_or_else(|| failed(arguments[0], "its answer has no `outcome`, `owner` and `stall_ms`"))
    }

    /// `segue verify --repair` of one table.
    pub(super) async fn mend(&self, table: &str) -> Result<Mended, DemoError> {
        let answer =
            self.ask("verify", &["verify", "--table", table, "--repair", "--json"], DIVERGENCE).await?;
        Mended::read(&answer).ok_or_else(|| failed("verify", "its answer has no `divergent` and `repaired`"))
    }

    /// `segue mirror` or `segue switch reads`.
    pub(super) async fn set(&self, arguments: &[&str]) -> Result<(), DemoError> {
        let with_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let answer = self.ask("switch reads", &with_json, 0).await?;
        match answer["outcome"].as_str() {
            Some("set") => Ok(()),
            _ => Err(failed("switch reads", format!("with {arguments:?} answered {answer}"))),
        }
    }

    /// What `segue status` tells of the routers' reads.
    pub(super) async fn reads(&self) -> Result<Reads, DemoError> {
        Ok(Reads::read(&self.ask("status", &["status", "--json"], 0).await?))
    }

    /// `segue status`, as people get it.
    pub(super) async fn status_for_people(&self) -> Result<String, DemoError> {
        self.outcome("status", &["status"], 0).await
    }

    /// `segue status`.
    pub(super) async fn status(&self) -> Result<Status, DemoError> {
        Ok(Status::read(&self.ask("status", &["status", "--json"], 0).await?))
    }

    /// A command whose answer is for people, quoted.
    pub(super) async fn quoted(&self, name: &'static str, arguments: &[&str]) -> Result<(), DemoError> {
        let said = self.outcome(name, arguments, 0).await?;
        self.narrator.quote_all(said.as_bytes()).await;
        Ok(())
    }

    async fn ask(&self, name: &'static str, arguments: &[&str], also_good: i32) -> Result<Value, DemoError> {
        let said = self.outcome(name, arguments, also_good).await?;
        if said.trim().is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(&said).unwrap_or(Value::Null))
    }

    /// What the command printed, if it ended well.
    async fn outcome(
        &self,
        name: &'static str,
        arguments: &[&str],
        also_good: i32,
    ) -> Result<String, DemoError> {
        let child = self.start(name, arguments)?;
        let output = child.wait_with_output().await.map_err(|error| failed(name, error.to_string()))?;
        if output.status.success() || output.status.code() == Some(also_good) {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        // Who is refused by gates hears of them as an answer.
        let said = [&output.stderr, &output.stdout].map(|said| String::from_utf8_lossy(said).into_owned());
        let said = said.iter().find(|said| !said.trim().is_empty()).map_or("", |said| said.trim());
        Err(failed(name, format!("{said} ({})", output.status)))
    }
}

fn failed(command: &'static str, what: impl Into<String>) -> DemoError {
    DemoError::Segue { command, what: what.into() }
}

/// A `segue run` at work; dropping it kills it.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    quotes: Vec<JoinHandle<()>>,
}

impl Running {
    /// Comes back only if `run` ends, which it should not: the error says so.
    pub(super) async fn ends_early(&mut self) -> DemoError {
        let outcome = self.ended().await;
        match outcome {
            Ok(status) => failed("run", format!("ended too early; it says why above ({status})")),
            Err(error) => failed("run", error.to_string()),
        }
    }

    /// Waits for an end that is due, and kills what does not come to it; true if it ended well by itself.
    pub(super) async fn end(mut self) -> bool {
        match tokio::time::timeout(RUN_END_LIMIT, self.ended()).await {
            Ok(Ok(status)) => status.success(),
            Ok(Err(_)) => false,
            Err(_) => {
                self.kill().await;
                false
            }
        }
    }

    /// Ends it at once, which a migration does not mind.
    pub(super) async fn kill(&mut self) {
        // What is already gone cannot be killed, and need not be.
        let _ = self.child.kill().await;
        let _ = self.ended().await;
    }

    async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        for quote in self.quotes.drain(..) {
            let _ = quote.await;
        }
        Ok(status)
    }
}

/// What `verify --json` said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Verified {
    pub(super) rows_compared: u64,
    /// Rows that really differ.
    pub(super) divergences: u64,
    /// Rows that never stood still for long enough to be compared.
    pub(super) hot: u64,
}

impl Verified {
    fn read(answer: &Value) -> Option<Self> {
        Some(Self {
            rows_compared: number(&answer["rows_compared"])?,
            divergences: number(&answer["divergences"])?,
            hot: number(&answer["hot"]).unwrap_or_default(),
        })
    }
}

/// What `verify --repair --json` said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mended {
    /// Rows that differed.
    pub(super) divergent: u64,
    /// Those of them that do not any more.
    pub(super) repaired: u64,
}

impl Mended {
    fn read(answer: &Value) -> Option<Self> {
        let repaired = answer["tables"].as_array()?.iter().map(|table| number(&table["counts"]["repaired"]));
        Some(Self { divergent: number(&answer["divergent"])?, repaired: repaired.sum::<Option<u64>>()? })
    }
}

/// What `status --json` said of reads, of all routers together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Reads {
    /// The share that all routers go by; `None`: there is none, or they do not agree.
    pub(super) share_percent: Option<u64>,
    /// SELECTs that were answered by the source.
    pub(super) by_source: u64,
    /// By the target.
    pub(super) by_target: u64,
    /// The share that is compared, as with `share_percent`.
    pub(super) mirror_percent: Option<u64>,
    /// Reads that were compared since that was turned on.
    pub(super) compared: u64,
    /// Of them, the ones that differ.
    pub(super) differ: u64,
    /// The statement that differs most often.
    pub(super) worst: Option<String>,
}

impl Reads {
    /// SELECTs that were answered by either side.
    pub(super) fn answered(&self) -> u64 {
        self.by_source + self.by_target
    }

    fn read(answer: &Value) -> Self {
        let routers = answer["routers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let sum = |of: &str, key: &str| routers.iter().filter_map(|router| number(&router[of][key])).sum();
        let agreed = |of: &str, key: &str| {
            let mut all = routers.iter().map(|router| number(&router[of][key]));
            let first = all.next()??;
            all.all(|other| other == Some(first)).then_some(first)
        };
        let worst = routers.iter().find_map(|router| router["mirror"]["mismatches"][0]["statement"].as_str());
        Self {
            share_percent: agreed("reads", "share_percent"),
            by_source: sum("reads", "selects_source"),
            by_target: sum("reads", "selects_target"),
            mirror_percent: agreed("mirror", "percent"),
            compared: sum("mirror", "compared"),
            differ: sum("mirror", "mismatched"),
            worst: worst.map(str::to_owned),
        }
    }
}

/// What `switch writes --json` or `reverse --json` said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HandedOver {
    /// `switched`, `rehearsed`, or why neither.
    pub(super) outcome: String,
    /// The side that takes the writes now.
    pub(super) owner: String,
    /// How long no side took writes, by Segue's own account.
    pub(super) stall_ms: f64,
}

impl HandedOver {
    fn read(answer: &Value) -> Option<Self> {
        let text = |key: &str| Some(answer[key].as_str()?.to_owned());
        let (outcome, owner) = (text("outcome")?, text("owner")?);
        Some(Self { outcome, owner, stall_ms: answer["stall_ms"].as_f64()? })
    }
}

/// What `status --json` said; what it did not say is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Status {
    /// What was copied, not streamed.
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) transactions: Option<u64>,
    pub(super) changes: Option<u64>,
    /// Commit on the source to visible on the target: median, 99th percentile, longest.
    pub(super) latency_ms: Option<[f64; 3]>,
}

impl Status {
    fn read(answer: &Value) -> Self {
        let progress = if answer["progress"].is_object() { &answer["progress"] } else { answer };
        let tables = progress["tables"].as_array().map(Vec::as_slice).unwrap_or_default();
        let sum = |key: &str| tables.iter().filter_map(|table| number(&table[key])).sum();
        let latency: Option<Vec<f64>> =
            progress["latency_ms"].as_array().map(|all| all.iter().filter_map(Value::as_f64).collect());
        Self {
            rows: sum("rows"),
            bytes: sum("bytes"),
            transactions: number(&progress["transactions"]),
            changes: number(&progress["changes"]),
            latency_ms: latency.and_then(|all| all.try_into().ok()),
        }
    }
}

/// A count, or the length of a list of things that are counted.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Array(items) => Some(items.len() as u64),
        other => other.as_u64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answers_of_status_are_understood() {
        let answer = json!({
            "stage": "following",
            "progress": {
                "tables": [
                    {"table": "shop.tags", "rows": 10, "bytes": 100, "regions": 1, "rows_estimated": 9, "complete": true},
                    {"table": "shop.orders", "rows": 5, "bytes": 50, "regions": 2, "rows_estimated": 5, "complete": true},
                ],
                "transactions": 7, "changes": 21, "lag_bytes": 0, "lag_ms": 3, "latency_ms": [1, 2.5, 30],
            },
        });
        let status = Status::read(&answer);
        assert_eq!((status.rows, status.bytes), (15, 150));
        assert_eq!((status.transactions, status.changes), (Some(7), Some(21)));
        assert_eq!(status.latency_ms, Some([1.0, 2.5, 30.0]));
        assert_eq!(Status::read(&json!({"stage": "preparing", "progress": null})), Status::default());
    }

    #[test]
    fn the_answers_of_a_repair_are_understood() {
        let table = |repaired: u64| json!({"table": "t", "counts": {"rows": 9, "repaired": repaired}});
        let answer = json!({"divergent": 2, "tables": [table(1), table(1)]});
        assert_eq!(Mended::read(&answer), Some(Mended { divergent: 2, repaired: 2 }));
        assert_eq!(Mended::read(&json!({"divergent": 2, "tables": [{}]})), None);
    }

    #[test]
    fn what_routers_say_of_reads_is_taken_together() {
        let router = |share: u64, served: u64, mismatches: Value| {
            json!({"reads": {"share_percent": share, "selects_source": 100, "selects_target": served},
                   "mirror": {"percent": 5, "compared": 10, "mismatched": 1, "mismatches": mismatches}})
        };
        let differs = json!([{"statement": "SELECT 1", "count": 3}]);
        let both = [router(10, 3, json!([])), router(10, 4, differs)];
        let reads = Reads::read(&json!({ "routers": both }));
        assert_eq!((reads.by_source, reads.by_target, reads.compared, reads.differ), (200, 7, 20, 2));
        assert_eq!((reads.share_percent, reads.mirror_percent), (Some(10), Some(5)));
        assert_eq!(reads.worst.as_deref(), Some("SELECT 1"));
        let late = [router(10, 3, json!([])), router(1, 4, json!([]))];
        assert_eq!(Reads::read(&json!({ "routers": late })).share_percent, None, "one has not heard yet");
        assert_eq!(Reads::read(&json!({})), Reads::default());
    }

    #[test]
    fn the_answers_of_a_hand_over_are_understood() {
        let answer = json!({"outcome": "switched", "owner": "target", "stall_ms": 21.5, "steps": []});
        let expected = HandedOver { outcome: "switched".into(), owner: "target".into(), stall_ms: 21.5 };
        assert_eq!(HandedOver::read(&answer), Some(expected));
        assert_eq!(HandedOver::read(&json!({"blockers": []})), None);
    }

    #[test]
    fn the_answers_of_verify_are_understood() {
        let answer = json!({"rows_compared": 2_000, "divergences": [], "hot": 1, "drift": 0.0});
        let verified = Verified { rows_compared: 2_000, divergences: 0, hot: 1 };
        assert_eq!(Verified::read(&answer), Some(verified));
        let answer =
            json!({"rows_compared": 2_000, "divergences": [{"table": "shop.tags"}], "drift": 0.0005});
        assert_eq!(Verified::read(&answer).unwrap().divergences, 1);
        assert_eq!(Verified::read(&json!({"error": "?"})), None, "silence is not equality");
    }
}
