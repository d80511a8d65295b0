//! What is wrong with a spec, shown at its place in the file.
//!
//! Passwords are taken out when a problem is made, so that no way of printing one can show them.

use std::fmt;

use super::secret::{Redacted, redact};

/// A stretch of one line of the file. Lines and columns count from 1, columns and widths in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column of the first character.
    pub column: usize,
    /// How many characters; at least 1.
    pub width: usize,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong, in one line.
    pub message: String,
    /// What to do about it; shown beside the carets.
    pub help: Option<String>,
    /// The line without passwords, and the column and width of the place in it.
    excerpt: String,
    excerpt_column: usize,
    excerpt_width: usize,
}

impl Problem {
    fn new(place: Place, message: &str, help: Option<&str>, source_line: &str) -> Self {
        let excerpt = Redacted::of(source_line);
        let excerpt_column = excerpt.column(place.column);
        let end = excerpt.column(place.column + place.width);
        Self {
            place,
            message: redact(message),
            help: help.map(redact),
            excerpt: excerpt.text,
            excerpt_column,
            excerpt_width: end.saturating_sub(excerpt_column).max(1),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, file: &str) -> fmt::Result {
        let Place { line, column, .. } = self.place;
        writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
        let gutter = " ".repeat(line.to_string().len());
        // Tabs stay tabs, so that the carets stand where the terminal puts the text.
        let indent: String = self
            .excerpt
            .chars()
            .chain(std::iter::repeat(' '))
            .take(self.excerpt_column - 1)
            .map(blank)
            .collect();
        writeln!(f, "{gutter} |\n{line} | {}", self.excerpt)?;
        write!(f, "{gutter} | {indent}{}", "^".repeat(self.excerpt_width))?;
        if let Some(help) = &self.help {
            write!(f, " {help}")?;
        }
        Ok(())
    }
}

fn blank(c: char) -> char {
    if c == '\t' { c } else { ' ' }
}

/// Everything found wrong with one spec, in the order of the file. Never empty, and free of passwords.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    /// The name of the file as the user gave it.
    pub file: String,
    /// The problems.
    pub problems: Vec<Problem>,
}

impl std::error::Error for SpecError {}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            if at > 0 {
                f.write_str("\n\n")?;
            }
            problem.write(f, &self.file)?;
        }
        Ok(())
    }
}

/// Gathers problems while a spec is read, so that one look at the output mends them all.
pub(super) struct Problems<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Problem>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    /// The source line with this number, without its line break.
    pub(super) fn line(&self, line: usize) -> &'a str {
        self.text.lines().nth(line.saturating_sub(1)).unwrap_or("")
    }

    /// How many lines the file has; at least 1.
    pub(super) fn line_count(&self) -> usize {
        self.text.lines().count().max(1)
    }

    pub(super) fn add(&mut self, place: Place, message: impl AsRef<str>) {
        self.found.push(Problem::new(place, message.as_ref(), None, self.line(place.line)));
    }

    pub(super) fn add_with_help(&mut self, place: Place, message: impl AsRef<str>, help: impl AsRef<str>) {
        self.found.push(Problem::new(place, message.as_ref(), Some(help.as_ref()), self.line(place.line)));
    }

    /// `value` if nothing was found, else everything that was.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, SpecError> {
        match value {
            Some(value) if self.found.is_empty() => Ok(value),
            _ => {
                self.found.sort_by_key(|problem| problem.place);
                self.found.dedup();
                Err(SpecError { file: self.file.to_owned(), problems: self.found })
            }
        }
    }
}

/// The candidate nearest to `written`, if it is near enough to be a slip or a longer word for the same.
pub(super) fn nearest<'c>(written: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let written = written.to_lowercase();
    let slips_max = 1 + written.chars().count() / 4;
    let is_near = |slips: usize, candidate: &str| {
        slips <= slips_max || (candidate.len() >= 3 && written.starts_with(candidate))
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&written, candidate), candidate))
        .filter(|(slips, candidate)| is_near(*slips, candidate))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// The help for a word that has a [`nearest`] one.
pub(super) fn did_you_mean(candidate: &str) -> String {
    format!("did you mean `{candidate}`?")
}
