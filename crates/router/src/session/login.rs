//! A client's first packets: TLS, cancel requests, who it is and how it proves that; then a server that lets it in.

use super::lone::Lone;
use super::pending::Pending;
use super::{End, ParsedBy, Session};
use crate::auth::scram::{MECHANISM, ScramError, ServerEnd};
use crate::auth::{ClientAuth, Login, Secret, Verifier};
use crate::frames::{Fields, Refusal, put, put_ready, put_string};
use crate::pipeline::Pipeline;
use crate::reads::{LOTS, Named};
use crate::serve::{Config, PoolMode, Shared};
use crate::settings::Settings;
use crate::startup::{self, First, Startup};
use crate::statements::OfClient;
use crate::stream::{FIRST_BYTES, FrameError, Out, Stream};
use bytes::{BufMut, BytesMut};
use rand::{Rng, RngCore};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How a login ends without a session.
enum NoLogin {
    Refused(Refusal),
    Gone,
}

impl From<io::Error> for NoLogin {
    fn from(_: io::Error) -> NoLogin {
        NoLogin::Gone
    }
}

impl From<FrameError> for NoLogin {
    fn from(error: FrameError) -> NoLogin {
        match error {
            FrameError::Closed | FrameError::Io(_) => NoLogin::Gone,
            error => NoLogin::Refused(Refusal::fatal("08P01", error.to_string())),
        }
    }
}

/// Lets a client in. `None`: it wanted no session. `Err`: it did not get in, and was told.
pub(super) async fn accept(client: TcpStream, shared: &Arc<Shared>) -> Result<Option<Session>, ()> {
    let config = shared.config();
    let mut input = BytesMut::new();
    let mut client = Some(Stream::Plain(client));
    let outcome = async {
        let Some(startup) = first_packets(&mut client, &mut input, &config, shared).await? else {
            return Ok(None);
        };
        let stream = client.as_mut().ok_or(NoLogin::Gone)?;
        let login = prove(stream, &mut input, &config, shared, &startup).await?;
        if !config.serves(&startup.database) {
            let message = format!("the router does not serve the database \"{}\"", startup.database);
            let hint = "It serves the one whose tables are moved; reach others directly.";
            return Err(NoLogin::Refused(Refusal::fatal("3D000", message).hint(hint)));
        }
        Ok(Some((startup, login)))
    }
    .await;
    match (outcome, client) {
        (Ok(Some((startup, login))), Some(client)) => {
            let mut session = open(client, input, config, shared, startup, login);
            match session.welcome().await {
                Ok(()) => Ok(Some(session)),
                Err(end) => {
                    session.finish(end).await;
                    Err(())
                }
            }
        }
        (Ok(None), _) => Ok(None),
        (Err(NoLogin::Refused(refusal)), Some(mut client)) => {
            turn_down(&mut client, &refusal).await;
            Err(())
        }
        _ => Err(()),
    }
}

async fn turn_down(client: &mut Stream, refusal: &Refusal) {
    let mut out = BytesMut::new();
    refusal.put(&mut out);
    // Who does not listen misses it.
    if client.write_all(&out).await.is_ok() {
        let _ = client.shutdown().await;
    }
}

/// `client` is `None` for as long as TLS is being agreed on, and after that failed.
async fn first_packets(
    client: &mut Option<Stream>,
    input: &mut BytesMut,
    config: &Config,
    shared: &Shared,
) -> Result<Option<Startup>, NoLogin> {
    // TLS and GSSAPI are asked for once each, and a third packet is the last.
    for _ in 0..3 {
        let stream = client.as_mut().ok_or(NoLogin::Gone)?;
        stream.prepare()?;
        let packet = read_packet(stream, input).await?;
        match startup::read(&packet).map_err(NoLogin::Refused)? {
            First::Tls if !stream.is_tls() => begin_tls(client, input, config).await?,
            First::Gss if !stream.is_tls() => stream.write_all(b"N").await?,
            First::Tls | First::Gss => break,
            First::Cancel { process, key } => {
                shared.gate.cancel(process, &key, config.limits.connect_max).await;
                return Ok(None);
            }
            First::Session(startup) => {
                if config.tls.as_ref().is_some_and(|tls| tls.required) && !stream.is_tls() {
                    let refusal = Refusal::fatal("28000", "the router takes connections with TLS only");
                    return Err(NoLogin::Refused(refusal.hint("Set sslmode=require.")));
                }
                return Ok(Some(startup));
            }
        }
    }
    Err(NoLogin::Refused(Refusal::fatal("08P01", "encryption was asked for twice")))
}

async fn read_packet(client: &mut Stream, input: &mut BytesMut) -> Result<BytesMut, NoLogin> {
    loop {
        if let Some(bytes) = startup::packet_bytes(input).map_err(NoLogin::Refused)?
            && input.len() >= bytes
        {
            return Ok(input.split_to(bytes));
        }
        if client.read_buf(input).await? == 0 {
            return Err(NoLogin::Gone);
        }
    }
}

async fn begin_tls(
    client: &mut Option<Stream>,
    input: &mut BytesMut,
    config: &Config,
) -> Result<(), NoLogin> {
    let Some(Stream::Plain(mut tcp)) = client.take() else { return Err(NoLogin::Gone) };
    let Some(tls) = &config.tls else {
        tcp.write_all(b"N").await?;
        *client = Some(Stream::Plain(tcp));
        return Ok(());
    };
    if !input.is_empty() {
        // Bytes in the clear would be taken for encrypted ones: somebody between client and router may have put them.
        *client = Some(Stream::Plain(tcp));
        return Err(NoLogin::Refused(Refusal::fatal("08P01", "received unencrypted data after SSL request")));
    }
    tcp.write_all(b"S").await?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls.config));
    *client = Some(Stream::Accepted(Box::new(acceptor.accept(tcp).await?)));
    Ok(())
}

/// Finds out whether the client is who it says; returns with what servers are logged in to.
async fn prove(
    client: &mut Stream,
    input: &mut BytesMut,
    config: &Config,
    shared: &Shared,
    startup: &Startup,
) -> Result<Login, NoLogin> {
    let mut out = BytesMut::new();
    startup.put_negotiation(&mut out);
    let known = config.users.secret(&startup.user);
    match config.auth {
        ClientAuth::Trust => {
            if !client.peer()?.ip().to_canonical().is_loopback() {
                let refusal = Refusal::fatal("28000", "the router trusts clients of its own machine only");
                return Err(NoLogin::Refused(refusal));
            }
            client.write_all(&out).await?;
            Ok(match known {
                Some(Secret::Password(password)) => Login::Password(password.clone()),
                // A verifier alone logs nobody in.
                Some(Secret::Verifier(_)) | None => Login::Nothing,
            })
        }
        ClientAuth::Scram => {
            put(&mut out, b'R', |body| {
                body.put_u32(10);
                put_string(body, MECHANISM);
                body.put_u8(0);
            });
            client.write_all(&out).await?;
            let verifier = config.users.verifier(&shared.mock_secret, &startup.user);
            let client_key = scram(client, input, verifier.clone(), &startup.user).await?;
            Ok(match known {
                Some(Secret::Password(password)) => Login::Password(password.clone()),
                _ => Login::Key { verifier, client_key },
            })
        }
    }
}

async fn scram(
    client: &mut Stream,
    input: &mut BytesMut,
    verifier: Verifier,
    user: &str,
) -> Result<[u8; 32], NoLogin> {
    // One sentence for every reason: what was wrong is not the business of who guesses.
    let refuse = |error: ScramError| {
        tracing::info!(user, %error, "a login was refused");
        let message = format!("password authentication failed for user \"{user}\"");
        NoLogin::Refused(Refusal::fatal("28P01", message))
    };
    let malformed =
        |error: crate::frames::Malformed| NoLogin::Refused(Refusal::fatal("08P01", error.to_string()));
    let frame = answer(client, input).await?;
    let mut fields = Fields::of(&frame);
    if fields.string().map_err(malformed)? != MECHANISM {
        return Err(NoLogin::Refused(Refusal::fatal(
            "08P01",
            "the client chose a method that was not offered",
        )));
    }
    let length = fields.int().map_err(malformed)? as usize;
    let first = fields.rest();
    if first.len() != length {
        return Err(malformed(fields.short()));
    }
    let (challenge, end) = ServerEnd::begin(first, verifier, &rand::random::<[u8; 18]>()).map_err(refuse)?;
    let mut out = BytesMut::new();
    put(&mut out, b'R', |body| {
        body.put_u32(11);
        body.put_slice(challenge.as_bytes());
    });
    client.write_all(&out).await?;
    client.flush().await?;
    let frame = answer(client, input).await?;
    let (last, proved) = end.finish(Fields::of(&frame).rest()).map_err(refuse)?;
    out.clear();
    put(&mut out, b'R', |body| {
        body.put_u32(12);
        body.put_slice(last.as_bytes());
    });
    client.write_all(&out).await?;
    Ok(proved.client_key)
}

async fn answer(client: &mut Stream, input: &mut BytesMut) -> Result<bytes::Bytes, NoLogin> {
    client.flush().await?;
    let frame = client.frame(input).await?;
    match frame.first() {
        Some(b'p') => Ok(frame),
        _ => Err(NoLogin::Refused(Refusal::fatal("08P01", "expected SASL response"))),
    }
}

fn open(
    client: Stream,
    mut input: BytesMut,
    config: Arc<Config>,
    shared: &Arc<Shared>,
    startup: Startup,
    login: Login,
) -> Session {
    // A full buffer would ask for a large one.
    input.reserve(FIRST_BYTES);
    let mut secret = vec![0; startup.cancel_key_bytes()];
    rand::rng().fill_bytes(&mut secret);
    let (process, cell) = shared.gate.add(secret);
    let mut routes = shared.routes.clone();
    let route = Box::new(routes.borrow_and_update().clone());
    let (settings, tenant_at_start, differs_at_start) = wishes(&startup, config.pool);
    Session {
        shared: Arc::clone(shared),
        config,
        startup,
        login,
        process,
        cell,
        client,
        input,
        to_client: Out::default(),
        kept_back: false,
        wanted_bytes: 0,
        link: None,
        aside: None,
        ahead: None,
        reading: None,
        sampling: None,
        tally: Default::default(),
        stays: false,
        suspects: false,
        unlike: false,
        uses_both: false,
        named: Named::default(),
        differs_at_start,
        reads_owner: None,
        has_written: true,
        executes: false,
        tenant_at_start,
        lot: rand::rng().random_range(0..LOTS),
        seen: None,
        pipeline: Pipeline::default(),
        routes,
        route,
        active: false,
        client_rest: 0,
        server_rest: 0,
        boundary_waits: false,
        discarding: false,
        told: Arc::default(),
        parsed_by: ParsedBy { settled: settings.parsed_by(), now: settings.parsed_by() },
        settings: shared.settings.one(&Arc::new(settings)),
        pool: None,
        pending: Pending::default(),
        transaction_failed: false,
        server_said_why: false,
        leaving: false,
        pin: None,
        statements: OfClient::default(),
        dropped: None,
        last_bound: None,
        portals: HashMap::new(),
        lone: Lone::default(),
    }
}

/// What a client wishes at its start: settings that are carried, whom it works for, and whether what it reads depends on the
/// server. A session's own server is opened with the wishes; a shared one is set to them.
fn wishes(startup: &Startup, pool: PoolMode) -> (Settings, Option<String>, bool) {
    let wishes = Settings::at_start(&startup.settings);
    let (tenant, differs) = (wishes.tenant(), wishes.reads_differ());
    let settings = match pool {
        PoolMode::Session => Settings::default(),
        PoolMode::Transaction => wishes,
    };
    (settings, tenant, differs)
}

impl Session {
    /// Has a server let the client in, and tells it so, with everything that the server says of itself.
    async fn welcome(&mut self) -> Result<(), End> {
        let out = self.to_client.buffer();
        put(out, b'R', |body| body.put_u32(0));
        loop {
            self.link(self.route.owner).await?;
            if self.link.is_some() {
                break;
            }
            *self.route = self.routes.borrow_and_update().clone();
        }
        let (process, secret) = (self.process, self.cell.secret().to_vec());
        let out = self.to_client.buffer();
        put(out, b'K', |body| {
            body.put_u32(process);
            body.put_slice(&secret);
        });
        put_ready(out, b'I');
        self.leave_link();
        Ok(())
    }
}
