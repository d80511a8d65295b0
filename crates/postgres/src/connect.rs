//! Opening sessions: where a server is, how to reach it, and the settings every session of ours has.

mod parameters;
mod spare;
mod tls;

pub use tls::{RootCertificates, Tls, TlsMode};

use crate::asking::Remembering;
use crate::error::{describe, fault_of};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::sqltext::quote_literal;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Config};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A dead peer is noticed after about this long when nothing is being sent …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// … and after this long when something is, unless the connection string says otherwise.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// For the TCP connection alone, unless the connection string says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS, login and settings on top of the TCP connection: a server under load may be slow, a half-open one is silent.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a database is and how to log in. Never shows its password.
#[derive(Clone)]
pub struct Endpoint {
    config: Config,
    tls: Tls,
    /// The migration that these sessions work for.
    mark: Option<String>,
    spares: spare::Spares,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Endpoint {
    /// Host, port and database, for applications: with a user of their own.
    pub fn address(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{host}:{port}/{database}")
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.config.get_user().unwrap_or_default(), self.address())
    }
}

/// Settings that pin how values are written as text, whatever the role or database has set; that keep the server
/// from ending our sessions, but for one that is lost: a host that is gone, or a transaction in which nothing has been
/// said for a minute, must not hold the server's horizon; that make a commit wait until it is durable, and have the server say so if it did not; and that keep it from compiling statements which
/// run once (a second for a catalog query whose cost it overestimates, and again for each region of a copy). Those that only
/// some versions have are asked for by name: `pg_settings` is 2 ms each time, which is as much as the rest of a session's start.
pub const PINNED_SETTINGS: &str = "SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; \
    SET extra_float_digits = 3; SET bytea_output = 'hex'; SET TimeZone = 'UTC'; SET lc_monetary = 'C'; SET xmloption = 'content'; \
    SET search_path = pg_catalog; SET row_security = off; SET statement_timeout = 0; SET lock_timeout = 0; \
    SET idle_in_transaction_session_timeout = '1min'; SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; \
    SET tcp_keepalives_count = 3; SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_read_only = off; SET default_transaction_deferrable = off; SET synchronize_seqscans = off; SET jit = off; \
    SET client_min_messages = 'warning'; \
    SELECT set_config('idle_session_timeout', '0', false) WHERE current_setting('idle_session_timeout', true) IS NOT NULL; \
    SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('transaction_timeout', true) IS NOT NULL; \
    SELECT set_config('synchronous_commit', 'on', false) \
     WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')";

/// What is hashed to the key of the lock that marks sessions of `migration`.
pub(crate) fn mark_of(migration: &str) -> String {
    format!("segue:session:{migration}")
}

impl Endpoint {
    /// Reads a connection URL or a `key=value` string, with libpq's parameters. The fault never quotes the text.
    pub fn parse(text: &str) -> Outcome<Endpoint> {
        let parameters::Parameters { mut config, tls } = parameters::parse(text)?;
        config.keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL);
        config.keepalives_retries(KEEPALIVE_RETRIES);
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_USER_TIMEOUT);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        Ok(Endpoint { config, tls, mark: None, spares: spare::Spares::default() })
    }

    /// The same place, whose sessions work for `migration`: they hold a shared advisory lock as long as they live, by
    /// which a later process finds and ends them ([`crate::control::shut_out`]).
    pub fn marked(&self, migration: &str) -> Endpoint {
        Endpoint { mark: Some(migration.to_owned()), ..self.clone() }
    }

    /// The statement that marks a session, if sessions to here are marked.
    pub(crate) fn mark_sql(&self) -> Option<String> {
        let key = |migration: &String| quote_literal(&mark_of(migration));
        self.mark.as_ref().map(|m| format!("SELECT pg_advisory_lock_shared(hashtextextended({}, 0))", key(m)))
    }

    /// Opens a session with [`PINNED_SETTINGS`], named `segue <purpose>` on the server; or renames one that was
    /// [kept](Endpoint::keep).
    pub async fn connect(&self, purpose: &str) -> Outcome<Client> {
        match self.spare(&self.name_for(purpose)).await {
            Some(client) => Ok(client),
            None => self.connect_hearing(purpose, &Heard::default()).await,
        }
    }

    fn name_for(&self, purpose: &str) -> String {
        let given = self.config.get_application_name().unwrap_or_default();
        format!("segue {purpose} {given}").trim_end().to_owned()
    }

    /// Opens a session whose warnings are counted.
    pub async fn connect_heard(&self, purpose: &str) -> Outcome<(Client, Warnings)> {
        let heard = Heard::default();
        let client = self.connect_hearing(purpose, &heard).await?;
        Ok((client, Warnings(heard.warnings)))
    }

    /// Opens a session that listens on `channel`.
    pub async fn listen(&self, purpose: &str, channel: &'static str) -> Outcome<Listener> {
        let heard = Heard::default();
        let client = self.connect_hearing(purpose, &heard).await?;
        client.batch_execute(&format!("LISTEN {channel}")).await.map_err(|e| fault_of(&e))?;
        Ok(Listener { client: Remembering::of(client), woken: heard.woken })
    }

    async fn connect_hearing(&self, purpose: &str, heard: &Heard) -> Outcome<Client> {
        let limit = LOGIN_TIMEOUT + self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
        match tokio::time::timeout(limit, self.open(&self.name_for(purpose), heard)).await {
            Ok(opened) => opened.map_err(|fault| fault.during(format_args!("connecting to {self}"))),
            Err(_) => Err(Fault::retry(
                "SEGUE-CONNECTION",
                format!("connecting to {self}: no answer to the login within {} s", limit.as_secs()),
            )),
        }
    }

    async fn open(&self, application_name: &str, heard: &Heard) -> Outcome<Client> {
        let tls = self.tls_connector()?;
        let mut config = self.config.clone();
        config.application_name(application_name);
        let client = match self.tls.mode().attempts() {
            [only] => login(&config, *only, tls, heard).await,
            [first, .., last] => match login(&config, *first, tls.clone(), heard).await {
                Err(e) if may_try_the_other_way(&e) => match login(&config, *last, tls, heard).await {
                    // Say what was wrong first: the fallback is usually refused for a duller reason.
                    Err(_) => Err(e),
                    client => client,
                },
                client => client,
            },
            [] => login(&config, SslMode::Disable, tls, heard).await,
        };
        let client = client.map_err(|e| connection_fault(&e))?;
        client.batch_execute(PINNED_SETTINGS).await.map_err(|e| fault_of(&e))?;
        if let Some(mark) = self.mark_sql() {
            client.batch_execute(&mark).await.map_err(|e| fault_of(&e))?;
        }
        Ok(client)
    }

    /// The parsed configuration, for the replication transport. Its `ssl_mode` is the first attempt of [`Tls::mode`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What a program that uses libpq needs in its environment to reach the same place. The password is among it: an
    /// environment, unlike arguments, is shown to nobody else.
    pub fn libpq(&self) -> Vec<(&'static str, OsString)> {
        use tokio_postgres::config::Host;
        let config = &self.config;
        let hosts: Vec<String> = config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(host) => host.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let ports: Vec<String> = config.get_ports().iter().map(ToString::to_string).collect();
        let addresses: Vec<String> = config.get_hostaddrs().iter().map(ToString::to_string).collect();
        let user = config.get_user().unwrap_or_default();
        let mut set =
            vec![("PGUSER", user.into()), ("PGDATABASE", config.get_dbname().unwrap_or(user).into())];
        for (name, values) in [("PGHOST", hosts), ("PGHOSTADDR", addresses), ("PGPORT", ports)] {
            if !values.is_empty() {
                set.push((name, values.join(",").into()));
            }
        }
        if let Some(password) = config.get_password() {
            set.push(("PGPASSWORD", OsString::from_vec(password.to_vec())));
        }
        if let Some(options) = config.get_options() {
            set.push(("PGOPTIONS", options.into()));
        }
        set.extend(self.tls.libpq());
        set
    }

    /// How sessions to this server are encrypted.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// The connector for [`tokio_postgres::Config::connect`] and `connect_raw`: verifies what the mode asks for.
    pub fn tls_connector(&self) -> Outcome<MakeRustlsConnect> {
        Ok(MakeRustlsConnect::new(Arc::unwrap_or_clone(self.tls.client_config()?)))
    }
}

/// What a session says unasked.
#[derive(Clone, Default)]
struct Heard {
    woken: Arc<Notify>,
    warnings: Arc<AtomicU64>,
}

/// Warnings of the plain kind. A commit that gives up waiting for its standbys says so by one, and otherwise succeeds.
fn is_warning(notice: &tokio_postgres::error::DbError) -> bool {
    use tokio_postgres::error::Severity;
    notice.parsed_severity() == Some(Severity::Warning) && *notice.code() == SqlState::WARNING
}

/// How often a session was warned. Counted before the answer that the warning belongs to is there.
pub struct Warnings(Arc<AtomicU64>);

impl Warnings {
    /// How often so far.
    pub fn heard(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A session that is woken by notifications, and by its own end.
pub struct Listener {
    client: Remembering,
    woken: Arc<Notify>,
}

impl Listener {
    /// Waits for a notification, but no longer than `limit`; fails once the session is lost.
    pub async fn wait(&self, limit: Duration) -> Outcome<()> {
        // A limit is no error: whoever waits looks again at what it waits for.
        let _ = tokio::time::timeout(limit, self.woken.notified()).await;
        if self.client.is_closed() {
            return Err(Fault::retry("SEGUE-CONNECTION", "the connection was lost"));
        }
        Ok(())
    }

    /// The session, for short requests.
    pub fn client(&self) -> &Remembering {
        &self.client
    }
}

async fn login(
    config: &Config,
    mode: SslMode,
    tls: MakeRustlsConnect,
    heard: &Heard,
) -> Result<Client, tokio_postgres::Error> {
    let mut config = config.clone();
    config.ssl_mode(mode);
    let (client, mut connection) = config.connect(tls).await?;
    let heard = heard.clone();
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(_))) => heard.woken.notify_one(),
                Some(Ok(AsyncMessage::Notice(notice))) if is_warning(&notice) => {
                    tracing::warn!("a server says: {}", notice.message());
                    heard.warnings.fetch_add(1, Ordering::SeqCst);
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => {
                    tracing::debug!("session ended: {e}");
                    break;
                }
                None => break,
            }
        }
        // The client learns that it is closed when the connection is dropped, which must come first.
        drop(connection);
        heard.woken.notify_one();
    });
    Ok(client)
}

/// The server refused this way of connecting (no line in `pg_hba.conf` for it), or the handshake failed.
fn may_try_the_other_way(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => tls_error(error).is_some(),
    }
}

fn tls_error(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An I/O error shows the cause of what it wraps, not the wrapped error itself.
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = wrapped.and_then(|e| e.downcast_ref::<rustls::Error>()) {
            return Some(found);
        }
        cause = inner.source();
    }
    None
}

fn connection_fault(error: &tokio_postgres::Error) -> Fault {
    match tls_error(error) {
        Some(tls) => match tls::advice(tls) {
            Some(next_step) => Fault::operator("SEGUE-TLS", format!("TLS: {tls}"), next_step),
            None => Fault::retry("SEGUE-CONNECTION", format!("TLS: {tls}")),
        },
        None if describe(error).contains("server does not support TLS") => Fault::operator(
            "SEGUE-TLS",
            "the server does not offer TLS, and sslmode asks for it",
            "turn ssl on at the server, or use sslmode=prefer where the network is trusted",
        ),
        None => fault_of(error),
    }
}
