//! A connection's bytes, with or without TLS, to a client or to a server.
//!
//! It knows of frames only that one can be awaited, for the times before bytes are relayed.

use crate::frames::{self, Malformed};
use bytes::{Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What a read asks for at least, and a buffer begins with: one of pgbench's answers, and a page of a large one.
pub(crate) const READ_BYTES: usize = 16 * 1024;
/// What a client's buffer begins with: most queries are short, and most clients idle.
pub(crate) const FIRST_BYTES: usize = 1024;
/// A frame that is awaited as a whole before anything is relayed: none of a login's is near it.
const LOGIN_FRAME_BYTES_MAX: usize = 64 * 1024;

/// A peer from which nothing has come for so long, although it was asked, is gone.
const GONE_AFTER: Duration = Duration::from_secs(120);

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    /// TLS with a client, whose connection was accepted.
    Accepted(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS with a server.
    Opened(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

macro_rules! on {
    ($stream:expr, $inner:ident => $what:expr) => {
        match $stream {
            Stream::Plain($inner) => $what,
            Stream::Accepted($inner) => $what,
            Stream::Opened($inner) => $what,
        }
    };
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Accepted(stream) => stream.get_ref().0,
            Stream::Opened(stream) => stream.get_ref().0,
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Stream::Plain(_))
    }

    pub(crate) fn peer(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// Small frames leave at once, and a peer that is gone is noticed within two minutes.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(GONE_AFTER / 2)
            .with_interval(GONE_AFTER / 8)
            .with_retries(4);
        socket2::SockRef::from(self.tcp()).set_tcp_keepalive(&keepalive)?;
        self.tcp().set_nodelay(true)
    }

    /// A server that takes nothing any more is noticed as soon, where a statement is on its way to it: keepalive is silent
    /// then. (A client that does not read for a while is not gone, and a socket cannot tell the one from the other.)
    pub(crate) fn prepare_to_server(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(self.tcp()).set_tcp_user_timeout(Some(GONE_AFTER))?;
        self.prepare()
    }

    /// Whether nothing can be read: neither bytes, nor that the peer has closed. What TLS had for `input` is in it afterwards.
    pub(crate) fn is_quiet(&mut self, input: &mut BytesMut) -> bool {
        if let Stream::Plain(stream) = self {
            return matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        }
        // Bytes on the wire tell nothing: a record is a session's ticket, or a server's last word.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut bytes = [0; 256];
        let mut read = ReadBuf::new(&mut bytes);
        let is_quiet = {
            let reading = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut read));
            // A task that has done much would be told that there is nothing.
            std::pin::pin!(tokio::task::unconstrained(reading)).poll(&mut cx).is_pending()
        };
        input.extend_from_slice(read.filled());
        is_quiet
    }

    /// Writes as much of `out` as is taken now. `Ready` when nothing is left.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let pinned = Pin::new(&mut *self);
            match pinned.poll_write(cx, out.bytes()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => out.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.is_tls() { Pin::new(self).poll_flush(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Reads what there is, in a buffer that has room for `room` bytes, or more where the last read filled it.
    /// `Ready(0)`: the peer has closed.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        // A rest too small to be worth a read makes room for a whole one.
        match input.capacity() - input.len() {
            0 => input.reserve(READ_BYTES),
            left if left < room / 4 => input.reserve(room),
            _ => {}
        }
        let future = std::pin::pin!(self.read_buf(input));
        std::future::Future::poll(future, cx)
    }

    /// Awaits one whole frame of a login.
    pub(crate) async fn frame(&mut self, input: &mut BytesMut) -> Result<Bytes, FrameError> {
        self.frame_within(input, LOGIN_FRAME_BYTES_MAX).await
    }

    /// Awaits one whole frame of at most `bytes_max`; a longer one stays where it is.
    pub(crate) async fn frame_within(
        &mut self,
        input: &mut BytesMut,
        bytes_max: usize,
    ) -> Result<Bytes, FrameError> {
        loop {
            if let Some(head) = frames::head(input)? {
                if head.bytes > bytes_max {
                    return Err(FrameError::TooLong(head.tag as char, head.bytes, bytes_max));
                }
                if input.len() >= head.bytes {
                    return Ok(input.split_to(head.bytes).freeze());
                }
            }
            if self.read_buf(input).await? == 0 {
                return Err(FrameError::Closed);
            }
        }
    }
}

/// Why a frame did not come.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the connection was closed")]
    Closed,
    #[error("a frame of type {0:?} has {1} bytes, where at most {2} are expected")]
    TooLong(char, usize, usize),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}

/// Bytes on their way out. A run of frames moves in without being copied where nothing waits before it.
#[derive(Debug, Default)]
pub(crate) struct Out {
    waiting: BytesMut,
    /// Whether `waiting` is a part of a read buffer, which must not be kept for writing into.
    borrowed: bool,
}

impl Out {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn bytes(&self) -> &[u8] {
        &self.waiting
    }

    fn advance(&mut self, written: usize) {
        bytes::Buf::advance(&mut self.waiting, written);
        if self.waiting.is_empty() {
            // Gives the read buffer back, or its own one up: the router seldom says something itself.
            *self = Out::default();
        }
    }

    /// Appends the first `len` bytes of a read buffer.
    pub(crate) fn take(&mut self, from: &mut BytesMut, len: usize) {
        if len == 0 {
            return;
        }
        if self.waiting.is_empty() {
            self.waiting = from.split_to(len);
            self.borrowed = true;
        } else {
            let run = from.split_to(len);
            self.buffer().extend_from_slice(&run);
        }
    }

    /// A buffer of its own, to write frames into.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        if self.borrowed {
            // The rest of a read buffer's memory belongs to its next read.
            let mut own = BytesMut::with_capacity(self.waiting.len() + 256);
            own.extend_from_slice(&self.waiting);
            *self = Out { waiting: own, borrowed: false };
        }
        &mut self.waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_server_that_takes_nothing_any_more_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Stream::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let limit = || socket2::SockRef::from(stream.tcp()).tcp_user_timeout().unwrap();
        stream.prepare().unwrap();
        assert_eq!(limit(), None, "a client may take its time");
        stream.prepare_to_server().unwrap();
        assert_eq!(limit(), Some(GONE_AFTER));
    }

    #[tokio::test]
    async fn a_buffer_grows_where_a_read_has_filled_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut stream = Stream::Plain(listener.accept().await.unwrap().0);
        peer.write_all(&[7; 3 * READ_BYTES]).await.unwrap();
        let mut input = BytesMut::with_capacity(FIRST_BYTES);
        let mut reads = Vec::new();
        while reads.iter().sum::<usize>() < 3 * READ_BYTES {
            let read = poll_fn(|cx| stream.poll_receive(cx, &mut input, FIRST_BYTES)).await.unwrap();
            // It was taken as a whole, as a run of frames is.
            let _ = input.split();
            reads.push(read);
        }
        assert!(reads[0] == FIRST_BYTES && reads[1] > FIRST_BYTES, "{reads:?}");
    }
}
