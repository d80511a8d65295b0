//! What the router says of all that it served, within a bound: its seat is written every second.

use super::findings::{in_ms, latency, shortened};
use crate::report::{PoolSeat, ServedSeat, SlowSeat, StatsSeat, TimesSeat};
use segue_router::{Handle, PoolUse, Served, ShadowCounts, SlowRead};
use std::time::Duration;

/// Statements whose last use is told; the router itself keeps more.
const SERVED_MAX: usize = 20;
const POOLS_MAX: usize = 20;
const SLOW_MAX: usize = 5;

/// Everything.
pub(super) fn statistics(handle: &Handle, shadow: ShadowCounts) -> StatsSeat {
    let times = handle.times().into_iter().map(|of| TimesSeat {
        side: of.side,
        kind: of.kind.to_owned(),
        count: of.times.count(),
        ms: latency(&of.times),
    });
    StatsSeat {
        times: times.collect(),
        parked_ms: latency(&handle.parked_times()),
        pins: handle.counts().pins,
        pools: handle.pools().into_iter().take(POOLS_MAX).map(pool).collect(),
        kept: handle.kept().into_iter().map(|(why, count)| (why.to_owned(), count)).collect(),
        served: handle.served(SERVED_MAX).into_iter().map(served).collect(),
        slow_reads: shadow.slow_reads.into_iter().take(SLOW_MAX).map(slow).collect(),
    }
}

fn pool(pool: PoolUse) -> PoolSeat {
    let PoolUse { side, user, database, used, idle, connections_max } = pool;
    PoolSeat { side, user, database, used, idle, max: connections_max }
}

fn served(served: Served) -> ServedSeat {
    let ms_ago =
        |last: Option<Duration>| last.map(|last| u64::try_from(last.as_millis()).unwrap_or(u64::MAX));
    ServedSeat {
        user: shortened(&served.user),
        application: shortened(&served.application),
        kind: served.kind.to_owned(),
        statement: shortened(&served.shape),
        source: served.source.count,
        source_ms_ago: ms_ago(served.source.last),
        target: served.target.count,
        target_ms_ago: ms_ago(served.target.last),
    }
}

fn slow(read: SlowRead) -> SlowSeat {
    SlowSeat {
        statement: shortened(&read.shape),
        served_by: read.served_by,
        served_ms: in_ms(read.served),
        other_ms: in_ms(read.other),
        served_plan: read.served_plan.as_deref().map(shortened),
        other_plan: read.other_plan.as_deref().map(shortened),
    }
}
