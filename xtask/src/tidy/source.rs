//! A Rust source file, taken apart as far as the rules need it: code, comments, literals, and which lines are tests.
//!
//! It is a scanner, not a parser: it knows how comments, strings and characters begin and end, and how brackets match.

/// A source file. All three views have the same lines, and the same bytes at the same places.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// As it is.
    pub(super) text: &'a str,
    /// Code; comments and the contents of literals are spaces.
    pub(super) code: String,
    /// The contents of string literals; everything else is spaces.
    pub(super) literals: String,
    /// For each line, whether it belongs to an item under `#[cfg(test)]`.
    test_lines: Vec<bool>,
}

/// What a byte is part of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Code,
    Comment,
    Literal,
}

impl<'a> Source<'a> {
    /// Takes `text` apart.
    pub(super) fn new(text: &'a str) -> Source<'a> {
        let parts = parts(text.as_bytes());
        let code = view(text, &parts, Part::Code);
        let literals = view(text, &parts, Part::Literal);
        let test_lines = test_lines(&code);
        Source { text, code, literals, test_lines }
    }

    /// Whether line `index` (from 0) belongs to an item under `#[cfg(test)]`.
    pub(super) fn is_test_line(&self, index: usize) -> bool {
        self.test_lines.get(index).copied().unwrap_or(false)
    }

    /// Names of the functions that have a body, with the number of lines from signature to closing bracket.
    pub(super) fn functions(&self) -> Vec<(&str, usize)> {
        let mut found = Vec::new();
        for (at, _) in words(&self.code, "fn") {
            let after = &self.code[at + 2..];
            let name = after.trim_start();
            let len = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            // `fn(…)` is a type.
            if len == 0 {
                continue;
            }
            if let Some(end) = body_end(&self.code, at) {
                found.push((&name[..len], self.code[at..end].matches('\n').count() + 1));
            }
        }
        found
    }
}

/// Places where `word` stands alone in `code`, with their line (from 0).
pub(super) fn words<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = (usize, usize)> + 'c {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).filter_map(move |(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(in_word);
        let after = code[at + word.len()..].chars().next().is_some_and(in_word);
        (!before && !after).then(|| (at, line_of(code, at)))
    })
}

/// The line (from 0) of the byte at `at`.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count()
}

/// `text` with everything that is not `wanted` as spaces.
fn view(text: &str, parts: &[Part], wanted: Part) -> String {
    let keep = |(at, c): (usize, char)| match c {
        '\n' => "\n".to_owned(),
        c if parts[at] == wanted => c.to_string(),
        c => " ".repeat(c.len_utf8()),
    };
    text.char_indices().map(keep).collect()
}

/// What each byte is part of. The marks around a literal are code, so that brackets and words stay apart.
fn parts(text: &[u8]) -> Vec<Part> {
    let mut parts = vec![Part::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let (part, len) = if rest.starts_with(b"//") {
            (Part::Comment, rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()))
        } else if rest.starts_with(b"/*") {
            (Part::Comment, block_comment(rest))
        } else if let Some((marks, len)) = raw_string(text, at) {
            at += marks;
            (Part::Literal, len)
        } else if rest[0] == b'"' {
            at += 1;
            (Part::Literal, quoted(&rest[1..], b'"'))
        } else if let Some(len) = character(rest) {
            at += 1;
            (Part::Literal, len)
        } else {
            at += 1;
            continue;
        };
        let end = (at + len).min(text.len());
        parts[at..end].fill(part);
        // The closing mark of a literal is code.
        at = if part == Part::Literal { end + 1 } else { end };
    }
    parts
}

fn block_comment(text: &[u8]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while at < text.len() && depth > 0 {
        match &text[at..] {
            [b'/', b'*', ..] => (at, depth) = (at + 2, depth + 1),
            [b'*', b'/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

/// Length up to the closing `quote`; a backslash shields the next byte.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at
}

/// A raw string at `at`: length of its opening marks, and of its contents.
fn raw_string(text: &[u8], at: usize) -> Option<(usize, usize)> {
    let in_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let prefixed = at > 0 && matches!(text[at - 1], b'b' | b'c');
    let before = at.checked_sub(1 + usize::from(prefixed)).map(|i| text[i]);
    if text[at] != b'r' || before.is_some_and(in_word) {
        return None;
    }
    let hashes = text[at + 1..].iter().take_while(|&&b| b == b'#').count();
    let begin = at + 1 + hashes + 1;
    if text.get(begin - 1) != Some(&b'"') {
        return None;
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let len = text[begin..].windows(end.len()).position(|w| w == end);
    Some((begin - at, len.unwrap_or(text.len() - begin)))
}

/// Length of the contents of a character literal; `None` for a lifetime or anything else.
fn character(text: &[u8]) -> Option<usize> {
    match text {
        [b'\'', b'\\', ..] => Some(quoted(&text[1..], b'\'')),
        [b'\'', rest @ ..] => {
            let end = rest.iter().take(5).position(|&b| b == b'\'')?;
            let one = std::str::from_utf8(&rest[..end]).ok()?.chars().count() == 1;
            one.then_some(end)
        }
        _ => None,
    }
}

/// Where the body of the item whose signature begins at `at` has ended; `None` if it has no body.
fn body_end(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0_i32;
    let mut inside = false;
    for (i, b) in code.bytes().enumerate().skip(at) {
        match (b, inside) {
            (b'(' | b'[', false) => depth += 1,
            (b')' | b']', false) => depth -= 1,
            (b';', false) if depth == 0 => return None,
            (b'{', false) if depth == 0 => (inside, depth) = (true, 1),
            (b'{', true) => depth += 1,
            (b'}', true) if depth == 1 => return Some(i + 1),
            (b'}', true) => depth -= 1,
            _ => {}
        }
    }
    None
}

fn test_lines(code: &str) -> Vec<bool> {
    let mut lines = vec![code.contains("#![cfg(test)]"); code.lines().count()];
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let item = at + attribute.len();
        let end =
            body_end(code, item).unwrap_or_else(|| code[item..].find(';').map_or(code.len(), |i| item + i));
        let (first, last) = (line_of(code, at), line_of(code, end));
        lines.iter_mut().take(last + 1).skip(first).for_each(|line| *line = true);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            (r#"f("x\"y") + g"#, r#"f("    ") + g"#),
            (r##"f(r#"x"y"#) + g"##, r##"f(r#"   "#) + g"##),
            (r#"f(b"x", br"\", c"y")"#, r#"f(b" ", br" ", c" ")"#),
            (r"m('x', '\'', 'ü', '{')", r"m(' ', '  ', '  ', ' ')"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("r#type + for_r", "r#type + for_r"),
        ] {
            assert_eq!(Source::new(text).code, code, "{text}");
        }
        assert_eq!(Source::new(r#"f("x", 'y') // "z""#).literals.trim(), "x    y");
    }

    #[test]
    fn an_item_under_cfg_test_is_a_test_to_its_end_and_no_further() {
        let text = "fn a() {}\n#[cfg(test)]\nmod t {\n fn x() { \"}\" }\n}\nfn b() {}\n#[cfg(test)]\nuse c;\nfn d() {}\n";
        let source = Source::new(text);
        let tests: Vec<bool> = (0..9).map(|i| source.is_test_line(i)).collect();
        assert_eq!(tests, [false, true, true, true, true, false, true, true, false]);
    }

    #[test]
    fn functions_are_as_long_as_signature_and_body() {
        let text = "trait T { fn no(&self) -> [u8; 4]; }\nfn one() {}\nasync fn three(\n f: fn(u8) -> [u8; 2],\n) -> u8 { '}' as u8 }\n";
        assert_eq!(Source::new(text).functions(), [("one", 1), ("three", 3)]);
    }
}
