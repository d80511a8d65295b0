//! Definitions as a server writes them down (`pg_get_constraintdef` and its like), in the words that it finds for them once
//! it has been told them.
//!
//! What a server writes down it does not always write down again when it is told that: `v IN ('a', 'b')` of a varchar is
//! `(ARRAY['a'::character varying, …])::text[]` where it was made, and `ARRAY[('a'::character varying)::text, …]` where that
//! was said again, by `pg_dump` or by Segue. Two steps of PostgreSQL's parser are the reason, and both are taken here:
//!
//! * A cast of an array that is written out is one of each of its elements (`transformTypeCast`).
//! * `(a AND b) AND c` is `a AND b AND c`, and so with OR (`makeAndExpr`). BETWEEN and comparisons of rows are two conditions
//!   joined by AND when they are first told, and lose their brackets the second time.
//!
//! A parser makes the same of both texts. Two definitions that are settled to the same text are therefore the same, and a
//! settled one can be told in place of the other. What is not understood stays as it is: of two that are the same one may
//! then look like another (an array cast to a domain, or to a type of another length; expressions of statistics, which are
//! written without most brackets). It knows nothing of tables, nor of who compares.

/// Brackets within brackets. What goes deeper stays as it is, so that it cannot exhaust our stack.
const DEPTH_MAX: usize = 200;

/// A piece of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece<'t> {
    /// A word, a quoted name, a string, blanks, `::`, or any other single sign.
    Token(&'t str),
    /// `(` or `[`, and what stands within.
    Group(&'t str, Vec<Piece<'t>>),
}
use Piece::{Group, Token};

/// `definition` in the words that a server finds for it once it has been told it.
pub(crate) fn settled(definition: &str) -> String {
    // Most have nothing of the kind.
    let may_change = ["(ARRAY[", ") AND ", ") OR "].iter().any(|sign| definition.contains(sign));
    let pieces = if may_change { parsed(definition) } else { None };
    match pieces {
        Some(pieces) => {
            let mut text = String::with_capacity(definition.len());
            spell(&pieces, &mut text);
            text
        }
        None => definition.to_owned(),
    }
}

/// Its pieces, settled from the innermost brackets outwards; `None` if brackets or quotes do not match.
fn parsed(definition: &str) -> Option<Vec<Piece<'_>>> {
    let mut open: Vec<(&str, Vec<Piece<'_>>)> = Vec::new();
    let mut level = Vec::new();
    let mut rest = definition;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_bytes(rest)?);
        rest = after;
        match token {
            "(" | "[" if open.len() == DEPTH_MAX => return None,
            "(" | "[" => open.push((token, std::mem::take(&mut level))),
            ")" | "]" => {
                let (bracket, outer) = open.pop()?;
                if (bracket == "(") != (token == ")") {
                    return None;
                }
                let within = std::mem::replace(&mut level, outer);
                level.push(Group(bracket, joined(spread(within))));
            }
            _ => level.push(Token(token)),
        }
    }
    open.is_empty().then(|| joined(spread(level)))
}

/// How long the token is that `text` begins with; `None` if it is a quoted one without an end.
fn token_bytes(text: &str) -> Option<usize> {
    let run = |is_of: fn(char) -> bool| text.find(|c: char| !is_of(c)).unwrap_or(text.len());
    match text.chars().next()? {
        quote @ ('\'' | '"') => quoted_bytes(text, quote),
        ':' if text.starts_with("::") => Some(2),
        c if is_of_word(c) => Some(run(is_of_word)),
        c if c.is_whitespace() => Some(run(char::is_whitespace)),
        c => Some(c.len_utf8()),
    }
}

/// Backslashes mean themselves: servers never write `E'…'` in definitions.
fn quoted_bytes(text: &str, quote: char) -> Option<usize> {
    let mut end = 1;
    loop {
        end += text[end..].find(quote)? + 1;
        // A doubled one is part of it.
        if !text[end..].starts_with(quote) {
            return Some(end);
        }
        end += 1;
    }
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// A word or a quoted name.
fn is_name(piece: &Piece<'_>) -> bool {
    matches!(piece, Token(token) if token.starts_with(|c: char| c == '"' || is_of_word(c)))
}

fn spell(pieces: &[Piece<'_>], text: &mut String) {
    for piece in pieces {
        match piece {
            Token(token) => text.push_str(token),
            Group(bracket, within) => {
                text.push_str(bracket);
                spell(within, text);
                text.push_str(if *bracket == "(" { ")" } else { "]" });
            }
        }
    }
}

/// Every `(ARRAY[a, b])::t[]` as `ARRAY[(a)::t, (b)::t]`.
fn spread(mut level: Vec<Piece<'_>>) -> Vec<Piece<'_>> {
    let mut at = 0;
    while at < level.len() {
        // Behind a name these are the arguments of a function.
        let is_called = at > 0 && is_name(&level[at - 1]);
        let cast = if is_called { None } else { cast(&level[at..]) };
        if let Some((array, taken)) = cast {
            level.splice(at..at + taken, array);
        }
        at += 1;
    }
    level
}

/// The array without the cast that `pieces` begin with, and how many of them it takes the place of.
fn cast<'t>(pieces: &[Piece<'t>]) -> Option<(Vec<Piece<'t>>, usize)> {
    let [Group("(", within), Token("::"), after @ ..] = pieces else { return None };
    let elements = elements(within)?;
    let form = element_type(after)?;
    // The array, `::`, the type, and its `[]`.
    Some((vec![Token("ARRAY"), Group("[", each(elements, form))], form.len() + 3))
}

/// The elements, if `pieces` are an array that is written out, and nothing else. An empty one keeps its cast: nothing else
/// says what it is an array of.
fn elements<'p, 't>(pieces: &'p [Piece<'t>]) -> Option<&'p [Piece<'t>]> {
    match pieces {
        [Token("ARRAY"), Group("[", elements)] if !elements.is_empty() => Some(elements.as_slice()),
        _ => None,
    }
}

/// The type of which `pieces` begin with an array, as `format_type` writes it.
fn element_type<'p, 't>(pieces: &'p [Piece<'t>]) -> Option<&'p [Piece<'t>]> {
    let mut end = match pieces {
        [schema, Token("."), name, ..] if is_name(schema) && is_name(name) => 3,
        [name, ..] if is_name(name) => 1,
        _ => return None,
    };
    loop {
        end += match &pieces[end..] {
            // More brackets would be of something that servers do not write.
            [Group("[", within), Group(..), ..] if within.is_empty() => return None,
            [Group("[", within), ..] if within.is_empty() => return Some(&pieces[..end]),
            [Group("(", _), ..] => 1,
            [Token(" "), Token(word), ..] if is_of_type(word) => 2,
            _ => return None,
        };
    }
}

/// The words that follow the first one of a type's name.
fn is_of_type(word: &str) -> bool {
    matches!(
        word,
        "varying"
            | "precision"
            | "with"
            | "without"
            | "time"
            | "zone"
            | "year"
            | "month"
            | "day"
            | "hour"
            | "minute"
            | "second"
            | "to"
    )
}

/// Every element cast to `form`; in an array of arrays, those of the innermost.
fn each<'t>(elements: &[Piece<'t>], form: &[Piece<'t>]) -> Vec<Piece<'t>> {
    let mut all = Vec::new();
    for (at, element) in elements.split(|piece| *piece == Token(",")).enumerate() {
        if at > 0 {
            all.extend([Token(","), Token(" ")]);
        }
        let element = match element {
            [Token(" "), element @ ..] => element,
            element => element,
        };
        match self::elements(element) {
            Some(inner) => all.extend([Token("ARRAY"), Group("[", each(inner, form))]),
            None => {
                all.extend([Group("(", element.to_vec()), Token("::")]);
                all.extend_from_slice(form);
            }
        }
    }
    all
}

/// `(a AND b) AND c` as `a AND b AND c`. Servers put brackets around whatever else AND or OR join.
fn joined(mut level: Vec<Piece<'_>>) -> Vec<Piece<'_>> {
    let first = match level.as_slice() {
        [Group("(", first), Token(" "), Token(word), ..] if is_joined_by(first, word) => Some(first.clone()),
        _ => None,
    };
    if let Some(first) = first {
        level.splice(..1, first);
    }
    level
}

/// Whether `word` is AND or OR, and all that joins these.
fn is_joined_by(pieces: &[Piece<'_>], word: &str) -> bool {
    let has = |wanted: &str| pieces.iter().any(|piece| matches!(piece, Token(token) if *token == wanted));
    match word {
        "AND" => has("AND") && !has("OR") && !has("BETWEEN"),
        "OR" => has("OR") && !has("AND"),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
