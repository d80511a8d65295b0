//! Connection URLs and `key=value` strings as libpq reads them.
//!
//! Takes out the parameters that the client library does not know or reads differently, and hands it the rest.
//! Errors never quote the text: it may hold a password.

use super::tls::{RootCertificates, Tls, TlsMode};
use segue_engine::fault::Fault;
use segue_engine::ports::Outcome;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// What a connection string says.
pub(super) struct Parameters {
    pub(super) config: Config,
    pub(super) tls: Tls,
}

/// Parameters that are taken out of the text, in the order they were written.
#[derive(Default)]
struct Ours {
    mode: Option<TlsMode>,
    root: Option<RootCertificates>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    tcp_user_timeout: Option<Duration>,
}

pub(super) fn refused(what: impl Into<String>, next_step: impl Into<String>) -> Fault {
    Fault::operator("SEGUE-URL", what, next_step)
}

/// Reads a URL (`postgres://`, `postgresql://`) or a `key=value` string.
pub(super) fn parse(text: &str) -> Outcome<Parameters> {
    let text = text.trim();
    let is_url = text.starts_with("postgres://") || text.starts_with("postgresql://");
    // Everything after the first `@` would be taken for the host, and shown.
    if is_url && text.split('?').next().is_some_and(|address| address.matches('@').count() > 1) {
        return Err(refused(
            "the URL has more than one `@`: the password, or another part of it, is not percent-encoded",
            "write `@` as %40, `/` as %2F, `:` as %3A, `?` as %3F and `%` as %25 within user, password and database",
        ));
    }
    let (rest, ours) = if is_url { strip_url(text)? } else { strip_pairs(text)? };
    let mut config: Config = rest.parse().map_err(|e| unreadable(&e, is_url))?;
    if let (None, Some(password)) = (config.get_password(), std::env::var_os("PGPASSWORD")) {
        config.password(password.as_encoded_bytes());
    }
    if config.get_hosts().is_empty() {
        let addresses: Vec<String> = config.get_hostaddrs().iter().map(ToString::to_string).collect();
        for address in addresses {
            config.host(address);
        }
        if config.get_hosts().is_empty() {
            config.host("localhost");
        }
    }
    if let Some(timeout) = ours.tcp_user_timeout {
        config.tcp_user_timeout(timeout);
    }
    let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
    let tls = Tls::new(local, ours.mode, ours.root, ours.certificate.zip_strict(ours.key)?)?;
    config.ssl_mode(tls.mode().attempts()[0]);
    Ok(Parameters { config, tls })
}

/// Both or neither.
trait ZipStrict {
    fn zip_strict(self, key: Option<PathBuf>) -> Outcome<Option<(PathBuf, PathBuf)>>;
}

impl ZipStrict for Option<PathBuf> {
    fn zip_strict(self, key: Option<PathBuf>) -> Outcome<Option<(PathBuf, PathBuf)>> {
        match (self, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
            (Some(_), None) => Err(refused("sslcert is given without sslkey", "add sslkey=FILE")),
            (None, Some(_)) => Err(refused("sslkey is given without sslcert", "add sslcert=FILE")),
        }
    }
}

fn unreadable(error: &tokio_postgres::Error, is_url: bool) -> Fault {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    // The cause names a key; a stray `?`, `@` or space in a password would make a key of its tail.
    let option = cause.rsplit('`').nth(1).unwrap_or_default();
    let nameable = KNOWN.contains(&option);
    let what = if nameable {
        format!("the value of `{option}` in the connection string cannot be used")
    } else {
        "the connection string cannot be read".to_owned()
    };
    let next_step = if is_url {
        "write postgres://user:password@host:port/database?option=value, with the characters : / ? # @ % and space in the password percent-encoded (%40 for @)"
    } else {
        "write postgres://user:password@host:port/database or host=… port=… dbname=… user=… password='…'"
    };
    refused(what, next_step)
}

const KNOWN: &[&str] = &[
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];

impl Ours {
    /// Takes a parameter that is ours; `false` if it is the client library's.
    fn take(&mut self, key: &str, value: &str) -> Outcome<bool> {
        match key {
            "sslmode" => self.mode = Some(TlsMode::parse(value)?),
            "sslrootcert" if value == "system" => self.root = Some(RootCertificates::System),
            "sslrootcert" => self.root = Some(RootCertificates::File(value.into())),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "tcp_user_timeout" => {
                let ms = value.parse().map_err(|_| {
                    refused("tcp_user_timeout is not a number", "give it in milliseconds, as libpq does")
                })?;
                self.tcp_user_timeout = Some(Duration::from_millis(ms));
            }
            "client_encoding"
            | "fallback_application_name"
            | "sslsni"
            | "sslcompression"
            | "gssencmode"
            | "ssl_min_protocol_version" => {}
            "sslcrl" | "sslcrldir" | "sslpassword" | "requirepeer" | "passfile" | "service"
            | "require_auth" => {
                return Err(refused(
                    format!("the connection option `{key}` is not supported"),
                    format!("leave `{key}` out, and put what it refers to into the connection string"),
                ));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn strip_url(text: &str) -> Outcome<(String, Ours)> {
    let mut ours = Ours::default();
    // As libpq does: everything up to an `@` before the first `/` is user and password, a `?` in it included.
    let authority = text.find("://").map_or(0, |at| at + 3);
    let credentials = match text[authority..].find(['@', '/']) {
        Some(at) if text[authority + at..].starts_with('@') => authority + at,
        _ => 0,
    };
    let Some(mark) = text[credentials..].find('?').map(|at| credentials + at) else {
        return Ok((text.to_owned(), ours));
    };
    let (base, query) = (&text[..mark], &text[mark + 1..]);
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(refused(
                "an option of the connection URL has no value",
                "write ?option=value; percent-encode a `?` in the password as %3F",
            ));
        };
        if !ours.take(&percent_decoded(key)?, &percent_decoded(value)?)? {
            kept.push(pair);
        }
    }
    let rest = if kept.is_empty() { base.to_owned() } else { format!("{base}?{}", kept.join("&")) };
    Ok((rest, ours))
}

fn percent_decoded(text: &str) -> Outcome<String> {
    let broken =
        || refused("a percent sign in the connection URL is not followed by two hex digits", "write %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok()).ok_or_else(broken)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| refused("the connection URL is not UTF-8", "percent-encode UTF-8"))
}

/// `key = 'va\'lue' key=value`: values may be quoted; a backslash keeps the next character.
fn strip_pairs(text: &str) -> Outcome<(String, Ours)> {
    let mut ours = Ours::default();
    let mut kept = String::new();
    let mut chars = text.chars().peekable();
    let unclosed =
        || refused("a quote in the connection string is not closed", "close it, or write \\' for a quote");
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok((kept, ours));
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(refused(
                "the connection string is neither a URL nor key=value pairs",
                "write postgres://user:password@host:port/database",
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.push(chars.next().ok_or_else(unclosed)?),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(unclosed()),
                None => break,
            }
        }
        if !ours.take(&key, &value)? {
            let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
            kept.push_str(&format!("{key}='{escaped}' "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        match parse(text) {
            Ok(_) => panic!("{text} was accepted"),
            Err(fault) => fault.to_string(),
        }
    }

    #[test]
    fn a_password_that_is_not_percent_encoded_is_refused_and_not_shown() {
        let said = fault("postgres://u:s3@cret/x@h/d");
        assert!(said.contains("%40") && !said.contains("cret"), "{said}");
        assert!(parse("postgres://u:s3%40cret@h/d?application_name=a@b").is_ok());
    }

    #[test]
    fn every_sslmode_of_libpq_is_read_from_both_forms() {
        for (text, mode) in [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Allow),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ] {
            let url =
                parse(&format!("postgres://u@h/d?sslmode={text}&sslrootcert=%2Fca.pem")).expect("a URL");
            // `require` with a root certificate verifies the chain, as libpq does.
            let expected = if mode == TlsMode::Require { TlsMode::VerifyCa } else { mode };
            assert_eq!(url.tls.mode(), expected, "{text}");
            let pairs = parse(&format!("host=h user=u sslmode={text} sslrootcert='/ca.pem'")).expect("pairs");
            assert_eq!(pairs.tls.mode(), expected, "{text}");
        }
        assert_eq!(parse("postgres://u@h/d?sslmode=require").expect("a URL").tls.mode(), TlsMode::Require);
        assert_eq!(parse("postgres://u@h/d").expect("a URL").tls.mode(), TlsMode::Prefer);
    }

    #[test]
    fn system_roots_mean_full_verification_and_nothing_weaker() {
        let tls = parse("postgres://u@h/d?sslrootcert=system").expect("a URL").tls;
        assert_eq!(tls.mode(), TlsMode::VerifyFull);
        assert!(fault("postgres://u@h/d?sslrootcert=system&sslmode=require").contains("verify-full"));
    }

    #[test]
    fn a_unix_socket_is_never_encrypted() {
        assert_eq!(
            parse("host=/run/postgresql sslmode=require").expect("pairs").tls.mode(),
            TlsMode::Disable
        );
    }

    #[test]
    fn other_parameters_reach_the_client_library() {
        let parsed = parse(
            "postgres://u:p%40ss@h:5433/d?connect_timeout=7&options=-c%20a%3Db&application_name=x&tcp_user_timeout=1500",
        )
        .expect("a URL");
        assert_eq!(parsed.config.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(parsed.config.get_connect_timeout(), Some(&Duration::from_secs(7)));
        assert_eq!(parsed.config.get_options(), Some("-c a=b"));
        assert_eq!(parsed.config.get_application_name(), Some("x"));
        assert_eq!(parsed.config.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)));
        let pairs =
            parse(r"host = h password = 'it\'s a \\ secret' dbname=d sslmode=disable").expect("pairs");
        assert_eq!(pairs.config.get_password(), Some(&br"it's a \ secret"[..]));
    }

    #[test]
    fn an_error_never_holds_a_part_of_the_password() {
        for text in [
            "postgres://u:hush/hush?hush@h/d",
            "postgres://u@h/d?sslcert=hush%zz",
            "host=h password=hush hush",
            "host=h password='hush",
            "password=hush hush=1",
        ] {
            assert!(!fault(text).contains("hush"), "{}", fault(text));
        }
    }

    #[test]
    fn a_bad_value_names_its_option() {
        assert!(fault("postgres://u@h/d?connect_timeout=soon").contains("connect_timeout"));
        assert!(fault("postgres://u@h/d?sslmode=verify").contains("verify-full"));
        assert!(fault("postgres://u@h/d?sslcert=a.pem").contains("sslkey"));
    }
}
