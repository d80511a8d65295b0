//! Whether the source can be done without: each question with what was found, and what stands in the way.

use super::{Completer, archive};
use crate::drive::Driver;
use crate::drive::switch::answer::{Blocked, CompleteOrder, Proof};
use crate::report::StatsSeat;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::ShownDuration;
use segue_model::switch::Side;
use segue_model::switch::decide::Situation;
use segue_model::traffic::{self, Against, Blind, Kind, Record};
use segue_postgres::control::{Entry, RouterReport};
use segue_postgres::{birth, health};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// The source is watched for at least this long, whatever the window: long enough for a server to count what a busy
/// session reads.
const PROBE: Duration = Duration::from_millis(1500);
/// How long the way back may take to bring what the target shows now.
const PATIENCE: Duration = Duration::from_secs(20);

/// A question whose answer is known from the stream to the target.
const STRAYS: &str = "writes past the source's fence";

/// What was found.
#[derive(Default)]
pub(super) struct Judged {
    pub(super) proofs: Vec<Proof>,
    pub(super) blockers: Vec<Blocked>,
}

impl Judged {
    fn proved(&mut self, question: &str, found: impl Into<String>) {
        self.proofs.push(Proof { question: question.to_owned(), found: found.into() });
    }

    fn against(&mut self, gate: &str, why: impl Into<String>, next: &str) {
        self.blockers.push(blocked(gate, why, next));
    }
}

/// A condition that does not hold. None can be overridden: each is about data.
pub(super) fn blocked(gate: &str, why: impl Into<String>, next: &str) -> Blocked {
    Blocked { gate: gate.to_owned(), why: why.into(), next: next.to_owned(), may_be_overridden: false }
}

/// Somebody has paused the migration, or contained it: nothing is given up then.
pub(super) fn paused(why: &str) -> Blocked {
    let why = format!("the migration is paused ({why}): what the target has does not reach the source");
    blocked("way-back", why, "`segue resume`, then ask again")
}

/// A hand-over goes first.
pub(super) fn handed_over(how: &str) -> Blocked {
    let why = format!("a hand-over of the writes {how}");
    blocked("owner", why, "see `segue status`, and ask again when it is over")
}

impl Completer<'_> {
    /// Asks everything. The caller keeps hand-overs away meanwhile.
    pub(super) async fn judge(&self, order: &CompleteOrder) -> Outcome<Judged> {
        let mut judged = Judged::default();
        let rows = self.switch.rows().await?;
        if !matches!(rows.situation(), Situation::Owned { owner: Side::Target, .. }) {
            let owner = rows.owner().map_or("not known".to_owned(), |owner| format!("the {owner}"));
            let why = format!("the owner of the writes is {owner}, not the target");
            judged.against("owner", why, "`segue switch writes` first");
            return Ok(judged);
        }
        judged.proved("who owns the writes", "the target, and no hand-over is under way");
        self.judge_divergences(&mut judged).await?;
        self.judge_traffic(order, &mut judged).await?;
        self.judge_routers(&mut judged).await?;
        self.judge_order(order, &mut judged).await?;
        // Last: it says what is so now.
        self.judge_way_back(&mut judged).await?;
        Ok(judged)
    }

    async fn judge_way_back(&self, judged: &mut Judged) -> Outcome<()> {
        if let Some(why) = self.switch.way_back_lost() {
            // It will not be there again: what is given up here is gone already.
            judged.proved("the source as a copy", format!("it is none: {why}"));
            return Ok(());
        }
        let Some(back) = self.flows.landing_on(Side::Source) else {
            let why = "the way back does not run, so the source does not have what the target has";
            judged.against("way-back", why, "see `segue status` for why");
            return Ok(());
        };
        match timeout(PATIENCE, back.verifying.passed()).await {
            Ok(passed) => passed?,
            Err(_) => {
                let why = format!("the way back has not caught up within {} s", PATIENCE.as_secs());
                judged.against("way-back", why, "see `segue status` for its lag");
                return Ok(());
            }
        }
        judged.proved("the source as a copy", "everything that the target showed a moment ago is there");
        Ok(())
    }

    /// Strays that are on their way are told before the record is read.
    async fn judge_strays_on_their_way(&self, judged: &mut Judged) {
        // A stream that is lost will not be there again: that must not keep the migration from ending, and is said.
        let Some(forward) = self.flows.landing_on(Side::Target) else { return };
        if !matches!(timeout(PATIENCE, forward.verifying.passed()).await, Ok(Ok(()))) {
            let why = format!(
                "what was written on the source has not come through the stream to the target within {} s, so nobody knows \
                 whether somebody has written past the fence",
                PATIENCE.as_secs()
            );
            judged.against("strays", why, "see `segue status` for that stream");
        }
    }

    async fn judge_divergences(&self, judged: &mut Judged) -> Outcome<()> {
        let measured = self.switch.measured(Side::Target).await?;
        let evidence = self.gates.lock().await.look(measured).await?;
        let next = "`segue verify --repair`, then ask again";
        match evidence.divergences_open {
            Some(0) => judged.proved("differences between the sides", "none is open"),
            Some(open) => judged.against("divergences", format!("{open} divergence(s) are open"), next),
            None => {
                judged.against("divergences", "it could not be looked whether any is open", "ask again");
            }
        }
        Ok(())
    }

    async fn judge_traffic(&self, order: &CompleteOrder, judged: &mut Judged) -> Outcome<()> {
        let profile = self.driver.spec.profile;
        let window = order.window_ms.map_or_else(|| traffic::window(profile), Duration::from_millis);
        let window_min = traffic::window_min(profile);
        if window < window_min {
            let why = format!(
                "the window is {}, and in production it is {} at least",
                ShownDuration(window),
                ShownDuration(window_min)
            );
            judged.against("window", why, "ask with a longer --window");
        }
        let from_us = self.traffic.look().await?.last.at_us;
        sleep(PROBE).await;
        self.judge_strays_on_their_way(judged).await;
        let mut record = self.traffic.look().await?;
        if let Some((count, at_us)) = strays(&self.driver.control.journal(0).await?) {
            record.told_of_strays(count, at_us);
        }
        judge_record(&record, from_us, window, judged);
        if let Some(lost) = &*self.flows.lost.borrow() {
            // Only that stream sees them.
            judged.proofs.retain(|proof| proof.question != STRAYS);
            let found = format!(
                "writes past the source's fence, since the stream to the target is lost: {}",
                lost.what
            );
            judged.proved("what cannot be seen from here", found);
        }
        Ok(())
    }

    /// Routers lead to the owner for as long as there is a migration; who comes by way of one has to go by itself then.
    async fn judge_routers(&self, judged: &mut Judged) -> Outcome<()> {
        let routers = self.driver.control.routers().await?;
        if routers.is_empty() {
            return Ok(());
        }
        let used: Vec<_> = routers.iter().filter(|router| router.body["clients"] != 0).collect();
        for RouterReport { id, body, .. } in &used {
            let at = body["listen"].as_str().unwrap_or(id);
            let why = format!("{} client(s) are connected by way of the router on {at}", body["clients"]);
            judged.against(
                "routers",
                why,
                "give these applications the target's own address, then ask again",
            );
        }
        if used.is_empty() {
            judged.proved("applications that come by way of a router", "none is connected");
        }
        let last = routers.iter().filter_map(|router| {
            let stats: StatsSeat = serde_json::from_value(router.body["statistics"].clone()).ok()?;
            let last = stats.served.into_iter().filter(|served| served.source_ms_ago.is_some());
            last.min_by_key(|served| served.source_ms_ago)
        });
        let last = last.min_by_key(|served| served.source_ms_ago).and_then(|served| served.last_on_source());
        let found = last.unwrap_or_else(|| "nothing, since they began".to_owned());
        judged.proved("what routers sent to the source last", found);
        Ok(())
    }

    /// What was asked beside the end itself can be done.
    async fn judge_order(&self, order: &CompleteOrder, judged: &mut Judged) -> Outcome<()> {
        let Driver { spec, sides, .. } = self.driver;
        let source = sides.source.connect("complete").await?;
        if let Some(setting) = segue_postgres::traffic::uncounted(&source).await? {
            let why =
                format!("the source's setting {setting} is off: who reads there is not counted or not shown");
            judged.against("reads", why, "turn it on, and ask again when the window has passed since");
        }
        for found in unseen(&source).await? {
            judged.proved("what cannot be seen from here", found);
        }
        if let Some(directory) = &order.archive {
            match archive::check(&source, directory, spec.name.as_str()).await {
                Ok(tool) => judged.proved("the archive", format!("can be written by {tool}")),
                Err(fault) => judged.blockers.push(of_fault("archive", &fault)),
            }
        }
        if order.drop_source {
            let tables: Vec<QualifiedName> =
                self.flows.forward.tables.iter().map(|t| t.source.clone()).collect();
            let dependents = birth::dependents(&source, &tables).await?;
            if dependents.is_empty() {
                judged.proved("what depends on the source's tables", "no foreign key, view or other table");
            }
            if let Some(other) = birth::stranger(&source, spec.name.as_str(), &tables).await? {
                let why = format!(
                    "{other} came to the source's tables since, or in place of one, and was not moved"
                );
                judged.against("drop-source", why, "DETACH or DROP it, or complete without --drop-source");
            }
            for line in dependents {
                judged.against("drop-source", line, "drop or change it, or complete without --drop-source");
            }
        }
        Ok(())
    }
}

/// The writes past the source's fence that the journal tells of: how many with the last record, and when the last one
/// was committed, by the source's clock.
pub(super) fn strays(journal: &[Entry]) -> Option<(u64, i64)> {
    let is_ours = |entry: &&Entry| entry.entry.kind == "stray" && entry.entry.body["side"] == "source";
    let told = &journal.iter().rev().find(is_ours)?.entry.body["strays"];
    let all = told["strays"].as_array()?.iter();
    let at_us = all.filter_map(|stray| stray["committed_at_us"].as_i64()).max()?;
    Some((told["counts"]["transactions"].as_u64().unwrap_or(0), at_us))
}

/// Where the source's tables may be read without anybody noticing here.
async fn unseen(source: &Client) -> Outcome<Vec<String>> {
    let replicas = health::replicas(source).await?.into_iter();
    let mut found: Vec<String> = replicas
        .map(|replica| format!("who reads the tables on the source's replica {}: ask there", replica.name))
        .collect();
    found.extend(health::blindness(source).await?);
    Ok(found)
}

fn of_fault(gate: &str, fault: &Fault) -> Blocked {
    blocked(gate, fault.what.clone(), &fault.next_step)
}

/// Judges what was seen of the source, if nothing was to use it from `window` before `from_us` on.
pub(super) fn judge_record(record: &Record, from_us: i64, window: Duration, judged: &mut Judged) {
    let now_us = record.last.at_us;
    let against = record.against(from_us, window);
    for found in &against {
        match found {
            Against::NotWatched { left_us, .. } => {
                let since = record.restarted.as_deref().unwrap_or("the writes have left it");
                let why = format!(
                    "the source is watched only since {}, when {since}; the window is {}",
                    ago(record.since_us, now_us),
                    ShownDuration(window)
                );
                judged.against(
                    "window",
                    why,
                    &format!("wait another {}, or ask with a shorter --window", shown(*left_us)),
                );
            }
            Against::Used { kind, last } => {
                let why = format!("{}: {}", ago(last.at_us, now_us), last.what);
                judged.against(gate(*kind), why, next(*kind));
            }
        }
    }
    if !against.is_empty() {
        return;
    }
    let since = format!("since {} at least", ago(from_us.saturating_sub(micros(window)), now_us));
    for (question, kind) in [
        ("writes that the source's fence refused", Kind::RefusedWrite),
        (STRAYS, Kind::Stray),
        ("reads of the source's tables", Kind::Read),
        ("sessions that use the source's tables", Kind::Session),
    ] {
        let before = record.uses.get(&kind);
        let before = before.map_or(String::new(), |last| {
            format!("; before that, {}: {}", ago(last.at_us, now_us), last.what)
        });
        let blind = if kind == Kind::Read { blind(record, now_us) } else { String::new() };
        judged.proved(question, format!("none {since}{before}{blind}"));
    }
    let bystanders = record.bystanders();
    if !bystanders.is_empty() {
        let found = format!("connected, and not seen to use the tables: {}", bystanders.join("; "));
        judged.proved("other sessions in the source's database", found);
    }
}

/// What the counters of reads do not prove.
fn blind(record: &Record, now_us: i64) -> String {
    let line = |what: &str, blind: &Blind| {
        format!(
            "; reads cannot be told apart for {} between {} and {}, when {what}: there only sessions were looked at",
            shown(blind.total_us),
            ago(blind.first_us, now_us),
            ago(blind.last_us, now_us)
        )
    };
    let unwatched = record.unwatched.as_ref().map(|blind| {
        format!(
            "; for {} of that, between {} and {}, nobody looked at sessions, either",
            shown(blind.total_us),
            ago(blind.first_us, now_us),
            ago(blind.last_us, now_us)
        )
    });
    let stream = record.blind_by_stream.as_ref().map(|b| line("the way back wrote, or had just written", b));
    let verification =
        record.blind_by_verification.as_ref().map(|b| line("a verification ran, or had just run", b));
    [stream, verification, unwatched].into_iter().flatten().collect()
}

fn gate(kind: Kind) -> &'static str {
    match kind {
        Kind::RefusedWrite => "refused-writes",
        Kind::Stray => "strays",
        Kind::Read => "reads",
        Kind::Session => "sessions",
    }
}

fn next(kind: Kind) -> &'static str {
    match kind {
        Kind::RefusedWrite => "find the client that still writes to the source, and point it at the target",
        Kind::Stray => {
            "find who writes past the fence (`segue journal` lists strays), and point them at the target; `segue verify \
             --repair` mends what differs"
        }
        Kind::Read => "find the client that still reads from the source, and point it at the target",
        Kind::Session => "point that client at the target, or end its session",
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A length of time, for people.
fn shown(us: i64) -> String {
    let seconds = u64::try_from(us / 1_000_000).unwrap_or(0);
    // Nobody needs the seconds of a day.
    let unit = match seconds {
        0..120 => 1,
        120..7_200 => 60,
        _ => 3_600,
    };
    ShownDuration(Duration::from_secs(seconds / unit * unit)).to_string()
}

fn ago(at_us: i64, now_us: i64) -> String {
    format!("{} ago", shown(now_us.saturating_sub(at_us).max(0)))
}
