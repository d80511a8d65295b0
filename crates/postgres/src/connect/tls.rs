//! TLS as libpq's `sslmode` defines it, on rustls.
//!
//! Certificates are read when a session is opened, so that renewed files are picked up.

use super::parameters::refused;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_postgres::config::SslMode;

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only if the server refuses plain sessions.
    Allow,
    /// Encrypted if the server offers it; nothing is verified.
    Prefer,
    /// Always encrypted; nothing is verified.
    Require,
    /// The certificate must come from a trusted authority.
    VerifyCa,
    /// The certificate must come from a trusted authority and name the host.
    VerifyFull,
}

impl TlsMode {
    /// As libpq calls it.
    fn name(self) -> &'static str {
        match self {
            TlsMode::Disable => "disable",
            TlsMode::Allow => "allow",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        }
    }

    pub(super) fn parse(text: &str) -> Outcome<TlsMode> {
        Ok(match text {
            "disable" => TlsMode::Disable,
            "allow" => TlsMode::Allow,
            "prefer" => TlsMode::Prefer,
            "require" => TlsMode::Require,
            "verify-ca" => TlsMode::VerifyCa,
            "verify-full" => TlsMode::VerifyFull,
            _ => {
                return Err(refused(
                    "the value of `sslmode` is unknown",
                    "use one of disable, allow, prefer, require, verify-ca, verify-full",
                ));
            }
        })
    }

    /// What to try, one after the other, when the server refuses the login.
    pub fn attempts(self) -> &'static [SslMode] {
        match self {
            TlsMode::Disable => &[SslMode::Disable],
            TlsMode::Allow => &[SslMode::Disable, SslMode::Require],
            TlsMode::Prefer => &[SslMode::Prefer, SslMode::Disable],
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => &[SslMode::Require],
        }
    }
}

/// Which authorities are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCertificates {
    /// Those of the operating system.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

/// How sessions to one server are encrypted.
#[derive(Clone, Debug)]
pub struct Tls {
    mode: TlsMode,
    root: Option<RootCertificates>,
    /// Client certificate and key files.
    identity: Option<(PathBuf, PathBuf)>,
}

impl Tls {
    pub(super) fn new(
        local: bool,
        mode: Option<TlsMode>,
        root: Option<RootCertificates>,
        identity: Option<(PathBuf, PathBuf)>,
    ) -> Outcome<Tls> {
        let system = root == Some(RootCertificates::System);
        let mode = match mode {
            _ if local => TlsMode::Disable,
            None if system => TlsMode::VerifyFull,
            Some(mode) if system && mode != TlsMode::VerifyFull => {
                return Err(refused(
                    "sslrootcert=system needs sslmode=verify-full: any public authority would do otherwise",
                    "write sslmode=verify-full, or name a file with your own authority in sslrootcert",
                ));
            }
            Some(TlsMode::Require) if root.is_some() => TlsMode::VerifyCa,
            Some(mode) => mode,
            None => TlsMode::Prefer,
        };
        Ok(Tls { mode, root, identity })
    }

    /// The same for a program that uses libpq: the parameters of its environment.
    pub(super) fn libpq(&self) -> Vec<(&'static str, OsString)> {
        let mut set = vec![("PGSSLMODE", self.mode.name().into())];
        match &self.root {
            Some(RootCertificates::System) => set.push(("PGSSLROOTCERT", "system".into())),
            Some(RootCertificates::File(path)) => set.push(("PGSSLROOTCERT", path.clone().into())),
            None => {}
        }
        if let Some((certificate, key)) = &self.identity {
            set.push(("PGSSLCERT", certificate.clone().into()));
            set.push(("PGSSLKEY", key.clone().into()));
        }
        set
    }

    /// The mode in effect.
    pub fn mode(&self) -> TlsMode {
        self.mode
    }

    /// Reads the certificate files and builds what rustls needs.
    pub fn client_config(&self) -> Outcome<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let broken =
            |e: rustls::Error| refused(format!("TLS cannot be set up: {e}"), "check sslcert and sslkey");
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = read_certificates(certificate)?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable(key, &e))?;
                builder.with_client_auth_cert(chain, key).map_err(broken)?
            }
        };
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Arc::new(config))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Outcome<Arc<dyn ServerCertVerifier>> {
        let check = match self.mode {
            TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => Check::Nothing,
            TlsMode::VerifyCa => Check::Chain,
            TlsMode::VerifyFull => Check::ChainAndName,
        };
        let certificates = match check {
            Check::Nothing => Vec::new(),
            Check::Chain | Check::ChainAndName => self.roots()?,
        };
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if check != Check::Nothing && added == 0 {
            return Err(refused("no usable root certificate was found", "check the PEM file in sslrootcert"));
        }
        let roots = Arc::new(roots);
        let full = match check {
            Check::ChainAndName => Some(
                WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                    .build()
                    .map_err(|e| refused(format!("TLS cannot be set up: {e}"), "check sslrootcert"))?,
            ),
            Check::Nothing | Check::Chain => None,
        };
        Ok(Arc::new(Verifier { check, roots, pinned: certificates, full, provider: provider.clone() }))
    }

    fn roots(&self) -> Outcome<Vec<CertificateDer<'static>>> {
        match &self.root {
            Some(RootCertificates::File(path)) => read_certificates(path),
            Some(RootCertificates::System) => Ok(rustls_native_certs::load_native_certs().certs),
            None => {
                let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
                let default = home.join(".postgresql/root.crt");
                if default.exists() {
                    return read_certificates(&default);
                }
                Err(refused(
                    "the server's certificate is to be verified, but no root certificate is named",
                    "add sslrootcert=FILE, or sslrootcert=system for a certificate of a public authority",
                ))
            }
        }
    }
}

fn unreadable(path: &Path, error: &impl std::fmt::Display) -> Fault {
    refused(
        format!("{} cannot be read as PEM: {error}", path.display()),
        "check that the file exists, can be read by this user and is in PEM form",
    )
}

fn read_certificates(path: &Path) -> Outcome<Vec<CertificateDer<'static>>> {
    let read = || -> Result<Vec<_>, _> { CertificateDer::pem_file_iter(path)?.collect() };
    let certificates = read().map_err(|e| unreadable(path, &e))?;
    if certificates.is_empty() {
        return Err(unreadable(path, &"it holds no certificate"));
    }
    Ok(certificates)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// Verifies as much as the mode asks for. The handshake's signature is always verified.
#[derive(Debug)]
struct Verifier {
    check: Check,
    roots: Arc<RootCertStore>,
    /// A server may present one of the trusted certificates itself (self-signed), which webpki would refuse.
    pinned: Vec<CertificateDer<'static>>,
    full: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            if self.check == Check::ChainAndName {
                verify_server_name(&certificate, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match &self.full {
            Some(full) => full.verify_server_cert(end_entity, intermediates, server_name, ocsp, now),
            None => {
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &certificate,
                    &self.roots,
                    intermediates,
                    now,
                    algorithms,
                )?;
                Ok(ServerCertVerified::assertion())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a refused certificate means for the operator, if `error` is about one.
pub(super) fn advice(error: &rustls::Error) -> Option<&'static str> {
    let rustls::Error::InvalidCertificate(certificate) = error else { return None };
    Some(match certificate {
        CertificateError::UnknownIssuer => {
            "the certificate is not signed by the authority in sslrootcert: check which authority signed it"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the certificate does not name this host (subjectAltName): connect by a name it holds, or use sslmode=verify-ca"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired: renew it"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet: check the clocks"
        }
        _ => "check the server's certificate; it must be X.509 version 3 and not itself be an authority",
    })
}
