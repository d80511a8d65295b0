//! Tells the words of statements from everything that may hold bytes that look like words: strings, comments, numbers.
//!
//! It tells where a token ends just as PostgreSQL's scanner does, and knows no grammar. Whether a backslash escapes in
//! a plain string is a setting of the session, which is not known here: it is taken to be as by default, and
//! [`Words::is_doubtful`] says where the other way would make a difference.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A name, quoted or not, or a keyword.
    Word,
    /// A string constant of any kind; what stands before the quote, but for an E, is a word of its own.
    String,
    /// A run of digits. A point, a sign and an exponent are tokens of their own.
    Digits,
    /// `$1`.
    Parameter,
    /// A semicolon.
    End,
    /// Any other byte.
    Other,
}

/// Bytes that a word may go on with; it begins with any of them but a digit, and but the sign that comes before this is
/// asked.
const IN_WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] =
            (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'_' | b'$') || byte >= 0x80;
        byte += 1;
    }
    table
};

/// What a token is by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    Nothing,
    Word,
    Digits,
    Other,
    /// What follows tells.
    Unsure,
}

const BEGINS: [Begins; 256] = {
    let mut table = [Begins::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'-' | b'/' | b';' | b'\'' | b'e' | b'E' | b'"' | b'$' => Begins::Unsure,
            b if b.is_ascii_whitespace() => Begins::Nothing,
            b if b.is_ascii_digit() => Begins::Digits,
            b if IN_WORD[b as usize] => Begins::Word,
            _ => Begins::Other,
        };
        byte += 1;
    }
    table
};

/// Tells words from everything that may hold bytes that look like words.
#[derive(Debug)]
pub(crate) struct Words<'a> {
    pub(crate) sql: &'a [u8],
    at: usize,
    is_doubtful: bool,
}

impl<'a> Words<'a> {
    pub(crate) fn of(sql: &'a [u8]) -> Words<'a> {
        Words { sql, at: 0, is_doubtful: false }
    }

    /// What was read so far has a string, quoted name or comment without an end, or one whose end a setting decides.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// The next token and where it is.
    pub(crate) fn next_token(&mut self) -> Option<(Token, usize, usize)> {
        loop {
            let from = self.at;
            let token = match BEGINS[usize::from(*self.sql.get(from)?)] {
                Begins::Nothing => {
                    self.at += 1;
                    continue;
                }
                Begins::Word => self.skip_word(),
                Begins::Digits => {
                    self.skip_while(|b| b.is_ascii_digit());
                    Token::Digits
                }
                Begins::Other => self.skip_one(Token::Other),
                Begins::Unsure => match self.skip_unsure() {
                    Some(token) => token,
                    None => continue,
                },
            };
            return Some((token, from, self.at));
        }
    }

    /// A token that its first byte does not tell; `None`: it was a comment.
    fn skip_unsure(&mut self) -> Option<Token> {
        match (self.sql[self.at], self.sql.get(self.at + 1)) {
            (b'-', Some(b'-')) => {
                self.skip_while(|b| !matches!(b, b'\n' | b'\r'));
                return None;
            }
            (b'/', Some(b'*')) => {
                self.skip_comment();
                return None;
            }
            (b';', _) => return Some(self.skip_one(Token::End)),
            (b'\'', _) => self.skip_string(b'\'', false),
            (b'e' | b'E', Some(b'\'')) => {
                self.at += 1;
                self.skip_string(b'\'', true);
            }
            (b'e' | b'E', _) => return Some(self.skip_word()),
            (b'"', _) => {
                self.skip_string(b'"', false);
                return Some(Token::Word);
            }
            (b'$', _) => return Some(self.skip_dollar()),
            _ => return Some(self.skip_one(Token::Other)),
        }
        Some(Token::String)
    }

    fn skip_one(&mut self, token: Token) -> Token {
        self.at += 1;
        token
    }

    fn skip_word(&mut self) -> Token {
        self.skip_while(|b| IN_WORD[usize::from(b)]);
        Token::Word
    }

    fn skip_while(&mut self, is_part: impl Fn(u8) -> bool) {
        let rest = &self.sql[self.at..];
        self.at += rest.iter().position(|&b| !is_part(b)).unwrap_or(rest.len());
    }

    fn skip_comment(&mut self) {
        let mut depth = 0usize;
        while let Some(pair) = self.sql.get(self.at..self.at + 2) {
            match pair {
                b"/*" => depth += 1,
                b"*/" => depth -= 1,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            self.at += 2;
            if depth == 0 {
                return;
            }
        }
        self.at = self.sql.len();
        self.is_doubtful = true;
    }

    /// Skips to behind the closing quote; two quotes are one inside, and a backslash escapes where it does.
    fn skip_string(&mut self, quote: u8, escapes: bool) {
        self.at += 1;
        while let Some(&byte) = self.sql.get(self.at) {
            self.at += 1;
            if byte == b'\\' && escapes {
                self.at = (self.at + 1).min(self.sql.len());
            } else if byte == quote {
                self.is_doubtful |= !escapes && quote == b'\'' && self.sql.get(self.at - 2) == Some(&b'\\');
                if self.sql.get(self.at) != Some(&quote) {
                    return;
                }
                self.at += 1;
            }
        }
        self.is_doubtful = true;
    }

    /// A dollar-quoted string, a parameter, or the sign alone.
    fn skip_dollar(&mut self) -> Token {
        let rest = &self.sql[self.at + 1..];
        if rest.first().is_some_and(u8::is_ascii_digit) {
            self.at += 1;
            self.skip_while(|b| b.is_ascii_digit());
            return Token::Parameter;
        }
        let is_tag = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
        let tag_bytes = rest.iter().position(|b| !is_tag(b)).unwrap_or(rest.len());
        if rest.get(tag_bytes) != Some(&b'$') {
            self.at += 1;
            return Token::Other;
        }
        let tag = &self.sql[self.at..self.at + tag_bytes + 2];
        let body = self.at + tag.len();
        let end = self.sql[body..].windows(tag.len()).position(|window| window == tag);
        self.is_doubtful |= end.is_none();
        self.at = end.map_or(self.sql.len(), |end| body + end + tag.len());
        Token::String
    }
}
