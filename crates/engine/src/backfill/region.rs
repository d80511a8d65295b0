//! Copying one region: snapshot, seam, rows, durable source, commit. In that order.

use super::{Shared, Work, elapsed_ms};
use crate::fault::Fault;
use crate::killpoint;
use crate::ports::{Onto, Outcome, RegionDigest, RegionReader, RegionRecord, RegionWriter, Source, Target};
use segue_model::region::{Extent, RegionId};
use std::time::{Duration, Instant};

/// How often a snapshot that lacks a skipped transaction is taken again before the region is put back.
const SNAPSHOTS_MAX: u32 = 20;
/// The first pause between two snapshots; it doubles.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(5);

/// A region that was put back is not begun again before this has passed.
const GIVEN_UP_PAUSE: Duration = Duration::from_millis(200);

/// What a region's copy came to.
#[derive(Debug)]
pub struct Copied {
    /// Rows.
    pub rows: u64,
    /// How long it took until the first of them came, in milliseconds: every region takes that, however few it has.
    pub fixed_ms: u64,
    /// How long they were on their way, in milliseconds.
    pub streamed_ms: u64,
}

/// Copies the region `id`, which the map has marked as being copied.
///
/// `None`: no snapshot contained everything that had been skipped; the region has been put back as not begun.
/// After a fault the region stays marked: it cannot be known here whether the target committed it, so the
/// map must be thrown away and read again.
pub async fn copy_region<S: Source, T: Target>(
    shared: &Shared<S, T>,
    reader: &mut S::Reader,
    writer: &mut T::Writer,
    work: &Work,
    id: RegionId,
    extent: &Extent,
) -> Outcome<Option<Copied>> {
    let Some((seam, covered_by)) = snapshot(shared, reader, work, id).await? else {
        // The stream must see the region as not begun for a while, else it could wait for ever.
        tokio::time::sleep(GIVEN_UP_PAUSE).await;
        return Ok(None);
    };
    let start = Instant::now();
    killpoint::pass("region.seam");
    stands_still::<S>(reader, work, extent).await?;
    let onto = match extent {
        Extent::Key(_) => Onto::Replaced,
        Extent::Range { .. } => work.onto,
    };
    let spared = match onto {
        Onto::Compared => spared(shared, reader, writer, work, extent).await?,
        Onto::Nothing | Onto::Replaced => None,
    };
    let (rows, bytes, streamed_ms) = match spared {
        // Both servers have read and summed them up.
        Some(digest) => (digest.rows, digest.bytes, elapsed_ms(start)),
        None => {
            writer.begin(&work.table, work.unit, extent, onto).await?;
            pass(shared, reader, writer, work, extent).await?
        }
    };
    reader.end().await?;
    killpoint::pass("region.copied");
    let took_ms = elapsed_ms(start);
    // A crash of the source can undo what was read and give its numbers to others, until the log is durable
    // up to here; that this session sees it durable proves that there was no crash in between.
    reader.durable(covered_by).await?;
    killpoint::pass("region.durable");
    let record = RegionRecord { unit: work.unit, extent: extent.clone(), seam, covered_by, bytes, took_ms };
    writer.commit(&record).await?;
    killpoint::pass("region.committed");
    shared.regions.copied(work.unit, id);
    shared.progress.region_copied(work.table.id, rows, bytes);
    Ok(Some(Copied { rows, fixed_ms: took_ms.saturating_sub(streamed_ms), streamed_ms }))
}

/// Refuses a row that is to have stood still and has not.
async fn stands_still<S: Source>(reader: &mut S::Reader, work: &Work, extent: &Extent) -> Outcome<()> {
    let (Some(steady), Extent::Key(key)) = (&work.steady, extent) else { return Ok(()) };
    let version = reader.version(&work.table, work.unit, key).await?;
    // One that is gone is in nobody's way.
    if version.is_empty() || version == *steady {
        return Ok(());
    }
    let what = format!(
        "the row {key} of {} changes while it is to be copied, and the other side keeps values unique: another row may have to have \
         one of its values first, or after it",
        work.table.source
    );
    let next_step =
        "`segue verify --repair` once more, when the application does not change the row all the time";
    Err(Fault::operator("SEGUE-REPAIR-CHANGED", what, next_step))
}

/// The digest of the region's rows, if the target has exactly them: nothing has to be copied then, and the writer is ready
/// to store the record.
async fn spared<S: Source, T: Target>(
    shared: &Shared<S, T>,
    reader: &mut S::Reader,
    writer: &mut T::Writer,
    work: &Work,
    extent: &Extent,
) -> Outcome<Option<RegionDigest>> {
    let digest = reader.digest(&work.table, work.unit, extent).await?;
    // The source has read them all the same.
    shared.throttle.charge(usize::try_from(digest.bytes).unwrap_or(usize::MAX));
    let equal = writer.begin_equal(&work.table, work.unit, extent, &digest).await?;
    Ok(equal.then_some(digest))
}

/// Passes the region's rows on, from the snapshot to the target. Returns how many there were, their bytes, and for how many
/// milliseconds they came.
async fn pass<S: Source, T: Target>(
    shared: &Shared<S, T>,
    reader: &mut S::Reader,
    writer: &mut T::Writer,
    work: &Work,
    extent: &Extent,
) -> Outcome<(u64, u64, u64)> {
    reader.copy(&work.table, work.unit, extent).await?;
    let mut bytes = 0;
    let mut began = Instant::now();
    let mut first = None;
    while let Some(piece) = reader.next_piece().await? {
        first.get_or_insert_with(Instant::now);
        bytes += piece.len() as u64;
        if work.is_one_region() {
            let worked = began.elapsed();
            shared.throttle.spend(piece.len()).await;
            shared.throttle.rest_uncut(worked).await;
            began = Instant::now();
        } else {
            // Paid for before the next region, so that this one's snapshot does not grow old.
            shared.throttle.charge(piece.len());
        }
        writer.write(piece).await?;
    }
    let rows = writer.finish().await?;
    Ok((rows, bytes, first.map_or(0, elapsed_ms)))
}

/// Takes snapshots until one contains everything skipped for the region.
async fn snapshot<S: Source, T: Target>(
    shared: &Shared<S, T>,
    reader: &mut S::Reader,
    work: &Work,
    id: RegionId,
) -> Outcome<Option<(segue_model::seam::Seam, segue_model::position::Position)>> {
    let mut pause = SNAPSHOT_PAUSE;
    for _ in 0..SNAPSHOTS_MAX {
        let (seam, covered_by) = reader.begin(&work.table, work.unit).await?;
        match shared.regions.offer_seam(work.unit, id, &seam) {
            Ok(()) => {
                shared.progress.waiting("copy", None);
                return Ok(Some((seam, covered_by)));
            }
            Err(old) => {
                reader.end().await?;
                let table = &work.table.source;
                shared.progress.waiting("copy", Some(format!("{table}: {old}; taking another one")));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
        }
    }
    shared.regions.give_up(work.unit, id);
    Ok(None)
}
