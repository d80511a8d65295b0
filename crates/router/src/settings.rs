//! What a session was set to: what the server reports of it, and what has to be said again on another server.
//!
//! It does not read SQL ([`effects`](crate::effects)) and sends nothing.

use crate::effects::{Change, assigned, decides_parsing};
use crate::frames::{Fields, Malformed, put_parameter};
use bytes::BytesMut;
use segue_model::sqltext::quote_literal;
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

/// What ParameterStatus said, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Parameters(BTreeMap<Box<[u8]>, Box<[u8]>>);

impl Parameters {
    pub(crate) fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.get_mut(name) {
            Some(known) => *known = value.into(),
            None => drop(self.0.insert(name.into(), value.into())),
        }
    }

    /// Remembers what a ParameterStatus (a whole frame) says.
    pub(crate) fn note(parameters: &mut Arc<Parameters>, frame: &[u8]) -> Result<(), Malformed> {
        let mut fields = Fields::of(frame);
        let (name, value) = (fields.string()?, fields.string()?);
        Arc::make_mut(parameters).set(name, value);
        Ok(())
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(|value| &value[..])
    }

    /// Whether a server that says this writes and reads values as one that says `other`.
    pub(crate) fn reads_as(&self, other: &Parameters) -> bool {
        FORMATS.iter().all(|name| self.get(name) == other.get(name))
    }

    /// Appends what a client that was told `known` has to be told anew.
    pub(crate) fn put_differences(&self, known: &Parameters, into: &mut BytesMut) {
        for (name, value) in &self.0 {
            if known.0.get(name) != Some(value) {
                put_parameter(into, name, value);
            }
        }
    }
}

/// What values look like.
const FORMATS: [&[u8]; 6] = [
    b"client_encoding",
    b"DateStyle",
    b"IntervalStyle",
    b"TimeZone",
    b"integer_datetimes",
    b"standard_conforming_strings",
];
/// More different ones are not remembered at once: then it begins anew.
const SHARED_MAX: usize = 1_024;

/// Equal values as one, for many clients: whether two are equal is mostly told by where they are.
#[derive(Debug)]
pub(crate) struct Shared<T>(Mutex<HashSet<Arc<T>>>);

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared(Mutex::default())
    }
}

impl<T: Eq + Hash> Shared<T> {
    /// The value that others have, if any of them has an equal one.
    pub(crate) fn one(&self, value: &Arc<T>) -> Arc<T> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = known.get(value) {
            return Arc::clone(one);
        }
        if known.len() >= SHARED_MAX {
            known.clear();
        }
        known.insert(Arc::clone(value));
        Arc::clone(value)
    }

    /// Forgets what nobody has any more.
    pub(crate) fn tidy(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|value| Arc::strong_count(value) > 1);
    }
}

/// More is not carried from server to server; who has more is pinned.
const CHANGES_MAX: usize = 256;

/// What a session changed and has not changed back, as the SQL that makes it so again. Equal ones need no statement.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// By what is set; in the order in which they are said: roles last, because they take rights away.
    set: BTreeMap<String, String>,
    roles: BTreeMap<String, String>,
    listens: BTreeMap<String, String>,
    prepared: BTreeMap<String, String>,
}

/// Whether a change holds from its statement on, even where its transaction is rolled back.
pub(crate) fn outlives_rollback(change: &Change) -> bool {
    matches!(change, Change::Prepare { .. } | Change::Deallocate { .. } | Change::DeallocateAll)
}

/// There is too much to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Settings {
    /// A client's wishes at its start, for servers that were opened without them.
    pub(crate) fn at_start(wishes: &[(String, String)]) -> Settings {
        let mut settings = Settings::default();
        for (name, value) in wishes {
            if name == "options" {
                for (name, value) in options(value) {
                    settings.insert_wish(&name, &value);
                }
            } else {
                settings.insert_wish(name, value);
            }
        }
        settings
    }

    fn insert_wish(&mut self, name: &str, value: &str) {
        let assign =
            format!("SELECT pg_catalog.set_config({}, {}, false)", quote_literal(name), quote_literal(value));
        self.set.insert(name.to_ascii_lowercase(), assign);
    }

    pub(crate) fn apply(&mut self, change: Change) -> Result<(), TooMany> {
        match change {
            Change::Set { name, sql } if name == "role" || name == "session_authorization" => {
                if name == "session_authorization" {
                    self.roles.clear();
                }
                self.roles.insert(name, sql);
            }
            Change::Set { name, sql } => drop(self.set.insert(name, sql)),
            Change::Reset { name, .. } => {
                if name == "session_authorization" {
                    self.roles.clear();
                }
                self.roles.remove(&name);
                self.set.remove(&name);
            }
            Change::ResetAll => self.set.clear(),
            Change::Listen { channel, sql } => drop(self.listens.insert(channel, sql)),
            Change::Unlisten { channel } => drop(self.listens.remove(&channel)),
            Change::UnlistenAll => self.listens.clear(),
            Change::Prepare { name, sql } => drop(self.prepared.insert(name, sql)),
            Change::Deallocate { name } => drop(self.prepared.remove(&name)),
            Change::DeallocateAll => self.prepared.clear(),
            Change::DiscardAll => *self = Settings::default(),
        }
        let total = self.set.len() + self.roles.len() + self.listens.len() + self.prepared.len();
        if total > CHANGES_MAX { Err(TooMany) } else { Ok(()) }
    }

    /// These, over what a client wished at its start.
    pub(crate) fn over(&self, mut wishes: Settings) -> Settings {
        wishes.set.extend(self.set.clone());
        Settings { set: wishes.set, ..self.clone() }
    }

    /// Whether the session holds what only its own server connection can hold: channels and prepared statements of SQL.
    pub(crate) fn pins(&self) -> bool {
        !self.listens.is_empty() || !self.prepared.is_empty()
    }

    /// Whether a statement may read something else than where nothing of this is set: what a name means, at which isolation a
    /// transaction runs, and what a user may see, is then not known.
    pub(crate) fn reads_differ(&self) -> bool {
        let names_schema = |sql: &String| sql.to_ascii_lowercase().contains("information_schema");
        !self.roles.is_empty()
            || self.set.keys().any(|name| name.starts_with("default_transaction_"))
            || self.set.get("search_path").is_some_and(names_schema)
    }

    /// Whom the session's statements are for: `SET segue.tenant = 'acme'`.
    pub(crate) fn tenant(&self) -> Option<String> {
        assigned(self.set.get("segue.tenant")?)
    }

    /// By what a text is parsed where these hold, as a hash; where nothing is set, 0.
    pub(crate) fn parsed_by(&self) -> u64 {
        let mut deciding =
            self.set.iter().chain(&self.roles).filter(|(name, _)| decides_parsing(name)).peekable();
        if deciding.peek().is_none() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        deciding.for_each(|set| set.hash(&mut hasher));
        hasher.finish()
    }

    /// These without what pins: all that a single read can depend on.
    pub(crate) fn for_reads(&self) -> Settings {
        Settings { listens: BTreeMap::new(), prepared: BTreeMap::new(), ..self.clone() }
    }

    /// The statements that make a server with `there` into one with these.
    pub(crate) fn statements(&self, there: &Settings) -> Vec<String> {
        let mut statements = Vec::new();
        if !there.roles.is_empty() {
            statements.extend(["RESET SESSION AUTHORIZATION".to_owned(), "RESET ROLE".to_owned()]);
        }
        if !there.set.is_empty() {
            statements.push("RESET ALL".to_owned());
        }
        statements.extend(self.set.values().cloned());
        // The session's user before the role it takes.
        for name in ["session_authorization", "role"] {
            statements.extend(self.roles.get(name).cloned());
        }
        statements.extend(self.prepared.values().chain(self.listens.values()).cloned());
        statements
    }
}

/// The `-c name=value` and `--name=value` of a startup packet's `options`; other switches are the server's own affair.
fn options(text: &str) -> Vec<(String, String)> {
    let mut words: Vec<String> = vec![String::new()];
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let last = words.len() - 1;
        match character {
            '\\' => words[last].extend(characters.next()),
            c if c.is_ascii_whitespace() => words.push(String::new()),
            c => words[last].push(c),
        }
    }
    let mut found = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let assignment = match word.as_str() {
            "-c" => words.next(),
            _ => word.strip_prefix("--").or(word.strip_prefix("-c")).map(str::to_owned),
        };
        if let Some((name, value)) = assignment.as_deref().and_then(|a| a.split_once('=')) {
            found.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, sql: &str) -> Change {
        Change::Set { name: name.into(), sql: sql.into() }
    }

    #[test]
    fn what_was_set_is_said_again_and_the_role_last() {
        let mut settings = Settings::default();
        for change in [
            set("role", "SET ROLE r"),
            set("work_mem", "SET work_mem = '1MB'"),
            set("work_mem", "SET work_mem = '2MB'"),
        ] {
            settings.apply(change).unwrap();
        }
        let said = settings.statements(&Settings::default());
        assert_eq!(said, ["SET work_mem = '2MB'", "SET ROLE r"]);
        assert!(!settings.pins());
    }

    #[test]
    fn another_clients_settings_are_taken_back_first() {
        let mut there = Settings::default();
        there.apply(set("role", "SET ROLE r")).unwrap();
        there.apply(set("work_mem", "SET work_mem = '1MB'")).unwrap();
        assert_eq!(
            Settings::default().statements(&there),
            ["RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL"]
        );
    }

    #[test]
    fn what_texts_are_parsed_by_is_told_apart() {
        let by = |changes: &[Change]| {
            let mut settings = Settings::default();
            changes.iter().for_each(|change| settings.apply(change.clone()).unwrap());
            settings.parsed_by()
        };
        let (here, there) = (set("timezone", "SET TimeZone = 'a'"), set("timezone", "SET TimeZone = 'b'"));
        assert_eq!([by(&[]), by(&[set("work_mem", "SET work_mem = '1MB'")])], [0, 0]);
        let [here_too, role] = [by(&[there.clone(), here.clone()]), by(&[set("role", "SET ROLE a")])];
        assert_eq!(by(std::slice::from_ref(&here)), here_too);
        assert!(![by(&[there]), role, 0].contains(&here_too) && role != 0);
        let zone = |name: &str| Settings::at_start(&[(name.into(), "UTC".into())]).parsed_by();
        assert!(zone("TimeZone") != 0 && zone("application_name") == 0);
    }

    #[test]
    fn the_tenant_is_what_was_set() {
        for (sql, tenant) in [
            ("SET segue.tenant = 'acme corp'", Some("acme corp")),
            ("SET segue.tenant TO acme", Some("acme")),
            ("SET segue.tenant=7", Some("7")),
            ("SET segue.tenant = 'a''b'", None),
        ] {
            let mut settings = Settings::default();
            settings.apply(set("segue.tenant", sql)).unwrap();
            assert_eq!(settings.tenant().as_deref(), tenant, "{sql}");
        }
        let wishes = [("options".to_owned(), "-c segue.tenant=acme".to_owned())];
        assert_eq!(Settings::at_start(&wishes).tenant().as_deref(), Some("acme"));
        assert_eq!(Settings::default().tenant(), None);
    }

    #[test]
    fn discarding_forgets_everything() {
        let mut settings = Settings::at_start(&[("application_name".into(), "it's".into())]);
        assert!(settings.statements(&Settings::default())[0].contains("'it''s'"));
        settings.apply(Change::Listen { channel: "a".into(), sql: "LISTEN a".into() }).unwrap();
        assert!(settings.pins());
        settings.apply(Change::DiscardAll).unwrap();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn options_are_read_as_servers_read_them() {
        let found = options(r"-c search_path=a\ b,c --statement-timeout=5s -cwork_mem=1MB -e");
        let found: Vec<_> = found.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(found, [("search_path", "a b,c"), ("statement_timeout", "5s"), ("work_mem", "1MB")]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut settings = Settings::default();
        let results: Vec<_> = (0..300).map(|i| settings.apply(set(&format!("a.b{i}"), ""))).collect();
        assert!(results[0].is_ok() && results[299].is_err());
    }

    #[test]
    fn equal_values_are_one_and_their_number_is_bounded() {
        let shared = Shared::default();
        let (a, b) = (shared.one(&Arc::new(1)), shared.one(&Arc::new(1)));
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &shared.one(&Arc::new(2))));
        for value in 0..2 * SHARED_MAX {
            shared.one(&Arc::new(value));
        }
        assert!(shared.0.lock().unwrap().len() <= SHARED_MAX);
        let kept = shared.one(&Arc::new(1));
        shared.tidy();
        assert_eq!((shared.0.lock().unwrap().len(), *kept), (1, 1));
    }

    #[test]
    fn only_differences_are_told() {
        let (mut a, mut b) = (Parameters::default(), Parameters::default());
        a.set(b"TimeZone", b"UTC");
        a.set(b"x", b"1");
        b.set(b"TimeZone", b"UTC");
        let mut out = BytesMut::new();
        a.put_differences(&b, &mut out);
        assert_eq!(&out[..], b"S\0\0\0\x08x\x001\0");
    }
}
