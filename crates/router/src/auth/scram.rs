//! SCRAM-SHA-256 (RFC 5802, RFC 7677) as PostgreSQL speaks it, both ends, as values: messages in, messages out.
//!
//! Channel binding is not offered: the router ends the client's TLS, so there is no channel to bind to a server's.
//! Randomness is given by the caller.

use super::{Login, Verifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// A key or a digest.
pub(crate) type Keys = [u8; 32];

/// The mechanism's name.
pub(crate) const MECHANISM: &[u8] = b"SCRAM-SHA-256";
/// PostgreSQL's default, for verifiers that the router makes.
const ITERATIONS: u32 = 4096;
/// A server that asks for more would have the router burn its processor for everybody.
const ITERATIONS_MAX: u32 = 100_000;

/// Why an exchange ends without a login. A client is told one and the same sentence for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScramError {
    #[error("a SCRAM message is malformed")]
    Malformed,
    #[error("channel binding is not offered")]
    Binding,
    #[error("the proof is wrong")]
    Proof,
    #[error("the server's nonce does not continue ours")]
    Nonce,
    #[error("the server asks for {0} iterations")]
    Iterations(u32),
    #[error("the server does not hold the verifier that this user's login was checked against")]
    OtherVerifier,
    #[error("the server could not prove that it knows the password")]
    ServerSignature,
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Keys {
    let mut mac = match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of every length"),
    };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn sha256(bytes: &[u8]) -> Keys {
    Sha256::digest(bytes).into()
}

fn xor(a: &Keys, b: &Keys) -> Keys {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn salted(password: &str, salt: &[u8], iterations: u32) -> Keys {
    // What SASLprep refuses is used as it is, as PostgreSQL does.
    let prepared = stringprep::saslprep(password);
    let password = prepared.as_deref().unwrap_or(password).as_bytes();
    let mut u = hmac(password, &[salt, &1u32.to_be_bytes()]);
    let mut sum = u;
    for _ in 1..iterations {
        u = hmac(password, &[&u]);
        sum = xor(&sum, &u);
    }
    sum
}

impl Verifier {
    /// Reads what PostgreSQL keeps: `SCRAM-SHA-256$iterations:salt$stored:server`.
    pub(crate) fn parse(text: &str) -> Option<Verifier> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| BASE64.decode(text).ok()?.try_into().ok();
        Some(Verifier {
            salt: BASE64.decode(salt).ok()?,
            iterations: iterations.parse().ok().filter(|n| (1..=ITERATIONS_MAX).contains(n))?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }

    /// The verifier of a known password.
    pub(crate) fn of(password: &str, salt: impl Into<Vec<u8>>) -> Verifier {
        let salt = salt.into();
        let salted = salted(password, &salt, ITERATIONS);
        Verifier {
            salt,
            iterations: ITERATIONS,
            stored_key: sha256(&hmac(&salted, &[b"Client Key"])),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }

    /// The verifier of somebody who does not exist: always the same for a name, and matched by no password.
    pub(crate) fn mock(secret: &Keys, user: &str) -> Verifier {
        let derive = |what: &[u8]| hmac(secret, &[what, user.as_bytes()]);
        Verifier {
            salt: derive(b"salt")[..16].to_vec(),
            iterations: ITERATIONS,
            stored_key: derive(b"stored"),
            server_key: derive(b"server"),
        }
    }
}

/// The router's end towards a client, after its first message was answered.
pub(crate) struct ServerEnd {
    verifier: Verifier,
    client_first_bare: String,
    server_first: String,
    gs2_header: String,
    nonce: String,
}

/// What a client proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proved {
    pub(crate) client_key: Keys,
}

impl ServerEnd {
    /// Takes the client's first message; returns what to answer and to go on with.
    pub(crate) fn begin(
        message: &[u8],
        verifier: Verifier,
        nonce: &[u8],
    ) -> Result<(String, ServerEnd), ScramError> {
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        let mut parts = message.splitn(3, ',');
        let (flag, authzid, bare) = (parts.next(), parts.next(), parts.next());
        match flag {
            Some("n" | "y") => {}
            Some(flag) if flag.starts_with("p=") => return Err(ScramError::Binding),
            _ => return Err(ScramError::Malformed),
        }
        // Acting for somebody else is not supported, here as in PostgreSQL.
        if authzid != Some("") {
            return Err(ScramError::Malformed);
        }
        let bare = bare.ok_or(ScramError::Malformed)?;
        let mut attributes = bare.split(',');
        // The name in `n=` is ignored: the startup packet said it.
        let named = attributes.next().is_some_and(|name| name.starts_with("n="));
        let client_nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).filter(|n| printable(n));
        let (true, Some(client_nonce)) = (named, client_nonce) else { return Err(ScramError::Malformed) };
        let nonce = format!("{client_nonce}{}", BASE64.encode(nonce));
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let end = ServerEnd {
            verifier,
            client_first_bare: bare.to_owned(),
            server_first: server_first.clone(),
            gs2_header: message[..message.len() - bare.len()].to_owned(),
            nonce,
        };
        Ok((server_first, end))
    }

    /// Takes the client's proof; returns the last answer.
    pub(crate) fn finish(self, message: &[u8]) -> Result<(String, Proved), ScramError> {
        let message = std::str::from_utf8(message).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(ScramError::Malformed)?;
        let mut attributes = without_proof.split(',');
        let binding = attributes.next().and_then(|a| a.strip_prefix("c=")).ok_or(ScramError::Malformed)?;
        let nonce = attributes.next().and_then(|a| a.strip_prefix("r=")).ok_or(ScramError::Malformed)?;
        if BASE64.decode(binding).ok().as_deref() != Some(self.gs2_header.as_bytes()) {
            return Err(ScramError::Binding);
        }
        if nonce != self.nonce {
            return Err(ScramError::Nonce);
        }
        let proof: Keys =
            BASE64.decode(proof).ok().and_then(|p| p.try_into().ok()).ok_or(ScramError::Malformed)?;
        let auth = [&self.client_first_bare, ",", &self.server_first, ",", without_proof].concat();
        let client_key = xor(&proof, &hmac(&self.verifier.stored_key, &[auth.as_bytes()]));
        if !bool::from(sha256(&client_key).ct_eq(&self.verifier.stored_key)) {
            return Err(ScramError::Proof);
        }
        let signature = hmac(&self.verifier.server_key, &[auth.as_bytes()]);
        Ok((format!("v={}", BASE64.encode(signature)), Proved { client_key }))
    }
}

/// RFC 5802: a nonce is printable, and not a comma.
fn printable(nonce: &str) -> bool {
    !nonce.is_empty() && nonce.bytes().all(|b| (0x21..=0x7e).contains(&b))
}

/// The router's end towards a server.
pub(crate) struct ClientEnd {
    nonce: String,
}

/// The proof is sent; the server's own is awaited.
pub(crate) struct AwaitSignature {
    signature: Keys,
}

impl ClientEnd {
    /// The first message, and what to go on with.
    pub(crate) fn begin(nonce: &[u8]) -> (String, ClientEnd) {
        let nonce = BASE64.encode(nonce);
        (format!("n,,n=,r={nonce}"), ClientEnd { nonce })
    }

    /// Takes the server's challenge and returns the proof.
    pub(crate) fn prove(
        self,
        challenge: &[u8],
        login: &Login,
    ) -> Result<(String, AwaitSignature), ScramError> {
        let challenge = std::str::from_utf8(challenge).map_err(|_| ScramError::Malformed)?;
        let mut attributes = challenge.split(',');
        let mut next =
            |name| attributes.next().and_then(|a| a.strip_prefix(name)).ok_or(ScramError::Malformed);
        let (nonce, salt, iterations) = (next("r=")?, next("s=")?, next("i=")?);
        let salt = BASE64.decode(salt).map_err(|_| ScramError::Malformed)?;
        let iterations: u32 = iterations.parse().map_err(|_| ScramError::Malformed)?;
        if nonce.len() <= self.nonce.len() || !nonce.starts_with(&self.nonce) || !printable(nonce) {
            return Err(ScramError::Nonce);
        }
        if !(1..=ITERATIONS_MAX).contains(&iterations) {
            return Err(ScramError::Iterations(iterations));
        }
        let (client_key, server_key) = match login {
            Login::Password(password) => {
                let salted = salted(password, &salt, iterations);
                (hmac(&salted, &[b"Client Key"]), hmac(&salted, &[b"Server Key"]))
            }
            Login::Key { verifier, client_key } => {
                if verifier.salt != salt || verifier.iterations != iterations {
                    return Err(ScramError::OtherVerifier);
                }
                (*client_key, verifier.server_key)
            }
            Login::Nothing => return Err(ScramError::Proof),
        };
        let without_proof = format!("c=biws,r={nonce}");
        let auth = format!("n=,r={},{challenge},{without_proof}", self.nonce);
        let proof = xor(&client_key, &hmac(&sha256(&client_key), &[auth.as_bytes()]));
        let signature = hmac(&server_key, &[auth.as_bytes()]);
        Ok((format!("{without_proof},p={}", BASE64.encode(proof)), AwaitSignature { signature }))
    }
}

impl AwaitSignature {
    /// Takes the server's last message: who answers must know the password too.
    pub(crate) fn check(self, message: &[u8]) -> Result<(), ScramError> {
        let signature = message.strip_prefix(b"v=").and_then(|text| BASE64.decode(text).ok());
        match signature {
            Some(signature) if bool::from(signature[..].ct_eq(&self.signature[..])) => Ok(()),
            _ => Err(ScramError::ServerSignature),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exchange(login: &Login, verifier: Verifier) -> Result<Proved, ScramError> {
        let (first, client) = ClientEnd::begin(b"client nonce");
        let (challenge, server) = ServerEnd::begin(first.as_bytes(), verifier, b"server nonce")?;
        let (proof, waiting) = client.prove(challenge.as_bytes(), login)?;
        let (last, proved) = server.finish(proof.as_bytes())?;
        waiting.check(last.as_bytes())?;
        Ok(proved)
    }

    #[test]
    fn the_right_password_logs_in_and_leaves_a_key_that_logs_in_too() {
        let verifier = Verifier::of("pencil", [7; 16]);
        let proved = exchange(&Login::Password("pencil".into()), verifier.clone()).unwrap();
        let key = Login::Key { verifier: verifier.clone(), client_key: proved.client_key };
        assert_eq!(exchange(&key, verifier), Ok(proved));
        assert_eq!(exchange(&key, Verifier::of("pencil", [8; 16])), Err(ScramError::OtherVerifier));
    }

    #[test]
    fn the_wrong_password_and_nobody_fail_alike() {
        let wrong = Login::Password("pen".into());
        assert_eq!(exchange(&wrong, Verifier::of("pencil", [7; 16])), Err(ScramError::Proof));
        assert_eq!(exchange(&wrong, Verifier::mock(&[1; 32], "nobody")), Err(ScramError::Proof));
        assert_eq!(exchange(&Login::Nothing, Verifier::of("", [7; 16])), Err(ScramError::Proof));
    }

    #[test]
    fn nobody_is_always_the_same_nobody() {
        let (a, b) = (Verifier::mock(&[1; 32], "a"), Verifier::mock(&[1; 32], "b"));
        assert!(a == Verifier::mock(&[1; 32], "a") && a.salt != b.salt);
        assert_eq!((a.salt.len(), a.iterations), (16, ITERATIONS));
    }

    #[test]
    fn the_example_of_rfc_7677_holds() {
        let verifier = {
            let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
            Verifier::of("pencil", salt)
        };
        let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let end = ServerEnd {
            verifier,
            client_first_bare: "n=user,r=rOprNGfwEbeRWgbNEkqO".into(),
            server_first: format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
            gs2_header: "n,,".into(),
            nonce: nonce.into(),
        };
        let message = format!("c=biws,r={nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        let (last, _) = end.finish(message.as_bytes()).unwrap();
        assert_eq!(last, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn a_verifier_is_read_as_postgresql_writes_it() {
        let verifier = Verifier::of("x", [3; 16]);
        let b64 = |bytes: &[u8]| BASE64.encode(bytes);
        let text = format!(
            "SCRAM-SHA-256$4096:{}${}:{}",
            b64(&verifier.salt),
            b64(&verifier.stored_key),
            b64(&verifier.server_key)
        );
        assert!(Verifier::parse(&text) == Some(verifier));
        for broken in ["", "md5abc", "SCRAM-SHA-256$0:AA==$AA==:AA==", "SCRAM-SHA-256$4096:AA==$AA==:AA=="] {
            assert!(Verifier::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn what_departs_from_the_exchange_is_refused() {
        let begin = |first: &str| ServerEnd::begin(first.as_bytes(), Verifier::of("x", [1; 16]), b"n").err();
        assert_eq!(begin("p=tls-server-end-point,,n=,r=abc"), Some(ScramError::Binding));
        for first in ["", "n", "n,,", "n,a=b,n=,r=x", "x,,n=,r=x", "n,,n=", "n,,n=,r=", "n,,r=x,n="] {
            assert_eq!(begin(first), Some(ScramError::Malformed), "{first}");
        }
        let prove = |challenge: &str| {
            let (_, client) = ClientEnd::begin(b"n");
            client.prove(challenge.as_bytes(), &Login::Password("x".into())).err()
        };
        assert_eq!(prove("r=other,s=AAAA,i=1"), Some(ScramError::Nonce));
        assert_eq!(prove("r=bg==,s=AAAA,i=1"), Some(ScramError::Nonce));
        assert_eq!(prove("r=bg==x,s=AAAA,i=4000000"), Some(ScramError::Iterations(4_000_000)));
        assert_eq!(prove("r=bg==x,s=?,i=1"), Some(ScramError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(a in proptest::collection::vec(any::<u8>(), 0..80), b in "[nrscpvi=,a-zA-Z0-9+/]{0,60}") {
            let verifier = || Verifier::mock(&[1; 32], "x");
            for bytes in [&a[..], b.as_bytes()] {
                let _ = ServerEnd::begin(bytes, verifier(), b"n");
                let (_, end) = ServerEnd::begin(b"n,,n=,r=x", verifier(), b"n").unwrap();
                let _ = end.finish(bytes);
                // An iteration count of the bytes' own would make this slow, and nothing else.
                let key = Login::Key { verifier: verifier(), client_key: [0; 32] };
                let _ = ClientEnd::begin(b"n").1.prove(bytes, &key);
                let _ = AwaitSignature { signature: [0; 32] }.check(bytes);
            }
            let _ = Verifier::parse(&b);
        }
    }
}
