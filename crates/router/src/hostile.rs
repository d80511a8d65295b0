//! What must hold of any bytes at all, for `cargo fuzz` (`crates/router/fuzz`) and for the replay of what it found.
//!
//! Each function is one target. It exists in tests and under the fuzzer only.

use crate::auth::scram::{ClientEnd, ServerEnd};
use crate::auth::{Login, Verifier};
use crate::classify::{Catalog, Classifier, Unit};
use crate::effects;
use crate::frames::{self, Fields, HEADER_BYTES};
use crate::lexer::Words;
use crate::pipeline::{Answer, OWED_MAX, Owed, Pipeline};
use crate::reads;
use crate::settings::Settings;
use crate::startup::{self, First};
use bytes::BytesMut;
use std::sync::{Arc, LazyLock};

/// Bytes of a peer that is logged in: the walk over frames ends, stays within its bytes, and reads every field it can.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(head)) = frames::head(rest) {
        assert!(head.bytes >= HEADER_BYTES, "a frame moves on");
        let there = rest.get(..head.bytes).unwrap_or(rest);
        let mut fields = Fields::of(there);
        let mut left = fields.rest().len();
        while fields.string().is_ok() && fields.int().is_ok() && fields.byte().is_ok() {
            assert!(fields.rest().len() < left, "a field moves on");
            left = fields.rest().len();
        }
        if let Ok(value) = frames::error_field(there, b'M') {
            assert!(value.len() < there.len());
        }
        assert!(!frames::is_fence(there) || frames::error_field(there, b'C') == Ok(&b"25006"[..]));
        let _ = frames::describe_error(there);
        let _ = crate::session::is_lone(rest);
        let Some(behind) = rest.get(head.bytes..) else { break };
        rest = behind;
    }
    order(bytes);
}

/// Messages and answers in any order: what is owed stays bounded and true to itself, or the order is refused.
fn order(bytes: &[u8]) {
    let mut pipeline = Pipeline::default();
    for (index, &byte) in bytes.iter().enumerate() {
        let serial = index as u64;
        let message = match byte {
            b'Q' => Some(Owed::Query),
            b'F' => Some(Owed::Call),
            b'P' => Some(Owed::Parse { statement: serial, serial }),
            b'B' => Some(Owed::Bind),
            b'?' => Some(Owed::Describe),
            b'X' => Some(Owed::Execute),
            b'O' => Some(Owed::Close { ours: false }),
            b'o' => Some(Owed::Close { ours: true }),
            b'Y' => Some(Owed::Sync),
            b'U' => Some(Owed::CopyEnd),
            _ => None,
        };
        match message {
            Some(_) if pipeline.is_full() => {}
            Some(message) => pipeline.sent(message),
            None => {
                let next = bytes.get(index + 1).copied().unwrap_or_default();
                match pipeline.received(byte, next) {
                    Ok(Answer::Ready(_) | Answer::Pass | Answer::Ours) => {}
                    Err(_) => return,
                }
            }
        }
        pipeline.check();
        assert!(pipeline.take_lost().len() <= OWED_MAX);
    }
}

/// Bytes of a peer that has said nothing yet: packets are bounded, and what is read can be said again.
pub fn startup(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(length)) = startup::packet_bytes(rest) {
        assert!(length <= startup::STARTUP_BYTES_MAX);
        let Some(packet) = rest.get(..length) else { return };
        if let Ok(First::Session(asked)) = startup::read(packet) {
            let mut out = BytesMut::new();
            asked.put_negotiation(&mut out);
            assert!(out.len() <= length + 64, "no answer is longer than what was asked");
            assert!(!asked.user.is_empty() && !asked.database.is_empty());
            let carried = Settings::at_start(&asked.settings);
            assert!(carried.statements(&Settings::default()).iter().all(|sql| !sql.contains('\0')));
            let said = asked.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            out.clear();
            startup::put_startup(&mut out, &asked.user, &asked.database, said);
            let Ok(First::Session(again)) = startup::read(&out) else { panic!("it is a session still") };
            assert_eq!(
                (again.user, again.database, again.settings),
                (asked.user, asked.database, asked.settings)
            );
        }
        rest = &rest[length..];
    }
}

/// Bytes in the place of each message of SCRAM, from either end: nobody is let in who cannot know how.
pub fn scram(bytes: &[u8]) {
    let verifier = || Verifier::mock(&[7; 32], "ann");
    if let Ok((challenge, end)) = ServerEnd::begin(bytes, verifier(), b"nonce") {
        assert!(challenge.starts_with("r=") && challenge.len() <= bytes.len() + 128);
        assert!(end.finish(bytes).is_err(), "a mock verifier is matched by nothing");
    }
    // The first message well, the second any: split where the bytes say.
    let Some((&at, rest)) = bytes.split_first() else { return };
    let (first, second) = rest.split_at(usize::from(at).min(rest.len()));
    let first = [&b"n,,n=,r="[..], first].concat();
    if let Ok((_, end)) = ServerEnd::begin(&first, verifier(), b"nonce") {
        assert!(end.finish(second).is_err());
    }
    let key = Login::Key { verifier: verifier(), client_key: [1; 32] };
    if let Ok((proof, waiting)) = ClientEnd::begin(b"nonce").1.prove(bytes, &key) {
        assert!(proof.starts_with("c=biws,r="));
        assert!(waiting.check(bytes).is_err(), "a server cannot have proved itself");
    }
    // What continues our nonce gets further.
    let challenge = [&b"r=bm9uY2U="[..], rest].concat();
    if let Ok((_, waiting)) = ClientEnd::begin(b"nonce").1.prove(&challenge, &key) {
        assert!(waiting.check(rest).is_err());
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Verifier::parse(text);
    }
}

/// The table `t` is migrated, `other` is not, and `writer` may write.
static CATALOG: LazyLock<Arc<Catalog>> = LazyLock::new(|| {
    let known = r#"{"levels": false, "implicit": [],
        "relations": [{"oid": 1, "schema": "public", "name": "t", "kind": "r", "row_security": false, "partition": false,
                       "parents": [], "definition": null},
                      {"oid": 2, "schema": "public", "name": "other", "kind": "r", "row_security": false,
                       "partition": false, "parents": [], "definition": null},
                      {"oid": 3, "schema": "public", "name": "v", "kind": "v", "row_security": false, "partition": false,
                       "parents": [], "definition": "SELECT t.a FROM t;"}],
        "functions": [{"schema": "public", "name": "writer", "kind": "f", "volatility": "v", "language": "plpgsql",
                       "takes_row": false, "body": null, "calls": null}],
        "system_functions": [{"name": "sum", "volatile": false, "aggregate": true},
                             {"name": "lower", "volatile": false, "aggregate": false},
                             {"name": "set_config", "volatile": true, "aggregate": false},
                             {"name": "pg_advisory_lock", "volatile": true, "aggregate": false}],
        "operators": [{"name": "@@@", "schema": "public", "function": "writer"}]}"#;
    let catalog = Catalog::read(known, &[("public".to_owned(), "t".to_owned())]);
    Arc::new(catalog.unwrap_or_else(|error| panic!("the fuzzer's own catalog: {error}")))
});

/// The text of statements: tokens move on, what is remembered of it is what was proved, and what is proved to be a read does
/// nothing to its session that had to be said again, and is none any more with a write behind it.
pub fn statements(bytes: &[u8]) {
    // The protocol's strings end there.
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let (mut words, mut behind) = (Words::of(text), 0);
    while let Some((_, from, to)) = words.next_token() {
        assert!(behind <= from && from < to && to <= text.len(), "a token moves on");
        behind = to;
    }
    let _ = reads::comment(text, b"traceparent='");
    let effects = effects::read(text);
    let classifier = Classifier::new();
    classifier.set_catalog(Some(Arc::clone(&CATALOG)));
    let class = classifier.class(text);
    assert_eq!(class, classifier.class(text), "what is remembered is what was proved");
    if class.unit != Unit::Read {
        return;
    }
    // Its words may leave a doubt, which pins: a column can be called as a function is.
    assert!(effects.changes.is_empty() && effects.endings.is_empty(), "a read changes nothing: {effects:?}");
    for write in ["DELETE FROM t", "SELECT writer(1)", "SELECT a FROM t FOR UPDATE", "SET a = 1"] {
        let both = [text, b"\n; ", write.as_bytes()].concat();
        assert_ne!(classifier.class(&both).unit, Unit::Read, "with `{write}` behind it");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Runs a target on everything that the fuzzer has kept for it.
    fn replay(target: &str, run: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut replayed = 0;
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            println!("{}", path.display());
            run(&bytes);
            replayed += 1;
        }
        assert!(replayed >= 10, "{} holds {replayed}", directory.display());
    }

    #[test]
    fn frames_that_were_found_hold() {
        replay("frames", super::frames);
    }

    #[test]
    fn first_packets_that_were_found_hold() {
        replay("startup", super::startup);
    }

    #[test]
    fn logins_that_were_found_hold() {
        replay("scram", super::scram);
    }

    #[test]
    fn statements_that_were_found_hold() {
        replay("statements", super::statements);
    }
}
