//! What the router takes, from the spec, from the files that it names, and from the sides.

use crate::sides::Sides;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use segue_model::spec::{Router, RouterAuth, RouterMirror, RouterPool, RouterReads, RouterTls, Spec};
use segue_model::switch::Side;
use segue_postgres::connect::{Endpoint, TlsMode};
use segue_router::{
    ClientAuth, Config, Databases, Limits, PoolMode, ReadLimits, ShadowConfig, Tls, Upstream, UpstreamTls,
    Users,
};
use std::path::Path;
use std::sync::Arc;
use tokio_postgres::config::Host;

/// The spec's section for the router.
pub(super) fn section(spec: &Spec) -> Outcome<&Router> {
    spec.router.as_ref().ok_or_else(|| {
        Fault::operator(
            "SEGUE-ROUTER",
            "the spec has no section `router`",
            "add `router: { listen: 127.0.0.1:6432, users: FILE }`, then start it again",
        )
    })
}

/// What the router takes. Files are read now.
pub(super) fn config(spec: &Spec, sides: &Sides, base: &Path) -> Outcome<Config> {
    let router = section(spec)?;
    Ok(Config {
        auth: match router.auth {
            RouterAuth::Scram => ClientAuth::Scram,
            RouterAuth::Trust => ClientAuth::Trust,
        },
        users: router.users.as_ref().map(|file| users(&base.join(file))).transpose()?.unwrap_or_default(),
        tls: router.tls.as_ref().map(|tls| encrypted(tls, base)).transpose()?,
        pool: match router.pool {
            RouterPool::Session => PoolMode::Session,
            RouterPool::Transaction => PoolMode::Transaction,
        },
        source: upstream(Side::Source, &sides.source)?,
        target: upstream(Side::Target, &sides.target)?,
        databases: Some(Databases { source: database(&sides.source), target: database(&sides.target) }),
        limits: limits(router),
        reads: reads(&router.reads),
        shadow: shadow(&router.mirror),
    })
}

fn limits(router: &Router) -> Limits {
    Limits {
        clients_max: router.clients_max,
        connections_max: router.connections_max,
        login_max: router.login_max,
        connect_max: router.connect_max,
        queue_max: router.queue_max,
        age_max: router.age_max,
        // Every client may wait.
        parked_max: router.clients_max,
        refused_max: router.refused_max,
        statement_bytes_max: router.statement_bytes_max,
        drain_max: router.drain_max,
    }
}

fn reads(reads: &RouterReads) -> ReadLimits {
    ReadLimits { answer_max: reads.answer_max, wait_max: reads.wait_max, stale_max: reads.stale_max }
}

fn shadow(mirror: &RouterMirror) -> ShadowConfig {
    ShadowConfig {
        float_tolerance: mirror.float_tolerance,
        timestamp_tolerance: mirror.timestamp_tolerance,
        show_values: mirror.show_values,
        ..ShadowConfig::default()
    }
}

fn users(file: &Path) -> Outcome<Users> {
    let refused = |what: String| {
        let next = "write a line \"name\" \"secret\" for each user; `router.users` names the file";
        Fault::operator("SEGUE-ROUTER-USERS", what, next)
    };
    let text = std::fs::read_to_string(file)
        .map_err(|error| refused(format!("the file of users {} cannot be read: {error}", file.display())))?;
    Users::parse(&text).map_err(|error| refused(format!("{}: {error}", file.display())))
}

fn encrypted(tls: &RouterTls, base: &Path) -> Outcome<Tls> {
    let refused = |what: String| {
        let next = "check `router.tls.certificate` and `router.tls.key`: both are files in PEM form";
        Fault::operator("SEGUE-ROUTER-TLS", what, next)
    };
    let (certificate, key) = (base.join(&tls.certificate), base.join(&tls.key));
    let unreadable = |file: &Path, error: &dyn std::fmt::Display| {
        refused(format!("{} cannot be read as PEM: {error}", file.display()))
    };
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(&certificate, &error))?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| unreadable(&key, &error))?;
    let broken = |error: rustls::Error| refused(format!("TLS cannot be set up: {error}"));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(broken)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(broken)?;
    Ok(Tls { config: Arc::new(config), required: tls.required })
}

/// The database of a side: without a name it is the user's.
fn database(endpoint: &Endpoint) -> String {
    let config = endpoint.config();
    config.get_dbname().or(config.get_user()).unwrap_or_default().to_owned()
}

/// A side's server, as the spec's connection string names it.
fn upstream(side: Side, endpoint: &Endpoint) -> Outcome<Arc<Upstream>> {
    let config = endpoint.config();
    let refused = |what: &str| {
        let what = format!("the router cannot reach the {side}: {what}");
        Fault::operator("SEGUE-ROUTER", what, format!("name one host and its port in the spec's `{side}`"))
    };
    let [Host::Tcp(host)] = config.get_hosts() else {
        let several = config.get_hosts().len() > 1;
        return Err(refused(if several { "there are several hosts" } else { "it has no TCP address" }));
    };
    let optional = match endpoint.tls().mode() {
        TlsMode::Disable => None,
        TlsMode::Allow | TlsMode::Prefer => Some(true),
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => Some(false),
    };
    let tls = match optional {
        None => None,
        Some(optional) => Some(UpstreamTls { config: endpoint.tls().client_config()?, optional }),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432);
    Ok(Arc::new(Upstream { host: host.clone(), port, tls }))
}
