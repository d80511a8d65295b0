//! Commands to the driver, their progress and their answers: rows, with a notification to shorten the wait.

use super::{Control, Lease, json, superseded};
use crate::connect::Listener;
use segue_engine::fault::{Fault, Recovery};
use segue_engine::ports::Outcome;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A notification can be missed, a row cannot: so often the rows are looked at anyway.
const POLL: Duration = Duration::from_millis(500);
/// Nobody waits longer than this for an order that nobody takes; whoever does is asked again.
const WAITED_MAX: Duration = Duration::from_secs(3_600);
/// An order to stop is for the process that was there when it was given.
const STOP_WAITED_MAX: Duration = Duration::from_secs(30);
const COMMANDS: &str = "segue_command";
const ANSWERS: &str = "segue_answer";

/// A command that waits for its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Its number.
    pub id: i64,
    /// What is to be done.
    pub verb: String,
    /// With what.
    pub arguments: Value,
    /// Who asked, for the journal.
    pub asked_by: String,
}

/// How a command ended, as the driver wrote it.
pub type Answer = Value;

impl Control {
    /// Asks the driver for something; fails if none is alive. Returns the command's number.
    pub async fn ask(&self, verb: &str, arguments: &Value, asked_by: &str) -> Outcome<i64> {
        self.live_driver().await?;
        let sql = "WITH asked AS (INSERT INTO segue.command (migration, verb, arguments, asked_by)
                 VALUES ($1, $2, $3::text::jsonb, $4) RETURNING id)
             SELECT id, pg_notify('segue_command', $1) FROM asked";
        let arguments = arguments.to_string();
        let client = self.session().await?;
        let asked = client.query_opt(sql, &[&self.migration, &verb, &arguments, &asked_by]).await;
        let row = asked.map_err(|e| match self.failed(&e) {
            // It was sent, and may be there.
            lost if lost.recovery == Recovery::Retry => Fault::operator(
                "SEGUE-ORDER-UNKNOWN",
                format!("whether `{verb}` was ordered is not known: {}", lost.what),
                "see `segue status` and `segue journal` before it is ordered again",
            ),
            fault => fault,
        })?;
        row.map(|row| row.get(0)).ok_or_else(|| Fault::bug("SEGUE-CONTROL", "a command got no number"))
    }

    /// Takes an order back that nobody has taken: no later driver carries it out unasked. One that stops something stays: it
    /// is for whoever drives next. Returns whether it was taken back.
    pub async fn withdraw(&self, id: i64) -> Outcome<bool> {
        let answer =
            serde_json::json!({ "fault": "it was withdrawn", "code": "SEGUE-WITHDRAWN", "next_step": "" });
        let sql = "UPDATE segue.command SET answer = $3::text::jsonb, answered_at = clock_timestamp()
              WHERE id = $1 AND migration = $2 AND taken_at IS NULL AND answered_at IS NULL
                AND verb NOT IN ('contain', 'pause') RETURNING id";
        Ok(self.row(sql, &[&id, &self.migration, &answer.to_string()]).await?.is_some())
    }

    /// The fault of whoever does not wait for an order any longer: as it is, if the order was taken; otherwise it is withdrawn.
    async fn unless_taken(&self, id: i64, fault: Fault) -> Fault {
        match self.withdraw(id).await {
            Ok(true) => Fault::operator(
                "SEGUE-WITHDRAWN",
                format!("nothing was begun, and the order is withdrawn: {}", fault.what),
                "see `segue status`; where nobody drives, start `segue run`; then ask again",
            ),
            Ok(false) | Err(_) => fault,
        }
    }

    /// The session on which the driver hears of commands.
    pub async fn listen_for_commands(&self) -> Outcome<Listener> {
        self.endpoint.listen("commands", COMMANDS).await
    }

    /// Waits for the next command and takes it. Fails once the lease was taken over.
    ///
    /// May be dropped while it waits; one dropped while it takes leaves a command that is answered by
    /// [`Control::answer_orphans`].
    pub async fn next_command(&self, lease: &Lease, listener: &Listener) -> Outcome<Command> {
        loop {
            if let Some(command) = self.take_command(lease).await? {
                return Ok(command);
            }
            listener.wait(POLL).await?;
        }
    }

    async fn take_command(&self, lease: &Lease) -> Outcome<Option<Command>> {
        // Looking costs nothing; only a command that is there is worth a transaction under the token.
        let sql = "SELECT EXISTS (SELECT FROM segue.lease WHERE migration = $1 AND token = $2) AS held,
                    EXISTS (SELECT FROM segue.command WHERE migration = $1 AND taken_at IS NULL AND answered_at IS NULL) AS pending";
        let row = self.row(sql, &[&self.migration, &lease.token]).await?;
        let Some(row) = row.filter(|row| row.get("held")) else { return Err(superseded(&self.migration)) };
        if !row.get::<_, bool>("pending") {
            return Ok(None);
        }
        let failed = |e: tokio_postgres::Error| self.failed(&e);
        let mut client = self.endpoint.connect("command").await?;
        let transaction = client.transaction().await.map_err(failed)?;
        let enter = "SELECT segue.enter($1, $2)";
        transaction.execute(enter, &[&self.migration, &lease.token]).await.map_err(failed)?;
        let take = "UPDATE segue.command SET taken_at = clock_timestamp(), taken_token = $2
              WHERE id = (SELECT c.id FROM segue.command c
                           WHERE c.migration = $1 AND c.taken_at IS NULL AND c.answered_at IS NULL ORDER BY c.id LIMIT 1)
                AND taken_at IS NULL AND answered_at IS NULL
             RETURNING id, verb, arguments::text, asked_by";
        let taken = transaction.query_opt(take, &[&self.migration, &lease.token]).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        let Some(row) = taken else { return Ok(None) };
        let arguments = json(row.get(2))?;
        Ok(Some(Command { id: row.get(0), verb: row.get(1), arguments, asked_by: row.get(3) }))
    }

    /// Answers, with `answer`, what an earlier driver took and did not live to answer. Returns how many.
    pub async fn answer_orphans(&self, lease: &Lease, answer: &Value) -> Outcome<usize> {
        let sql = "UPDATE segue.command SET answer = $3::text::jsonb, answered_at = clock_timestamp()
              WHERE migration = $1 AND taken_token < $2 AND answered_at IS NULL
             RETURNING pg_notify('segue_answer', id::text)";
        let rows = self.rows(sql, &[&self.migration, &lease.token, &answer.to_string()]).await?;
        Ok(rows.len())
    }

    /// Answers, with `answer`, what nobody has taken while somebody still waited for it. Returns how many.
    pub async fn answer_stale(&self, lease: &Lease, answer: &Value) -> Outcome<usize> {
        let sql = "UPDATE segue.command SET answer = $3::text::jsonb, answered_at = clock_timestamp()
              WHERE migration = $1 AND taken_at IS NULL AND answered_at IS NULL AND verb NOT IN ('contain', 'pause')
                AND asked_at < clock_timestamp() - make_interval(secs => CASE verb WHEN 'stop' THEN $4::float8 ELSE $5::float8 END)
                AND EXISTS (SELECT FROM segue.lease l WHERE l.migration = $1 AND l.token = $2)
             RETURNING pg_notify('segue_answer', id::text)";
        let (stop, other) = (STOP_WAITED_MAX.as_secs_f64(), WAITED_MAX.as_secs_f64());
        let rows =
            self.rows(sql, &[&self.migration, &lease.token, &answer.to_string(), &stop, &other]).await?;
        Ok(rows.len())
    }

    /// Says how far a command has come.
    pub async fn progress(&self, lease: &Lease, id: i64, body: &Value) -> Outcome<()> {
        let sql = "UPDATE segue.command SET progress = $3::text::jsonb
              WHERE id = $1 AND taken_token = $2 AND answered_at IS NULL RETURNING pg_notify('segue_answer', id::text)";
        let row = self.row(sql, &[&id, &lease.token, &body.to_string()]).await?;
        row.map(drop).ok_or_else(|| superseded(&self.migration))
    }

    /// Answers a command, once and for all.
    pub async fn answer(&self, lease: &Lease, id: i64, body: &Value) -> Outcome<()> {
        let sql = "UPDATE segue.command SET answer = $3::text::jsonb, answered_at = clock_timestamp()
              WHERE id = $1 AND taken_token = $2 AND answered_at IS NULL RETURNING pg_notify('segue_answer', id::text)";
        let row = self.row(sql, &[&id, &lease.token, &body.to_string()]).await?;
        row.map(drop).ok_or_else(|| superseded(&self.migration))
    }

    /// Waits for a command's answer, and shows each progress report once. Fails after `limit`, or when the driver has
    /// died and no other one has taken its place.
    pub async fn await_answer(
        &self,
        id: i64,
        limit: Duration,
        mut on_progress: impl FnMut(&Value) + Send,
    ) -> Outcome<Answer> {
        let listener = self.endpoint.listen("answer", ANSWERS).await?;
        let began = Instant::now();
        let mut shown: Option<String> = None;
        loop {
            let sql = "SELECT progress::text, answer::text FROM segue.command WHERE id = $1";
            let Some(row) = self.row(sql, &[&id]).await? else {
                let what = format!("command {id} was removed before it was answered");
                return Err(Fault::operator(
                    "SEGUE-NO-ANSWER",
                    what,
                    "the migration was cancelled meanwhile",
                ));
            };
            let progress: Option<String> = row.get(0);
            if let Some(text) = progress.filter(|text| shown.as_ref() != Some(text)) {
                on_progress(&json(&text)?);
                shown = Some(text);
            }
            if let Some(answer) = row.get::<_, Option<&str>>(1) {
                return json(answer);
            }
            if let Err(fault) = self.live_driver().await {
                return Err(match fault.recovery {
                    Recovery::Operator => self.unless_taken(id, fault).await,
                    _ => fault,
                });
            }
            if began.elapsed() >= limit {
                let what = format!("command {id} has had no answer for {} s", limit.as_secs());
                let next = "it goes on all the same: see `segue status`";
                return Err(self.unless_taken(id, Fault::operator("SEGUE-NO-ANSWER", what, next)).await);
            }
            listener.wait(POLL.min(limit)).await?;
        }
    }
}
