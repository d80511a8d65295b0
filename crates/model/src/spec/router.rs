//! The section `router`: where applications connect instead of the database, and how they are let in and served.

use super::bounds::{self, Bounds};
use super::problem::Problems;
use super::raw::{RawRouter, RawRouterMirror, RawRouterReads, RawRouterTls};
use super::read::{At, Number, Span};
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The router of a migration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Router {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How applications prove who they are.
    pub auth: RouterAuth,
    /// The file of users and their secrets, as it is written; without one nobody's secret is known.
    pub users: Option<PathBuf>,
    /// How server connections are shared.
    pub pool: RouterPool,
    /// TLS towards applications; `None`: there is none.
    pub tls: Option<RouterTls>,
    /// Applications' connections at once.
    pub clients_max: usize,
    /// Server connections of one user on one side, where they are shared.
    pub connections_max: usize,
    /// How long a login may take.
    pub login_max: Duration,
    /// How long the opening of a server connection may take.
    pub connect_max: Duration,
    /// How long a transaction may wait for a server connection.
    pub queue_max: Duration,
    /// How old a shared server connection may get.
    pub age_max: Duration,
    /// How long a statement that a fence refused waits for the new owner.
    pub refused_max: Duration,
    /// How long the router waits for transactions when it ends.
    pub drain_max: Duration,
    /// The longest statement.
    pub statement_bytes_max: usize,
    /// How reads are served by the side that follows.
    pub reads: RouterReads,
    /// How reads are compared on both sides.
    pub mirror: RouterMirror,
}

/// How reads are served by the side that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterReads {
    /// A read that has not begun to be answered by then is repeated on the owner.
    pub answer_max: Duration,
    /// How long a read of a session that has only read waits for the follower to show as much.
    pub wait_max: Duration,
    /// A follower that shows no more than what was so long ago is not asked.
    pub stale_max: Duration,
}

/// How reads are compared on both sides.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RouterMirror {
    /// By how much of itself a float may differ; `None`: not in a byte.
    pub float_tolerance: Option<f64>,
    /// By how much a timestamp may differ; `None`: not in a byte.
    pub timestamp_tolerance: Option<Duration>,
    /// Whether values and parameters of reads that differ are shown.
    pub show_values: bool,
    /// How many of the compared reads may differ before the gate closes, in percent.
    pub mismatch_percent_max: f64,
}

/// How applications prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterAuth {
    /// With a password, by SCRAM-SHA-256.
    Scram,
    /// Not at all: whoever is on this machine is let in.
    Trust,
}

impl RouterAuth {
    pub(crate) const ALL: [RouterAuth; 2] = [RouterAuth::Scram, RouterAuth::Trust];

    /// As a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            RouterAuth::Scram => "scram",
            RouterAuth::Trust => "trust",
        }
    }
}

/// How server connections are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterPool {
    /// Each application's connection has a server connection of its own.
    Session,
    /// It has one for each transaction.
    Transaction,
}

impl RouterPool {
    pub(crate) const ALL: [RouterPool; 2] = [RouterPool::Session, RouterPool::Transaction];

    /// As a spec spells it.
    pub const fn name(self) -> &'static str {
        match self {
            RouterPool::Session => "session",
            RouterPool::Transaction => "transaction",
        }
    }
}

/// TLS towards applications.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RouterTls {
    /// The certificate, and those that lead to its authority, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
    /// Whether connections without TLS are refused.
    pub required: bool,
}

/// Why a text does not say where to listen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an address to listen on: {why}")]
pub struct ListenError {
    text: String,
    why: &'static str,
}

/// Reads `HOST:PORT`: an IP address or `localhost`, and a port. An IPv6 address stands in brackets.
pub fn parse_listen(text: &str) -> Result<SocketAddr, ListenError> {
    let wrong = |why| ListenError { text: text.to_owned(), why };
    let (host, port) = text.trim().rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port: u16 = port.parse().map_err(|_| wrong("the port is no number up to 65535"))?;
    let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(bracketed) => bracketed,
        None if host.contains(':') => return Err(wrong("an IPv6 address stands in brackets")),
        None => host,
    };
    match host {
        "" => Err(wrong("the host is missing; every address of this machine is 0.0.0.0 or [::]")),
        "localhost" => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        host => match host.parse() {
            Ok(address) => Ok(SocketAddr::new(address, port)),
            Err(_) => Err(wrong("the host is no IP address of this machine, nor `localhost`")),
        },
    }
}

impl Router {
    /// Whether it may listen on `address`: where nobody proves who he is, only this machine is served.
    pub fn may_listen_on(&self, address: SocketAddr) -> bool {
        self.auth != RouterAuth::Trust || address.ip().to_canonical().is_loopback()
    }
}

/// Checks the section. Where it adds problems, the spec is refused, whatever it returns.
pub(super) fn validate(raw: RawRouter, problems: &mut Problems<'_>) -> Option<Router> {
    let auth = raw.auth.as_ref().map_or(RouterAuth::Scram, |auth| auth.value);
    let at = raw.listen.as_ref().map(|listen| (listen.place, listen.key_place));
    let listen = raw.listen.and_then(|listen| {
        parse_listen(&listen.value)
            .map_err(|error| {
                let help = "write HOST:PORT, such as 127.0.0.1:6432";
                problems.add_with_help(listen.place, error.to_string(), help);
            })
            .ok()
    });
    if raw.users.is_none()
        && auth == RouterAuth::Scram
        && let Some((_, place)) = at
    {
        let help = "name a file with lines such as \"app\" \"its password, or PostgreSQL's verifier of it\"";
        problems.add_with_help(place, "the router lacks `users`, by which passwords are checked", help);
    }
    let span = |written: Option<At<Span>>, bounds: Bounds, default_ms, problems: &mut Problems<'_>| {
        Duration::from_millis(bounds.settle(written, default_ms, problems))
    };
    let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let router = Router {
        listen: listen.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)),
        auth,
        users: raw.users.map(|users| PathBuf::from(users.value)),
        pool: raw.pool.map_or(RouterPool::Session, |pool| pool.value),
        tls: raw.tls.and_then(|tls| encrypted(tls, problems)),
        clients_max: count(bounds::ROUTER_CLIENTS.settle(raw.clients_max, 10_000, problems)),
        connections_max: count(bounds::ROUTER_CONNECTIONS.settle(raw.connections_max, 20, problems)),
        login_max: span(raw.login_max_ms, bounds::ROUTER_LOGIN, 15_000, problems),
        connect_max: span(raw.connect_max_ms, bounds::ROUTER_CONNECT, 10_000, problems),
        queue_max: span(raw.queue_max_ms, bounds::ROUTER_QUEUE, 30_000, problems),
        age_max: span(raw.age_max_ms, bounds::ROUTER_AGE, 3_600_000, problems),
        refused_max: span(raw.refused_max_ms, bounds::ROUTER_REFUSED, 10_000, problems),
        drain_max: span(raw.drain_max_ms, bounds::ROUTER_DRAIN, 30_000, problems),
        statement_bytes_max: count(bounds::ROUTER_STATEMENT.settle(
            raw.statement_bytes_max,
            64 << 20,
            problems,
        )),
        reads: reads(raw.reads.map(|section| section.value).unwrap_or_default(), problems),
        mirror: mirror(raw.mirror.map(|section| section.value).unwrap_or_default(), problems),
    };
    if let (Some(listen), Some((place, _))) = (listen, at)
        && !router.may_listen_on(listen)
    {
        let message = format!("`auth: trust` lets everybody in who reaches {listen}");
        problems.add_with_help(place, message, "listen on 127.0.0.1, or use `auth: scram` with `users`");
    }
    Some(router)
}

fn reads(raw: RawRouterReads, problems: &mut Problems<'_>) -> RouterReads {
    let answer_max_ms = bounds::ROUTER_ANSWER.settle(raw.answer_max_ms, 200, problems);
    let wait_max_ms = bounds::ROUTER_WAIT.settle(raw.wait_max_ms, 50, problems);
    let stale_max_ms = bounds::ROUTER_STALE.settle(raw.stale_max_ms, 2_000, problems);
    RouterReads {
        answer_max: Duration::from_millis(answer_max_ms),
        wait_max: Duration::from_millis(wait_max_ms),
        stale_max: Duration::from_millis(stale_max_ms),
    }
}

fn mirror(raw: RawRouterMirror, problems: &mut Problems<'_>) -> RouterMirror {
    let timestamp_ms =
        raw.timestamp_tolerance_ms.map(|at| bounds::ROUTER_TIMESTAMP.settle(Some(at), 1, problems));
    let float = within(raw.float_tolerance, "router.mirror.float_tolerance", 1.0, problems);
    let mismatches = within(raw.mismatch_percent_max, "router.mirror.mismatch_percent_max", 100.0, problems);
    RouterMirror {
        float_tolerance: float.filter(|tolerance| *tolerance > 0.0),
        timestamp_tolerance: timestamp_ms.map(Duration::from_millis),
        show_values: raw.show_values.is_some_and(|show| show.value),
        mismatch_percent_max: mismatches.unwrap_or(0.0),
    }
}

/// A number from 0 to `max`, if one is written.
fn within(written: Option<At<Number>>, key: &str, max: f64, problems: &mut Problems<'_>) -> Option<f64> {
    let At { value: Number(number), place, .. } = written?;
    let number = number?;
    if !(0.0..=max).contains(&number) {
        problems.add_with_help(place, format!("`{key}` cannot be {number}"), format!("from 0 to {max}"));
        return None;
    }
    Some(number)
}

fn encrypted(tls: At<RawRouterTls>, problems: &mut Problems<'_>) -> Option<RouterTls> {
    let RawRouterTls { certificate, key, required } = tls.value;
    for file in [&certificate, &key].into_iter().flatten() {
        if file.value.trim().is_empty() {
            problems.add_with_help(file.place, "the name of the file is empty", "name a file in PEM form");
        }
    }
    Some(RouterTls {
        certificate: certificate?.value.into(),
        key: key?.value.into(),
        required: required.is_none_or(|required| required.value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_spelled_out() {
        for (text, address) in [
            ("127.0.0.1:6432", Some("127.0.0.1:6432")),
            ("localhost:6432", Some("127.0.0.1:6432")),
            ("0.0.0.0:6432", Some("0.0.0.0:6432")),
            ("[::1]:6432", Some("[::1]:6432")),
            (":6432", None),
            ("6432", None),
            ("::1:6432", None),
            ("*:6432", None),
            ("db.example:6432", None),
            ("127.0.0.1:66000", None),
            ("127.0.0.1:", None),
        ] {
            let parsed = parse_listen(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref().ok(), address, "{text}: {parsed:?}");
        }
    }
}
