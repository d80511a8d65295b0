//! The calls do to the stored row what the model's functions do to it, and refuse what they refuse.

use crate::world::*;
use segue_model::position::Position;
use segue_model::switch::guard;
use segue_model::switch::ownership::{self, Attempt, Epoch, FenceId, Ownership, Refusal};
use segue_postgres::birth::Direction;
use segue_postgres::fence::{Answer, Applied, Row, Side};
use segue_testkit::Options;
use std::collections::BTreeSet;
use tokio_postgres::Client;

#[derive(Clone, Copy, Debug)]
enum Call {
    Fence { last: FenceId, new: Attempt },
    Unfence(FenceId),
    Flip(FenceId),
    Open { fence: FenceId, applied: bool },
    Follow(Epoch),
}

/// What should come of a call.
#[derive(Debug, PartialEq)]
enum Expected {
    Becomes(Ownership),
    IsAlready,
    Refused(Refusal),
}

/// What the model makes of `row`. It refuses what was done before, where the row that was asked about is not the one that is
/// there; a call that is repeated finds exactly what it would have made, and says so.
fn expected(row: Ownership, call: Call, (now_us, deadline_us): (i64, i64)) -> Expected {
    let margin_us = i64::try_from(limits(0).margin.as_micros()).unwrap();
    let (model, repeated) = match call {
        Call::Fence { last, new } => {
            let made = matches!(row, Ownership::Fenced { epoch, attempt, .. } if epoch == last.epoch && attempt == new);
            (ownership::fence(row, last, new, deadline_us), made && new > last.attempt)
        }
        Call::Unfence(fence) => (ownership::unfence(row, fence), false),
        Call::Flip(fence) => {
            let FenceId { epoch, attempt } = fence;
            (ownership::flip(row, fence, now_us, margin_us), row == Ownership::HandedOver { epoch, attempt })
        }
        Call::Open { fence, applied } => {
            let made = Ownership::Owner { epoch: fence.epoch.next(), attempt: fence.attempt };
            (ownership::open(row, fence, applied.then_some(fence)), applied && row == made)
        }
        Call::Follow(successor) => (ownership::become_follower(row, successor), false),
    };
    match model {
        Ok(new) if new == row => Expected::IsAlready,
        Ok(new) => Expected::Becomes(new),
        Err(_) if repeated => Expected::IsAlready,
        Err(refusal) => Expected::Refused(refusal),
    }
}

/// One database, its calls, and the stream that leads to it.
struct Checked<'a> {
    client: &'a Client,
    side: &'a Side,
    to_here: Direction,
}

impl Checked<'_> {
    async fn row(&self) -> Row {
        self.side.row().await.unwrap().unwrap()
    }

    /// Everything that a call could change, the clock, and the place in the log.
    async fn look(&self) -> (String, i64, Position) {
        let sql = "SELECT (SELECT o::text FROM segue.owner o) || (SELECT p.prosrc FROM pg_proc p WHERE p.proname = 'fence_m')
             || (SELECT string_agg(c.enabled::text, '') FROM segue.fence_carriers('m') c)
             || (SELECT coalesce(max(s.id), 0) FROM segue.signal s),
             (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, pg_current_wal_insert_lsn()::text";
        let row = self.client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1), row.get::<_, &str>(2).parse().unwrap())
    }

    /// Whether the text of the fence says what the row says.
    async fn text_matches(&self) -> bool {
        let sql = "SELECT p.prosrc LIKE format('%%fence of epoch %s, attempt %s''%%', o.epoch, o.attempt)
                AND substring(p.prosrc FROM 'timestamptz ''([^'']*)''')::timestamptz = CASE o.state
                    WHEN 'owner' THEN '-infinity' WHEN 'fenced' THEN o.deadline ELSE 'infinity' END
             FROM segue.owner o, pg_proc p WHERE p.proname = 'fence_m'";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn make(&self, call: Call) -> Answer {
        let answer = match call {
            Call::Fence { last, new } => self.side.fence(last, new).await,
            Call::Unfence(fence) => self.side.unfence(fence).await,
            Call::Flip(fence) => self.side.flip(fence).await,
            Call::Open { fence, applied } => {
                let applied = Applied { signal: 8 + u64::from(applied), position: STREAM_AT };
                self.side.open(fence, 9, self.to_here, applied).await
            }
            Call::Follow(successor) => self.side.become_follower(successor).await,
        };
        answer.unwrap()
    }

    /// Makes the call, and compares what came of it with the model. Returns the row.
    async fn agrees(&self, call: Call) -> Row {
        let (before, (kept, now_us, at)) = (self.row().await, self.look().await);
        let answer = self.make(call).await;
        let after = self.row().await;
        let deadline_us = match after.ownership {
            Ownership::Fenced { deadline_us, .. } => deadline_us,
            Ownership::Owner { .. } | Ownership::HandedOver { .. } | Ownership::Follower { .. } => 0,
        };
        let expected = expected(before.ownership, call, (now_us, deadline_us));
        let context = || format!("{call:?} on {before:?}: {answer:?}, and the model says {expected:?}");
        match (&expected, &answer) {
            (Expected::Becomes(new), Answer::Done(row)) => {
                assert_eq!((row, row.ownership), (&after, *new), "{}", context());
                if let Call::Open { .. } = call {
                    let until = self.look().await.2;
                    assert!(at <= row.opened_at && row.opened_at <= until, "{} {at}", context());
                } else {
                    assert_eq!(row.opened_at, before.opened_at, "{}", context());
                }
                // Handing over leaves it to the row.
                assert!(matches!(call, Call::Flip(_)) || self.text_matches().await, "{}", context());
            }
            (Expected::IsAlready, Answer::AlreadyDone(row)) => {
                assert_eq!((row, row), (&before, &after), "{}", context());
            }
            (Expected::Refused(_), Answer::Refused { found, .. }) => {
                assert_eq!((*found, after), (Some(before), before), "{}", context());
                assert_eq!(self.look().await.0, kept, "{}", context());
            }
            _ => panic!("{}", context()),
        }
        after
    }

    /// Tries what does not change this row: its own numbers, and one of them above or below, in every call.
    async fn refuses_what_the_model_refuses(&self) {
        let row = self.row().await.ownership;
        let epoch = row.epoch().0;
        let attempt = row.fence_id().map_or(1, |fence| fence.attempt.0);
        let beside = [(epoch + 1, attempt), (epoch.saturating_sub(1), attempt), (epoch, attempt + 1)];
        let ids = [(epoch, attempt), (epoch, attempt.saturating_sub(1))].into_iter().chain(beside);
        let ids: Vec<_> = ids.map(|(epoch, attempt)| id(epoch, attempt)).collect();
        let now_us = self.look().await.1;
        for call in every_call(&ids) {
            if !matches!(expected(row, call, (now_us, 0)), Expected::Becomes(_)) {
                self.agrees(call).await;
            }
        }
        // What the guard answers a writer, who comes before any deadline that stands.
        let accepted = guard::late(Some(row), i64::MIN) == guard::Answer::Accept;
        let state = state_of(self.client, "UPDATE plain SET v = 'w'").await;
        assert_eq!(state == "00000", accepted, "{row:?}: {state}");
    }
}

/// With each of these numbers, and the epochs as successors.
fn every_call(ids: &[FenceId]) -> Vec<Call> {
    let mut calls = Vec::new();
    for fence in ids.iter().copied() {
        for new in [fence.attempt, Attempt(fence.attempt.0 + 1), Attempt(fence.attempt.0 + 2)] {
            calls.push(Call::Fence { last: fence, new });
        }
        calls.extend([Call::Unfence(fence), Call::Flip(fence)]);
        calls.extend([true, false].map(|applied| Call::Open { fence, applied }));
    }
    let epochs: BTreeSet<Epoch> = ids.iter().map(|id| id.epoch).collect();
    calls.extend(epochs.into_iter().map(Call::Follow));
    calls
}

/// Fences this side once for so short a time that a late writer takes it back.
async fn taken_back_once(end: &End, last: FenceId, new: Attempt) {
    let side = Side::open_sessions(&end.endpoint, ("m", 3), tables(), limits(300)).await.unwrap();
    let fenced = done(side.fence(last, new).await.unwrap()).ownership;
    let Ownership::Fenced { deadline_us, .. } = fenced else { panic!("{fenced:?}") };
    told(&end.client, "UPDATE plain SET v = 'early'").await;
    assert!(ownership::take_back(fenced, deadline_us - 1).is_err());
    until_the_deadline(&end.client).await;
    assert_eq!(side.row().await.unwrap().unwrap().ownership, fenced, "nothing comes by itself");
    end.client.batch_execute("UPDATE plain SET v = 'late'").await.unwrap();
    let now = side.row().await.unwrap().unwrap();
    assert_eq!(Ok(now.ownership), ownership::take_back(fenced, deadline_us));
    assert_eq!(now.marker, None);
}

async fn two_databases_follow_the_model_on(options: Options) {
    let pair = pair(options).await;
    let [source, target] = &pair.ends;
    let source =
        (source, Checked { client: &source.client, side: &source.side, to_here: Direction::Reverse });
    let target =
        (target, Checked { client: &target.client, side: &target.side, to_here: Direction::Forward });
    source.1.refuses_what_the_model_refuses().await;
    target.1.refuses_what_the_model_refuses().await;
    let (mut old, mut new) = (&source, &target);
    let mut openings = Vec::new();
    for epoch in 1..=3 {
        let fence_anew = async || {
            let last = old.1.row().await.ownership.fence_id().unwrap();
            let new = Attempt(last.attempt.0 + 1);
            old.1.agrees(Call::Fence { last, new }).await
        };
        // A fence over another, lifted; one that is taken back; and one that holds.
        fence_anew().await;
        let lifted = fence_anew().await.ownership.fence_id().unwrap();
        old.1.agrees(Call::Unfence(lifted)).await;
        old.1.refuses_what_the_model_refuses().await;
        taken_back_once(old.0, lifted, Attempt(lifted.attempt.0 + 1)).await;
        old.1.refuses_what_the_model_refuses().await;
        let fenced = fence_anew().await;
        old.1.refuses_what_the_model_refuses().await;
        let fence = fenced.ownership.fence_id().unwrap();
        let handed = old.1.agrees(Call::Flip(fence)).await;
        assert_eq!(handed.marker, fenced.marker);
        old.1.refuses_what_the_model_refuses().await;
        new.1.agrees(Call::Open { fence, applied: false }).await;
        let opened = new.1.agrees(Call::Open { fence, applied: true }).await;
        assert_eq!(opened.ownership, owner(epoch + 1, 4 * epoch), "attempts grow over both sides");
        openings.push(opened.opened_at);
        new.1.refuses_what_the_model_refuses().await;
        let follower = old.1.agrees(Call::Follow(Epoch(epoch + 1))).await;
        assert_eq!(follower.ownership, Ownership::Follower { epoch: Epoch(epoch) });
        old.1.refuses_what_the_model_refuses().await;
        (old, new) = (new, old);
    }
    assert!(openings.is_sorted() && openings[0] > Position(0), "{openings:?}");
    assert_eq!(source.1.row().await.ownership, Ownership::Follower { epoch: Epoch(3) });
    assert_eq!(target.1.row().await.ownership, owner(4, 12));
}

#[tokio::test]
async fn two_databases_follow_the_model_there_and_back_and_there() {
    two_databases_follow_the_model_on(Options::default()).await;
}

/// Also rows that no walk comes to, and every call that changes one.
#[tokio::test]
async fn every_call_does_to_every_row_what_the_model_does() {
    let pair = pair(Options::default()).await;
    let End { client, side, .. } = &pair.ends[1];
    let checked = Checked { client, side, to_here: Direction::Forward };
    let ids: Vec<_> = (1..=2).flat_map(|epoch| (1..=2).map(move |attempt| id(epoch, attempt))).collect();
    let states = [
        "'owner', NULL",
        "'fenced', now() + interval '1 h'",
        "'fenced', now() - interval '1 h'",
        "'handed_over', NULL",
        "'follower', NULL",
    ];
    let mut changed = 0;
    for row in &ids {
        for state in states {
            for call in every_call(&ids) {
                let sql = format!(
                    "UPDATE segue.owner SET (state, deadline) = ({state}), epoch = {}, attempt = {}, marker = 1;
                     SELECT segue.set_triggers('m', state <> 'owner') FROM segue.owner",
                    row.epoch, row.attempt
                );
                client.batch_execute(&sql).await.unwrap();
                let before = checked.row().await;
                changed += u32::from(checked.agrees(call).await != before);
            }
        }
    }
    assert!(changed > 40, "{changed}");
}
