//! What a text is parsed by, beside itself: the settings that fix what its names and constants are, once and for all.

use super::{Statement, unquoted};
use crate::lexer::{Token, Words};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Settings by which servers read a text's names and constants when it is parsed.
const DECIDING: [&str; 15] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "lc_monetary",
    "lc_time",
    "role",
    "search_path",
    "session_authorization",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];
/// Where one of these is another one by now, servers look at the text again themselves before they execute it.
const LOOKED_AT_AGAIN: [&str; 3] = ["role", "search_path", "session_authorization"];

/// Whether a setting decides what a text means when it is parsed.
pub(crate) fn decides_parsing(name: &str) -> bool {
    DECIDING.contains(&name)
}

/// What becomes of how later texts are parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Parsing {
    #[default]
    Same,
    /// It is decided by these words, as a hash: whoever says the same has the same.
    By(u64),
    /// By something that the words do not tell.
    Unknown,
}

impl Parsing {
    /// Another statement decides.
    pub(super) fn set_by(&mut self, text: &[u8]) {
        let mut hasher = DefaultHasher::new();
        match self {
            Parsing::Same => {}
            Parsing::By(before) => before.hash(&mut hasher),
            Parsing::Unknown => return,
        }
        text.hash(&mut hasher);
        *self = Parsing::By(hasher.finish());
    }
}

impl Statement<'_> {
    /// Whether a `set_config` in it may set what texts are parsed by, for as long as its transaction lasts.
    pub(super) fn may_set_parsing(&self) -> bool {
        let mut words = Words::of(self.text);
        let mut begun = 0;
        while let Some((token, from, to)) = words.next_token() {
            let text = &self.text[from..to];
            begun = match (begun, token) {
                (_, Token::Word) if unquoted(text).eq_ignore_ascii_case(b"set_config") => 1,
                (1, Token::Other) if text == b"(" => 2,
                (2, Token::String) => {
                    let name = String::from_utf8_lossy(text).trim_matches('\'').to_ascii_lowercase();
                    if decides_parsing(&name) && !LOOKED_AT_AGAIN.contains(&&*name) {
                        return true;
                    }
                    0
                }
                // The name is not there to be read.
                (2, _) => return true,
                _ => 0,
            };
        }
        false
    }
}
