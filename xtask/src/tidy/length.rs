//! How long files and functions may be. What was longer when the rule came is listed, and the list may only shrink.

use super::Finding;
use super::source::Source;
use std::collections::BTreeMap;

/// A bound, with a list of exceptions.
pub(super) struct Ratchet {
    /// Where the list is.
    pub(super) path: &'static str,
    /// Lines that need no exception.
    lines_max: usize,
    /// What is measured.
    what: &'static str,
}

/// Files, listed as `path lines`.
pub(super) const FILES: Ratchet = Ratchet { path: "xtask/length-ratchet.txt", lines_max: 500, what: "file" };
/// Functions, listed as `path:name lines`.
pub(super) const FUNCTIONS: Ratchet =
    Ratchet { path: "xtask/function-ratchet.txt", lines_max: 70, what: "function" };

/// An allowance may exceed what it allows by so much; more is to be given back.
const SLACK_LINES: usize = 20;

/// Adds the lines of every function in `path`, of the longest one where several have the same name.
pub(super) fn longest_functions(path: &str, source: &Source<'_>, into: &mut BTreeMap<String, usize>) {
    for (name, lines) in source.functions() {
        let longest = into.entry(format!("{path}:{name}")).or_default();
        *longest = lines.max(*longest);
    }
}

/// Checks what was `found` (lines by name) against the bound and its `list`.
pub(super) fn check(ratchet: &Ratchet, list: &str, found: &BTreeMap<String, usize>) -> Vec<Finding> {
    let Ratchet { path, lines_max, what } = ratchet;
    let mut findings = Vec::new();
    let mut allowed = BTreeMap::new();
    for (index, line) in list.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry =
            line.rsplit_once(' ').and_then(|(name, lines)| Some((name, lines.parse::<usize>().ok()?)));
        let Some((name, allowance)) = entry else {
            findings.push(Finding::new(
                path,
                index + 1,
                format!("`{line}` is not a name and a number of lines"),
            ));
            continue;
        };
        let is = found.get(name).copied().unwrap_or(0);
        let advice = if is <= *lines_max {
            Some("remove the line".to_owned())
        } else if is + SLACK_LINES < allowance {
            Some(format!("lower the allowance to {is}"))
        } else {
            None
        };
        if let Some(advice) = advice {
            let what =
                format!("`{name}` may have {allowance} lines and has {is}: {advice}, so that it stays so");
            findings.push(Finding::new(path, index + 1, what));
        }
        allowed.insert(name, allowance);
    }
    for (name, &lines) in found {
        let allowance = allowed.get(name.as_str()).copied().unwrap_or(*lines_max);
        if lines > allowance.max(*lines_max) {
            let what =
                format!("the {what} has {lines} lines, of {allowance} allowed: split it along what it owns");
            findings.push(Finding::new(name, 0, what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(list: &str, lines: usize) -> Vec<String> {
        let found = [("a.rs".to_owned(), lines)].into();
        check(&FILES, list, &found).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_file_above_the_bound_is_found_unless_it_is_listed() {
        assert_eq!(found("", 500), [""; 0]);
        assert!(found("", 501)[0].contains("501 lines, of 500 allowed"));
        assert_eq!(found("# why\n\na.rs 600\n", 600), [""; 0]);
        assert!(found("a.rs 600\n", 601)[0].contains("601 lines, of 600"));
    }

    #[test]
    fn an_allowance_that_is_no_longer_needed_is_to_be_given_back() {
        assert_eq!(found("a.rs 600\n", 580), [""; 0]);
        assert!(found("a.rs 600\n", 579)[0].contains("lower the allowance to 579"));
        assert!(found("a.rs 510\n", 500)[0].contains("remove the line"));
        assert!(found("gone.rs 600\n", 1)[0].contains("remove the line"));
        assert!(found("a.rs many\n", 1)[0].contains("not a name"));
    }

    #[test]
    fn functions_are_measured_one_by_one() {
        let text = format!("fn long() {{\n{}}}\nfn short() {{}}\n", "x();\n".repeat(69));
        let mut functions = BTreeMap::new();
        longest_functions("a.rs", &Source::new(&text), &mut functions);
        let findings = check(&FUNCTIONS, "", &functions);
        assert_eq!(findings.len(), 1);
        assert!(findings[0].to_string().starts_with("a.rs:long: the function has 71 lines"));
    }
}
