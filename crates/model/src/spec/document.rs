//! YAML as a tree in which every value knows its place.
//!
//! The tree knows nothing of what a spec means, so that reading it can go on after the first mistake.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Location, Spanned};

use super::problem::{Place, Problems};

/// A value and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    /// Where its key stands, for a value of a map.
    pub(super) key_place: Option<Place>,
    pub(super) content: Content,
}

/// What a value is.
#[derive(Debug)]
pub(super) enum Content {
    /// `~`, `null`, or nothing after a key.
    Nothing,
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Whole(i128),
    /// A number with a fraction.
    Fraction(f64),
    /// Text, also of block scalars.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(String, Node)>),
    /// A value that was already reported; nobody complains about it again.
    Faulty,
}

impl Content {
    /// What this is, for "expected …, found …".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Content::Nothing => "nothing",
            Content::Flag(_) => "true or false",
            Content::Whole(_) | Content::Fraction(_) => "a number",
            Content::Text(_) => "text",
            Content::List(_) => "a list",
            Content::Map(_) => "a map",
            Content::Faulty => "a faulty value",
        }
    }
}

/// Reads `text`; what cannot be read at all is reported, and `None` comes back.
pub(super) fn read(text: &str, problems: &mut Problems<'_>) -> Option<Node> {
    let place = Place { line: 1, column: 1, width: 1 };
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        problems.add_with_help(place, "the spec is empty", "start with `migration: NAME`");
        return None;
    }
    match parse(text, DuplicateKeyPolicy::Error) {
        Ok(node) => Some(node),
        Err(error) => {
            report(&error, problems);
            let duplicate =
                matches!(error.without_snippet(), serde_saphyr::Error::DuplicateMappingKey { .. });
            // A key that is there twice need not hide what else is wrong.
            if duplicate { parse(text, DuplicateKeyPolicy::FirstWins).ok() } else { None }
        }
    }
}

fn parse(text: &str, duplicate_keys: DuplicateKeyPolicy) -> Result<Node, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn report(error: &serde_saphyr::Error, problems: &mut Problems<'_>) {
    let mut place = error.location().map_or(Place { line: 1, column: 1, width: 1 }, place_of);
    // The parser sees the end of the file where the last line ought to be.
    let lines = problems.line_count();
    if place.line > lines {
        place = Place { line: lines, column: problems.line(lines).chars().count() + 1, width: 1 };
    }
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error.without_snippet() {
        let key = key.as_deref().unwrap_or("?");
        place.width = place.width.max(key.chars().count());
        return problems.add_with_help(
            place,
            format!("the key `{key}` is there twice"),
            "remove one of the two",
        );
    }
    if let serde_saphyr::Error::MultipleDocuments { .. } = error.without_snippet() {
        return problems.add_with_help(
            place,
            "a second YAML document begins",
            "one file describes one migration",
        );
    }
    let rendered = error.render();
    let message = rendered.lines().next().unwrap_or("unreadable").to_owned();
    let message = match (error.location(), message.rfind(" at line ")) {
        // The place is shown in front of the message already.
        (Some(_), Some(cut)) => message[..cut].to_owned(),
        _ => message,
    };
    match quoting_help(problems.line(place.line)) {
        Some(help) => problems.add_with_help(place, format!("this is not valid YAML: {message}"), help),
        None => problems.add(place, format!("this is not valid YAML: {message}")),
    }
}

/// The values of a spec that YAML trips over unless they are quoted.
fn quoting_help(line: &str) -> Option<&'static str> {
    let value = line.trim_start().trim_start_matches("- ").trim_start();
    let value = value.split_once(": ").map_or(value, |(_, value)| value.trim_start());
    if value.starts_with('*') {
        Some("quote a pattern that starts with `*`: \"*.orders\"")
    } else if value.starts_with('"') {
        Some("put single quotes around a name that holds double quotes: '\"Order\".\"Item\"'")
    } else if line.contains("${") && line.contains(['{', '[']) {
        Some("quote a value with ${…} inside { } or [ ]: \"${NAME}\"")
    } else {
        None
    }
}

fn place_of(location: Location) -> Place {
    let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX).max(1);
    Place {
        line: number(location.line()),
        column: number(location.column()),
        width: number(location.span().len()),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Content>::deserialize(deserializer)?;
        Ok(Self { place: place_of(spanned.referenced), key_place: None, content: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
        Ok(Content::Nothing)
    }

    fn visit_none<E: de::Error>(self) -> Result<Content, E> {
        Ok(Content::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Flag(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Whole(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Whole(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Content, E> {
        Ok(Content::Whole(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Content, E> {
        Ok(Content::Whole(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Fraction(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Content::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Content, A::Error> {
        let mut map = Vec::new();
        while let Some((key, mut value)) = entries.next_entry::<Spanned<String>, Node>()? {
            value.key_place = Some(place_of(key.referenced));
            map.push((key.value, value));
        }
        Ok(Content::Map(map))
    }
}
