//! The first packet of a connection: who wants what, in which version, and what is refused at the door.
//!
//! It does no I/O, and knows nothing of passwords.

use crate::frames::{Fields, Malformed, Refusal, put, put_string};
use bytes::{BufMut, BytesMut};

/// PostgreSQL's own bound for a startup packet.
pub(crate) const STARTUP_BYTES_MAX: usize = 10_000;
/// The highest minor version of protocol 3 that is spoken: 3.2 differs from 3.0 in longer cancel keys.
const MINOR_MAX: u32 = 2;
const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// Cancel keys of protocol 3.2 are at most so long.
const CANCEL_KEY_BYTES_MAX: usize = 256;

/// What a first packet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    /// TLS, to be answered by one byte.
    Tls,
    /// GSSAPI encryption, which is never had.
    Gss,
    /// That a statement be cancelled.
    Cancel { process: u32, key: Vec<u8> },
    /// A session.
    Session(Startup),
}

/// A client's wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Startup {
    pub(crate) minor: u32,
    pub(crate) user: String,
    pub(crate) database: String,
    /// Settings, in the order in which they came; neither user nor database.
    pub(crate) settings: Vec<(String, String)>,
    /// Extensions of the protocol (`_pq_.…`), none of which is known.
    pub(crate) unknown: Vec<String>,
}

/// The length of the packet at the beginning of `buffer`, once it can be told.
pub(crate) fn packet_bytes(buffer: &[u8]) -> Result<Option<usize>, Refusal> {
    let Some(four) = buffer.first_chunk::<4>() else { return Ok(None) };
    match u32::from_be_bytes(*four) as usize {
        bytes @ 8..=STARTUP_BYTES_MAX => Ok(Some(bytes)),
        _ => Err(Refusal::fatal("08P01", "invalid length of startup packet")),
    }
}

/// Reads a whole first packet.
pub(crate) fn read(packet: &[u8]) -> Result<First, Refusal> {
    let broken = |_: Malformed| Refusal::fatal("08P01", "invalid startup packet");
    // The code stands where a frame's body begins, one byte earlier: there is no tag.
    let Some((code, rest)) = packet.get(4..).and_then(|body| body.split_first_chunk::<4>()) else {
        return Err(Refusal::fatal("08P01", "invalid startup packet"));
    };
    match u32::from_be_bytes(*code) {
        SSL => Ok(First::Tls),
        GSS => Ok(First::Gss),
        CANCEL => match rest.split_first_chunk::<4>() {
            Some((process, key)) if (4..=CANCEL_KEY_BYTES_MAX).contains(&key.len()) => {
                Ok(First::Cancel { process: u32::from_be_bytes(*process), key: key.to_vec() })
            }
            _ => Err(Refusal::fatal("08P01", "invalid cancel request")),
        },
        version if version >> 16 == 3 => {
            session(version & 0xffff, packet).map_err(broken)?.map(First::Session)
        }
        version => {
            let (major, minor) = (version >> 16, version & 0xffff);
            Err(Refusal::fatal(
                "0A000",
                format!(
                    "unsupported frontend protocol {major}.{minor}: the router supports 3.0 to 3.{MINOR_MAX}"
                ),
            ))
        }
    }
}

fn session(minor: u32, packet: &[u8]) -> Result<Result<Startup, Refusal>, Malformed> {
    // Skipping a header's five bytes and three more reaches the parameters.
    let mut fields = Fields::of(packet);
    for _ in 0..3 {
        fields.byte()?;
    }
    let (mut user, mut database, mut settings, mut unknown) = (None, None, Vec::new(), Vec::new());
    loop {
        let Ok(name) = std::str::from_utf8(fields.string()?) else { return Err(fields.short()) };
        if name.is_empty() {
            break;
        }
        let Ok(value) = std::str::from_utf8(fields.string()?) else { return Err(fields.short()) };
        match name {
            "user" => user = Some(value.to_owned()),
            "database" => database = Some(value.to_owned()),
            "replication" if !matches!(value, "false" | "off" | "no" | "0") => {
                let refusal = Refusal::fatal("0A000", "the router does not relay replication connections")
                    .hint("Connect to the database itself.");
                return Ok(Err(refusal));
            }
            "replication" => {}
            _ if name.starts_with("_pq_.") => unknown.push(name.to_owned()),
            _ => settings.push((name.to_owned(), value.to_owned())),
        }
    }
    if !fields.rest().is_empty() {
        return Err(fields.short());
    }
    let Some(user) = user.filter(|user| !user.is_empty()) else {
        return Ok(Err(Refusal::fatal("28000", "no PostgreSQL user name specified in startup packet")));
    };
    let database = database.filter(|database| !database.is_empty()).unwrap_or_else(|| user.clone());
    Ok(Ok(Startup { minor, user, database, settings, unknown }))
}

impl Startup {
    /// Appends what the client must be told where it asked for more than there is.
    pub(crate) fn put_negotiation(&self, into: &mut BytesMut) {
        if self.minor <= MINOR_MAX && self.unknown.is_empty() {
            return;
        }
        put(into, b'v', |body| {
            body.put_u32((3 << 16) | self.minor.min(MINOR_MAX));
            body.put_u32(u32::try_from(self.unknown.len()).unwrap_or(u32::MAX));
            for name in &self.unknown {
                put_string(body, name.as_bytes());
            }
        });
    }

    /// How long the client's cancel key may be.
    pub(crate) fn cancel_key_bytes(&self) -> usize {
        if self.minor.min(MINOR_MAX) >= 2 { 32 } else { 4 }
    }
}

/// Appends a StartupMessage of protocol 3.0.
pub(crate) fn put_startup<'a>(
    into: &mut BytesMut,
    user: &'a str,
    database: &'a str,
    settings: impl Iterator<Item = (&'a str, &'a str)>,
) {
    crate::frames::put_untagged(into, |body| {
        body.put_u32(3 << 16);
        for (name, value) in [("user", user), ("database", database)].into_iter().chain(settings) {
            put_string(body, name.as_bytes());
            put_string(body, value.as_bytes());
        }
        body.put_u8(0);
    });
}

/// The packet that asks a server for TLS.
pub(crate) fn tls_request() -> [u8; 8] {
    let mut packet = [0, 0, 0, 8, 0, 0, 0, 0];
    packet[4..].copy_from_slice(&SSL.to_be_bytes());
    packet
}

/// The packet that asks a server to cancel what `process` is doing.
pub(crate) fn cancel_request(process: u32, key: &[u8]) -> BytesMut {
    let mut packet = BytesMut::new();
    crate::frames::put_untagged(&mut packet, |body| {
        body.put_u32(CANCEL);
        body.put_u32(process);
        body.put_slice(key);
    });
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, rest: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(8 + rest.len()).unwrap().to_be_bytes().to_vec();
        packet.extend(code.to_be_bytes());
        packet.extend(rest);
        packet
    }

    #[test]
    fn a_session_is_read_as_it_was_asked_for() {
        let mut out = BytesMut::new();
        put_startup(&mut out, "ann", "shop", [("application_name", "x")].into_iter());
        assert_eq!(packet_bytes(&out), Ok(Some(out.len())));
        let First::Session(startup) = read(&out).unwrap() else { panic!("a session") };
        assert_eq!((startup.user.as_str(), startup.database.as_str(), startup.minor), ("ann", "shop", 0));
        assert_eq!(startup.settings, [("application_name".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn the_database_is_named_like_the_user_unless_told() {
        let First::Session(startup) = read(&packet(3 << 16, b"user\0ann\0\0")).unwrap() else { panic!() };
        assert_eq!(startup.database, "ann");
    }

    #[test]
    fn newer_versions_and_unknown_options_are_negotiated() {
        for (minor, options, told) in
            [(0, &b""[..], None), (2, b"", None), (9, b"", Some((2, 0))), (2, b"_pq_.x\0y\0", Some((2, 1)))]
        {
            let body = [&b"user\0ann\0"[..], options, b"\0"].concat();
            let First::Session(startup) = read(&packet((3 << 16) | minor, &body)).unwrap() else { panic!() };
            let mut out = BytesMut::new();
            startup.put_negotiation(&mut out);
            let said = (!out.is_empty()).then(|| {
                let mut fields = Fields::of(&out);
                (fields.int().unwrap() & 0xffff, fields.int().unwrap())
            });
            assert_eq!(said, told);
        }
    }

    #[test]
    fn what_is_not_had_is_refused_with_its_reason() {
        for (packet, code) in [
            (packet(3 << 16, b"user\0a\0replication\0database\0\0"), "0A000"),
            (packet(2 << 16, b""), "0A000"),
            (packet(3 << 16, b"database\0a\0\0"), "28000"),
            (packet(3 << 16, b"user\0a"), "08P01"),
            (packet(3 << 16, b"user\0a\0\0junk"), "08P01"),
            (packet(3 << 16, b"user\0\xff\0\0"), "08P01"),
            (packet(CANCEL, b"\0\0\0\x01"), "08P01"),
            (packet(CANCEL, &[0; 300]), "08P01"),
        ] {
            assert_eq!(read(&packet).unwrap_err().code, code, "{packet:?}");
        }
        for bytes in [0u32, 7, 10_001, u32::MAX] {
            assert_eq!(packet_bytes(&bytes.to_be_bytes()).unwrap_err().code, "08P01");
        }
    }

    #[test]
    fn requests_without_a_session_are_told_apart() {
        assert_eq!(read(&tls_request()), Ok(First::Tls));
        assert_eq!(read(&packet(GSS, b"")), Ok(First::Gss));
        let cancel = cancel_request(7, b"abcd");
        assert_eq!(read(&cancel), Ok(First::Cancel { process: 7, key: b"abcd".to_vec() }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), minor in 0u32..4) {
            let _ = packet_bytes(&bytes);
            let _ = read(&bytes);
            let _ = read(&packet((3 << 16) | minor, &bytes));
        }
    }
}
