//! The stream of an attempt: the one that is stored, a first one, or one in place of another that is lost.
//!
//! A lost stream is made anew only if that was asked for. Once the journal has that, every start goes on with it, until the
//! target is bound to the new stream.

use super::attempt::{Attempt, targets};
use super::flow::lost_while_idle;
use super::switch::rows;
use super::{Driver, guard, plan};
use segue_engine::fault::{Fault, Recovery};
use segue_engine::killpoint;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::stage::Stage;
use segue_model::switch::Side;
use segue_postgres::birth::{self, Direction, StreamIdentity, Told, WaitReport};
use segue_postgres::catalog::Catalog;
use segue_postgres::control::{Entry, Lease};
use segue_postgres::error::LOG_REMOVED;
use segue_postgres::fence;
use segue_postgres::leaves;
use segue_postgres::stream::{Opening, StreamSource};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use tokio_postgres::Client;

/// The journal's record of a stream that is given up for a new one.
const GIVEN_UP: &str = "new-stream";
/// The journal's record of what the new one has found different.
const COMPARED: &str = "new-stream-compared";

/// What is stored about the stream to the target.
pub(super) enum Found {
    /// Nothing: none was made yet.
    Nothing,
    /// A stream, and its opening; or why it cannot go on, where nothing depends on it.
    Stream(StreamIdentity, Result<Opening, Fault>),
    /// One that is lost, and is to be made anew.
    Lost(StreamIdentity),
}

impl Attempt<'_> {
    /// The stream that was made earlier, if there is one, and its opening: the source finds the place while the rest is
    /// prepared. One that cannot go on is a fault only where writes depend on it.
    pub(super) async fn find(&self, target: &Client, journal: &[Entry]) -> Outcome<Found> {
        let Driver { spec, sides, new_stream, .. } = self.driver;
        let known = birth::known(target, spec.name.as_str(), Direction::Forward).await?;
        let Some((identity, checkpoint)) = known else {
            return if new_stream.load(Ordering::Relaxed) { Err(nothing_lost()) } else { Ok(Found::Nothing) };
        };
        if is_given_up(journal, &identity) {
            new_stream.store(false, Ordering::Relaxed);
            return Ok(Found::Lost(identity));
        }
        let source = &sides.source.marked(spec.name.as_str());
        let resumed = birth::resume(source, target, self.lease.token, &identity, checkpoint).await;
        // What told of a restore then may have grown over since.
        let resumed = resumed.and_then(|resumed| source_behind(journal, &identity).map_or(Ok(resumed), Err));
        match resumed {
            Ok(identity) if new_stream.load(Ordering::Relaxed) => match unreadable(journal) {
                Some(fault) => self.cannot_go_on(target, (identity, checkpoint), fault).await,
                None => Err(intact()),
            },
            Ok(identity) => {
                let opening = Opening::begin(StreamSource::of(source.clone(), &identity), checkpoint);
                Ok(Found::Stream(identity, Ok(opening)))
            }
            Err(fault) => self.cannot_go_on(target, (identity, checkpoint), fault).await,
        }
    }

    /// Whether the stream is given up because the source was restored, and that is in the journal. A slot that was restored
    /// with it looks right as soon as its log is as long as the lost one was.
    ///
    /// To be called before the token is raised there: that is one of the two numbers that tell.
    pub(super) async fn gives_up_restored(&self, journal: &[Entry]) -> Outcome<bool> {
        let Driver { spec, sides, control, .. } = self.driver;
        let migration = spec.name.as_str();
        let source = sides.source.connect("stream").await?;
        let (told, status) = (birth::told(&source, migration).await?, control.read_status().await?);
        sides.source.keep(source);
        let (Some(told), Some((status, _))) = (told, status) else { return Ok(false) };
        if !is_restored(told, &status) {
            return Ok(false);
        }
        for side in [&sides.control, &sides.target] {
            self.take_over(side).await?;
        }
        let target = sides.target.connect("stream").await?;
        let known = birth::known(&target, migration, Direction::Forward).await?;
        let Some((identity, checkpoint)) = known.filter(|(stream, _)| !is_given_up(journal, stream)) else {
            return Ok(false);
        };
        let endpoint = sides.source.marked(migration);
        let resumed = birth::resume(&endpoint, &target, self.lease.token, &identity, checkpoint).await;
        let fault = match resumed {
            // The promoted server's history has proved more than that.
            Ok(stream) if stream.timeline != identity.timeline => return Ok(false),
            Ok(_) => restored(),
            // What was found there says more.
            Err(fault) if birth::is_lost(&fault) => fault,
            Err(fault) => return Err(fault),
        };
        match self.cannot_go_on(&target, (identity, checkpoint), fault).await? {
            Found::Lost(_) => Ok(true),
            Found::Stream(_, Err(fault)) => Err(fault),
            Found::Nothing | Found::Stream(_, Ok(_)) => Ok(false),
        }
    }

    /// What becomes of a stream that cannot go on: it is given up if that was asked for, and shown if nothing depends on it.
    async fn cannot_go_on(
        &self,
        target: &Client,
        (identity, checkpoint): (StreamIdentity, Position),
        fault: Fault,
    ) -> Outcome<Found> {
        let Driver { spec, sides, new_stream, .. } = self.driver;
        let source = sides.source.connect("stream").await?;
        let rows = rows::both(&source, target, spec.name.as_str()).await?;
        let newest = rows.owner().or(rows.giving());
        let is_idle = newest == Some(Side::Target);
        let is_lost = birth::is_lost(&fault) || FOUND_BY_STREAMING.contains(&fault.code);
        if new_stream.load(Ordering::Relaxed) && is_lost {
            match newest {
                Some(Side::Source) => {}
                Some(Side::Target) => return Err(target_owns(&fault)),
                // The rows of one side are put over the other's: not before it is known whose are the newest.
                None => {
                    return Err(rows::contradiction(&format!(
                        "it is not known who owns the writes: {}",
                        fault.what
                    )));
                }
            }
            self.give_up(&identity, checkpoint, &fault).await?;
            return Ok(Found::Lost(identity));
        }
        if is_idle && lost_while_idle(&fault).is_some() {
            return Ok(Found::Stream(identity, Err(fault)));
        }
        if !birth::is_lost(&fault) {
            return Err(fault);
        }
        let since = birth::last_applied(target, &identity).await?;
        let what = format!(
            "{}; everything up to {checkpoint} is on the target, applied until {since}, and nothing of what came after it",
            fault.what
        );
        Err(Fault { what, ..fault })
    }

    /// Writes down that the stream is given up. From here on it is never resumed.
    async fn give_up(&self, lost: &StreamIdentity, checkpoint: Position, fault: &Fault) -> Outcome<()> {
        let Driver { new_stream, screen, .. } = self.driver;
        let body = json!({ "code": fault.code, "fault": fault.what, "lost": as_json(lost, checkpoint) });
        self.driver.record(self.lease, GIVEN_UP, body).await?;
        new_stream.store(false, Ordering::Relaxed);
        screen.say(&format!("the stream is given up, and made anew: {} [{}]", fault.what, fault.code));
        killpoint::pass("renew.ordered");
        Ok(())
    }

    /// Makes the first stream: publication, slot, barrier, and the target's row that binds them. Also returns the guard
    /// against DDL, if a lock has kept it.
    pub(super) async fn give_birth(
        &self,
        catalog: &Catalog,
        target: &Client,
    ) -> Outcome<(StreamIdentity, Option<guard::Held>)> {
        let Driver { spec, sides, .. } = self.driver;
        birth::source_owns(&sides.source.connect("stream").await?, spec.name.as_str()).await?;
        self.nothing_filled(catalog, target).await?;
        self.pair(target).await?;
        let body = json!({ "plan": plan::remembered(&catalog.tables) });
        self.driver.record(self.lease, "preparing", body).await?;
        self.fence(catalog, target).await?;
        // What others were writing meanwhile is there by now, and nothing more can come.
        self.nothing_filled(catalog, target).await?;
        let unguarded = self.guard(catalog).await?;
        let identity = self.make(catalog).await?;
        let token = self.lease.token;
        leaves::remember_born(target, &identity, token, &catalog.relations).await?;
        birth::claim(target, token, &identity).await?;
        killpoint::pass("birth.claimed");
        Ok((identity, unguarded))
    }

    /// That the target's tables are empty. Where they are not, they are left open: whoever is told to empty them is not to
    /// be refused by the fence.
    async fn nothing_filled(&self, catalog: &Catalog, target: &Client) -> Outcome<()> {
        let Err(fault) = plan::nothing_filled(target, &catalog.tables).await else { return Ok(()) };
        if fault.recovery == Recovery::Operator {
            let mut removed = fence::Removed::default();
            fence::remove(target, self.driver.spec.name.as_str(), &mut removed).await?;
        }
        Err(fault)
    }

    /// Makes a stream in place of `lost`, over the rows that it has brought.
    pub(super) async fn renew(
        &self,
        catalog: &Catalog,
        target: &Client,
        lost: &StreamIdentity,
    ) -> Outcome<(StreamIdentity, Option<guard::Held>)> {
        let Driver { sides, control, screen, .. } = self.driver;
        let token = self.lease.token;
        birth::clear(&sides.source.connect("stream").await?, token, lost).await?;
        killpoint::pass("renew.cleared");
        // What was compared, and how reads answered, was of rows that another stream has brought.
        control.forget_samples(self.lease).await?;
        self.fence(catalog, target).await?;
        let unguarded = self.guard(catalog).await?;
        let made = self.make(catalog).await?;
        birth::succeed(target, token, (lost, &made), &catalog.relations).await?;
        screen.say(&format!(
            "a new stream begins at {}; what was committed between it and the lost one's end, {}, is read from the tables: \
             every row is compared, and those that differ are written",
            made.start, lost.start
        ));
        Ok((made, unguarded))
    }

    /// Fences the target, and says meanwhile what is wrong with the servers already.
    async fn fence(&self, catalog: &Catalog, target: &Client) -> Outcome<()> {
        self.driver.begun.store(true, Ordering::Relaxed);
        self.note("");
        let tables = targets(catalog);
        tokio::join!(self.tell_trouble(), self.fence_follower(&tables, target)).1
    }

    /// Guards the source against DDL. Returns the guard, if a lock has kept it.
    async fn guard(&self, catalog: &Catalog) -> Outcome<Option<guard::Held>> {
        let sources = guard::sources(&catalog.tables);
        let unguarded = guard::prepare(self.driver, self.lease, Side::Source, &sources).await?;
        killpoint::pass("birth.fenced");
        Ok(unguarded)
    }

    /// Gives birth to the stream, and writes that down. The target is not bound to it yet.
    async fn make(&self, catalog: &Catalog) -> Outcome<StreamIdentity> {
        let Driver { spec, sides, screen, .. } = self.driver;
        let migration = spec.name.as_str();
        let mut said = String::new();
        let report = |wait: WaitReport| {
            let text = wait.to_string();
            if text != said {
                screen.say(&text);
                self.note(&text);
                said = text;
            }
        };
        let (source, token) = (sides.source.marked(migration), self.lease.token);
        let identity =
            birth::birth(&source, migration, Direction::Forward, token, &catalog.relations, report).await?;
        let stream = as_json(&identity, identity.start);
        let body = json!({ "plan": plan::remembered(&catalog.tables), "stream": stream });
        self.driver.record(self.lease, "born", body).await?;
        Ok(identity)
    }
}

fn as_json(stream: &StreamIdentity, position: Position) -> Value {
    let StreamIdentity { slot, system_id, timeline, incarnation, .. } = stream;
    json!({ "slot": slot, "system_id": system_id, "timeline": timeline, "incarnation": incarnation,
        "position": position.to_string() })
}

/// Whether the journal has it that `stream` is given up, and no other was opened since. A target that is bound to it again
/// later was restored: that is another loss.
fn is_given_up(journal: &[Entry], stream: &StreamIdentity) -> bool {
    let opened = [Stage::Backfilling.name(), Stage::Following.name(), Stage::Switched.name()];
    let since = journal.iter().rev().take_while(|entry| !opened.contains(&entry.entry.kind.as_str()));
    let incarnation = |entry: &Entry| entry.entry.body.pointer("/lost/incarnation").and_then(Value::as_i64);
    let mut given_up = since.filter(|entry| entry.entry.kind == GIVEN_UP);
    given_up.any(|entry| incarnation(entry) == Some(stream.incarnation))
}

/// That the source was found restored since a stream was last opened, or since `stream` was made in place of the one that
/// this was found of: nothing has changed that.
fn source_behind(journal: &[Entry], stream: &StreamIdentity) -> Option<Fault> {
    let opened = [Stage::Backfilling.name(), Stage::Following.name(), Stage::Switched.name()];
    let is_newer = |entry: &Entry| {
        let incarnation = entry.entry.body.pointer("/stream/incarnation").and_then(Value::as_i64);
        let is_birth = entry.entry.kind == "born" && incarnation == Some(stream.incarnation);
        !is_birth && !opened.contains(&entry.entry.kind.as_str())
    };
    let mut since = journal.iter().rev().take_while(|&entry| is_newer(entry));
    let code = restored().code;
    let found = since.find(|entry| entry.entry.kind == "fault" && entry.entry.body["code"] == code)?;
    let text = |field: &str| found.entry.body[field].as_str().unwrap_or_default().to_owned();
    Some(Fault { what: text("fault"), next_step: text("next_step"), ..restored() })
}

/// What only streaming finds out: the source has removed the log that the stream needs, the log has rows of a form that a
/// table had for a while and has no more, or it says of rows that they are gone and not which ones.
const FOUND_BY_STREAMING: &[&str] = &[LOG_REMOVED, "SEGUE-DDL-DRIFT", "SEGUE-HASH-LEAF"];

/// That the stream cannot read on, found out by streaming: it is what the last run has ended with that came so far.
fn unreadable(journal: &[Entry]) -> Option<Fault> {
    let mut ends = journal.iter().rev().take_while(|entry| entry.entry.kind == "fault");
    ends.find_map(|Entry { entry, .. }| {
        let code = FOUND_BY_STREAMING.iter().find(|code| entry.body["code"] == **code)?;
        let text = |field: &str| entry.body[field].as_str().unwrap_or_default().to_owned();
        Some(Fault::operator(code, text("fault"), text("next_step")))
    })
}

/// Says what a stream that was made anew has found different, once everything is compared; and writes it down, once.
pub(super) async fn tell_differences(driver: &Driver, lease: &Lease) -> Outcome<()> {
    let target = driver.sides.target.connect("stream").await?;
    let (migration, direction) = (driver.spec.name.as_str(), Direction::Forward);
    let Some((stream, _)) = birth::known(&target, migration, direction).await? else { return Ok(()) };
    let found = birth::differences(&target, migration, direction, stream.incarnation).await?;
    let Some(found) = found else { return Ok(()) };
    let journal = driver.control.journal(0).await?;
    let of_this = |entry: &Entry| {
        entry.entry.kind == COMPARED && entry.entry.body["incarnation"].as_i64() == Some(stream.incarnation)
    };
    if journal.iter().any(of_this) {
        return Ok(());
    }
    let birth::Differences { rows, missing, changed, extra } = found;
    driver.screen.say(&format!(
        "the new stream has compared {rows} rows: {missing} were missing on the target, {changed} had other values, and \
         {extra} were there that the source does not have; all of that is mended"
    ));
    driver.record(lease, COMPARED, json!({ "incarnation": stream.incarnation, "found": found })).await?;
    Ok(())
}

/// Whether the source has forgotten something that the run whose status this is has told it, or has had from it.
fn is_restored(told: Told, status: &Value) -> bool {
    let (token, signal) = (status["token"].as_i64(), status["slot"]["signal"].as_u64());
    // A later run has looked before it raised its own token.
    token.is_some_and(|token| told.token < token)
        || token == Some(told.token) && signal.is_some_and(|signal| told.signal < signal)
}

fn restored() -> Fault {
    Fault::operator(
        "SEGUE-SOURCE-BEHIND",
        "the source was restored to an older state: it does not know any more what Segue has told it since",
        "`segue run --new-stream` makes a new stream, compares every row copied so far with the source's, and writes those \
         that differ. What the source had acknowledged after that state is lost with the restore; where the target has it, \
         it is removed, and counted",
    )
}

fn intact() -> Fault {
    Fault::operator(
        "SEGUE-STREAM-INTACT",
        "nothing of the stream is lost, so no new one is made",
        "`segue run` without --new-stream goes on; `segue verify --repair` compares rows and mends them; where it is the way back \
         that stands still, `segue status` says what to do",
    )
}

fn nothing_lost() -> Fault {
    Fault::operator(
        "SEGUE-NO-STREAM",
        "the target knows of no stream of this migration, so none is lost",
        "`segue run` without --new-stream makes the first one",
    )
}

fn target_owns(fault: &Fault) -> Fault {
    let what = format!("the target owns the writes, and its rows are the right ones: {}", fault.what);
    Fault::operator(
        "SEGUE-TARGET-OWNS",
        what,
        "`segue run` without --new-stream goes on, nothing depends on the lost stream; after `segue reverse` a new one can \
         be made",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_postgres::control::NewEntry;

    fn entry(kind: &str, body: Value) -> Entry {
        Entry { seq: 1, at_us: 0, entry: NewEntry { version: 1, actor: "a".into(), kind: kind.into(), body } }
    }

    fn stream(incarnation: i64) -> StreamIdentity {
        StreamIdentity {
            migration: "m".into(),
            direction: Direction::Forward,
            slot: "segue_m_fwd".into(),
            publication: "segue_m_fwd".into(),
            system_id: "7".into(),
            timeline: 1,
            incarnation,
            start: Position(1),
        }
    }

    #[test]
    fn a_source_that_has_forgotten_a_token_or_a_signal_was_restored() {
        let status = json!({ "token": 50, "slot": { "signal": 7 } });
        for (token, signal, is) in
            [(50, 7, false), (50, 9, false), (50, 6, true), (49, 9, true), (51, 1, false)]
        {
            assert_eq!(is_restored(Told { token, signal }, &status), is, "{token} {signal}");
        }
        assert!(!is_restored(Told { token: 1, signal: 1 }, &json!({})));
        assert!(!is_restored(Told { token: 50, signal: 0 }, &json!({ "token": 50, "slot": {} })));
    }

    #[test]
    fn a_source_that_was_restored_stays_so_until_a_stream_is_opened() {
        let ended =
            |code: &str| entry("fault", json!({ "code": code, "fault": "behind", "next_step": "go" }));
        let (following, behind) = (|| entry("following", json!({})), || ended("SEGUE-SOURCE-BEHIND"));
        let found = source_behind(&[following(), behind(), ended("SEGUE-CONNECTION")], &stream(3));
        assert_eq!(found.map(|fault| (fault.what, fault.next_step)), Some(("behind".into(), "go".into())));
        assert_eq!(source_behind(&[behind(), following(), ended("SEGUE-CONNECTION")], &stream(3)), None);
    }

    #[test]
    fn a_stream_that_was_made_since_is_not_that_of_the_restored_source() {
        let ended = |code: &str| entry("fault", json!({ "code": code }));
        let behind = || ended("SEGUE-SOURCE-BEHIND");
        let born =
            |incarnation| entry("born", json!({ "stream": as_json(&stream(incarnation), Position(1)) }));
        let renewed = || vec![entry("following", json!({})), behind(), entry(GIVEN_UP, json!({})), born(4)];
        // The target was bound to it, and something failed before it was opened.
        let journal = [renewed(), vec![ended("SEGUE-CONNECTION")]].concat();
        assert_eq!(source_behind(&journal, &stream(4)), None);
        assert!(source_behind(&journal, &stream(3)).is_some());
        // The source was restored once more.
        let journal = [renewed(), vec![behind()]].concat();
        assert!(source_behind(&journal, &stream(4)).is_some());
    }

    #[test]
    fn a_log_that_cannot_be_read_is_what_the_last_run_has_ended_with() {
        let ended = |code: &str| entry("fault", json!({ "code": code, "fault": "gone", "next_step": "go" }));
        for code in ["SEGUE-LOG-REMOVED", "SEGUE-DDL-DRIFT", "SEGUE-HASH-LEAF"] {
            let found = unreadable(&[entry("following", json!({})), ended(code)]);
            assert_eq!(found, Some(Fault::operator(code, "gone", "go")));
            assert_eq!(unreadable(&[ended(code), entry("following", json!({}))]), None);
            let early = [entry("following", json!({})), ended(code), ended("SEGUE-LOGIN")];
            assert!(unreadable(&early).is_some(), "one that did not come to stream has found nothing else");
        }
        assert_eq!(unreadable(&[ended("SEGUE-OTHER-SERVER")]), None);
    }

    #[test]
    fn a_stream_is_given_up_by_its_own_record_and_no_other() {
        let given_up =
            |incarnation| entry(GIVEN_UP, json!({ "lost": as_json(&stream(incarnation), Position(9)) }));
        assert!(!is_given_up(&[entry("born", json!({}))], &stream(3)));
        assert!(is_given_up(&[given_up(3), entry("born", json!({}))], &stream(3)));
        // The one that was made in its place is another.
        assert!(!is_given_up(&[given_up(3)], &stream(4)));
        // The target was bound to the new one, and restored later.
        assert!(!is_given_up(
            &[given_up(3), entry("born", json!({})), entry("backfilling", json!({}))],
            &stream(3)
        ));
    }
}
