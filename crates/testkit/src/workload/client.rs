//! One writer: drafts a transaction, runs it, and records in its memory what the server said, or did not say.

use super::draft::{self, Draft, Habits};
use super::memory::Memory;
use super::{Shared, tally};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_postgres::error::Severity;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

const RECONNECT_AFTER: Duration = Duration::from_millis(50);
/// What a server says that is not the one to write to (now).
const READ_ONLY: &str = "25006";

/// How a transaction ended, as far as the client can know.
enum End {
    Committed,
    /// Certainly not committed: refused by the server, or never asked for.
    NotCommitted(Loss),
    /// COMMIT was sent, and no answer came that says what became of it.
    Unknown(Loss),
}

/// What became of the connection, and why.
enum Loss {
    OnPurpose,
    Refused(String),
    /// This server takes no writes.
    NotHere(String),
    Connection(String),
}

/// Runs until told to stop; the return value is all the client remembers.
pub(super) async fn run(mut memory: Memory, shared: Shared) -> Memory {
    let mut rng = StdRng::seed_from_u64(shared.seed.wrapping_add(u64::from(memory.client)));
    let habits = Habits { large_rows: shared.options.large_rows, truncate: shared.options.truncate };
    let pace = shared.options.rate_limit.map(|per_second| {
        let mut pace = tokio::time::interval(Duration::from_secs_f64(
            f64::from(memory.clients) / f64::from(per_second.max(1)),
        ));
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pace
    });
    let mut pace = pace;
    let mut session: Option<(Client, String)> = None;
    let mut seq = 0;
    let mut place = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let url = {
            let urls = shared.urls.lock().unwrap();
            urls[place % urls.len()].clone()
        };
        if session.as_ref().is_none_or(|(client, to)| *to != url || client.is_closed()) {
            session = connect(&url, &shared).await.map(|client| (client, url));
        }
        let Some((client, _)) = &session else {
            place += 1;
            tokio::time::sleep(RECONNECT_AFTER).await;
            continue;
        };
        seq += 1;
        let draft = draft::transaction(&mut memory, &mut rng, seq, habits);
        let began = Instant::now();
        let end = run_one(client, &draft, &shared).await;
        let loss = match end {
            End::Committed => {
                memory.acknowledge(seq, draft.changes);
                shared.acked.fetch_add(1, Ordering::Relaxed);
                let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                shared.slowest_us.fetch_max(took_us, Ordering::Relaxed);
                continue;
            }
            End::NotCommitted(loss) => loss,
            End::Unknown(loss) => {
                memory.leave_open(seq, draft.changes);
                loss
            }
        };
        match loss {
            Loss::OnPurpose => drop(shared.rolled_back.fetch_add(1, Ordering::Relaxed)),
            Loss::Refused(why) => tally(&shared, why),
            Loss::NotHere(why) => {
                tally(&shared, why);
                place += 1;
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
            Loss::Connection(why) => {
                tally(&shared, why);
                session = None;
                place += 1;
            }
        }
    }
    memory
}

async fn connect(url: &str, shared: &Shared) -> Option<Client> {
    let connecting = crate::cluster::connect(url);
    match tokio::time::timeout(shared.options.request_timeout, connecting).await {
        Ok(Ok(client)) => return Some(client),
        Ok(Err(error)) => tally(shared, format!("connect: {}", name_of(&error))),
        Err(_) => tally(shared, "connect: no answer".to_owned()),
    }
    None
}

async fn run_one(client: &Client, draft: &Draft, shared: &Shared) -> End {
    if let Err(loss) = request(client, "BEGIN", shared).await {
        return End::NotCommitted(loss);
    }
    for (sql, expected) in &draft.statements {
        match request(client, sql, shared).await {
            Ok(affected) if expected.is_none_or(|expected| expected == affected) => {}
            Ok(affected) => {
                let anomaly = format!("affected {affected} rows in place of {expected:?}: {sql}");
                shared.anomalies.lock().unwrap().push(anomaly);
                return give_up(client, Loss::Refused("anomaly".to_owned()), shared).await;
            }
            Err(loss) => return give_up(client, loss, shared).await,
        }
    }
    if draft.rollback {
        return give_up(client, Loss::OnPurpose, shared).await;
    }
    match request(client, "COMMIT", shared).await {
        Ok(_) => End::Committed,
        Err(loss @ (Loss::Refused(_) | Loss::NotHere(_))) => End::NotCommitted(loss),
        Err(loss) => End::Unknown(loss),
    }
}

/// COMMIT was not sent and never will be.
async fn give_up(client: &Client, loss: Loss, shared: &Shared) -> End {
    match (loss, request(client, "ROLLBACK", shared).await) {
        (Loss::Connection(why), _) => End::NotCommitted(Loss::Connection(why)),
        (_, Err(loss)) => End::NotCommitted(loss),
        (loss, Ok(_)) => End::NotCommitted(loss),
    }
}

/// Sends one statement; the answer is the number of rows affected.
async fn request(client: &Client, sql: &str, shared: &Shared) -> Result<u64, Loss> {
    match tokio::time::timeout(shared.options.request_timeout, client.simple_query(sql)).await {
        Err(_) => Err(Loss::Connection("no answer".to_owned())),
        Ok(Ok(messages)) => Ok(messages
            .iter()
            .map(|message| if let SimpleQueryMessage::CommandComplete(rows) = message { *rows } else { 0 })
            .sum()),
        Ok(Err(error)) => match error.as_db_error().and_then(|error| error.parsed_severity()) {
            // The session goes on, so the server's word is the outcome. FATAL is not: a session that is ended
            // while its commit waits for a synchronous standby *is* committed.
            Some(Severity::Error) if error.code().is_some_and(|code| code.code() == READ_ONLY) => {
                Err(Loss::NotHere(name_of(&error)))
            }
            Some(Severity::Error) => Err(Loss::Refused(name_of(&error))),
            _ => Err(Loss::Connection(name_of(&error))),
        },
    }
}

fn name_of(error: &Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{} {}", error.code().code(), error.message()),
        None => error.to_string(),
    }
}
