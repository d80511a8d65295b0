//! The background task of a stream: reads ahead within a bound, and keeps the server informed.

use super::dial::{Io, lost};
use super::frame::{Backend, Frame, broken, cut, frame};
use crate::pgoutput::POSTGRES_EPOCH_US;
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt;
use postgres_protocol::message::frontend;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::position::Position;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Read ahead of the consumer at most this much. One larger message is let through alone.
const AHEAD_BYTES_MAX: u32 = 32 << 20;
/// One read; also how much memory a single value can keep alive.
const READ_BYTES: usize = 64 << 10;
/// Reads that follow each other so closely …
const QUICK: Duration = Duration::from_micros(500);
/// … and are as many as this are a flood: then we rest after each …
const QUICK_MAX: u32 = 64;
/// … for this long: it costs both sides far less than a wake-up for every message. Not where a read has brought this much: then
/// more is there already.
const REST: Duration = Duration::from_millis(1);
const MUCH: usize = READ_BYTES / 2;
/// How often the server hears from us: well within the shortest sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// After this long without a byte the server is asked for an answer.
const ASK_AFTER: Duration = Duration::from_secs(20);
/// After this long without one it is given up. A dead network is noticed by TCP long before; this is for a server that
/// hangs. Not shorter: servers before 16 say nothing while they decode a large transaction that is not for us.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// A status message is 40 bytes: if it cannot be written, the line is dead.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Frames that were read together, and their share of the read-ahead bound.
pub(super) struct Batch {
    pub(super) frames: VecDeque<Frame>,
    /// When they had all arrived, or later.
    pub(super) arrived: Instant,
    _share: OwnedSemaphorePermit,
}

/// Where frames go, within a bound, and what comes back.
pub(super) struct Out {
    frames: mpsc::UnboundedSender<Outcome<Batch>>,
    ahead: Arc<Semaphore>,
    pub(super) acknowledged: watch::Receiver<Position>,
}

impl Out {
    pub(super) fn new(
        frames: mpsc::UnboundedSender<Outcome<Batch>>,
        acknowledged: watch::Receiver<Position>,
    ) -> Out {
        Out { frames, ahead: Arc::new(Semaphore::new(AHEAD_BYTES_MAX as usize)), acknowledged }
    }

    /// Hands frames of so many bytes on, once there is room for them; `None` if nobody wants them any more.
    pub(super) async fn send(&self, frames: VecDeque<Frame>, bytes: usize) -> Option<()> {
        let share = bytes.min(AHEAD_BYTES_MAX as usize) as u32;
        let share = tokio::select! {
            share = self.ahead.clone().acquire_many_owned(share) => share.ok()?,
            () = self.unwanted() => return None,
        };
        self.hand_on(frames, share)
    }

    /// Waits until there is room for so many bytes; `None` if nobody wants any more. Others may take it meanwhile.
    pub(super) async fn has_room(&self, bytes: u32) -> Option<()> {
        tokio::select! {
            share = self.ahead.acquire_many(bytes.min(AHEAD_BYTES_MAX)) => share.ok().map(drop),
            () = self.unwanted() => None,
        }
    }

    /// Hands frames on for which there is room.
    fn hand_on(&self, frames: VecDeque<Frame>, share: OwnedSemaphorePermit) -> Option<()> {
        self.frames.send(Ok(Batch { frames, arrived: Instant::now(), _share: share })).ok()
    }

    /// Waits until nobody wants frames any more.
    pub(super) async fn unwanted(&self) {
        self.frames.closed().await;
    }

    /// The last that is heard.
    pub(super) fn fail(&self, fault: Fault) {
        let _ = self.frames.send(Err(fault));
    }
}

pub(super) struct Pump {
    read: ReadHalf<Box<dyn Io>>,
    write: WriteHalf<Box<dyn Io>>,
    buffer: BytesMut,
    out: Out,
    server: String,
}

/// Why the stream ended without a fault of its own.
enum End {
    /// The consumer is gone.
    Unwanted,
    Fault(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> End {
        End::Fault(fault)
    }
}

impl Pump {
    pub(super) fn new(io: Box<dyn Io>, buffer: BytesMut, out: Out, server: String) -> Pump {
        let (read, write) = tokio::io::split(io);
        Pump { read, write, buffer, out, server }
    }

    pub(super) async fn run(mut self) {
        let end = match self.pump().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        match end {
            End::Fault(fault) => {
                let fault = fault.during(format_args!("streaming from {}", self.server));
                self.out.fail(fault);
            }
            End::Unwanted => {
                // The last word, so that the source need not keep what is durable; nobody waits for it.
                let _ = self.status(false).await;
                let mut bytes = BytesMut::new();
                frontend::copy_done(&mut bytes);
                frontend::terminate(&mut bytes);
                let _ = tokio::time::timeout(WRITE_TIMEOUT, self.write.write_all(&bytes)).await;
                let _ = self.write.shutdown().await;
            }
        }
    }

    async fn pump(&mut self) -> Result<std::convert::Infallible, End> {
        let mut tick = interval(STATUS_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut asked = false;
        let mut quick = 0_u32;
        // What was left over when the stream started may hold whole frames.
        let mut held = self.cut_all().await?;
        loop {
            let share = held.as_ref().map_or(0, |(_, bytes)| (*bytes).min(AHEAD_BYTES_MAX as usize) as u32);
            let waiting = held.is_some();
            // In the middle of a large message the room for the rest of it has been made already: do not move it.
            let room = self.buffer.capacity() - self.buffer.len();
            if room == 0 || (room < READ_BYTES / 16 && self.buffer.len() < READ_BYTES) {
                self.buffer.reserve(READ_BYTES);
            }
            tokio::select! {
                permit = self.out.ahead.clone().acquire_many_owned(share), if waiting => {
                    let share = permit.map_err(|_| End::Unwanted)?;
                    if let Some((frames, _)) = held.take() {
                        self.out.hand_on(frames, share).ok_or(End::Unwanted)?;
                    }
                    // While we did not read, the server could not be heard.
                    heard_at = Instant::now();
                }
                count = self.read.read_buf(&mut self.buffer), if !waiting => {
                    let count = count.map_err(lost)?;
                    if count == 0 {
                        return Err(lost("the server closed the connection").into());
                    }
                    let now = Instant::now();
                    quick = if now - heard_at < QUICK { quick.saturating_add(1) } else { 0 };
                    (heard_at, asked) = (now, false);
                    if quick > QUICK_MAX && count < MUCH {
                        // The server sends message by message; let some come together.
                        tokio::time::sleep(REST).await;
                        self.read_what_is_there();
                        heard_at = Instant::now();
                    }
                    held = self.cut_all().await?;
                }
                changed = self.out.acknowledged.changed() => {
                    changed.map_err(|_| End::Unwanted)?;
                    self.status(false).await?;
                }
                _ = tick.tick() => {
                    let quiet = if waiting { Duration::ZERO } else { heard_at.elapsed() };
                    if quiet > SILENCE_MAX {
                        return Err(lost(format_args!("the server has been silent for {} s", quiet.as_secs())).into());
                    }
                    let ask = quiet > ASK_AFTER && !asked;
                    asked |= ask;
                    self.status(ask).await?;
                }
                () = self.out.frames.closed() => return Err(End::Unwanted),
            }
        }
    }

    /// Reads on for as long as nothing is waited for, up to a bound: over TLS a read brings one record at most.
    fn read_what_is_there(&mut self) {
        let most = self.buffer.len() + READ_BYTES;
        while self.buffer.len() < most {
            if self.buffer.len() == self.buffer.capacity() {
                self.buffer.reserve(READ_BYTES);
            }
            // An end or an error is met again by the next read, when what the server has said before it was heard.
            match self.read.read_buf(&mut self.buffer).now_or_never() {
                Some(Ok(1..)) => {}
                Some(Ok(0) | Err(_)) | None => break,
            }
        }
    }

    /// Cuts every complete frame off the buffer, and answers where an answer is wanted.
    async fn cut_all(&mut self) -> Result<Option<(VecDeque<Frame>, usize)>, End> {
        let (mut frames, mut bytes, mut reply) = (VecDeque::new(), 0, false);
        let failed = loop {
            match cut(&mut self.buffer) {
                Ok(None) => break None,
                Ok(Some(Backend::CopyData(data))) => {
                    bytes += data.len() + size_of::<Frame>();
                    match frame(data) {
                        Ok(frame) => {
                            reply |= matches!(frame, Frame::Keepalive { reply_requested: true, .. });
                            frames.push_back(frame);
                        }
                        Err(fault) => break Some(fault),
                    }
                }
                Ok(Some(Backend::Aside)) => {}
                Ok(Some(Backend::CopyDone)) => break Some(lost("the server ended the stream")),
                Ok(Some(Backend::Error(fault))) => break Some(fault),
                Ok(Some(other)) => break Some(broken(&format!("a message out of place: {}", other.name()))),
                Err(fault) => break Some(fault),
            }
        };
        if let Some(fault) = failed {
            return Err(fault.into());
        }
        if reply {
            self.status(false).await?;
        }
        Ok((!frames.is_empty()).then_some((frames, bytes)))
    }

    /// Written, flushed and applied are one position here: what is acknowledged is durable.
    async fn status(&mut self, ask_for_reply: bool) -> Outcome<()> {
        let position = self.out.acknowledged.borrow_and_update().0;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
        let mut message = BytesMut::with_capacity(48);
        message.put_u8(b'd');
        message.put_u32(4 + 34);
        message.put_u8(b'r');
        for _ in 0..3 {
            message.put_u64(position);
        }
        message.put_i64(now - POSTGRES_EPOCH_US);
        message.put_u8(ask_for_reply.into());
        let write = async {
            self.write.write_all(&message).await?;
            self.write.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(written) => written.map_err(lost),
            Err(_) => Err(lost("a status message could not be written")),
        }
    }
}
