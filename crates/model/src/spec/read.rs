//! From a tree of YAML to values of known form; what has the wrong form is reported and left out.

use super::document::{Content, Node};
use super::problem::{Place, Problems, did_you_mean, nearest};
use super::quantity::{parse_bytes, parse_duration};
use super::rollback::Database;
use super::router::{RouterAuth, RouterPool};
use super::{Create, Profile};
use crate::switch::rollback::Then;

/// A value and where it stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) place: Place,
    /// Where its key stands; the value's own place outside of a map.
    pub(super) key_place: Place,
}

/// A form that a value can have. `None` means that a problem was added, now or earlier.
pub(super) trait Read: Sized {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self>;
}

impl<T: Read> Read for At<T> {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        let (place, key_place) = (node.place, node.key_place.unwrap_or(node.place));
        Some(At { value: T::read(node, problems)?, place, key_place })
    }
}

/// Says that a value has the wrong form, unless its fault is known already.
fn expected<T>(what: &str, node: &Node, problems: &mut Problems<'_>) -> Option<T> {
    let found = node.content.kind();
    match node.content {
        Content::Faulty => {}
        Content::Whole(_) | Content::Fraction(_) | Content::Flag(_) if what.contains("text") => {
            problems.add_with_help(node.place, format!("expected {what}, found {found}"), "put it in quotes");
        }
        _ => problems.add(node.place, format!("expected {what}, found {found}")),
    }
    None
}

impl Read for String {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match node.content {
            Content::Text(text) => Some(text),
            _ => expected("text", &node, problems),
        }
    }
}

impl Read for bool {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match &node.content {
            Content::Flag(flag) => Some(*flag),
            Content::Text(text) => match text.as_str() {
                "true" => Some(true),
                "false" => Some(false),
                _ => expected("true or false", &node, problems),
            },
            _ => expected("true or false", &node, problems),
        }
    }
}

/// A number without a unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count(pub(super) u64);

impl Read for Count {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        let number = match &node.content {
            Content::Whole(number) => u64::try_from(*number).ok(),
            // A variable can only bring text.
            Content::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        number.map(Count).or_else(|| expected("a whole number", &node, problems))
    }
}

/// A number, also with a fraction or below zero; `None` in it if it was reported as none. So it is known to be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Number(pub(super) Option<f64>);

impl Read for Number {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        let number = match &node.content {
            Content::Whole(number) => Some(*number as f64),
            Content::Fraction(number) => Some(*number),
            Content::Text(text) => text.trim().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number: &f64| number.is_finite());
        Some(Number(number.or_else(|| expected("a number", &node, problems))))
    }
}

/// A size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) u64);

impl Read for Bytes {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match &node.content {
            Content::Whole(number) if *number >= 0 => u64::try_from(*number).ok().map(Bytes),
            Content::Text(text) => match parse_bytes(text) {
                Ok(bytes) => Some(Bytes(bytes)),
                Err(error) => {
                    problems.add(node.place, error.to_string());
                    None
                }
            },
            _ => expected("a size such as 16MiB", &node, problems),
        }
    }
}

/// A duration in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span(pub(super) u64);

impl Read for Span {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match &node.content {
            Content::Whole(number) if *number >= 0 => u64::try_from(*number).ok().map(Span),
            Content::Text(text) => match parse_duration(text) {
                Ok(duration) => u64::try_from(duration.as_millis()).ok().map(Span),
                Err(error) => {
                    problems.add(node.place, error.to_string());
                    None
                }
            },
            _ => expected("a duration such as 500ms", &node, problems),
        }
    }
}

impl Read for Profile {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        one_of(
            node,
            &Profile::ALL,
            Profile::name,
            "there is no profile",
            "use dev, staging or prod",
            problems,
        )
    }
}

impl Read for Create {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        one_of(
            node,
            &Create::ALL,
            Create::name,
            "tables cannot be created as",
            "use none or missing",
            problems,
        )
    }
}

impl Read for Then {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        one_of(node, &Then::ALL, Then::name, "a trigger cannot", "use alert or reverse", problems)
    }
}

impl Read for Database {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        let help = "use source, target or control";
        one_of(node, &Database::ALL, Database::name, "there is no database", help, problems)
    }
}

impl Read for RouterAuth {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        one_of(
            node,
            &RouterAuth::ALL,
            RouterAuth::name,
            "there is no login by",
            "use scram or trust",
            problems,
        )
    }
}

impl Read for RouterPool {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        let help = "use session or transaction";
        one_of(
            node,
            &RouterPool::ALL,
            RouterPool::name,
            "server connections are not shared by",
            help,
            problems,
        )
    }
}

/// One of some words.
fn one_of<T: Copy>(
    node: Node,
    all: &[T],
    name: fn(T) -> &'static str,
    wrong: &str,
    help: &str,
    problems: &mut Problems<'_>,
) -> Option<T> {
    let place = node.place;
    let text = String::read(node, problems)?;
    let found = all.iter().copied().find(|one| name(*one) == text);
    if found.is_none() {
        let names = all.iter().map(|one| name(*one));
        let help = nearest(&text, names).map_or_else(|| help.to_owned(), did_you_mean);
        problems.add_with_help(place, format!("{wrong} `{text}`"), help);
    }
    found
}

impl<T: Read> Read for Vec<T> {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match node.content {
            // An item of the wrong form is reported and the rest still looked at.
            Content::List(items) => {
                Some(items.into_iter().filter_map(|item| T::read(item, problems)).collect())
            }
            _ => expected("a list", &node, problems),
        }
    }
}

impl From<Count> for u64 {
    fn from(count: Count) -> u64 {
        count.0
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> u64 {
        bytes.0
    }
}

impl From<Span> for u64 {
    fn from(span: Span) -> u64 {
        span.0
    }
}

/// Something that a later version will do: read far enough to be checked for its form, and then refused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expression;

impl Read for Expression {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match node.content {
            Content::Text(_) | Content::Whole(_) | Content::Fraction(_) | Content::Flag(_) => {
                Some(Expression)
            }
            _ => expected("an SQL expression", &node, problems),
        }
    }
}

/// A map from columns to SQL expressions, to be refused as [`Expression`] is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expressions;

impl Read for Expressions {
    fn read(node: Node, problems: &mut Problems<'_>) -> Option<Self> {
        match node.content {
            Content::Map(entries) => {
                let count = entries.len();
                let read =
                    entries.into_iter().filter_map(|(_, value)| Expression::read(value, problems)).count();
                (read == count).then_some(Expressions)
            }
            _ => expected("a map from columns to SQL expressions", &node, problems),
        }
    }
}

/// The keys of one map while they are taken out of it.
pub(super) struct Fields {
    entries: Vec<(String, Node)>,
}

impl Fields {
    /// Opens a map, and reports keys that are not in `known` and `required` ones that are missing.
    pub(super) fn open(
        node: Node,
        what: &str,
        known: &[&str],
        required: &[&str],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        let key_place = node.key_place.unwrap_or(node.place);
        let entries = match node.content {
            Content::Map(entries) => entries,
            // A key whose every line is commented out.
            Content::Nothing => Vec::new(),
            Content::Faulty => return None,
            other => {
                let message = format!("expected a map, found {}", other.kind());
                problems.add_with_help(node.place, message, format!("its keys: {}", known.join(", ")));
                return None;
            }
        };
        let mut missing: Vec<&str> = required
            .iter()
            .copied()
            .filter(|key| !entries.iter().any(|(present, _)| present == key))
            .collect();
        for (key, value) in entries.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            let meant = nearest(key, known.iter().copied());
            let help = meant.map_or_else(|| format!("known here: {}", known.join(", ")), did_you_mean);
            problems.add_with_help(
                value.key_place.unwrap_or(value.place),
                format!("unknown key `{key}`"),
                help,
            );
            // A misspelt key is one mistake, not two.
            missing.retain(|key| Some(*key) != meant);
        }
        if !missing.is_empty() {
            let missing: Vec<String> = missing.iter().map(|key| format!("`{key}`")).collect();
            problems.add(key_place, format!("{what} lacks {}", missing.join(", ")));
        }
        Some(Self { entries })
    }

    /// Takes the value of `key`, if it is there and of the right form.
    pub(super) fn take<T: Read>(&mut self, key: &str, problems: &mut Problems<'_>) -> Option<At<T>> {
        let at = self.entries.iter().position(|(present, _)| present == key)?;
        let (_, node) = self.entries.swap_remove(at);
        At::read(node, problems)
    }
}
