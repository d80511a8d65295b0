//! Startup, authentication, and simple queries before the stream starts.

use super::dial::{Io, Line, Place, dial, lost, places};
use super::frame::{Backend, broken, cut};
use crate::connect::Endpoint;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{DataRowBody, Message};
use postgres_protocol::message::frontend;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::config::{ChannelBinding as Binding, SslMode, TargetSessionAttrs};

/// Connecting and logging in to one place; a half-open server is silent.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A simple query in a walsender session is a catalog look-up; starting a stream may have to wait for one.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// How values are written as text, whatever the role or database has set: the output functions run in this session.
/// As startup options, because a walsender of an older server cannot SET.
const OUTPUT_OPTIONS: &str = "-c DateStyle=ISO,YMD -c IntervalStyle=postgres -c extra_float_digits=3 -c bytea_output=hex \
    -c TimeZone=UTC -c lc_monetary=C -c xmloption=content -c search_path=pg_catalog \
    -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0";

/// A logged-in session.
pub(super) struct Session<S> {
    io: S,
    read: BytesMut,
}

/// Tries every place in every encryption mode; the first fault of the last place is what is reported.
pub(super) async fn open(endpoint: &Endpoint) -> Outcome<Session<Box<dyn Io>>> {
    let mut fault = Fault::operator("SEGUE-URL", "no host is given", "name a host in the connection string");
    for place in places(endpoint.config()) {
        let mut first = None;
        for mode in endpoint.tls().mode().attempts() {
            match open_one(endpoint, &place, *mode).await {
                Ok(session) => return Ok(session),
                Err(other) => first = first.or(Some(other)),
            }
            // Only a refusal of this way of connecting is worth the other way.
            if !first.as_ref().is_some_and(|f| matches!(f.code, "SEGUE-TLS") || f.what.contains("28000")) {
                break;
            }
        }
        fault = first.unwrap_or(fault);
    }
    Err(fault)
}

async fn open_one(endpoint: &Endpoint, place: &Place, mode: SslMode) -> Outcome<Session<Box<dyn Io>>> {
    let attempt = async {
        let line = dial(endpoint, place, mode).await?;
        let mut session = Session::login(line, endpoint).await?;
        session.check_role(endpoint).await?;
        Ok(session)
    };
    let limit = endpoint.config().get_connect_timeout().copied().unwrap_or_default() + LOGIN_TIMEOUT;
    tokio::time::timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(lost(format_args!("no answer to the login within {} s", limit.as_secs()))))
}

impl Session<Box<dyn Io>> {
    async fn login(line: Line, endpoint: &Endpoint) -> Outcome<Self> {
        let config = endpoint.config();
        let mut session = Session { io: line.io, read: BytesMut::with_capacity(1 << 16) };
        let user = config.get_user().ok_or_else(|| {
            Fault::operator("SEGUE-LOGIN", "no user is given", "name a user in the connection string")
        })?;
        let options = match config.get_options() {
            Some(given) => format!("{given} {OUTPUT_OPTIONS}"),
            None => OUTPUT_OPTIONS.to_owned(),
        };
        let parameters = [
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", "segue stream"),
            ("options", &options),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(|e| broken(&e.to_string()))?;
        session.send(&out).await?;
        session.authenticate(user, config.get_password(), line.private, config.get_channel_binding()).await?;
        loop {
            match session.receive().await? {
                Backend::Ordinary(Message::BackendKeyData(_)) | Backend::Aside => {}
                Backend::Ordinary(Message::ReadyForQuery(_)) => return Ok(session),
                other => return Err(other.out_of_place()),
            }
        }
    }

    async fn authenticate(
        &mut self,
        user: &str,
        password: Option<&[u8]>,
        private: bool,
        binding: Binding,
    ) -> Outcome<()> {
        let password = || {
            password.ok_or_else(|| {
                Fault::operator("SEGUE-LOGIN", "the server asks for a password and none is given", "give one")
            })
        };
        let mut out = BytesMut::new();
        loop {
            match self.receive().await? {
                Backend::Aside => {}
                Backend::Ordinary(Message::AuthenticationOk) => return Ok(()),
                Backend::Ordinary(Message::AuthenticationCleartextPassword) if private => {
                    frontend::password_message(password()?, &mut out).map_err(|e| broken(&e.to_string()))?;
                    self.send(&out.split()).await?;
                }
                Backend::Ordinary(Message::AuthenticationCleartextPassword) => {
                    return Err(Fault::operator(
                        "SEGUE-LOGIN",
                        "the server asks for the password in clear, over a connection that is not encrypted",
                        "use sslmode=require or stronger, or scram-sha-256 in pg_hba.conf",
                    ));
                }
                Backend::Ordinary(Message::AuthenticationMd5Password(body)) => {
                    let hash = md5_hash(user.as_bytes(), password()?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut out)
                        .map_err(|e| broken(&e.to_string()))?;
                    self.send(&out.split()).await?;
                }
                Backend::Ordinary(Message::AuthenticationSasl(body)) => {
                    let offered = body.mechanisms().any(|m| Ok(m == SCRAM_SHA_256)).unwrap_or(false);
                    if !offered || binding == Binding::Require {
                        return Err(Fault::operator(
                            "SEGUE-LOGIN",
                            "the stream logs in by SCRAM-SHA-256 without channel binding, which is not acceptable here",
                            "remove channel_binding=require, or verify the server by sslmode=verify-full",
                        ));
                    }
                    self.scram(password()?).await?;
                }
                other @ Backend::Ordinary(_) => {
                    drop(other);
                    return Err(Fault::operator(
                        "SEGUE-LOGIN",
                        "the server asks for a kind of login that Segue does not have",
                        "use scram-sha-256, md5, a client certificate or trust in pg_hba.conf for Segue's role",
                    ));
                }
                other => return Err(other.out_of_place()),
            }
        }
    }

    async fn scram(&mut self, password: &[u8]) -> Outcome<()> {
        let io =
            |e: std::io::Error| Fault::operator("SEGUE-LOGIN", format!("SCRAM: {e}"), "check the password");
        let mut scram = ScramSha256::new(password, ChannelBinding::unsupported());
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).map_err(io)?;
        self.send(&out.split()).await?;
        match self.receive().await? {
            Backend::Ordinary(Message::AuthenticationSaslContinue(body)) => {
                scram.update(body.data()).map_err(io)?;
            }
            other => return Err(other.out_of_place()),
        }
        frontend::sasl_response(scram.message(), &mut out).map_err(io)?;
        self.send(&out.split()).await?;
        match self.receive().await? {
            Backend::Ordinary(Message::AuthenticationSaslFinal(body)) => {
                scram.finish(body.data()).map_err(io)
            }
            other => Err(other.out_of_place()),
        }
    }

    /// Of several hosts, the one that takes writes.
    async fn check_role(&mut self, endpoint: &Endpoint) -> Outcome<()> {
        if endpoint.config().get_target_session_attrs() != TargetSessionAttrs::ReadWrite {
            return Ok(());
        }
        let rows = self.query("SHOW transaction_read_only").await?;
        match rows.first().and_then(|row| row.first()).and_then(|v| v.as_deref()) {
            Some("off") => Ok(()),
            _ => {
                Err(lost("the server does not take writes, and target_session_attrs asks for one that does"))
            }
        }
    }

    pub(super) async fn query(&mut self, sql: &str) -> Outcome<Vec<Vec<Option<String>>>> {
        let run = async {
            self.send_query(sql).await?;
            let (mut rows, mut failed) = (Vec::new(), None);
            loop {
                match self.receive().await? {
                    Backend::Ordinary(Message::DataRow(body)) => rows.push(texts(&body)?),
                    Backend::Ordinary(
                        Message::RowDescription(_)
                        | Message::CommandComplete(_)
                        | Message::EmptyQueryResponse,
                    )
                    | Backend::Aside => {}
                    Backend::Ordinary(Message::ReadyForQuery(_)) => return failed.map_or(Ok(rows), Err),
                    Backend::Error(fault) => failed = Some(fault),
                    other => return Err(other.out_of_place()),
                }
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, run).await.unwrap_or_else(|_| Err(silent()))
    }

    /// Sends the command that turns the session into a stream; returns what has been read of it already.
    pub(super) async fn start(mut self, command: &str) -> Outcome<(Box<dyn Io>, BytesMut)> {
        let run = async {
            self.send_query(command).await?;
            loop {
                match self.receive().await? {
                    Backend::CopyBoth => return Ok(()),
                    Backend::Aside => {}
                    other => return Err(other.out_of_place()),
                }
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, run).await.unwrap_or_else(|_| Err(silent()))?;
        Ok((self.io, self.read))
    }

    async fn send_query(&mut self, sql: &str) -> Outcome<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(|e| broken(&e.to_string()))?;
        self.send(&out).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.io.write_all(bytes).await.map_err(lost)?;
        self.io.flush().await.map_err(lost)
    }

    async fn receive(&mut self) -> Outcome<Backend> {
        loop {
            if let Some(message) = cut(&mut self.read)? {
                return Ok(message);
            }
            if self.io.read_buf(&mut self.read).await.map_err(lost)? == 0 {
                return Err(lost("the server closed the connection"));
            }
        }
    }
}

fn silent() -> Fault {
    lost(format_args!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))
}

fn texts(body: &DataRowBody) -> Outcome<Vec<Option<String>>> {
    body.ranges()
        .map(|range| Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned())))
        .collect()
        .map_err(|e| broken(&e.to_string()))
}
