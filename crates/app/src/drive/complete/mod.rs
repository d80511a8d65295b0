//! Giving the way back up, for good: whether that may be done, and that it is done.
//!
//! Two halves with one record between them. Until `completing` is in the journal nothing is changed, and everything is
//! asked again at the next order ([`judge`]). From then on it only goes forward: the attempt ends, and with it both
//! streams; what is left is done step by step ([`finish`]), by this process or by the next one, and nothing else is.

pub(super) mod archive;
pub(super) mod finish;
mod judge;
#[cfg(test)]
mod tests;

use super::Driver;
use super::flow::Flows;
use super::gates::Gates;
use super::switch::Switch;
use super::switch::answer::{Blocked, CompleteOrder, Completion, Ended, Progress, Proof};
use super::traffic::Traffic;
use crate::commands::journal::time_text;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_postgres::birth;
use segue_postgres::control::{Command, Control, Entry, Lease};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{sleep, timeout};

/// The kinds of its records.
const COMPLETING: &str = "completing";
const ARCHIVED: &str = "archived";
const COMPLETED: &str = "completed";

/// A hand-over that takes longer is asked about again. A start looks for what is left of one, which is quick.
const AT_REST_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks whether something else was ordered meanwhile.
const MIND_PAUSE: Duration = Duration::from_millis(50);

/// What `segue run` says of a migration that is over.
const OVER: &str = "the migration is completed: the target owns the writes for good";

/// A completion that has begun, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// What was asked.
    order: CompleteOrder,
    /// Who asked.
    by: String,
    /// What has proved that the source is not needed.
    proofs: Vec<Proof>,
    /// The source's tables.
    tables: Vec<String>,
    /// What Segue had on both sides.
    removes: Vec<String>,
    /// The archive's files, if they are complete; a record of its own says so.
    #[serde(default, skip_serializing)]
    archived: Option<Vec<String>>,
}

/// How far the end of a migration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// It has not begun.
    Open,
    /// It has, and goes on.
    Completing(Box<Begun>),
    /// It is over.
    Completed(Ended),
}

impl Life {
    /// What the journal says.
    pub(crate) fn of(journal: &[Entry]) -> Outcome<Life> {
        let last = |kind: &str| journal.iter().rev().find(|entry| entry.entry.kind == kind);
        if let Some(entry) = last(COMPLETED) {
            return Ok(Life::Completed(read(&entry.entry.body)?));
        }
        let Some(entry) = last(COMPLETING) else { return Ok(Life::Open) };
        let mut begun: Begun = read(&entry.entry.body)?;
        begun.archived = last(ARCHIVED).map(|entry| read(&entry.entry.body["files"])).transpose()?;
        Ok(Life::Completing(Box::new(begun)))
    }

    /// A fault, if writes can be moved no more: there is no other side.
    pub(crate) fn is_open(&self) -> Outcome<()> {
        match self {
            Life::Open => Ok(()),
            Life::Completing(_) => Err(Fault::operator(
                "SEGUE-COMPLETING",
                "the migration is being completed: the way back was given up",
                "`segue run` finishes it; `segue status` says when",
            )),
            Life::Completed(_) => Err(Fault::operator(
                "SEGUE-COMPLETED",
                "the migration is completed: the target owns the writes, and there is no way back",
                "nothing is left to be done; to move the tables again, begin another migration",
            )),
        }
    }
}

/// Which side a completed migration has left the writes to, and since when, in words; `None`: it is not completed.
pub(crate) fn winner(journal: &[Entry]) -> Option<String> {
    let Entry { at_us, entry, .. } = journal.iter().rev().find(|entry| entry.entry.kind == COMPLETED)?;
    // Records of earlier versions do not name it.
    let target = entry.body["target"].as_str().map_or_else(String::new, |target| format!(" {target}"));
    Some(format!("the target{target} owns the writes for good, since {}", time_text(*at_us)))
}

/// What `segue run` says where it finds it completed.
pub(super) fn over(journal: &[Entry]) -> String {
    winner(journal).map_or_else(|| OVER.to_owned(), |winner| format!("the migration is completed: {winner}"))
}

/// How far the end is, for a command that meets no driver.
pub(crate) async fn life(control: &Control) -> Outcome<Life> {
    Life::of(&control.journal(0).await?)
}

fn read<T: serde::de::DeserializeOwned>(body: &Value) -> Outcome<T> {
    serde_json::from_value(body.clone()).map_err(|e| {
        Fault::operator(
            "SEGUE-FORMAT",
            format!("the journal's record of the completion cannot be read: {e}"),
            "use the version of segue that has begun to complete the migration",
        )
    })
}

impl Begun {
    fn names(&self) -> Outcome<Vec<QualifiedName>> {
        let unreadable = |_| Fault::bug("SEGUE-JOURNAL", "the journal's names of tables cannot be read");
        self.tables.iter().map(|table| QualifiedName::parse(table).map_err(unreadable)).collect()
    }

    /// What it has come to when it is done; `files` are those of the archive.
    fn ended(&self, files: Vec<String>) -> Ended {
        let drops = self.order.drop_source;
        let stays = |line: &&String| drops || !line.starts_with("source: fence");
        let kept = if drops {
            Vec::new()
        } else {
            vec![
                "source: the tables with their rows, as they were at the end; nobody follows them".to_owned(),
                "source: the fence of the tables: whoever writes there is refused and told where to write. It goes with \
                 the tables; `segue cancel` removes it and lets them be written, if that is really wanted"
                    .to_owned(),
            ]
        };
        Ended {
            proofs: self.proofs.clone(),
            removed: self.removes.iter().filter(stays).cloned().collect(),
            archived: files,
            dropped: if drops { self.tables.clone() } else { Vec::new() },
            kept,
        }
    }

    /// The files that the archive will have.
    fn files(&self, migration: &str) -> Vec<String> {
        let directory = self.order.archive.as_ref();
        directory.map_or_else(Vec::new, |directory| archive::files(directory, migration))
    }

    fn directory(&self) -> Option<&PathBuf> {
        self.order.archive.as_ref()
    }
}

/// What carries out the orders to complete, during one attempt.
pub(super) struct Completer<'d> {
    driver: &'d Driver,
    lease: &'d Lease,
    flows: Arc<Flows>,
    switch: Arc<Switch<'d>>,
    gates: Arc<Mutex<Gates<'d>>>,
    traffic: Arc<Traffic<'d>>,
    orders: Mutex<mpsc::Receiver<Command>>,
}

impl<'d> Completer<'d> {
    /// Orders come by `orders`.
    pub(super) fn new(
        (driver, lease): (&'d Driver, &'d Lease),
        flows: Arc<Flows>,
        switch: Arc<Switch<'d>>,
        gates: Arc<Mutex<Gates<'d>>>,
        traffic: Arc<Traffic<'d>>,
        orders: mpsc::Receiver<Command>,
    ) -> Self {
        Completer { driver, lease, flows, switch, gates, traffic, orders: Mutex::new(orders) }
    }

    /// Judges one order after the other. Ends when one may be carried out, and is in the journal: from then on both streams
    /// are of no use. Whoever asked is answered by [`finish`].
    pub(super) async fn run(&self) -> Outcome<(Begun, Command)> {
        let mut orders = self.orders.lock().await;
        loop {
            let Some(command) = orders.recv().await else { return std::future::pending().await };
            match self.obey(&command).await {
                Ok(Obeyed::Begun(begun)) => return Ok((*begun, command)),
                Ok(Obeyed::Answered(answer)) => {
                    self.driver.control.answer(self.lease, command.id, &json!(answer)).await?;
                }
                Ok(Obeyed::Unknown(fault)) => return Err(fault),
                Err(fault) => {
                    self.driver.control.answer(self.lease, command.id, &fault_json(&fault)).await?;
                }
            }
        }
    }

    async fn obey(&self, command: &Command) -> Outcome<Obeyed> {
        let order: CompleteOrder = serde_json::from_value(command.arguments.clone()).map_err(|e| {
            let what = format!("the order cannot be read: {e}");
            Fault::operator("SEGUE-VERB", what, "use the same version of segue")
        })?;
        self.tell(command, "looking who still uses the source").await;
        let Ok(_at_rest) = timeout(AT_REST_PATIENCE, self.switch.at_rest()).await else {
            let blockers = vec![judge::handed_over("is under way")];
            return Ok(Obeyed::Answered(Completion::Refused { blockers }));
        };
        let judged = tokio::select! {
            judged = self.judge(&order) => judged?,
            blocked = self.mind_changes() => {
                return Ok(Obeyed::Answered(Completion::Refused { blockers: vec![blocked] }));
            }
        };
        if !judged.blockers.is_empty() {
            let body = json!({ "by": command.asked_by, "blockers": judged.blockers });
            self.driver.record(self.lease, "complete-refused", body).await?;
            return Ok(Obeyed::Answered(Completion::Refused { blockers: judged.blockers }));
        }
        let begun = Begun {
            by: command.asked_by.clone(),
            proofs: judged.proofs,
            tables: self.flows.forward.tables.iter().map(|t| t.source.to_string()).collect(),
            removes: self.removes().await?,
            archived: None,
            order,
        };
        if begun.order.rehearse {
            let files = begun.files(self.driver.spec.name.as_str());
            return Ok(Obeyed::Answered(Completion::Rehearsed(begun.ended(files))));
        }
        if let Some(blocked) = self.changed_mind() {
            return Ok(Obeyed::Answered(Completion::Refused { blockers: vec![blocked] }));
        }
        if let Err(fault) = self.driver.record(self.lease, COMPLETING, json!(begun)).await {
            return match fault.recovery {
                Recovery::Operator | Recovery::Bug => Err(fault),
                // It may be there. Nothing may be moved any more before that is known: the next attempt reads it.
                Recovery::Retry | Recovery::Ambiguous => Ok(Obeyed::Unknown(fault)),
            };
        }
        killpoint::pass("complete.begun");
        Ok(Obeyed::Begun(Box::new(begun)))
    }

    /// What somebody has ordered while it was judged goes before what was ordered earlier.
    fn changed_mind(&self) -> Option<Blocked> {
        let paused = self.driver.throttle.limits().paused.map(|why| judge::paused(&why));
        paused.or_else(|| self.switch.is_asked().then(|| judge::handed_over("was asked for meanwhile")))
    }

    /// Returns when that is so.
    async fn mind_changes(&self) -> Blocked {
        loop {
            if let Some(blocked) = self.changed_mind() {
                return blocked;
            }
            sleep(MIND_PAUSE).await;
        }
    }

    /// What Segue has on both sides.
    async fn removes(&self) -> Outcome<Vec<String>> {
        let Driver { spec, sides, .. } = self.driver;
        let mut found = Vec::new();
        for (side, endpoint) in [("target", &sides.target), ("source", &sides.source)] {
            let client = endpoint.connect("complete").await?;
            found.extend(birth::listed(&client, spec.name.as_str(), side).await?);
        }
        Ok(found)
    }

    /// Tells whoever asked; they may not be listening.
    async fn tell(&self, command: &Command, waits_for: &str) {
        let progress = Progress { waits_for: waits_for.to_owned(), ..Progress::default() };
        let _ = self.driver.control.progress(self.lease, command.id, &json!(progress)).await;
    }
}

enum Obeyed {
    /// It is answered.
    Answered(Completion),
    /// It is in the journal.
    Begun(Box<Begun>),
    /// It may be.
    Unknown(Fault),
}

/// A fault, as the one who asked is told.
pub(super) fn fault_json(fault: &Fault) -> Value {
    json!({ "fault": fault.what, "code": fault.code, "next_step": fault.next_step })
}
