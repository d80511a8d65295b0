//! What a statement does to its session, as far as its words tell: what must be said again elsewhere, and what pins.
//!
//! Words are told apart from strings, quoted names and comments, and that is all: it does not parse. Where words leave
//! a doubt, the session is pinned. What a function does inside is not seen, here as in every pooler.

mod parsing;
mod set;

pub(crate) use parsing::{Parsing, decides_parsing};
pub(crate) use set::assigned;

use crate::lexer::{Token, Words};
use std::ops::Range;

/// Why a session needs the very server connection that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pin {
    /// A temporary table, view or sequence.
    Temporary,
    /// An advisory lock of the session.
    AdvisoryLock,
    /// A cursor that outlives its transaction.
    HoldCursor,
    /// Something was set in a way whose effect cannot be told from its words.
    Setting,
    /// Too much was set to be carried.
    Size,
    /// Channels that are listened on, or statements prepared by SQL: they are carried to another owner, but not shared.
    Session,
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Pin::Temporary => "a temporary table",
            Pin::AdvisoryLock => "an advisory lock",
            Pin::HoldCursor => "a cursor WITH HOLD",
            Pin::Setting => "a setting that the router could not read",
            Pin::Size => "what this session has set",
            Pin::Session => "a prepared statement or a channel",
        })
    }
}

/// A change of the session that can be repeated on another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Set { name: String, sql: String },
    Reset { name: String, sql: String },
    ResetAll,
    Listen { channel: String, sql: String },
    Unlisten { channel: String },
    UnlistenAll,
    Prepare { name: String, sql: String },
    Deallocate { name: String },
    DeallocateAll,
    DiscardAll,
}

/// A statement that decides whether what was set before it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Or a rollback, where the transaction had failed.
    Commit,
    Rollback,
    /// It takes back what was set since a savepoint, and the transaction goes on, even if it had failed.
    RollbackTo,
}

/// What a string of statements does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// It is one statement that runs as a whole or not at all, and cannot commit inside.
    pub(crate) repeatable: bool,
    /// What holds once it has succeeded.
    pub(crate) changes: Vec<Change>,
    /// What decides on changes before it, and before how many of these it stands.
    pub(crate) endings: Vec<(usize, Ending)>,
    pub(crate) pin: Option<Pin>,
    /// Whom it says that the session, or the transaction, is for: `SET LOCAL segue.tenant = 'acme'`.
    pub(crate) tenants: Vec<String>,
    /// What becomes of how later texts are parsed.
    pub(crate) parsing: Parsing,
}

impl Effects {
    /// Of statements that do nothing to their session.
    pub(crate) fn none(repeatable: bool) -> Effects {
        Effects { repeatable, ..Effects::default() }
    }
}

/// Statements that can be sent again after the fence refused them before anything was answered.
const REPEATABLE: &[&str] =
    &["insert", "update", "delete", "merge", "with", "select", "truncate", "values", "execute", "table"];

/// A word that tells something wherever it stands in a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    Temporary,
    Into,
    Hold,
    SetConfig,
    AdvisoryLock,
    Tenant,
    /// Which schemas are looked at, and where a table is made.
    Path,
    /// A function that leaves something with the session.
    Leaves,
}

/// `first` is the first byte, in lower case, of a word without its quotes.
fn tell(first: u8, word: &[u8]) -> Option<Tell> {
    let is = |text: &str| word.eq_ignore_ascii_case(text.as_bytes());
    match first {
        b't' if is("temp") || is("temporary") => Some(Tell::Temporary),
        b'i' if is("into") => Some(Tell::Into),
        b'h' if is("hold") => Some(Tell::Hold),
        b's' if is("set_config") => Some(Tell::SetConfig),
        b's' if is("segue") => Some(Tell::Tenant),
        b's' if is("search_path") || is("schema") => Some(Tell::Path),
        b's' if is("set_limit") => Some(Tell::Leaves),
        b'd' if is("dblink_connect") || is("dblink_connect_u") => Some(Tell::Leaves),
        // By any of its names: no schema of a user's begins so.
        b'p' if is_temporary(word) => Some(Tell::Temporary),
        b'p' if is("pg_advisory_lock")
            || is("pg_advisory_lock_shared")
            || is("pg_try_advisory_lock")
            || is("pg_try_advisory_lock_shared") =>
        {
            Some(Tell::AdvisoryLock)
        }
        _ => None,
    }
}

fn is_temporary(schema: &[u8]) -> bool {
    schema.get(..7).is_some_and(|begin| begin.eq_ignore_ascii_case(b"pg_temp"))
}

/// Reads a string of statements.
pub(crate) fn read(sql: &[u8]) -> Effects {
    scan(sql).0
}

/// Whether a string of statements can be sent again, if it does nothing to its session whatever its constants are; `None`:
/// each text must be read.
pub(crate) fn plain(sql: &[u8]) -> Option<bool> {
    if is_commit(sql) {
        return Some(false);
    }
    let (effects, has_tells) = scan(sql);
    // Without a word that tells, what a statement does is told by its first words.
    let is_plain = !has_tells && effects == Effects::none(effects.repeatable);
    is_plain.then_some(effects.repeatable)
}

/// Whether it is a commit and nothing else: in a query of its own, its answer says all there is to say of it.
fn is_commit(sql: &[u8]) -> bool {
    let mut rest = Words::of(sql);
    let is_commit = |first: Statement| first.count <= 2 && (first.is(0, "commit") || first.is(0, "end"));
    Statement::next(&mut rest).is_some_and(is_commit) && Statement::next(&mut rest).is_none()
}

/// Where a string of statements throws single prepared statements away: the whole of each such statement, and the name.
pub(crate) fn deallocations(sql: &[u8]) -> Vec<(Range<usize>, String)> {
    let mut found = Vec::new();
    let mut rest = Words::of(sql);
    while let Some(statement) = Statement::next(&mut rest) {
        if statement.is(0, "deallocate")
            && let Some(name) = statement.deallocated()
        {
            let from = (statement.text.as_ptr() as usize).saturating_sub(sql.as_ptr() as usize);
            found.push((from..from + statement.text.len(), name));
        }
    }
    found
}

/// The name, of a text that deallocates one and does nothing else.
pub(crate) fn deallocation(sql: &[u8]) -> Option<String> {
    let is_deallocate =
        |(_, from, to): (Token, usize, usize)| sql[from..to].eq_ignore_ascii_case(b"deallocate");
    // Most texts are told by their first word.
    Words::of(sql).next_token().filter(|word| is_deallocate(*word))?;
    let mut rest = Words::of(sql);
    let name = Statement::next(&mut rest)?.deallocated()?;
    Statement::next(&mut rest).is_none().then_some(name)
}

/// What it does, and whether any word of it tells something.
fn scan(sql: &[u8]) -> (Effects, bool) {
    let mut effects = Effects::default();
    let (mut statements, mut has_tells) = (0, false);
    let mut rest = Words::of(sql);
    while let Some(statement) = Statement::next(&mut rest) {
        statements += 1;
        effects.repeatable = statements == 1 && statement.starts_with(REPEATABLE);
        // INTO alone tells nothing.
        has_tells |= statement.tells.iter().any(|tell| *tell != Tell::Into);
        statement.read(&mut effects);
    }
    (effects, has_tells)
}

/// One statement of a string.
struct Statement<'a> {
    text: &'a [u8],
    /// Its first words, quoted names without their quotes.
    words: [&'a [u8]; 6],
    count: usize,
    tells: Vec<Tell>,
}

impl<'a> Statement<'a> {
    fn next(words: &mut Words<'a>) -> Option<Statement<'a>> {
        let mut statement = Statement { text: &[], words: [&[]; 6], count: 0, tells: Vec::new() };
        let mut span: Option<(usize, usize)> = None;
        let mut in_body = 0u32;
        while let Some((token, from, to)) = words.next_token() {
            if token == Token::End && in_body == 0 {
                if span.is_some() {
                    break;
                }
                continue;
            }
            span = Some((span.map_or(from, |(first, _)| first), to));
            if let Token::Word = token {
                let word = &words.sql[from..to];
                if statement.count < statement.words.len() {
                    statement.words[statement.count] = unquoted(word);
                    statement.count += 1;
                }
                // Most words tell nothing, and the first byte says so.
                match word[0].to_ascii_lowercase() {
                    // The body of an SQL function holds statements of its own.
                    b'a' if word.eq_ignore_ascii_case(b"atomic") => in_body += 1,
                    b'c' if in_body > 0 && word.eq_ignore_ascii_case(b"case") => in_body += 1,
                    b'e' if word.eq_ignore_ascii_case(b"end") => in_body = in_body.saturating_sub(1),
                    b'"' => {
                        let name = unquoted(word);
                        let first = name.first().map_or(0, u8::to_ascii_lowercase);
                        statement.tells.extend(tell(first, name));
                    }
                    first => statement.tells.extend(tell(first, word)),
                }
            }
        }
        let (from, to) = span?;
        statement.text = &words.sql[from..to];
        Some(statement)
    }

    fn word(&self, index: usize) -> String {
        String::from_utf8_lossy(self.words[index]).to_ascii_lowercase()
    }

    fn is(&self, index: usize, word: &str) -> bool {
        self.words[index].eq_ignore_ascii_case(word.as_bytes())
    }

    fn starts_with(&self, any: &[&str]) -> bool {
        any.iter().any(|word| self.is(0, word))
    }

    fn has(&self, tell: Tell) -> bool {
        self.tells.contains(&tell)
    }

    fn sql(&self) -> String {
        String::from_utf8_lossy(self.text).into_owned()
    }

    /// What is prepared to be committed keeps its settings, and what becomes of it later is nobody's session's affair.
    fn ending(&self) -> Option<Ending> {
        match self.words[0].first()?.to_ascii_lowercase() {
            b'c' | b'r' if self.is(1, "prepared") => None,
            b'c' if self.is(0, "commit") => Some(Ending::Commit),
            b'e' if self.is(0, "end") => Some(Ending::Commit),
            b'p' if self.is(0, "prepare") && self.is(1, "transaction") => Some(Ending::Commit),
            b'r' if self.is(0, "rollback") && (1..4).any(|at| self.is(at, "to")) => Some(Ending::RollbackTo),
            b'r' if self.is(0, "rollback") => Some(Ending::Rollback),
            b'a' if self.is(0, "abort") => Some(Ending::Rollback),
            _ => None,
        }
    }

    fn read(&self, effects: &mut Effects) {
        effects.endings.extend(self.ending().map(|ending| (effects.changes.len(), ending)));
        let first = self.words[0].first().map_or(0, u8::to_ascii_lowercase);
        match first {
            b's' if self.is(0, "set") => self.read_set(effects),
            b'r' if self.is(0, "reset") => self.read_reset(effects),
            b'l' if self.is(0, "listen") => {
                effects.changes.push(Change::Listen { channel: self.name(1), sql: self.sql() });
            }
            b'u' if self.is(0, "unlisten") => effects.changes.push(match self.count {
                1 => Change::UnlistenAll,
                _ => Change::Unlisten { channel: self.name(1) },
            }),
            b'p' if self.is(0, "prepare") && !self.is(1, "transaction") => {
                effects.changes.push(Change::Prepare { name: self.name(1), sql: self.sql() });
            }
            b'd' if self.is(0, "deallocate") => effects.changes.push(match self.deallocated() {
                Some(name) => Change::Deallocate { name },
                None => Change::DeallocateAll,
            }),
            b'd' if self.is(0, "discard") => match () {
                () if self.is(1, "all") => {
                    effects.changes.push(Change::DiscardAll);
                    effects.parsing = Parsing::Unknown;
                }
                () => {}
            },
            b'd' if self.is(0, "declare") && self.has(Tell::Hold) => self.pin(effects, Pin::HoldCursor),
            b'l' if self.is(0, "load") => self.pin(effects, Pin::Setting),
            b'c' if self.is(0, "create") && self.has(Tell::Temporary) => self.pin(effects, Pin::Temporary),
            _ if self.has(Tell::Into) && self.has(Tell::Temporary) => self.pin(effects, Pin::Temporary),
            _ => {}
        }
        if self.has(Tell::AdvisoryLock) {
            self.pin(effects, Pin::AdvisoryLock);
        }
        if self.has(Tell::SetConfig) && self.may_set_parsing() {
            effects.parsing = Parsing::Unknown;
        }
        let doubtful = self.has(Tell::SetConfig) && (!self.sets_locally() || self.names_temporary());
        if doubtful || self.has(Tell::Leaves) {
            self.pin(effects, Pin::Setting);
        }
    }

    /// Of a DEALLOCATE: the name; `None`: all.
    fn deallocated(&self) -> Option<String> {
        let at = if self.is(1, "prepare") { 2 } else { 1 };
        (!self.is(at, "all")).then(|| self.name(at))
    }

    fn pin(&self, effects: &mut Effects, pin: Pin) {
        effects.pin.get_or_insert(pin);
    }

    /// Where a word that there is begins in the text, within its quotes if it has any.
    fn place(&self, index: usize) -> usize {
        (self.words[index].as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize)
    }

    /// A name as PostgreSQL folds it: the tokens keep their quotes in the text, which tells.
    fn name(&self, index: usize) -> String {
        if index >= self.count {
            return String::new();
        }
        let (word, place) = (self.words[index], self.place(index));
        let quoted = place > 0 && self.text.get(place - 1) == Some(&b'"');
        let name = String::from_utf8_lossy(word);
        if quoted { name.replace("\"\"", "\"") } else { name.to_ascii_lowercase() }
    }

    /// Every `set_config` is given `true` as the last argument of its own: for the transaction only.
    fn sets_locally(&self) -> bool {
        let mut words = Words::of(self.text);
        // What is in brackets now: whether as the arguments of that function, and the last argument so far.
        let mut open: Vec<(bool, Vec<&[u8]>)> = Vec::new();
        let mut before: &[u8] = &[];
        while let Some((_, from, to)) = words.next_token() {
            let token = &self.text[from..to];
            match token {
                b"(" => open.push((unquoted(before).eq_ignore_ascii_case(b"set_config"), Vec::new())),
                b")" => match open.pop() {
                    Some((true, argument)) if !is_true(&argument) => return false,
                    _ => {}
                },
                b"," => open.iter_mut().last().into_iter().for_each(|(_, argument)| argument.clear()),
                _ => {}
            }
            if let Some((true, argument)) = open.last_mut()
                && !matches!(token, b"(" | b",")
            {
                argument.push(token);
            }
            before = token;
        }
        // An end that is missing is refused by the server, or the tokens were not told apart as it does.
        open.is_empty() && !words.is_doubtful()
    }

    /// A text in it may name the schema of temporary tables.
    fn names_temporary(&self) -> bool {
        self.text.windows(7).any(is_temporary)
    }
}

/// An argument that is the word TRUE and nothing else, by its place or by its name.
fn is_true(argument: &[&[u8]]) -> bool {
    let value = match argument {
        [name, b"=", b">", value] | [name, b":", b"=", value] if name.eq_ignore_ascii_case(b"is_local") => {
            value
        }
        [value] => value,
        _ => return false,
    };
    value.eq_ignore_ascii_case(b"true")
}

fn unquoted(word: &[u8]) -> &[u8] {
    word.strip_prefix(b"\"").and_then(|w| w.strip_suffix(b"\"")).unwrap_or(word)
}

#[cfg(test)]
mod tests;
