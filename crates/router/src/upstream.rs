//! One connection to a server: opened, logged in, and what is known of its state.
//!
//! It does not know which client it serves, nor when it is given to another one.

use crate::auth::scram::{self, ClientEnd, ScramError};
use crate::auth::{Login, md5_answer};
use crate::frames::{self, Fields, Malformed, put, put_query, put_string};
use crate::settings::{Parameters, Settings};
use crate::startup;
use crate::statements::OnServer;
use crate::stream::{FrameError, Stream};
use bytes::{BufMut, Bytes, BytesMut};
use rustls::pki_types::ServerName;
use segue_model::switch::Side;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where a side's server is.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// TLS, as it was configured; `None`: bytes go in the clear.
    pub tls: Option<UpstreamTls>,
}

/// How TLS is spoken with a server.
#[derive(Debug, Clone)]
pub struct UpstreamTls {
    /// What is trusted, and shown.
    pub config: Arc<rustls::ClientConfig>,
    /// Whether a server that has no TLS is done without; a configuration that verifies must not say so.
    pub optional: bool,
}

/// Names what a server is doing, for a cancel request.
#[derive(Debug, Clone)]
pub(crate) struct CancelKey {
    upstream: Arc<Upstream>,
    process: u32,
    secret: Bytes,
    /// Requests that may reach the server still.
    on_their_way: Arc<AtomicUsize>,
}

/// A connection that is logged in and idle.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) stream: Stream,
    /// What was read and not looked at yet.
    pub(crate) input: BytesMut,
    pub(crate) cancel: Option<CancelKey>,
    pub(crate) side: Side,
    /// What the server said of its settings.
    pub(crate) parameters: Arc<Parameters>,
    /// What its session was set to since it was opened.
    pub(crate) settings: Arc<Settings>,
    pub(crate) statements: OnServer,
    pub(crate) opened: Instant,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot reach the database: {0}")]
    Io(#[from] io::Error),
    #[error("the database did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The server's own words, a whole ErrorResponse.
    #[error("the database refuses: {}", frames::describe_error(.0))]
    Told(Bytes),
    #[error("cannot log in to the database: {0}")]
    Scram(#[from] ScramError),
    #[error("cannot log in to the database: {0}")]
    Login(&'static str),
    #[error("the database does not keep to the protocol: {0}")]
    Frame(FrameError),
}

impl From<FrameError> for ConnectError {
    fn from(error: FrameError) -> ConnectError {
        match error {
            FrameError::Io(error) => ConnectError::Io(error),
            error => ConnectError::Frame(error),
        }
    }
}

impl From<Malformed> for ConnectError {
    fn from(error: Malformed) -> ConnectError {
        ConnectError::Frame(error.into())
    }
}

/// As whom, and with what, a connection is opened.
pub(crate) struct Identity<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
    pub(crate) login: &'a Login,
    /// Settings of the startup packet.
    pub(crate) settings: &'a [(String, String)],
}

/// Opens a connection and logs in.
pub(crate) async fn connect(
    side: Side,
    upstream: &Arc<Upstream>,
    identity: &Identity<'_>,
    limit: Duration,
) -> Result<Server, ConnectError> {
    let opening = async {
        let stream = reach(upstream).await?;
        log_in(stream, side, upstream, identity).await
    };
    tokio::time::timeout(limit, opening).await.unwrap_or(Err(ConnectError::Timeout(limit)))
}

async fn reach(upstream: &Upstream) -> Result<Stream, ConnectError> {
    let mut tcp = TcpStream::connect((upstream.host.as_str(), upstream.port)).await?;
    let Some(tls) = &upstream.tls else {
        let stream = Stream::Plain(tcp);
        stream.prepare_to_server()?;
        return Ok(stream);
    };
    tcp.write_all(&startup::tls_request()).await?;
    // Exactly one byte is read: whatever came with it in the clear would be taken for the server's.
    let stream = match tcp.read_u8().await? {
        b'S' => {
            let name = ServerName::try_from(upstream.host.clone())
                .map_err(|_| ConnectError::Login("the host is no name that TLS could check"))?;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&tls.config));
            Stream::Opened(Box::new(connector.connect(name, tcp).await?))
        }
        b'N' if tls.optional => Stream::Plain(tcp),
        _ => return Err(ConnectError::Login("the server does not offer TLS")),
    };
    stream.prepare_to_server()?;
    Ok(stream)
}

async fn log_in(
    mut stream: Stream,
    side: Side,
    upstream: &Arc<Upstream>,
    identity: &Identity<'_>,
) -> Result<Server, ConnectError> {
    let mut out = BytesMut::new();
    let settings = identity.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    startup::put_startup(&mut out, identity.user, identity.database, settings);
    stream.write_all(&out).await?;
    stream.flush().await?;

    let mut input = BytesMut::new();
    authenticate(&mut stream, &mut input, identity).await?;
    let mut parameters = Parameters::default();
    let mut cancel = None;
    loop {
        let frame = stream.frame(&mut input).await?;
        let mut fields = Fields::of(&frame);
        match frame[0] {
            b'S' => parameters.set(fields.string()?, fields.string()?),
            b'K' => {
                let process = fields.int()?;
                let secret = frame.slice(frames::HEADER_BYTES + 4..);
                let upstream = Arc::clone(upstream);
                cancel = Some(CancelKey { upstream, process, secret, on_their_way: Arc::default() });
            }
            b'Z' => break,
            b'N' | b'v' => {}
            b'E' => return Err(ConnectError::Told(frame)),
            other => return Err(Malformed::OutOfPlace(other as char).into()),
        }
    }
    let parameters = Arc::new(parameters);
    Ok(Server {
        stream,
        input,
        cancel,
        side,
        parameters,
        settings: Arc::default(),
        statements: OnServer::default(),
        opened: Instant::now(),
    })
}

/// Answers what the server asks for until it is satisfied.
async fn authenticate(
    stream: &mut Stream,
    input: &mut BytesMut,
    identity: &Identity<'_>,
) -> Result<(), ConnectError> {
    let mut begun: Option<ClientEnd> = None;
    let mut proved = None;
    loop {
        let frame = stream.frame(input).await?;
        let mut fields = Fields::of(&frame);
        match frame[0] {
            b'E' => return Err(ConnectError::Told(frame)),
            b'N' | b'v' => continue,
            b'R' => {}
            other => return Err(Malformed::OutOfPlace(other as char).into()),
        }
        let answer = match fields.int()? {
            // A server that asked for SCRAM must have proved itself before it lets anybody in.
            0 if begun.is_none() && proved.is_none() => return Ok(()),
            3 if stream.is_tls() => password(identity)?.into_bytes(),
            3 => {
                return Err(ConnectError::Login(
                    "the server asks for the password in the clear, without TLS",
                ));
            }
            5 => {
                let Some(salt) = fields.rest().first_chunk::<4>() else { return Err(fields.short().into()) };
                md5_answer(identity.user, &password(identity)?, *salt).into_bytes()
            }
            10 => {
                if !mechanisms(&mut fields)?.contains(&scram::MECHANISM) {
                    return Err(ConnectError::Login("the server does not offer SCRAM-SHA-256"));
                }
                let (first, end) = ClientEnd::begin(&rand::random::<[u8; 18]>());
                begun = Some(end);
                say(stream, |body| {
                    put_string(body, scram::MECHANISM);
                    body.put_u32(u32::try_from(first.len()).unwrap_or(u32::MAX));
                    body.put_slice(first.as_bytes());
                })
                .await?;
                continue;
            }
            11 => {
                let end = begun.take().ok_or(ConnectError::Login("a SCRAM message out of place"))?;
                let (proof, waiting) = end.prove(fields.rest(), identity.login)?;
                proved = Some(waiting);
                say(stream, |body| body.put_slice(proof.as_bytes())).await?;
                continue;
            }
            12 => {
                let waiting = proved.take().ok_or(ConnectError::Login("a SCRAM message out of place"))?;
                waiting.check(fields.rest())?;
                continue;
            }
            0 => return Err(ConnectError::Login("the server has not proved that it knows the password")),
            _ => {
                return Err(ConnectError::Login(
                    "the server asks for a method that the router does not have",
                ));
            }
        };
        say(stream, |body| put_string(body, &answer)).await?;
    }
}

/// Sends an answer to a question of authentication.
async fn say(stream: &mut Stream, fill: impl FnOnce(&mut BytesMut)) -> io::Result<()> {
    let mut out = BytesMut::new();
    put(&mut out, b'p', fill);
    stream.write_all(&out).await?;
    stream.flush().await
}

fn password(identity: &Identity<'_>) -> Result<String, ConnectError> {
    match identity.login {
        Login::Password(password) => Ok(password.clone()),
        Login::Key { .. } => {
            Err(ConnectError::Login("the server does not ask for SCRAM, and only a SCRAM key is known"))
        }
        Login::Nothing => Err(ConnectError::Login("the server asks for a password, and none is known")),
    }
}

fn mechanisms<'a>(fields: &mut Fields<'a>) -> Result<Vec<&'a [u8]>, Malformed> {
    let mut names = Vec::new();
    loop {
        match fields.string()? {
            b"" => return Ok(names),
            name => names.push(name),
        }
    }
}

impl CancelKey {
    /// From here on a request may reach the server, until [`CancelKey::send`] has ended well.
    pub(crate) fn begin(&self) {
        self.on_their_way.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether a request may reach the server still: one that failed on its way may, too.
    pub(crate) fn is_on_its_way(&self) -> bool {
        self.on_their_way.load(Ordering::SeqCst) > 0
    }

    /// Asks the server to cancel. That it did is not told, by any server.
    pub(crate) async fn send(&self, limit: Duration) -> Result<(), ConnectError> {
        let sending = async {
            let mut stream = reach(&self.upstream).await?;
            stream.write_all(&startup::cancel_request(self.process, &self.secret)).await?;
            stream.flush().await?;
            // It closes once the signal is sent: the next statement of that session is not hit by this request.
            while stream.read_u8().await.is_ok() {}
            self.on_their_way.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        tokio::time::timeout(limit, sending).await.unwrap_or(Err(ConnectError::Timeout(limit)))
    }
}

/// Why a server is not set as a session is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("the server: {0}")]
    Io(io::Error),
    #[error("the server has closed the connection: {0}")]
    Gone(FrameError),
    #[error("the server: {0}")]
    Garbled(Malformed),
    /// It refuses a setting, and has perhaps taken others.
    #[error("a setting is not taken by the database: {0}")]
    Refused(String),
}

impl Server {
    /// Says on this server what a session has set, and takes back what somebody else had.
    pub(crate) async fn make_ready(&mut self, wanted: &Arc<Settings>) -> Result<(), NotReady> {
        let statements =
            if self.settings == *wanted { Vec::new() } else { wanted.statements(&self.settings) };
        if !statements.is_empty() {
            if let Some(why) = self.ask(&statements).await? {
                return Err(NotReady::Refused(why));
            }
            self.statements.drop_unnamed();
        }
        self.settings = Arc::clone(wanted);
        Ok(())
    }

    /// Says something on the router's own behalf, one by one: a RESET ALL and a role do not belong into one transaction with
    /// what may fail. Returns the first thing that the server refused.
    pub(crate) async fn ask(&mut self, statements: &[impl AsRef<[u8]>]) -> Result<Option<String>, NotReady> {
        let mut out = BytesMut::new();
        statements.iter().for_each(|sql| put_query(&mut out, sql.as_ref()));
        self.stream.write_all(&out).await.map_err(NotReady::Io)?;
        self.stream.flush().await.map_err(NotReady::Io)?;
        let mut refused = None;
        for _ in statements {
            let answer = self.await_ready().await?;
            refused = refused.or(answer);
        }
        Ok(refused)
    }

    /// Reads up to the next ReadyForQuery; returns what the server refused.
    async fn await_ready(&mut self) -> Result<Option<String>, NotReady> {
        let mut refused = None;
        loop {
            let frame = self.stream.frame(&mut self.input).await.map_err(NotReady::Gone)?;
            match frame[0] {
                b'Z' => return Ok(refused),
                b'E' => refused = Some(frames::describe_error(&frame)),
                b'S' => Parameters::note(&mut self.parameters, &frame).map_err(NotReady::Garbled)?,
                _ => {}
            }
        }
    }

    /// Whether it has nothing to say, and has not closed: what it says while nobody asks is its last word, or nobody's.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.input.is_empty() && self.stream.is_quiet(&mut self.input)
    }

    /// Says good-bye, so that the server does not log a lost connection.
    pub(crate) async fn close(mut self) {
        let bye = async {
            self.stream.write_all(b"X\0\0\0\x04").await?;
            self.stream.shutdown().await
        };
        // A server that is gone needs no good-bye.
        let _ = tokio::time::timeout(Duration::from_secs(1), bye).await;
    }
}
