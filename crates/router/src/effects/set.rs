//! What SET and RESET do: by which name a setting is carried, and what it says besides.

use super::{Change, Effects, Pin, Statement, decides_parsing, is_temporary};
use crate::lexer::Words;

impl Statement<'_> {
    /// Of what `search_path` is set to: the first schema that there is for certain is that of temporary tables.
    fn begins_with_temporary(&self, at: usize) -> bool {
        let value = self.text.get(self.place(at) + self.words[at].len()..).unwrap_or_default();
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$');
        let mut schemas = value.split(|byte| !is_of_name(byte)).filter(|word| !word.is_empty());
        let said = |word: &&[u8]| !word.eq_ignore_ascii_case(b"to") && !word.eq_ignore_ascii_case(b"$user");
        schemas.find(said).is_some_and(is_temporary)
    }

    pub(super) fn read_set(&self, effects: &mut Effects) {
        let is_scoped = self.is(1, "local") || self.is(1, "session") && !self.is(2, "authorization");
        let at = if is_scoped { 2 } else { 1 };
        if self.is(at, "segue") && self.dotted(at).as_deref() == Some("tenant") {
            effects.tenants.extend(assigned(&self.sql()));
        }
        if (self.is(at, "search_path") || self.is(at, "schema")) && self.begins_with_temporary(at) {
            // A table that is made then is one of the session's, however it is made.
            self.pin(effects, Pin::Temporary);
        }
        let name = match self.word(at).as_str() {
            // These hold for the transaction.
            "transaction" | "constraints" => return,
            "" => return,
            "time" => "timezone".to_owned(),
            "names" => "client_encoding".to_owned(),
            "session" => "session_authorization".to_owned(),
            "schema" => "search_path".to_owned(),
            "xml" => "xmloption".to_owned(),
            name => name.to_owned(),
        };
        if name == "characteristics" && self.is(1, "session") && self.dotted(at).is_none() {
            return self.read_characteristics(effects);
        }
        // A name in two parts: its second word follows the dot directly.
        let name = match self.dotted(at) {
            Some(second) => format!("{name}.{second}"),
            None => name,
        };
        if decides_parsing(&name) {
            effects.parsing.set_by(self.text);
        }
        if self.is(1, "local") {
            // It holds for the transaction.
            return;
        }
        effects.changes.push(match self.ends_with_default() {
            true => Change::Reset { name, sql: self.sql() },
            false => Change::Set { name, sql: self.sql() },
        });
    }

    /// Each mode is a setting of its own: one of them does not take another one's place.
    fn read_characteristics(&self, effects: &mut Effects) {
        let mut words = Words::of(self.text);
        let mut modes = Vec::new();
        while let Some((_, from, to)) = words.next_token() {
            modes.push(self.text[from..to].to_ascii_lowercase());
        }
        // Behind SET SESSION CHARACTERISTICS AS TRANSACTION.
        let mut modes: Vec<&[u8]> = modes.iter().skip(5).map(Vec::as_slice).collect();
        modes.retain(|mode| *mode != b",");
        let mut rest = &modes[..];
        while !rest.is_empty() {
            let (setting, value, words) = match rest {
                [b"isolation", b"level", b"serializable", ..] => ("isolation", "serializable", 3),
                [b"isolation", b"level", b"repeatable", b"read", ..] => ("isolation", "repeatable read", 4),
                [b"isolation", b"level", b"read", b"committed", ..] => ("isolation", "read committed", 4),
                [b"isolation", b"level", b"read", b"uncommitted", ..] => ("isolation", "read uncommitted", 4),
                [b"read", b"only", ..] => ("read_only", "on", 2),
                [b"read", b"write", ..] => ("read_only", "off", 2),
                [b"not", b"deferrable", ..] => ("deferrable", "off", 2),
                [b"deferrable", ..] => ("deferrable", "on", 1),
                _ => return self.pin(effects, Pin::Setting),
            };
            let name = format!("default_transaction_{setting}");
            let sql = format!("SET {name} = '{value}'");
            effects.changes.push(Change::Set { name, sql });
            rest = &rest[words..];
        }
    }

    /// The last word is DEFAULT, or LOCAL, which a time zone may be set to: the same as a reset.
    fn ends_with_default(&self) -> bool {
        let text = self.text.trim_ascii_end();
        let is_default = |word: &str| self.count > 1 && self.is(self.count - 1, word);
        (is_default("default") || is_default("local"))
            && text.len() == self.place(self.count - 1) + self.words[self.count - 1].len()
    }

    fn dotted(&self, at: usize) -> Option<String> {
        if at + 1 >= self.count {
            return None;
        }
        let end = self.place(at) + self.words[at].len();
        let behind = self.text.get(end..)?;
        behind.strip_prefix(b"\"").unwrap_or(behind).starts_with(b".").then(|| self.word(at + 1))
    }

    pub(super) fn read_reset(&self, effects: &mut Effects) {
        let name = match self.word(1).as_str() {
            "all" => {
                effects.parsing.set_by(self.text);
                return effects.changes.push(Change::ResetAll);
            }
            "time" => "timezone".to_owned(),
            "session" => "session_authorization".to_owned(),
            name => name.to_owned(),
        };
        let name = self.dotted(1).map_or(name.clone(), |second| format!("{name}.{second}"));
        if decides_parsing(&name) {
            effects.parsing.set_by(self.text);
        }
        effects.changes.push(Change::Reset { name, sql: self.sql() });
    }
}

/// The value that a `SET name TO value` or `set_config` assigns, where it is one literal or word.
pub(crate) fn assigned(sql: &str) -> Option<String> {
    let literals: Vec<&str> = sql.split('\'').collect();
    match (literals.as_slice(), sql.contains("set_config(")) {
        ([_, _, _, value, _], true) | ([_, value, _], false) => Some((*value).to_owned()),
        ([_], false) => {
            let (_, value) = sql.rsplit_once(['=', ' '])?;
            Some(value.trim().to_owned())
        }
        // Quotes within quotes: a tenant is not called so.
        _ => None,
    }
}
