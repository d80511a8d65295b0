//! Links in the documentation lead somewhere: every local link of a Markdown file names a file or directory there is.

use super::Finding;
use std::collections::BTreeSet;

/// Checks the Markdown file at `path` against all `paths` of the tree.
pub(super) fn check(path: &str, text: &str, paths: &BTreeSet<String>) -> Vec<Finding> {
    let ours = matches!(path, "README.md" | "ARCHITECTURE.md" | "CHANGELOG.md" | "CONTRIBUTING.md");
    if !ours && !path.starts_with("docs/") && !path.starts_with("crates/") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for target in targets(line) {
            let file = target.split('#').next().unwrap_or_default();
            let elsewhere = file.is_empty() || file.contains("://") || file.starts_with("mailto:");
            if !elsewhere && !resolve(path, file).is_some_and(|file| file.is_empty() || paths.contains(&file))
            {
                findings.push(Finding::new(path, index + 1, format!("the link to `{target}` leads nowhere")));
            }
        }
    }
    findings
}

/// Link targets in a line: `[…](target)`, `[…]: target`. Code in backticks is not looked into.
fn targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    if let Some((label, target)) = line.split_once("]: ")
        && label.starts_with('[')
    {
        targets.extend(target.split_whitespace().next());
    }
    let mut rest = line;
    while let Some(at) = rest.find(['`', ']']) {
        if let Some(code) = rest[at..].strip_prefix('`') {
            rest = code.find('`').map_or("", |end| &code[end + 1..]);
            continue;
        }
        rest = &rest[at + 1..];
        if let Some(target) = rest.strip_prefix('(')
            && let Some(end) = target.find(')')
        {
            // A title may follow.
            targets.extend(target[..end].split_whitespace().next());
            rest = &target[end..];
        }
    }
    targets
}

/// `link`, as seen from the file at `path`, from the root; `None` if it leaves the tree.
fn resolve(path: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> usize {
        let paths = ["docs", "docs/a.md", "src/lib.rs"].map(str::to_owned).into();
        check("docs/flows/x.md", text, &paths).len()
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        for text in [
            "see [a](../b.md)",
            "[`a`](a.md)",
            "[a](../a.md) and [b](../../src/gone.rs)",
            "[a](../../../outside)",
            "[ref]: ../gone.md",
        ] {
            assert_eq!(found(text), 1, "{text}");
        }
    }

    #[test]
    fn links_that_lead_somewhere_are_not() {
        for text in [
            "[a](../a.md), [`lib`](../../src/lib.rs), [dir](../)",
            "[a](../a.md#part \"title\") [here](#part)",
            "[web](https://example.org/gone.md)",
            "`[a](gone.md)` and `a[0](x)`",
            "```\n[a](gone.md)\n```",
        ] {
            assert_eq!(found(text), 0, "{text}");
        }
    }
}
