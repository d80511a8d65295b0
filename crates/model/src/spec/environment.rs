//! `${NAME}` and `${NAME:-default}` in the values of a spec; `$$` is a dollar sign.
//!
//! The environment is a function from a name to its value; whose environment it is, is not known here.

use super::document::{Content, Node};
use super::problem::{Place, Problems};

/// Looks up an environment variable; `None` if it is not set.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why a text cannot be expanded, and the part of it that is to blame.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Missing(String),
    Unclosed,
    BadName(String),
}

/// Replaces the variables in every text value below `node`; keys are left as they are.
pub(super) fn expand_all(node: &mut Node, lookup: Lookup<'_>, problems: &mut Problems<'_>) {
    match &mut node.content {
        Content::Text(text) if text.contains('$') => match expand(text, lookup) {
            Ok(expanded) => *text = expanded,
            Err(failures) => {
                for failure in failures {
                    report(&failure, node.place, problems);
                }
                node.content = Content::Faulty;
            }
        },
        Content::List(items) => items.iter_mut().for_each(|item| expand_all(item, lookup, problems)),
        Content::Map(entries) => {
            entries.iter_mut().for_each(|(_, value)| expand_all(value, lookup, problems))
        }
        Content::Nothing | Content::Flag(_) | Content::Whole(_) | Content::Fraction(_) => {}
        Content::Text(_) | Content::Faulty => {}
    }
}

fn expand(text: &str, lookup: Lookup<'_>) -> Result<String, Vec<Failure>> {
    let mut expanded = String::with_capacity(text.len());
    let mut failures = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('{') {
            let Some(end) = inside.find('}') else {
                failures.push(Failure::Unclosed);
                break;
            };
            match value_of(&inside[..end], lookup) {
                Ok(value) => expanded.push_str(&value),
                Err(failure) => failures.push(failure),
            }
            rest = &inside[end + 1..];
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    if failures.is_empty() { Ok(expanded) } else { Err(failures) }
}

fn value_of(reference: &str, lookup: Lookup<'_>) -> Result<String, Failure> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let is_name = !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !is_name {
        return Err(Failure::BadName(name.to_owned()));
    }
    match (lookup(name), default) {
        // As in a shell, `:-` also stands in for a variable that is set to nothing.
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(Failure::Missing(name.to_owned())),
    }
}

fn report(failure: &Failure, value: Place, problems: &mut Problems<'_>) {
    let (blamed, message, help) = match failure {
        Failure::Missing(name) => (
            format!("${{{name}}}"),
            format!("the environment variable `{name}` is not set"),
            format!("set it, or give a default: ${{{name}:-…}}"),
        ),
        Failure::Unclosed => (
            "${".to_owned(),
            "`${` is not closed".to_owned(),
            "add `}`, or write `$${` for the characters".to_owned(),
        ),
        Failure::BadName(name) => (
            format!("${{{name}"),
            format!("`{name}` is not the name of an environment variable"),
            "write ${NAME} with letters, digits and _, or `$$` for a dollar sign".to_owned(),
        ),
    };
    problems.add_with_help(locate(&blamed, value, problems), message, help);
}

/// The place of `blamed` on the value's first line, if it is there as written.
fn locate(blamed: &str, value: Place, problems: &Problems<'_>) -> Place {
    let line = problems.line(value.line);
    let from = line.char_indices().nth(value.column - 1).map_or(line.len(), |(at, _)| at);
    match line[from..].find(blamed) {
        Some(at) => Place {
            line: value.line,
            column: line[..from + at].chars().count() + 1,
            width: blamed.chars().count(),
        },
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db.example".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${HOST}".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced() {
        for (text, expanded) in [
            ("plain", "plain"),
            ("${HOST}", "db.example"),
            ("a ${HOST} b ${HOST}", "a db.example b db.example"),
            ("${NONE:-fallback}", "fallback"),
            ("${NONE:-}", ""),
            ("${EMPTY:-fallback}", "fallback"),
            ("${EMPTY}", ""),
            ("${HOST:-fallback}", "db.example"),
            ("${NONE:-a:-b}", "a:-b"),
            ("${NESTED}", "${HOST}"),
            ("$$", "$"),
            ("$${HOST}", "${HOST}"),
            ("$$$${HOST}", "$${HOST}"),
            ("$HOST $1 $", "$HOST $1 $"),
        ] {
            assert_eq!(expand(text, &lookup), Ok(expanded.to_owned()), "{text}");
        }
    }

    #[test]
    fn every_failure_of_a_text_is_found() {
        assert_eq!(
            expand("${A} ${B} ${1X} ${}${", &lookup),
            Err(vec![
                Failure::Missing("A".to_owned()),
                Failure::Missing("B".to_owned()),
                Failure::BadName("1X".to_owned()),
                Failure::BadName(String::new()),
                Failure::Unclosed,
            ])
        );
    }

    proptest! {
        #[test]
        fn doubled_dollars_keep_any_text(text in any::<String>()) {
            prop_assert_eq!(expand(&text.replace('$', "$$"), &lookup), Ok(text));
        }
    }
}
