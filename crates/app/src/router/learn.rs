//! What the owner's catalog says of names: by it the router proves that a statement reads tables that both sides have.
//!
//! It is read at the start, after each change of the owner, when tables have got other parts, and now and then. An error keeps
//! what was read before, and is said once.

use super::follower::is_asked;
use super::{News, Say};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::name::QualifiedName;
use segue_model::spec::{Spec, TableChoice};
use segue_model::switch::Side;
use segue_postgres::connect::Endpoint;
use segue_postgres::passage::{catalog_session, published, renumbered, text};
use segue_router::{Catalog, Heard, Reads};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// How often it is read while anything is asked of the follower: DDL does not announce itself.
const READ_EVERY: Duration = Duration::from_secs(30);
/// While nothing is.
const READ_SELDOM: Duration = Duration::from_secs(600);
/// After an error.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// A server that takes longer is as good as gone.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// The router takes a catalog in within this time; before, it goes by the one before.
const TAKEN_IN: Duration = Duration::from_millis(50);

/// The first transactions of a new owner have its processors to themselves.
const TAKEN_OVER: Duration = Duration::from_millis(250);

/// Reads the catalog again and again.
pub(super) struct Learner {
    migration: String,
    source: Endpoint,
    target: Endpoint,
    /// Tables that have another name on the other side, by the name on each side.
    renamed: [BTreeSet<QualifiedName>; 2],
    pub(super) routes: watch::Receiver<Heard>,
    pub(super) reads: watch::Receiver<Arc<Reads>>,
    /// Which parts the owner's tables have, as was seen last.
    pub(super) parts_seen: watch::Receiver<Option<i64>>,
    /// Which parts they had when the catalog was read.
    pub(super) parts_read: watch::Sender<Option<i64>>,
    pub(super) catalog: watch::Sender<Option<Arc<Catalog>>>,
    pub(super) say: Say,
    /// What was said last of tables that are not read on the follower.
    said: Mutex<Renumbered>,
}

/// Tables, and one type of each that has another number on the follower.
type Renumbered = BTreeMap<(String, String), String>;

/// What a learner hears and says.
pub(super) struct Lines {
    pub(super) routes: watch::Receiver<Heard>,
    pub(super) reads: watch::Receiver<Arc<Reads>>,
    pub(super) parts_seen: watch::Receiver<Option<i64>>,
    pub(super) parts_read: watch::Sender<Option<i64>>,
    pub(super) catalog: watch::Sender<Option<Arc<Catalog>>>,
}

impl Learner {
    pub(super) fn new(spec: &Spec, sides: &crate::sides::Sides, lines: Lines, say: Say) -> Learner {
        let mut renamed = [BTreeSet::new(), BTreeSet::new()];
        for entry in &spec.selection.tables {
            match &entry.choice {
                TableChoice::One(mapping) if mapping.source != mapping.target => {
                    renamed[0].insert(mapping.source.clone());
                    renamed[1].insert(mapping.target.clone());
                }
                TableChoice::One(_) | TableChoice::Matching(_) => {}
            }
        }
        let Lines { routes, reads, parts_seen, parts_read, catalog } = lines;
        Learner {
            migration: spec.name.as_str().to_owned(),
            source: sides.source.clone(),
            target: sides.target.clone(),
            renamed,
            routes,
            reads,
            parts_seen,
            parts_read,
            catalog,
            say,
            said: Mutex::default(),
        }
    }

    fn say_renumbered(&self, now: Renumbered) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said == now {
            return;
        }
        let line =
            |((schema, table), kind): (&(String, String), &String)| format!("{schema}.{table} ({kind})");
        let tables: Vec<String> = now.iter().map(line).collect();
        let text = match tables.as_slice() {
            [] => "no table's type has another number on the other side any more".to_owned(),
            tables => format!(
                "reads of these tables stay with the owner, since a type of theirs has another number (OID) on the other side, and \
                 clients know types by it: {}",
                tables.join(", ")
            ),
        };
        (self.say)(&News::text(text));
        *said = now;
    }

    /// For as long as the router runs.
    pub(super) async fn run(mut self) -> Infallible {
        let (mut session, mut is_said, mut before) = (None, false, None);
        loop {
            let owner = self.routes.borrow_and_update().owner;
            let was = before.replace(owner);
            if was != Some(owner) {
                self.parts_read.send_replace(None);
            }
            if was.is_some_and(|was| was != owner) {
                sleep(TAKEN_OVER).await;
            }
            let read = timeout(ANSWER_PATIENCE, self.read(owner, &mut session)).await;
            let pause = match read
                .unwrap_or_else(|_| Err(Fault::retry("SEGUE-CONNECTION", "the owner is silent")))
            {
                Ok(()) => {
                    is_said = false;
                    if is_asked(&self.reads.borrow()) { READ_EVERY } else { READ_SELDOM }
                }
                Err(fault) => {
                    session = None;
                    if !std::mem::replace(&mut is_said, true) {
                        let text =
                            format!("the router goes on with what it knows of the owner's tables: {fault}");
                        (self.say)(&News::text(text));
                    }
                    READ_AGAIN
                }
            };
            self.wait(owner, pause).await;
        }
    }

    /// Until it is time, or something has changed that it depends on.
    async fn wait(&mut self, owner: Side, pause: Duration) {
        let (read, was_asked) = (*self.parts_read.borrow(), is_asked(&self.reads.borrow()));
        let (mut parts, mut reads, mut routes) =
            (self.parts_seen.clone(), self.reads.clone(), self.routes.clone());
        tokio::select! {
            () = sleep(pause) => {}
            Ok(_) = routes.wait_for(|route| route.owner != owner) => {}
            Ok(_) = reads.wait_for(|reads| is_asked(reads) && !was_asked) => {}
            // Never faster than a catalog can be read.
            Ok(_) = async { sleep(TAKEN_IN).await; parts.wait_for(|seen| seen.is_some() && *seen != read).await } => {}
        }
    }

    async fn read(&self, owner: Side, session: &mut Option<(Side, Client)>) -> Outcome<()> {
        let (endpoint, other, renamed) = match owner {
            Side::Source => (&self.source, &self.target, &self.renamed[0]),
            Side::Target => (&self.target, &self.source, &self.renamed[1]),
        };
        let client = match session.take().filter(|(side, client)| *side == owner && !client.is_closed()) {
            Some((_, client)) => client,
            None => catalog_session(endpoint).await?,
        };
        let (parts, mut tables) = published(&client, &self.migration, owner).await?;
        tables.retain(|(schema, name)| !renamed.contains(&QualifiedName::new(schema, name)));
        let renumbered = renumbered(&client, &catalog_session(other).await?).await?;
        tables.retain(|table| !renumbered.contains_key(table));
        self.say_renumbered(renumbered);
        let answer = text(&client, Catalog::SQL).await?;
        // It may be large, and reading it takes its time.
        let read = tokio::task::spawn_blocking(move || Catalog::read(&answer, &tables)).await;
        let read =
            read.map_err(|e| Fault::bug("SEGUE-TASK", format!("reading a catalog ended unexpectedly: {e}")))?;
        let catalog = read.map_err(|e| Fault::bug("SEGUE-CATALOG", e.to_string()))?;
        self.catalog.send_replace(Some(Arc::new(catalog)));
        sleep(TAKEN_IN).await;
        self.parts_read.send_replace(Some(parts));
        *session = Some((owner, client));
        Ok(())
    }
}
