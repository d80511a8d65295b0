//! A server that was promoted: is its log, as far as it was applied, the one that the stream came from?
//!
//! A promotion begins a new timeline at a place of the old one; up to there both have one log. If everything that was
//! applied lies before that place, and the server has kept the slot in step (a failover slot), the stream goes on there, and
//! nothing is missing. Otherwise it is lost.

use super::resume::{TIMELINE, lost as lost_for_good};
use super::{StreamIdentity, enter, server_identity};
use crate::connect::Endpoint;
use crate::error::fault_of;
use crate::replication::Connection;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use segue_model::sqltext::quote_literal;
use tokio_postgres::Client;

/// Another timeline of the server that a stream came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Promoted {
    pub(super) timeline: i32,
    /// Where it left the stream's timeline; `None`: that is none of its ancestors.
    pub(super) branched_at: Option<Position>,
}

/// Which timeline the stream's server, which is no standby, is on now.
pub(super) async fn promoted(from: &Endpoint, client: &Client, stream: &StreamIdentity) -> Outcome<Promoted> {
    let (_, timeline) = server_identity(client).await?;
    let during = |fault: Fault| fault.during(format_args!("reading the history of timeline {timeline}"));
    let mut session = Connection::open(from).await.map_err(during)?;
    let history = match session.query(&format!("TIMELINE_HISTORY {timeline}")).await {
        Ok(rows) => rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten(),
        // It has no such file: the first timeline, of a server that was restored to before it was promoted.
        Err(fault) if fault.code == "SEGUE-STORAGE" => None,
        Err(fault) => return Err(during(fault)),
    };
    let branched_at = branch_of(&history.unwrap_or_default(), stream.timeline).map_err(during)?;
    Ok(Promoted { timeline, branched_at })
}

/// Where `timeline` was left, by a history file's lines: number, place, reason.
fn branch_of(history: &str, timeline: i32) -> Outcome<Option<Position>> {
    let unreadable = |line: &str| Fault::bug("SEGUE-CATALOG", format!("a line cannot be read: {line}"));
    for line in history.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let number = words.next().and_then(|n| n.parse::<i32>().ok()).ok_or_else(|| unreadable(line))?;
        if number == timeline {
            let place = words.next().and_then(|place| place.parse().ok());
            return place.map(Some).ok_or_else(|| unreadable(line));
        }
    }
    Ok(None)
}

/// Why a stream cannot go on from `checkpoint` on the promoted server.
pub(super) fn lost(stream: &StreamIdentity, promoted: &Promoted, checkpoint: Position) -> Fault {
    let (from, to) = (stream.direction.from_side(), stream.direction.to_side());
    let Promoted { timeline, branched_at } = promoted;
    let why = match branched_at {
        Some(at) => format!(
            "it left timeline {} at {at}, and the {to} has applied that one up to {checkpoint}: {} bytes of it are on no server any more",
            stream.timeline,
            checkpoint.bytes_since(*at)
        ),
        None => format!("timeline {}, which the stream came from, is none of its ancestors", stream.timeline),
    };
    let what =
        format!("the {from} was promoted or restored, and its log is on timeline {timeline} now: {why}");
    lost_for_good(stream, TIMELINE, what)
}

/// Refuses a slot that the standby's own server has not kept in step with the failed one's.
///
/// A slot whose files were carried over is there, and all of its positions look right. But where decoding can begin
/// depends on snapshots that are kept beside it; without them the server looks for a place further on, and leaves out what
/// was committed before that without a word.
pub(super) async fn never_carried(client: &Client, stream: &StreamIdentity, timeline: i32) -> Outcome<()> {
    // Came with 17.
    let sql = "SELECT coalesce((to_jsonb(s) ->> 'synced')::boolean, false) FROM pg_replication_slots s WHERE slot_name = $1";
    let row = client.query_one(sql, &[&stream.slot]).await.map_err(|e| fault_of(&e))?;
    if row.get(0) {
        return Ok(());
    }
    let what = format!(
        "the {} was promoted to timeline {timeline}, and its slot {} was carried over, not synchronised by the server: changes \
         could be left out without a word",
        stream.direction.from_side(),
        stream.slot
    );
    Err(lost_for_good(stream, "SEGUE-SLOT-LOST", what))
}

/// Stores that the stream goes on under another timeline, which begins at `at`.
///
/// What was copied from the failed server after that place may not be on the promoted one. Then nothing that was copied
/// counts, and all of it is copied again onto what is there. Rows that were copied over a difference cannot be told from
/// others by then.
pub(super) async fn follow(
    landing: &Client,
    token: i64,
    (stream, renamed): (&StreamIdentity, &StreamIdentity),
    at: Position,
) -> Outcome<()> {
    let failed = |e| fault_of(&e).during("going on under another timeline");
    let StreamIdentity { migration, direction, incarnation, timeline, .. } = renamed;
    let whose = format!(
        "migration = {} AND direction = {}",
        quote_literal(migration),
        quote_literal(direction.as_str())
    );
    let look = format!(
        "SELECT EXISTS (SELECT FROM segue.region WHERE {whose} AND covered_by > '{at}'),
                EXISTS (SELECT FROM segue.stream WHERE {whose} AND backfilled_at IS NOT NULL)"
    );
    let row = landing.query_one(&look, &[]).await.map_err(failed)?;
    let (ahead, backfilled): (bool, bool) = (row.get(0), row.get(1));
    if ahead && backfilled {
        let what = format!(
            "the {} was promoted to timeline {timeline}, and rows were copied anew from the failed server after the place where that begins, {at}",
            direction.from_side()
        );
        return Err(lost_for_good(stream, TIMELINE, what));
    }
    let again = if ahead {
        format!(
            "DELETE FROM segue.region WHERE {whose}; DELETE FROM segue.renewal WHERE {whose};
             INSERT INTO segue.renewal (migration, direction, incarnation, at)
             VALUES ({}, {}, {incarnation}, clock_timestamp());",
            quote_literal(migration),
            quote_literal(direction.as_str())
        )
    } else {
        String::new()
    };
    let sql = format!(
        "BEGIN; {}; SET LOCAL synchronous_commit = on; {again}
         UPDATE segue.stream SET timeline = {timeline} WHERE {whose} AND incarnation = {incarnation}; COMMIT",
        enter((migration, token))
    );
    if let Err(error) = landing.batch_execute(&sql).await {
        let fault = failed(error);
        landing.batch_execute("ROLLBACK").await.map_err(failed)?;
        return Err(fault);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is stored of a stream: its timeline, how many regions, and whether they are compared with what is there.
    async fn stored(client: &Client) -> (i32, i64, bool) {
        let sql = "SELECT timeline, (SELECT count(*) FROM segue.region), EXISTS (SELECT FROM segue.renewal r WHERE r.incarnation = s.incarnation)
              FROM segue.stream s";
        let row = client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    #[tokio::test]
    async fn what_was_copied_from_the_failed_server_alone_does_not_count() {
        let server = segue_testkit::Cluster::start(segue_testkit::Options::default()).await;
        let mut client = server.connect("postgres").await;
        crate::schema::ensure(&mut client).await.unwrap();
        let regions = "INSERT INTO segue.token VALUES ('m', 5);
            INSERT INTO segue.stream VALUES ('m', 'forward', 'segue_m_fwd', '7', 1, 3, '0/100', '{}', NULL, now());
            INSERT INTO segue.region (migration, direction, unit, extent, seam, covered_by, rows, bytes, took_ms, copied_at)
            SELECT 'm', 'forward', n, '{}', '', ('0/' || n)::pg_lsn, 0, 0, 0, now() FROM unnest('{80,90}'::int[]) n";
        client.batch_execute(regions).await.unwrap();
        let stream = |timeline| StreamIdentity {
            migration: "m".into(),
            direction: super::super::Direction::Forward,
            slot: "segue_m_fwd".into(),
            publication: "segue_m_fwd".into(),
            system_id: "7".into(),
            timeline,
            incarnation: 3,
            start: Position(0x100),
        };
        let promoted =
            async |from, to, at| follow(&client, 5, (&stream(from), &stream(to)), Position(at)).await;
        promoted(1, 2, 0x90).await.unwrap();
        assert_eq!(stored(&client).await, (2, 2, false), "both logs are one up to there");
        promoted(2, 3, 0x89).await.unwrap();
        assert_eq!(stored(&client).await, (3, 0, true));
        // A single row that was copied over a difference cannot be told from others.
        client.batch_execute(regions.split_once(';').unwrap().1.split_once(';').unwrap().1).await.unwrap();
        client.batch_execute("UPDATE segue.stream SET backfilled_at = now()").await.unwrap();
        assert_eq!(promoted(3, 4, 0x89).await.unwrap_err().code, "SEGUE-TIMELINE");
        assert_eq!(stored(&client).await, (3, 2, true));
        let late = follow(&client, 4, (&stream(3), &stream(4)), Position(0x90)).await.unwrap_err();
        assert_eq!(late.code, "SEGUE-SUPERSEDED");
    }

    #[test]
    fn a_history_says_where_each_ancestor_was_left() {
        let history =
            "1\t0/3000148\tno recovery target specified\n\n2\t1/A0\tbefore 2026-11-29\n# said by hand\n";
        let left = |timeline| branch_of(history, timeline);
        assert_eq!(left(1), Ok(Some(Position(0x0300_0148))));
        assert_eq!(left(2), Ok(Some(Position(0x1_0000_00a0))));
        assert_eq!(left(3), Ok(None), "it is the timeline itself, or another branch");
        assert_eq!(branch_of("", 1), Ok(None));
        assert!(branch_of("one\t0/0\tx", 1).is_err() && branch_of("1", 1).is_err());
    }
}
