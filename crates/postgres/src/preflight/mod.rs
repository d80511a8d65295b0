//! The checks of a plan: everything that can be known by asking both servers before anything is changed.
//!
//! What `segue run` refuses is refused here by the same code ([`crate::catalog`]): its faults become findings of the check
//! that owns their code. Every other check warns: of what would go wrong later, of what has no home after the switch, and
//! of what cannot be known. A check that may not look says so, and is never taken for passed.
//!
//! Each check is a few statements about all tables together, on catalogs and statistics, which lock nothing and change
//! nothing. When they are asked, and what is printed of them, is not known here.

mod activity;
mod capacity;
mod constraints;
mod dependents;
mod looks;
mod rights;
mod servers;
mod settings;
mod shapes;
mod streams;
mod triggers;

pub use looks::{Asked, Looks, is_missing_on_target};

use futures_util::future::BoxFuture;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use segue_model::switch::Side;
use serde::Serialize;

/// What a finding means for the migration. Ordered: the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is wrong; what is said should be known.
    Pass,
    /// The migration can begin, and something will be in its way, or be lost, later.
    Warn,
    /// `segue run` refuses to begin.
    Refuse,
}

/// One thing that a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it means.
    pub verdict: Verdict,
    /// The side that it was found on, and that the remedy is for.
    pub side: Option<Side>,
    /// The table, role, slot or other object, as people write it.
    pub object: Option<String>,
    /// What was found, and why it matters.
    pub what: String,
    /// What to do: SQL that runs as it stands on that side (text after `--` is for people), a command, or words.
    pub remedy: String,
}

impl Finding {
    fn warn(side: Side, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        let (what, remedy) = (what.into(), remedy.into());
        Finding { verdict: Verdict::Warn, side: Some(side), object: None, what, remedy }
    }

    fn note(what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        let (what, remedy) = (what.into(), remedy.into());
        Finding { verdict: Verdict::Pass, side: None, object: None, what, remedy }
    }

    fn about(self, object: impl ToString) -> Finding {
        Finding { object: Some(object.to_string()), ..self }
    }
}

/// A check and what it has found; nothing found is passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Its stable name.
    pub check: &'static str,
    /// The question that it asks.
    pub asks: &'static str,
    /// What it has found, the worst first.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// The worst of it.
    pub fn verdict(&self) -> Verdict {
        self.findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Pass)
    }
}

/// The worst of all.
pub fn verdict(all: &[Checked]) -> Verdict {
    all.iter().map(Checked::verdict).max().unwrap_or(Verdict::Pass)
}

/// A look of a check's own, beyond what `segue run` refuses.
type Look = for<'l> fn(&'l Looks<'l>) -> BoxFuture<'l, Outcome<Vec<Finding>>>;

/// A line of the table of checks.
struct Check {
    name: &'static str,
    asks: &'static str,
    /// Codes of the faults of `segue run` that belong to it.
    codes: &'static [&'static str],
    look: Option<Look>,
}

/// A check that consists of what `segue run` refuses.
const fn refused(name: &'static str, asks: &'static str, codes: &'static [&'static str]) -> Check {
    Check { name, asks, codes, look: None }
}

/// A check that looks for itself.
const fn looked(name: &'static str, asks: &'static str, look: Look) -> Check {
    Check { name, asks, codes: &[], look: Some(look) }
}

/// A check that does both.
const fn both(name: &'static str, asks: &'static str, codes: &'static [&'static str], look: Look) -> Check {
    Check { name, asks, codes, look: Some(look) }
}

/// Whatever `segue run` refuses under a code that no other check owns.
const ANYTHING_ELSE: &str = "plan";

/// Every check there is, in the order in which they are shown: what is refused, what loses or bends data, what fails after the
/// switch, what is in the way, and what should be known.
static CHECKS: &[Check] = &[
    refused("versions", "can Segue move between these versions of PostgreSQL?", &["SEGUE-VERSION"]),
    refused("recovery", "are both servers primaries?", &["SEGUE-STANDBY"]),
    refused("wal-level", "does the source write what a stream needs?", &["SEGUE-WAL-LEVEL"]),
    both("limits", "are a slot, a WAL sender and an origin free?", &["SEGUE-LIMIT"], |l| {
        Box::pin(capacity::limits(l))
    }),
    refused(
        "synchronous-standby",
        "would commits wait for Segue's own session as a standby?",
        &["SEGUE-SYNC-STANDBY"],
    ),
    both("privileges", "may Segue's role do what it has to?", &["SEGUE-PRIVILEGE"], |l| {
        Box::pin(rights::privileges(l))
    }),
    both(
        "row-security",
        "does everybody see the rows that he should, and Segue all of them?",
        &["SEGUE-ROW-SECURITY"],
        |l| Box::pin(rights::row_security(l)),
    ),
    refused(
        "tables",
        "are the tables there on both sides, and are they tables?",
        &["SEGUE-NO-TABLE", "SEGUE-NOT-A-TABLE", "SEGUE-TWICE"],
    ),
    refused(
        "keys",
        "can every row be told from every other, on both sides?",
        &["SEGUE-NO-KEY", "SEGUE-DEFERRABLE-KEY", "SEGUE-TARGET-KEY"],
    ),
    refused("columns", "does every value fit its column on the target?", &["SEGUE-COLUMN"]),
    refused("target-empty", "are the target's tables empty?", &["SEGUE-NOT-EMPTY"]),
    both("encoding", "can the target hold all of the source's text?", &["SEGUE-ENCODING"], |l| {
        Box::pin(servers::encoding(l))
    }),
    refused(
        "leftovers",
        "is nothing in the way from an earlier migration?",
        &[
            "SEGUE-OTHER-TARGET",
            "SEGUE-SOURCE-CLOSED",
            "SEGUE-SLOT-FOREIGN",
            "SEGUE-SLOT-ACTIVE",
            "SEGUE-PUBLICATION-FOREIGN",
            "SEGUE-NAME",
            "SEGUE-FORMAT",
        ],
    ),
    looked("triggers-firing", "would triggers or rules fire for what Segue writes?", |l| {
        Box::pin(triggers::firing(l))
    }),
    looked("subscriptions", "does a subscription write into the same tables?", |l| {
        Box::pin(streams::subscriptions(l))
    }),
    looked("partitions", "has the target a partition for every row?", |l| Box::pin(shapes::partitions(l))),
    looked("hash-partitions", "can rows of a hash partition be told on the other side?", |l| {
        Box::pin(shapes::hashed(l))
    }),
    looked("constraints", "do both sides hold rows to the same?", |l| Box::pin(constraints::one_sided(l))),
    looked("foreign-keys", "do references stay within the migration?", |l| {
        Box::pin(constraints::leading_out(l))
    }),
    looked("collations", "do both sides order text alike, and as their indexes do?", |l| {
        Box::pin(servers::collations(l))
    }),
    looked("generated", "do both sides compute the same?", |l| Box::pin(shapes::generated(l))),
    looked("target-columns", "what becomes of columns that only the target has?", |l| {
        Box::pin(shapes::only_on_target(l))
    }),
    looked("identity", "are identity columns the same on both sides?", |l| Box::pin(shapes::identity(l))),
    looked("sequences", "can the target go on where the source's sequences stand?", |l| {
        Box::pin(shapes::sequences(l))
    }),
    looked("defaults", "do inserts write the same on both sides?", |l| Box::pin(shapes::defaults(l))),
    looked("inheritance", "do rows stay behind in inheritance children?", |l| {
        Box::pin(shapes::inheritance(l))
    }),
    looked("large-objects", "do rows name large objects?", |l| Box::pin(shapes::large_objects(l))),
    looked("type-numbers", "have types of users the same numbers on both sides?", |l| {
        Box::pin(shapes::type_numbers(l))
    }),
    looked("extensions", "are the source's extensions on the target, as new?", |l| {
        Box::pin(servers::extensions(l))
    }),
    looked("grants", "may the application's roles do the same on the target?", |l| {
        Box::pin(rights::grants(l))
    }),
    looked("triggers", "does the target have the source's triggers and rules?", |l| {
        Box::pin(triggers::one_sided(l))
    }),
    looked("views", "does the target have the views that read the tables?", |l| {
        Box::pin(dependents::views(l))
    }),
    looked("functions", "does the target have the functions that name the tables?", |l| {
        Box::pin(dependents::absent_functions(l))
    }),
    looked("joins", "are migrated tables joined with others?", |l| Box::pin(dependents::joins(l))),
    looked("publications", "who else follows the tables?", |l| Box::pin(streams::publications(l))),
    looked("way-back", "could writes be handed over with a way back?", |l| Box::pin(looks::way_back(l))),
    looked("slots", "do other slots keep log or rows?", |l| Box::pin(streams::slots(l))),
    looked("kept-log", "how much log does the source keep for a slot?", |l| Box::pin(capacity::kept_log(l))),
    looked("transactions", "are transactions open that everything waits for?", |l| {
        Box::pin(activity::transactions(l))
    }),
    looked("visibility", "can Segue see what other sessions do?", |l| Box::pin(rights::visibility(l))),
    looked("replicas", "do replicas keep up?", |l| Box::pin(streams::replicas(l))),
    looked("failover", "would the stream survive a failover?", |l| Box::pin(streams::failover(l))),
    looked("synchronous-commit", "is an acknowledged write as safe on the target?", |l| {
        Box::pin(settings::synchronous_commit(l))
    }),
    looked("connections", "have both sides room for the sessions that come?", |l| {
        Box::pin(capacity::connections(l))
    }),
    looked("locks", "can all tables be locked at once?", |l| Box::pin(capacity::locks(l))),
    looked("timeouts", "would a hold outlast the application's time limits?", |l| {
        Box::pin(settings::timeouts(l))
    }),
    looked("isolation", "do transactions run alike on both sides?", |l| Box::pin(settings::isolation(l))),
    looked("time-zone", "do both sides tell the same time of day?", |l| Box::pin(settings::time_zone(l))),
    looked("session-settings", "do statements mean the same on both sides?", |l| {
        Box::pin(settings::session_settings(l))
    }),
    looked("clocks", "do the servers' clocks agree with this machine's?", |l| Box::pin(servers::clocks(l))),
    looked("ddl-guard", "can DDL be kept away from the tables?", |l| Box::pin(rights::ddl_guard(l))),
    looked("snapshots", "is a large table copied under one snapshot?", |l| Box::pin(capacity::snapshots(l))),
    looked("disk", "is there room on the target's disk?", |l| Box::pin(capacity::disk(l))),
    looked("managed", "does somebody else manage the servers?", |l| Box::pin(servers::managed(l))),
    refused(ANYTHING_ELSE, "does anything else stand in the plan's way?", &[]),
];

/// The names of all checks, in their order.
pub fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|check| check.name)
}

/// Runs every check. Fails only if a server cannot be asked at all.
pub async fn check_all(looks: &Looks<'_>) -> Outcome<Vec<Checked>> {
    let mut all = Vec::new();
    for check in CHECKS {
        let mut findings: Vec<Finding> = looks
            .refusals()
            .filter(|fault| owner(fault.code) == check.name)
            .map(|f| looks.refused(f))
            .collect();
        if let Some(look) = check.look {
            match look(looks).await {
                Ok(found) => findings.extend(found),
                Err(fault) => findings.push(not_looked(fault)?),
            }
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        all.push(Checked { check: check.name, asks: check.asks, findings });
    }
    Ok(all)
}

/// The check that a fault of `segue run` belongs to.
fn owner(code: &str) -> &'static str {
    let owner = CHECKS.iter().find(|check| check.codes.contains(&code));
    owner.map_or(ANYTHING_ELSE, |check| check.name)
}

/// What is not known is not passed. What passes by itself is no finding: it is asked again, with all the rest.
fn not_looked(fault: Fault) -> Outcome<Finding> {
    match fault.recovery {
        Recovery::Retry | Recovery::Ambiguous | Recovery::Bug => Err(fault),
        Recovery::Operator => Ok(Finding {
            verdict: Verdict::Warn,
            side: None,
            object: None,
            what: format!("this could not be looked at: {} [{}]", fault.what, fault.code),
            remedy: fault.next_step,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_checks_share_a_name_or_a_code() {
        let (mut seen, mut codes) = (BTreeSet::new(), BTreeSet::new());
        for check in CHECKS {
            assert!(seen.insert(check.name), "{}", check.name);
            assert!(check.asks.ends_with('?'), "{}", check.name);
            assert!(check.codes.iter().all(|code| codes.insert(code)), "{}", check.name);
        }
    }

    #[test]
    fn a_fault_of_an_unknown_kind_is_shown_all_the_same() {
        assert_eq!(owner("SEGUE-WAL-LEVEL"), "wal-level");
        assert_eq!(owner("SEGUE-NEVER-HEARD-OF"), ANYTHING_ELSE);
    }

    #[test]
    fn what_may_not_be_looked_at_is_not_passed() {
        let finding = not_looked(Fault::operator("SEGUE-PRIVILEGE", "no", "grant it")).unwrap();
        assert_eq!((finding.verdict, finding.remedy.as_str()), (Verdict::Warn, "grant it"));
        assert!(not_looked(Fault::retry("SEGUE-CONNECTION", "gone")).is_err());
    }

    #[test]
    fn the_worst_counts() {
        let found = |verdict| Finding {
            verdict,
            side: None,
            object: None,
            what: String::new(),
            remedy: String::new(),
        };
        let checked = |findings| Checked { check: "a", asks: "?", findings };
        assert_eq!(verdict(&[checked(vec![])]), Verdict::Pass);
        let some = checked(vec![found(Verdict::Pass), found(Verdict::Refuse), found(Verdict::Warn)]);
        assert_eq!(verdict(&[checked(vec![found(Verdict::Warn)]), some]), Verdict::Refuse);
    }
}
