//! Prepared statements of the protocol: what a client named, what a server has, and the names under which both meet.
//!
//! Where servers are shared, every statement goes under a name made from its text and types, and from the settings by which
//! it is parsed, so that one server's statement serves many clients. Where a server belongs to a session, names stay as they are. It sends nothing.

use crate::classify::Class;
use crate::effects::Effects;
use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A client that names more has lost count, and would have the router remember without end.
pub(crate) const NAMED_MAX: usize = 10_000;
/// The texts of what one client named may have so many bytes in all; and so may texts that nobody names.
pub(crate) const TEXT_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 64 << 20 };
/// Statements that one shared server keeps; each holds a plan in its memory.
const ON_SERVER_MAX: usize = 1_000;
/// Texts that are kept although no client names them any more.
const UNUSED_MAX: usize = 5_000;

/// A statement as it was parsed.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) id: u64,
    /// A Parse's body behind its name: text, zero, types.
    pub(crate) body: Box<[u8]>,
    pub(crate) effects: Effects,
    /// By which settings it is parsed, as a hash, where it is anybody's.
    pub(crate) parsed_by: Option<u64>,
    /// What servers know it by; empty: the unnamed one.
    pub(crate) server_name: Box<[u8]>,
    /// Of what class it was when it was first used: its kind and its shape stay what they are.
    pub(crate) class: OnceLock<Arc<Class>>,
}

impl Statement {
    fn new(
        id: u64,
        body: &[u8],
        effects: Effects,
        parsed_by: Option<u64>,
        server_name: Box<[u8]>,
    ) -> Arc<Statement> {
        let class = OnceLock::new();
        Arc::new(Statement { id, body: body.into(), effects, parsed_by, server_name, class })
    }

    /// Whether it is what its text is where these settings hold.
    pub(crate) fn is_parsed_by(&self, settings: u64) -> bool {
        self.parsed_by.is_none_or(|parsed_by| parsed_by == settings)
    }

    /// Its text, without the types.
    pub(crate) fn text(&self) -> &[u8] {
        self.body.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// What a shared statement is called on servers.
pub(crate) fn shared_name(id: u64) -> Vec<u8> {
    format!("segue_{id}").into_bytes()
}

/// Which shared statement servers know by this name, if one could be.
pub(crate) fn shared_id(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"segue_")?).ok()?.parse().ok()
}

/// What makes shared statements the same one.
trait Key {
    fn key(&self) -> (Option<u64>, &[u8]);
}

struct ByBody(Arc<Statement>);

impl Key for ByBody {
    fn key(&self) -> (Option<u64>, &[u8]) {
        (self.0.parsed_by, &self.0.body)
    }
}

impl Key for (u64, &[u8]) {
    fn key(&self) -> (Option<u64>, &[u8]) {
        (Some(self.0), self.1)
    }
}

impl<'a> Borrow<dyn Key + 'a> for ByBody {
    fn borrow(&self) -> &(dyn Key + 'a) {
        self
    }
}

impl Hash for dyn Key + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for dyn Key + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for dyn Key + '_ {}

impl Hash for ByBody {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl PartialEq for ByBody {
    fn eq(&self, other: &ByBody) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ByBody {}

#[derive(Default)]
struct Shared {
    texts: HashSet<ByBody>,
    /// Since it was last looked which of them are named still.
    bytes: usize,
}

/// All statements of one router.
#[derive(Default)]
pub(crate) struct Texts {
    last_id: AtomicU64,
    shared: Mutex<Shared>,
}

impl Texts {
    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Stands for settings that nobody else has.
    pub(crate) fn unknown_parsing(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        ("unknown", self.next_id()).hash(&mut hasher);
        hasher.finish()
    }

    /// A statement of one session only, under the name that it gave.
    pub(crate) fn own(&self, name: &[u8], body: &[u8], effects: Effects) -> Arc<Statement> {
        Statement::new(self.next_id(), body, effects, None, name.into())
    }

    /// A statement of one session only, under a name that no other one has on any server.
    pub(crate) fn own_on_shared(&self, body: &[u8], effects: Effects) -> Arc<Statement> {
        let id = self.next_id();
        Statement::new(id, body, effects, None, shared_name(id).into())
    }

    /// The one statement that has this text and these types, parsed by these settings.
    pub(crate) fn shared(
        &self,
        parsed_by: u64,
        body: &[u8],
        effects: impl FnOnce() -> Effects,
    ) -> Arc<Statement> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let key: &dyn Key = &(parsed_by, body);
        if let Some(known) = shared.texts.get(key) {
            return Arc::clone(&known.0);
        }
        shared.bytes += body.len();
        if shared.texts.len() >= UNUSED_MAX || shared.bytes > TEXT_BYTES_MAX {
            shared.texts.retain(|known| Arc::strong_count(&known.0) > 1);
            shared.bytes = body.len();
        }
        let id = self.next_id();
        let statement = Statement::new(id, body, effects(), Some(parsed_by), shared_name(id).into());
        shared.texts.insert(ByBody(Arc::clone(&statement)));
        statement
    }
}

/// A statement, and which wish of the client's it was.
#[derive(Debug, Clone)]
struct Named {
    statement: Arc<Statement>,
    serial: u64,
}

/// What one client named.
#[derive(Default)]
pub(crate) struct OfClient {
    named: HashMap<Box<[u8]>, Named>,
    unnamed: Option<Named>,
    last_serial: u64,
    /// The texts of what is named.
    bytes: usize,
}

impl OfClient {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        let named = if name.is_empty() { self.unnamed.as_ref() } else { self.named.get(name) };
        named.map(|named| &named.statement)
    }

    /// What a name means where texts are parsed by these settings: by others, the same text is another statement.
    pub(crate) fn parsed_by(&mut self, name: &[u8], settings: u64, texts: &Texts) -> Option<Arc<Statement>> {
        let named = if name.is_empty() { self.unnamed.as_mut() } else { self.named.get_mut(name) }?;
        let statement = &mut named.statement;
        if !statement.is_parsed_by(settings) {
            *statement = texts.shared(settings, &statement.body, || statement.effects.clone());
        }
        Some(Arc::clone(statement))
    }

    /// Remembers a statement, and returns by which number it is forgotten; `None`: there are too many.
    pub(crate) fn insert(&mut self, name: &[u8], statement: Arc<Statement>) -> Option<u64> {
        self.last_serial += 1;
        let serial = self.last_serial;
        let named = Named { statement, serial };
        if name.is_empty() {
            self.unnamed = Some(named);
            return Some(serial);
        }
        let bytes = named.statement.body.len();
        if let Some(known) = self.named.get_mut(name) {
            self.bytes -= known.statement.body.len();
            *known = named;
        } else if self.named.len() >= NAMED_MAX || self.bytes + bytes > TEXT_BYTES_MAX.max(bytes) {
            return None;
        } else {
            self.named.insert(name.into(), named);
        }
        self.bytes += bytes;
        Some(serial)
    }

    pub(crate) fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let named = match name.is_empty() {
            true => self.unnamed.take(),
            false => self.named.remove(name).inspect(|named| self.bytes -= named.statement.body.len()),
        };
        named.map(|named| named.statement)
    }

    /// Forgets a statement that never came to be.
    pub(crate) fn forget(&mut self, serial: u64) {
        self.unnamed.take_if(|named| named.serial == serial);
        self.named.retain(|_, named| {
            let stays = named.serial != serial;
            self.bytes -= if stays { 0 } else { named.statement.body.len() };
            stays
        });
    }

    /// Forgets every name; returns what they meant, in case that it does not come to be.
    pub(crate) fn take_named(&mut self) -> OfClient {
        let bytes = std::mem::take(&mut self.bytes);
        OfClient { named: std::mem::take(&mut self.named), bytes, ..OfClient::default() }
    }

    /// Names that were not thrown away after all; those given since then stay.
    pub(crate) fn put_back(&mut self, taken: OfClient) {
        for (name, named) in taken.named {
            let bytes = named.statement.body.len();
            self.named.entry(name).or_insert_with(|| {
                self.bytes += bytes;
                named
            });
        }
    }
}

/// What one server has.
#[derive(Debug, Default)]
pub(crate) struct OnServer {
    unnamed: Option<u64>,
    /// When each was used last.
    named: HashMap<u64, u64>,
    uses: u64,
}

impl OnServer {
    /// Whether the server has it; if so, it was used just now.
    pub(crate) fn uses(&mut self, statement: &Statement) -> bool {
        if statement.server_name.is_empty() {
            return self.unnamed == Some(statement.id);
        }
        self.uses += 1;
        match self.named.get_mut(&statement.id) {
            Some(used) => {
                *used = self.uses;
                true
            }
            None => false,
        }
    }

    /// It will be there; returns which one must go for it, where the server is shared.
    pub(crate) fn insert(&mut self, statement: &Statement, is_shared: bool) -> Option<u64> {
        if statement.server_name.is_empty() {
            self.unnamed = Some(statement.id);
            return None;
        }
        self.uses += 1;
        self.named.insert(statement.id, self.uses);
        if !is_shared || self.named.len() <= ON_SERVER_MAX {
            return None;
        }
        let oldest = self.named.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)?;
        self.named.remove(&oldest);
        Some(oldest)
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.unnamed.take_if(|unnamed| *unnamed == id);
        self.named.remove(&id);
    }

    /// A simple query ends the unnamed statement.
    pub(crate) fn drop_unnamed(&mut self) {
        self.unnamed = None;
    }

    /// Forgets everything; returns it, in case that it does not come to be.
    pub(crate) fn take(&mut self) -> OnServer {
        std::mem::take(self)
    }

    /// Statements that were not thrown away after all.
    pub(crate) fn put_back(&mut self, taken: OnServer) {
        for (id, used) in taken.named {
            self.named.entry(id).or_insert(used);
        }
        self.uses = self.uses.max(taken.uses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_is_one_statement_for_everybody() {
        let texts = Texts::default();
        let a = texts.shared(0, b"SELECT 1\0\0\0", Effects::default);
        let b = texts.shared(0, b"SELECT 1\0\0\0", Effects::default);
        let c = texts.shared(0, b"SELECT 1\0\0\x01\0\0\0\x17", Effects::default);
        assert!(Arc::ptr_eq(&a, &b) && a.id != c.id && a.server_name != c.server_name);
    }

    #[test]
    fn a_text_is_another_statement_where_it_is_parsed_by_other_settings() {
        let (texts, mut client) = (Texts::default(), OfClient::default());
        let a = texts.shared(0, b"a", Effects::default);
        client.insert(b"x", Arc::clone(&a));
        client.insert(b"y", texts.own_on_shared(b"a", Effects::default()));
        let mine = client.parsed_by(b"y", 0, &texts).unwrap();
        assert!(Arc::ptr_eq(&client.parsed_by(b"x", 0, &texts).unwrap(), &a));
        let b = client.parsed_by(b"x", 1, &texts).unwrap();
        assert!(b.id != a.id && b.server_name != a.server_name && b.body == a.body);
        assert!(Arc::ptr_eq(&b, &texts.shared(1, b"a", Effects::default)));
        assert!(Arc::ptr_eq(&client.parsed_by(b"x", 0, &texts).unwrap(), &a));
        assert!(Arc::ptr_eq(&client.parsed_by(b"y", 1, &texts).unwrap(), &mine) && mine.id != a.id);
        assert!(client.parsed_by(b"z", 0, &texts).is_none());
    }

    #[test]
    fn texts_that_nobody_names_are_forgotten() {
        let texts = Texts::default();
        let kept = texts.shared(0, b"kept", Effects::default);
        for i in 0..2 * UNUSED_MAX {
            texts.shared(0, format!("{i}").as_bytes(), Effects::default);
        }
        assert!(texts.shared.lock().unwrap().texts.len() <= UNUSED_MAX);
        assert!(Arc::ptr_eq(&kept, &texts.shared(0, b"kept", Effects::default)));
    }

    #[test]
    fn a_shared_server_gives_up_what_was_used_longest_ago() {
        let texts = Texts::default();
        let statements: Vec<_> = (0..=ON_SERVER_MAX)
            .map(|i| texts.shared(0, format!("{i}").as_bytes(), Effects::default))
            .collect();
        let mut server = OnServer::default();
        for statement in &statements[..ON_SERVER_MAX] {
            assert_eq!(server.insert(statement, true), None);
        }
        assert!(server.uses(&statements[0]));
        assert_eq!(server.insert(&statements[ON_SERVER_MAX], true), Some(statements[1].id));
        assert!(!server.uses(&statements[1]) && server.uses(&statements[0]));
    }

    #[test]
    fn the_unnamed_statement_is_one_clients() {
        let texts = Texts::default();
        let (mine, yours) =
            (texts.own(b"", b"a", Effects::default()), texts.own(b"", b"a", Effects::default()));
        let mut server = OnServer::default();
        server.insert(&mine, true);
        assert!(server.uses(&mine) && !server.uses(&yours));
        server.drop_unnamed();
        assert!(!server.uses(&mine));
    }

    #[test]
    fn texts_are_bounded_by_their_bytes_too() {
        let (texts, mut client) = (Texts::default(), OfClient::default());
        let body = |i: usize| [i.to_string().as_bytes(), &vec![b'x'; TEXT_BYTES_MAX / 4]].concat();
        let named = |i: usize, client: &mut OfClient| {
            client.insert(i.to_string().as_bytes(), texts.shared(0, &body(i), Effects::default)).is_some()
        };
        assert_eq!([0, 1, 2, 3].map(|i| named(i, &mut client)), [true, true, true, false]);
        client.remove(b"0");
        assert!(named(3, &mut client) && !named(4, &mut client));
        client.put_back(client_of(&texts, &body(9)));
        let mut taken = client.take_named();
        taken.forget(1);
        client.put_back(taken);
        assert!(client.take_named().get(b"1").is_some() && client.bytes == 0);
        drop(client);
        texts.shared(0, &body(5), Effects::default);
        assert!(texts.shared.lock().unwrap().texts.len() <= 5);
    }

    fn client_of(texts: &Texts, body: &[u8]) -> OfClient {
        let mut client = OfClient::default();
        client.insert(b"back", texts.shared(0, body, Effects::default));
        client
    }

    #[test]
    fn a_client_cannot_name_without_end() {
        let texts = Texts::default();
        let statement = texts.own(b"x", b"a", Effects::default());
        let mut client = OfClient::default();
        let first = client.insert(b"0", Arc::clone(&statement)).unwrap();
        for i in 1..NAMED_MAX {
            assert!(client.insert(format!("{i}").as_bytes(), Arc::clone(&statement)).is_some());
        }
        assert_eq!(client.insert(b"more", Arc::clone(&statement)), None);
        client.forget(first);
        assert!(client.get(b"0").is_none() && client.get(b"1").is_some());
    }
}
