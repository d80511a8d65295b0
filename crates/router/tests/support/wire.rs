//! The protocol in the raw: messages in any order, and what comes back.

use segue_testkit::Cluster;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// No answer takes so long.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

/// A frame: its type, and its body.
pub(crate) type Frame = (u8, Vec<u8>);

/// Stands for the answer that did not come.
pub(crate) const SILENCE: u8 = b'!';

/// A session on whatever is at the other end.
pub(crate) struct Wire(Box<dyn Bytes>);

/// A frame as bytes.
pub(crate) fn frame(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], &body].concat()
}

/// A first packet as bytes.
pub(crate) fn startup(options: &[(&str, &str)]) -> Vec<u8> {
    let mut body = (3u32 << 16).to_be_bytes().to_vec();
    for (name, value) in options {
        body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    [&u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], &body].concat()
}

impl Wire {
    /// To the server's socket, which trusts.
    pub(crate) async fn direct(cluster: &Cluster, database: &str) -> Wire {
        let path = cluster.socket_dir().join(format!(".s.PGSQL.{}", cluster.port()));
        Wire(Box::new(UnixStream::connect(path).await.unwrap())).logged_in(database).await
    }

    /// To a router that trusts.
    pub(crate) async fn through(port: u16, database: &str) -> Wire {
        Wire::open(port).await.logged_in(database).await
    }

    pub(crate) async fn open(port: u16) -> Wire {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Wire(Box::new(stream))
    }

    async fn logged_in(mut self, database: &str) -> Wire {
        self.send(&startup(&[("user", "postgres"), ("database", database)])).await;
        let answers = self.until(|(tag, _)| *tag == b'Z').await;
        assert_eq!(answers.last().map(|(tag, _)| *tag), Some(b'Z'), "{answers:?}");
        self
    }

    /// Sends; who has hung up misses it.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
        let _ = self.0.flush().await;
    }

    /// The next frame, or `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        tokio::time::timeout(LIMIT, async {
            let tag = self.0.read_u8().await.ok()?;
            let length = self.0.read_u32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            self.0.read_exact(&mut body).await.ok()?;
            Some((tag, body))
        })
        .await
        .unwrap_or_else(|_| Some((SILENCE, b"nothing came in time".to_vec())))
    }

    /// Frames up to one that `is_last`, or up to the end.
    pub(crate) async fn until(&mut self, is_last: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            let ends = is_last(&frame) || frame.0 == SILENCE;
            frames.push(frame);
            if ends {
                break;
            }
        }
        frames
    }

    /// Everything up to the end.
    pub(crate) async fn rest(&mut self) -> Vec<Frame> {
        self.until(|_| false).await
    }
}

/// A field of an error.
pub(crate) fn field(body: &[u8], wanted: u8) -> String {
    let mut fields = body.split(|&byte| byte == 0);
    let found = fields.find(|field| field.first() == Some(&wanted)).unwrap_or_default();
    String::from_utf8_lossy(found.get(1..).unwrap_or_default()).into_owned()
}

/// A frame as a person reads it; what tells nothing of behaviour is left out.
pub(crate) fn told((tag, body): &Frame) -> Option<String> {
    match tag {
        // Settings are reported where they are read; whose server it is, is not.
        b'S' | b'K' => None,
        b'E' | b'N' => Some(format!(
            "{} {} {} {}",
            *tag as char,
            field(body, b'S'),
            field(body, b'C'),
            field(body, b'M')
        )),
        _ => Some(format!("{} {}", *tag as char, body.escape_ascii())),
    }
}
