//! Reaching a server: TCP or Unix socket, and TLS on top.

use crate::connect::Endpoint;
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use socket2::{SockRef, TcpKeepalive};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

/// Either kind of stream, encrypted or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connected stream.
pub(super) struct Line {
    pub(super) io: Box<dyn Io>,
    /// Encrypted, or without a network in between: a password may be sent as it is.
    pub(super) private: bool,
}

/// One place where a server may be.
#[derive(Clone, Debug)]
pub(super) struct Place {
    host: Host,
    /// Where to connect to, if that is not what the name says.
    address: Option<std::net::IpAddr>,
    port: u16,
}

/// The places that a connection string names, in its order.
pub(super) fn places(config: &Config) -> Vec<Place> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
    (0..hosts.len().max(addresses.len()))
        .filter_map(|i| {
            let address = addresses.get(i).copied();
            let host = hosts.get(i).cloned().or_else(|| address.map(|a| Host::Tcp(a.to_string())))?;
            Some(Place { host, address, port: port(i) })
        })
        .collect()
}

pub(super) fn lost(what: impl std::fmt::Display) -> Fault {
    Fault::retry("SEGUE-CONNECTION", what.to_string())
}

/// Connects to one place in one encryption mode.
pub(super) async fn dial(endpoint: &Endpoint, place: &Place, mode: SslMode) -> Outcome<Line> {
    let config = endpoint.config();
    let name = match &place.host {
        Host::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", place.port));
            let io = UnixStream::connect(&path)
                .await
                .map_err(|e| lost(format_args!("{}: {e}", path.display())))?;
            return Ok(Line { io: Box::new(io), private: true });
        }
        Host::Tcp(name) => name.clone(),
    };
    let tcp = match place.address {
        Some(address) => TcpStream::connect((address, place.port)).await,
        None => TcpStream::connect((name.as_str(), place.port)).await,
    };
    let tcp = tcp.map_err(|e| lost(format_args!("{name}:{}: {e}", place.port)))?;
    tune(&tcp, config).map_err(lost)?;
    let loopback = tcp.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
    if mode == SslMode::Disable {
        return Ok(Line { io: Box::new(tcp), private: loopback });
    }
    encrypt(endpoint, tcp, &name, mode, loopback).await
}

/// The promises of [`Endpoint::parse`] about dead peers, kept for this socket too.
fn tune(tcp: &TcpStream, config: &Config) -> std::io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
    if let Some(interval) = config.get_keepalives_interval() {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        keepalive = keepalive.with_retries(retries);
    }
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(config.get_tcp_user_timeout().copied().or(Some(Duration::from_secs(30))))?;
    Ok(())
}

async fn encrypt(
    endpoint: &Endpoint,
    mut tcp: TcpStream,
    name: &str,
    mode: SslMode,
    loopback: bool,
) -> Outcome<Line> {
    if endpoint.config().get_ssl_negotiation() != SslNegotiation::Direct {
        let mut request = bytes::BytesMut::new();
        postgres_protocol::message::frontend::ssl_request(&mut request);
        tcp.write_all(&request).await.map_err(lost)?;
        // One byte and no more: what follows belongs to the handshake.
        match tcp.read_u8().await.map_err(lost)? {
            b'S' => {}
            b'N' if mode == SslMode::Prefer => return Ok(Line { io: Box::new(tcp), private: loopback }),
            b'N' => {
                return Err(Fault::operator(
                    "SEGUE-TLS",
                    "the server does not offer TLS, and sslmode asks for it",
                    "turn ssl on at the server, or use sslmode=prefer where the network is trusted",
                ));
            }
            other => {
                return Err(lost(format_args!(
                    "not a PostgreSQL server: answered {other:#04x} to a TLS request"
                )));
            }
        }
    }
    let mut connector = endpoint.tls_connector()?;
    let refused = |e: &dyn std::fmt::Display| {
        Fault::operator(
            "SEGUE-TLS",
            format!("TLS: {e}"),
            "check sslmode, sslrootcert and the server's certificate",
        )
    };
    let connect =
        MakeTlsConnect::<TcpStream>::make_tls_connect(&mut connector, name).map_err(|e| refused(&e))?;
    let io = connect.connect(tcp).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => refused(&e),
        _ => lost(format_args!("TLS: {e}")),
    })?;
    Ok(Line { io: Box::new(io), private: true })
}
