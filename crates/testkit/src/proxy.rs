//! A TCP proxy in front of a server that cuts, refuses, delays, throttles and freezes.
//!
//! It passes bytes in both directions and understands none of them. Faults apply to all connections at once, the
//! present ones too, from the moment they are set.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

/// Chunks under way in one direction of one connection; a sender that is faster has to wait, as on a real wire.
const CHUNKS_UNDER_WAY_MAX: usize = 64;
const CHUNK_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    refuse: bool,
    frozen: bool,
    delay: Duration,
    /// 0: not throttled.
    bytes_per_s: u64,
    /// Every connection opened before the latest cut is reset.
    cuts: u64,
    /// Every connection opened before the latest of these passes nothing any more.
    half_opens: u64,
}

/// One listening port on 127.0.0.1, passed on to another. Dropping it closes everything.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    faults: watch::Sender<Faults>,
    accepted: Arc<AtomicU64>,
    acceptor: AbortHandle,
}

impl Proxy {
    /// Starts a proxy to `127.0.0.1:upstream_port`; nothing needs to listen there yet.
    pub async fn start(upstream_port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen on a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (faults, watched) = watch::channel(Faults::default());
        let accepted = Arc::new(AtomicU64::new(0));
        let acceptor =
            tokio::spawn(accept(listener, upstream_port, watched, Arc::clone(&accepted))).abort_handle();
        Proxy { port, faults, accepted, acceptor }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections were accepted so far, refused ones not counted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Resets all present connections, on both sides; what was under way is lost. New ones are served.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| faults.cuts += 1);
    }

    /// While true, new connections are reset as soon as they are made. Present ones are left alone.
    pub fn refuse(&self, refuse: bool) {
        self.faults.send_modify(|faults| faults.refuse = refuse);
    }

    /// Adds latency to each direction; zero ends it.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// Limits each direction of each connection; zero ends it.
    pub fn throttle(&self, bytes_per_s: u64) {
        self.faults.send_modify(|faults| faults.bytes_per_s = bytes_per_s);
    }

    /// Passes nothing any more, and says nothing of it: connections stay open, new ones are accepted, as when a
    /// machine or a cable disappears.
    pub fn freeze(&self) {
        self.faults.send_modify(|faults| faults.frozen = true);
    }

    /// The present connections pass nothing any more and stay open, as when the machine behind them was replaced; new ones
    /// are served. Only a cut ends it.
    pub fn half_open(&self) {
        self.faults.send_modify(|faults| faults.half_opens += 1);
    }

    /// Ends a freeze; what was held back is passed on.
    pub fn thaw(&self) {
        self.faults.send_modify(|faults| faults.frozen = false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

async fn accept(
    listener: TcpListener,
    upstream_port: u16,
    faults: watch::Receiver<Faults>,
    accepted: Arc<AtomicU64>,
) {
    // Owned here, so that the connections end with the proxy.
    let mut connections = JoinSet::new();
    loop {
        let Ok((downstream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if faults.borrow().refuse {
            let _ = downstream.set_zero_linger();
            continue;
        }
        accepted.fetch_add(1, Ordering::Relaxed);
        connections.spawn(serve(downstream, upstream_port, faults.clone()));
    }
}

async fn serve(mut downstream: TcpStream, upstream_port: u16, mut faults: watch::Receiver<Faults>) {
    let Faults { cuts, half_opens, .. } = *faults.borrow();
    let mut passed_from = faults.clone();
    let mut upstream = tokio::select! {
        _ = faults.wait_for(|faults| faults.cuts > cuts) => return drop(downstream.set_zero_linger()),
        upstream = async {
            let _ = passed_from.wait_for(|faults| !faults.frozen).await;
            TcpStream::connect(("127.0.0.1", upstream_port)).await
        } => match upstream {
            Ok(upstream) => upstream,
            Err(_) => return drop(downstream.set_zero_linger()),
        },
    };
    let _ = (upstream.set_nodelay(true), downstream.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = downstream.split();
        let (from_server, to_server) = upstream.split();
        let pass = async {
            tokio::try_join!(
                one_way(from_client, to_server, passed_from.clone(), half_opens),
                one_way(from_server, to_client, passed_from.clone(), half_opens)
            )
        };
        tokio::select! {
            _ = faults.wait_for(|faults| faults.cuts > cuts) => None,
            ended = pass => ended.ok(),
        }
    };
    if ended.is_none() {
        // A cut or a broken side is a reset on both: an orderly close would be a message of its own.
        let _ = (downstream.set_zero_linger(), upstream.set_zero_linger());
    }
}

async fn one_way(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Faults>,
    half_opens: u64,
) -> std::io::Result<()> {
    let passes = move |faults: &Faults| !faults.frozen && faults.half_opens == half_opens;
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY_MAX);
    let mut faults_read = faults.clone();
    let read = async move {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = match from.read(&mut buffer).await {
                Ok(count) => count,
                Err(error) => {
                    // A reset is passed on like everything else, so not at once when nothing is.
                    let _ = faults_read.wait_for(passes).await;
                    return Err(error);
                }
            };
            if count == 0 || queue.send((Instant::now(), buffer[..count].to_vec())).await.is_err() {
                return std::io::Result::Ok(());
            }
        }
    };
    let write = async move {
        while let Some((arrived, chunk)) = queued.recv().await {
            let delay = faults.borrow().delay;
            tokio::time::sleep_until((arrived + delay).into()).await;
            let slice_bytes = match faults.borrow().bytes_per_s {
                0 => chunk.len(),
                // Twenty slices a second, so that a slow wire trickles instead of stuttering.
                bytes_per_s => usize::try_from(bytes_per_s / 20).unwrap_or(CHUNK_BYTES).max(1),
            };
            for slice in chunk.chunks(slice_bytes) {
                let _ = faults.wait_for(passes).await;
                let bytes_per_s = faults.borrow().bytes_per_s;
                if bytes_per_s > 0 {
                    tokio::time::sleep(Duration::from_secs_f64(slice.len() as f64 / bytes_per_s as f64))
                        .await;
                }
                to.write_all(slice).await?;
            }
        }
        let _ = faults.wait_for(passes).await;
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
