//! Shadow reads: a share of the reads that clients were answered is repeated on the other side, and compared.
//!
//! * [`Shadow::offer`]: takes a sample off the response path; it never waits
//! * [`worker`]: when a sample is run where, and what is concluded of it
//! * [`run`]: one statement on one server, in a transaction that can write nothing; [`plan`]: its plan without constants
//! * [`links`]: connections of its own
//! * [`compare`], [`rows`], [`value`]: two answers held against each other; pure
//! * [`ledger`], [`report`]: what was found
//!
//! It does not know which reads are sampled, nor what is proved of a statement: that is said with each sample.

mod compare;
mod ledger;
mod links;
mod plan;
mod report;
mod rows;
mod run;
mod value;
mod worker;

pub use report::{ColumnPair, Mismatch, MismatchKind, MismatchSample, ShadowCounts, SlowRead};
pub(crate) use rows::Rows;

use crate::auth::Login;
use crate::classify::Order;
use crate::reads;
use crate::serve::Config;
use crate::settings::Settings;
use bytes::Bytes;
use segue_model::switch::Side;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// What waits may take so much memory, however few samples it is.
const QUEUE_BYTES_MAX: usize = 16 << 20;

/// What the follower shows; `None`: that is not known. Of whichever owner's time it is, both sides show as much.
pub(crate) type Fresh = watch::Receiver<Option<reads::Fresh>>;

/// How shadow reads are made, and how their answers are compared. Which reads are sampled is not its affair.
#[derive(Debug, Clone, PartialEq)]
pub struct ShadowConfig {
    /// Samples that are compared at once; so many connections a side, user and database has at most.
    pub workers: usize,
    /// Samples that wait.
    pub queue_max: usize,
    /// Bytes of a sample; larger answers are not compared.
    pub sample_bytes_max: usize,
    /// How long is waited for the follower to show what the client was shown.
    pub wait_max: Duration,
    /// By how much of itself a float may differ; `None`: not in a byte.
    pub float_tolerance: Option<f64>,
    /// By how much a timestamp may differ; `None`: not in a byte.
    pub timestamp_tolerance: Option<Duration>,
    /// Whether what is kept of a mismatch shows values and parameters.
    pub show_values: bool,
}

impl Default for ShadowConfig {
    fn default() -> ShadowConfig {
        ShadowConfig {
            workers: 2,
            queue_max: 256,
            sample_bytes_max: 256 << 10,
            wait_max: Duration::from_secs(5),
            float_tolerance: None,
            timestamp_tolerance: None,
            show_values: false,
        }
    }
}

/// A read that was answered, to be repeated on the other side. It is one statement, and its answer is complete.
pub(crate) struct Sample {
    /// Where servers are, as the session that was answered knew it.
    pub(crate) config: Arc<Config>,
    pub(crate) user: Arc<str>,
    /// As the client named it.
    pub(crate) database: Arc<str>,
    pub(crate) login: Login,
    /// What the session was set to beyond its server's defaults.
    pub(crate) settings: Arc<Settings>,
    /// Settings of the startup packet, where `settings` does not hold them: with a server of the session's own.
    pub(crate) startup: Arc<[(String, String)]>,
    /// The statement, as the client sent it; of a simple query all of it.
    pub(crate) text: Box<[u8]>,
    /// Extended: the Parse body behind the name (text, zero, types). In memory of its own, not a part of a read buffer.
    pub(crate) parse: Option<Bytes>,
    /// Extended: the Bind body behind both names (formats, parameters, result formats). In memory of its own.
    pub(crate) bind: Option<Bytes>,
    /// The answer as the client got it.
    pub(crate) rows: Rows,
    pub(crate) served_by: Side,
    /// From the statement's last byte to its answer's.
    pub(crate) took: Duration,
    /// It is compared only once the follower shows everything that was committed before this.
    pub(crate) answered_at: Instant,
    pub(crate) fingerprint: u64,
    /// The statement without its constants.
    pub(crate) shape: Box<str>,
    pub(crate) order: Order,
    /// Which rows come may depend on chance.
    pub(crate) limited: bool,
}

impl Sample {
    /// What it takes in memory.
    fn bytes(&self) -> usize {
        let optional = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        size_of::<Sample>()
            + self.text.len()
            + self.shape.len()
            + optional(&self.parse)
            + optional(&self.bind)
            + self.rows.bytes()
    }
}

/// A sample that waits or is compared, and its part of the memory.
struct Queued {
    sample: Sample,
    bytes: usize,
    bytes_taken: Arc<AtomicUsize>,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.bytes_taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Takes samples, and says what came of them.
pub(crate) struct Shadow {
    queue: mpsc::Sender<Queued>,
    bytes_taken: Arc<AtomicUsize>,
    sample_bytes_max: usize,
    shared: Arc<worker::Shared>,
}

impl Shadow {
    /// Begins to compare what is offered, until this is dropped. It is called within a runtime.
    pub(crate) fn start(config: ShadowConfig, fresh: Fresh) -> Shadow {
        let (queue, samples) = mpsc::channel(config.queue_max.max(1));
        let sample_bytes_max = config.sample_bytes_max;
        let shared = worker::start(config, fresh, samples);
        Shadow { queue, bytes_taken: Arc::default(), sample_bytes_max, shared }
    }

    /// Gives a sample to be compared. It never waits: what there is no room for is dropped, and counted.
    pub(crate) fn offer(&self, sample: Sample) {
        let ledger = &self.shared.ledger;
        let bytes = sample.bytes();
        if sample.rows.is_cut() || bytes > self.sample_bytes_max {
            return ledger.too_large.add_one();
        }
        let taken = self.bytes_taken.fetch_add(bytes, Ordering::Relaxed);
        let queued = Queued { sample, bytes, bytes_taken: Arc::clone(&self.bytes_taken) };
        if taken + bytes > QUEUE_BYTES_MAX || self.queue.try_send(queued).is_err() {
            ledger.queue_full.add_one();
        }
    }

    /// What was found so far.
    pub(crate) fn snapshot(&self) -> ShadowCounts {
        self.shared.ledger.read()
    }
}

impl Drop for Shadow {
    /// What waits is not compared any more.
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
