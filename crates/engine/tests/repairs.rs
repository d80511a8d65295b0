//! A repair that the target refuses changes nothing: the stream goes on, and judges events as before.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod fake;

use fake::{FakeSource, FakeTarget, table};
use segue_engine::admission::{Admission, Admissions};
use segue_engine::fault::Fault;
use segue_engine::follow::build::BatchLimits;
use segue_engine::follow::repair::StreamRepairer;
use segue_engine::migration::{Run, Settings};
use segue_engine::ports::Outcome;
use segue_engine::throttle::{Limits, Throttle};
use segue_engine::verify::ports::{Repaired, Repairer};
use segue_model::key::KeyText;
use segue_model::region::Extent;
use segue_model::stage::Stage;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that follows, and whoever asks it for repairs.
struct Following {
    source: FakeSource,
    target: FakeTarget,
    repairer: Arc<StreamRepairer>,
    run: JoinHandle<Fault>,
}

impl Following {
    async fn start(seed: u64) -> Following {
        let source = FakeSource::new(seed, 3);
        let target = FakeTarget::new(&source);
        let settings = Settings {
            workers: 1,
            region_target: Duration::from_millis(1),
            follow: segue_engine::follow::Limits {
                memory_bytes_max: 1 << 20,
                batch: BatchLimits { bytes_max: 4096, transactions_max: 8 },
            },
        };
        let run = Run::prepare(
            Arc::new(source.clone()),
            Arc::new(target.clone()),
            Arc::new(Admissions::new(Admission::All)),
            vec![Arc::new(table())],
            Arc::new(Throttle::new(Limits::default())),
            Arc::default(),
            settings,
        );
        let run = run.await.unwrap();
        let (repairer, mut stage) = (run.handles().repairer, run.stage());
        let run = tokio::spawn(run.run());
        timeout(PATIENCE, stage.wait_for(|stage| *stage == Stage::Following)).await.unwrap().unwrap();
        Following { source, target, repairer, run }
    }

    async fn repair(&self, extent: &Extent) -> Outcome<Repaired> {
        self.repair_seen(extent, None).await
    }

    /// A repair of a row that was seen in this version.
    async fn repair_seen(&self, extent: &Extent, seen: Option<&str>) -> Outcome<Repaired> {
        timeout(PATIENCE, self.repairer.repair(&table(), extent, seen)).await.unwrap()
    }

    fn refuses(&self, fault: Option<Fault>) {
        *self.target.refuses.lock().unwrap() = fault;
    }

    /// The source's rows are those of the target, or will be.
    async fn arrives(&self) {
        let arrived = async {
            while self.target.durable.lock().unwrap().rows != self.source.rows() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, arrived).await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_repair_is_told_to_whoever_asked_and_the_stream_goes_on() {
    let taken = Fault::operator("TEST-TAKEN", "another row has the value", "mend that one first");
    let of_key = Extent::Key(KeyText::from_texts(["7"]));
    for (seed, extent) in (1..).zip([&of_key, &Extent::ALL]) {
        let following = Following::start(seed).await;
        following.refuses(Some(taken.clone()));
        assert_eq!(following.repair(extent).await.unwrap(), Repaired::Refused(taken.clone()));
        // The row comes later: nothing else brings it.
        following.source.insert([7]);
        following.arrives().await;
        // What an earlier repair has copied is still known to be there.
        following.refuses(None);
        assert_eq!(following.repair(extent).await.unwrap(), Repaired::Copied);
        following.refuses(Some(taken.clone()));
        assert_eq!(following.repair(extent).await.unwrap(), Repaired::Refused(taken.clone()));
        following.source.insert([8, 9]);
        following.arrives().await;
        following.refuses(None);
        assert_eq!(following.repair(extent).await.unwrap(), Repaired::Copied);
        following.arrives().await;
        assert!(!following.run.is_finished());
    }
}

#[tokio::test]
async fn a_fault_that_passes_ends_no_stream_and_one_that_leaves_the_commit_unknown_does() {
    let following = Following::start(1).await;
    following.refuses(Some(Fault::retry("TEST-AWAY", "the connection was lost")));
    assert_eq!(following.repair(&Extent::ALL).await.unwrap_err().code, "TEST-AWAY");
    following.source.insert([7]);
    following.arrives().await;
    following.refuses(Some(Fault::ambiguous("TEST-UNKNOWN", "the answer was lost")));
    following.repair(&Extent::ALL).await.unwrap_err();
    assert_eq!(timeout(PATIENCE, following.run).await.unwrap().unwrap().code, "TEST-UNKNOWN");
}

#[tokio::test]
async fn a_row_that_has_not_stood_still_is_not_copied_to_where_others_may_hold_its_values() {
    let following = Following::start(1).await;
    let of_key = |key: &'static str| Extent::Key(KeyText::from_texts([key]));
    following.source.insert([7]);
    following.arrives().await;
    // Where no other row is in its way, a row may have changed meanwhile.
    assert_eq!(following.repair_seen(&of_key("7"), Some("before")).await.unwrap(), Repaired::Copied);
    following.target.has_rivals.store(true, Ordering::Relaxed);
    let refused = following.repair_seen(&of_key("7"), Some("before")).await.unwrap();
    let fault = match refused {
        Repaired::Refused(fault) => fault,
        Repaired::Copied => panic!("it is copied"),
    };
    assert_eq!(fault.code, "SEGUE-REPAIR-CHANGED", "{fault}");
    assert!(fault.what.contains("(7)"), "{fault}");
    // One that has come since has changed, too; one that is gone is in nobody's way.
    let refused = following.repair_seen(&of_key("7"), Some("")).await.unwrap();
    assert!(matches!(refused, Repaired::Refused(_)), "{refused:?}");
    assert_eq!(following.repair_seen(&of_key("8"), Some("before")).await.unwrap(), Repaired::Copied);
    assert_eq!(following.repair_seen(&of_key("7"), Some("new big")).await.unwrap(), Repaired::Copied);
    assert_eq!(following.repair(&Extent::ALL).await.unwrap(), Repaired::Copied);
    following.source.insert([8, 9]);
    following.arrives().await;
    assert!(!following.run.is_finished());
}
