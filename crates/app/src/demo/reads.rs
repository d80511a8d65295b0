//! The step of the demo in which reads are compared and moved, before any write is.
//!
//! What the target is asked for and what counts as equal, it does not know: it gives the orders that a user would give, and
//! believes what `segue status` says.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::{Browsing, Load, Noticed};
use super::narrator::{count, of, time, wrapped};
use super::report::{in_ms, three};
use super::segue::{Reads, Segue, Verified};
use super::{DemoError, Story, shop};

/// For routers to have compared enough, or to have said what they go by.
const STATUS_LIMIT: Duration = Duration::from_secs(20);
const STATUS_POLL: Duration = Duration::from_millis(100);
/// Differences that are as good as an explanation.
const DIFFER_MIN: u64 = 3;
/// Answers that are equal before reads are moved.
const COMPARED_MIN: u64 = 50;
/// How long each share is looked at: two reports of a router, and a little.
const SHARE_LASTS: Duration = Duration::from_millis(2_100);
/// The table that is changed behind Segue's back.
const CHANGED: &str = "shop.products";
const SHARES: [u64; 3] = [1, 10, 100];
/// How much of a quoted line fits beside the bar.
const QUOTED_CHARS: usize = 110;

/// What came of comparing and moving reads.
#[derive(Debug, Clone)]
pub(super) struct ReadsMoved {
    pub(super) mirrored: Mirrored,
    /// Both sides, once what had been changed was mended.
    pub(super) verified: Verified,
    pub(super) shares: Vec<Share>,
}

/// What routers found in comparing answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Mirrored {
    /// Rows that were changed on the target alone.
    pub(super) planted: u64,
    /// How often answers differed by that; 0: nobody noticed.
    pub(super) differed: u64,
    /// How long it took until that was known.
    pub(super) found_after: Duration,
    /// The statement that differed.
    pub(super) statement: String,
    /// Rows that were mended.
    pub(super) mended: u64,
    /// Answers compared afterwards.
    pub(super) compared: u64,
    /// Of them, different ones.
    pub(super) differ: u64,
}

/// A share of the reads that the target was to serve for a while.
#[derive(Debug, Clone)]
pub(super) struct Share {
    pub(super) percent: u64,
    /// Reads that were answered meanwhile, by either side.
    pub(super) answered: u64,
    /// By the target.
    pub(super) by_target: u64,
    pub(super) noticed: Noticed,
}

impl Share {
    /// What really was the target's, in percent.
    pub(super) fn served_percent(&self) -> f64 {
        self.by_target as f64 * 100.0 / self.answered.max(1) as f64
    }

    fn in_words(&self) -> String {
        let latency = |share| self.noticed.read_latency(share).map_or_else(|| "?".to_owned(), time);
        let errors = match self.noticed.errors.values().sum() {
            0 => "no error".to_owned(),
            errors => of(errors, "error", "errors"),
        };
        let stale = match self.noticed.stale {
            0 => "none stale".to_owned(),
            stale => format!("{} stale", count(stale)),
        };
        format!(
            "The target served {} of {} reads ({:.1} %), {errors}, {stale}; p50 {}, p99 {}",
            count(self.by_target),
            count(self.answered),
            self.served_percent(),
            latency(0.5),
            latency(0.99)
        )
    }
}

impl ReadsMoved {
    /// Whether what was planted was found and mended, and nothing else differed.
    pub(super) fn is_clean(&self) -> bool {
        self.wrong().is_empty()
    }

    /// What is not as it should be.
    pub(super) fn wrong(&self) -> Vec<String> {
        let Mirrored { planted, differed, mended, differ, .. } = self.mirrored;
        let mut wrong = Vec::new();
        if differed == 0 {
            wrong.push("the changed price was not noticed".to_owned());
        }
        if mended != planted {
            wrong.push(format!("{} of {} mended", count(mended), of(planted, "change", "changes")));
        }
        if differ > 0 {
            wrong.push(of(differ, "read was", "reads were") + " answered differently by the two sides");
        }
        wrong
    }

    /// What comparing came to, in one line.
    pub(super) fn findings(&self) -> String {
        let Mirrored { planted, found_after, differ, compared, .. } = self.mirrored;
        format!(
            "{} planted, found after {}, mended; since then {} of {} differ",
            of(planted, "difference", "differences"),
            time(found_after),
            count(differ),
            count(compared)
        )
    }

    /// What the target really served of the reads, by what it was to.
    pub(super) fn served(&self) -> String {
        let served = |share: &Share| format!("{:.1} % of {} %", share.served_percent(), share.percent);
        let served: Vec<String> = self.shares.iter().map(served).collect();
        format!("{} of the reads", served.join(", "))
    }

    /// With what came of all reads that are transactions of their own; its keys are stable.
    pub(super) fn json(&self, browsing: &Browsing) -> Value {
        let mirrored = &self.mirrored;
        json!({
            "browsed": browsing.reads,
            "latency_ms": three(|share| browsing.durations.percentile(share).map(in_ms)),
            "read_back": browsing.read_back,
            "stale": browsing.stale,
            "stale_examples": browsing.stale_shown,
            "planted": mirrored.planted,
            "differed": mirrored.differed,
            "found_after_ms": in_ms(mirrored.found_after),
            "statement": mirrored.statement,
            "mended": mirrored.mended,
            "compared_afterwards": mirrored.compared,
            "differ_afterwards": mirrored.differ,
            "shares": self.shares.iter().map(|share| json!({
                "percent": share.percent,
                "answered": share.answered,
                "by_target": share.by_target,
                "latency_ms": three(|of| share.noticed.read_latency(of).map(in_ms)),
                "stale": share.noticed.stale,
                "errors": share.noticed.errors,
            })).collect::<Vec<_>>(),
        })
    }

    /// As the documentation shows it.
    pub(super) fn example() -> Self {
        let share = |percent, by_target| {
            let mut noticed = Noticed::example();
            noticed.errors.clear();
            Share { percent, answered: 240, by_target, noticed }
        };
        Self {
            mirrored: Mirrored {
                planted: 1,
                differed: 34,
                found_after: Duration::from_millis(940),
                statement:
                    "SELECT id, title, price::text FROM shop.products WHERE id BETWEEN $1 AND $2 ORDER BY id"
                        .to_owned(),
                mended: 1,
                compared: 1_180,
                differ: 0,
            },
            verified: Verified { rows_compared: 2_302_514, divergences: 0, hot: 0 },
            shares: vec![share(1, 3), share(10, 24), share(100, 236)],
        }
    }
}

impl Story {
    /// A difference is planted, found, explained and mended; then reads are moved, more and more of them.
    pub(super) async fn move_reads(&self, segue: &Segue, load: &Load) -> Result<ReadsMoved, DemoError> {
        let narrator = &self.narrator;
        narrator.step(7, "Compare the reads, then move them");
        let mut mirrored = self.find_what_differs(segue, load).await?;
        self.mend(segue, load, &mut mirrored).await?;
        let verified = self.verify(segue, Some(load)).await?;

        narrator.detail("$ segue mirror 0, and 100 again: from here on it counts anew");
        segue.set(&["mirror", "0"]).await?;
        segue.set(&["mirror", "100"]).await?;
        let enough = |reads: &Reads| reads.mirror_percent == Some(100) && reads.compared >= COMPARED_MIN;
        let compared = self.status_until(segue, load, enough).await?;
        narrator.detail(&differences(&compared));

        let mut shares = Vec::new();
        for percent in SHARES {
            shares.push(self.serve(segue, load, percent).await?);
        }
        let compared = segue.reads().await?;
        segue.set(&["mirror", "0"]).await?;
        (mirrored.compared, mirrored.differ) = (compared.compared, compared.differ);
        narrator.detail(&format!("{} We stop comparing.", differences(&compared)));
        Ok(ReadsMoved { mirrored, verified, shares })
    }

    async fn find_what_differs(&self, segue: &Segue, load: &Load) -> Result<Mirrored, DemoError> {
        let narrator = &self.narrator;
        narrator
            .detail("We change one price on the target behind Segue's back, and have reads repeated there:");
        shop::change_a_price(&self.servers.target).await?;
        narrator.detail("$ segue mirror 100");
        let begun = Instant::now();
        segue.set(&["mirror", "100"]).await?;
        let found = self.status_until(segue, load, |reads| reads.differ >= DIFFER_MIN).await?;
        let found_after = begun.elapsed();
        if found.differ == 0 {
            narrator.detail(&format!("Nobody has noticed it within {}.", time(found_after)));
        } else {
            narrator.detail(&format!("Known after {}:", time(found_after)));
            narrator.detail("$ segue status");
            let said = segue.status_for_people().await?;
            // The statement, and behind it the explanation.
            let lines = said.lines().skip_while(|line| !line.trim_start().starts_with("differs ")).take(2);
            for line in lines.flat_map(|line| wrapped(line.trim_start(), QUOTED_CHARS)) {
                narrator.quote(&line);
            }
        }
        let statement = found.worst.unwrap_or_default();
        Ok(Mirrored { planted: 1, differed: found.differ, found_after, statement, ..Mirrored::default() })
    }

    async fn mend(&self, segue: &Segue, load: &Load, mirrored: &mut Mirrored) -> Result<(), DemoError> {
        self.narrator.detail(&format!("$ segue verify --table {CHANGED} --repair"));
        let mended = self.watched(load, segue.mend(CHANGED)).await?;
        mirrored.mended = mended.repaired;
        self.narrator.detail(&format!(
            "{}, {} mended: the source's row was written over it.",
            of(mended.divergent, "row differs", "rows differ"),
            count(mended.repaired)
        ));
        Ok(())
    }

    /// The target serves so much of the reads for a while. A router reports when it hears of other rules, and then every
    /// second: what it has counted between two reports that go by these rules was served by them.
    async fn serve(&self, segue: &Segue, load: &Load, percent: u64) -> Result<Share, DemoError> {
        self.narrator.detail(&format!("$ segue switch reads {percent}"));
        load.watch();
        segue.set(&["switch", "reads", &percent.to_string()]).await?;
        let heard = |reads: &Reads| reads.share_percent == Some(percent);
        let first = self.status_until(segue, load, heard).await?;
        self.watched(load, tokio::time::sleep(SHARE_LASTS)).await;
        let last = self.status_until(segue, load, |reads| reads.answered() > first.answered()).await?;
        let share = Share {
            percent,
            answered: last.answered().saturating_sub(first.answered()),
            by_target: last.by_target.saturating_sub(first.by_target),
            noticed: load.noticed(),
        };
        self.narrator.detail(&share.in_words());
        Ok(share)
    }

    /// Asks until it is so; what was said last, also if it never was.
    async fn status_until(
        &self,
        segue: &Segue,
        load: &Load,
        is_so: impl Fn(&Reads) -> bool,
    ) -> Result<Reads, DemoError> {
        let begun = Instant::now();
        let asking = async {
            loop {
                let reads = segue.reads().await?;
                if is_so(&reads) || begun.elapsed() > STATUS_LIMIT {
                    return Ok(reads);
                }
                tokio::time::sleep(STATUS_POLL).await;
            }
        };
        self.watched(load, asking).await
    }
}

fn differences(reads: &Reads) -> String {
    let compared = of(reads.compared, "answer was compared", "answers were compared");
    match reads.differ {
        0 => format!("{compared}, none differs."),
        differ => format!("{compared}, {} differ.", count(differ)),
    }
}
