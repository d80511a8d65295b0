//! The demo's voice: numbered steps, what belongs to them, and one line that changes while something lasts.
//!
//! Colours and the changing line are for terminals only. With `--json` all of it goes to stderr.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Strong,
    Quiet,
    Good,
    Bad,
}

/// Where the story is told; shared by all who have something to say.
#[derive(Debug)]
pub(super) struct Narrator {
    to_stderr: bool,
    is_terminal: bool,
    has_colours: bool,
    /// Whether a changing line is on the screen.
    changing: Mutex<bool>,
}

impl Narrator {
    pub(super) fn new(to_stderr: bool) -> Self {
        let is_terminal = if to_stderr { io::stderr().is_terminal() } else { io::stdout().is_terminal() };
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { to_stderr, is_terminal, has_colours: is_terminal && !is_plain, changing: Mutex::new(false) }
    }

    pub(super) fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Strong => "1",
            Tone::Quiet => "2",
            Tone::Good => "1;32",
            Tone::Bad => "1;31",
        };
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Begins a step of the story.
    pub(super) fn step(&self, number: u32, text: &str) {
        let number = self.paint(Tone::Quiet, &format!("{number}."));
        self.line(&format!("\n{number} {}", self.paint(Tone::Strong, text)));
    }

    /// Something about the current step.
    pub(super) fn detail(&self, text: &str) {
        self.line(&format!("   {text}"));
    }

    /// What another program says.
    pub(super) fn quote(&self, text: &str) {
        let bar = self.paint(Tone::Quiet, "│");
        self.line(&format!("   {bar} {text}"));
    }

    /// A whole line, or several.
    pub(super) fn line(&self, text: &str) {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let clear = if std::mem::take(&mut *changing) { "\r\x1b[K" } else { "" };
        self.write(&format!("{clear}{text}\n"));
    }

    /// Shows `text` until something else is said; terminals only.
    pub(super) fn progress(&self, text: &str) {
        if self.is_terminal {
            let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            *changing = true;
            self.write(&format!("\r\x1b[K   {}", self.paint(Tone::Quiet, text)));
        }
    }

    /// A reader who has gone away does not end the demo: its servers have to be cleaned up.
    fn write(&self, text: &str) {
        if self.to_stderr {
            let mut out = io::stderr().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        } else {
            let mut out = io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }

    /// Quotes all that comes out of `output`, line by line.
    pub(super) async fn quote_all(&self, output: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if !line.trim().is_empty() {
                self.quote(line.trim_end());
            }
        }
    }
}

/// `2293200` as `2,293,200`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of things: `1 row`, `2 rows`.
pub(super) fn of(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// `14.2 s`, or `3.4 ms`.
pub(super) fn time(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        millis(duration.as_secs_f64() * 1_000.0)
    } else {
        seconds(duration)
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Milliseconds, with a digit behind the point where it says something.
pub(super) fn millis(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.1} ms"),
        ..10_000.0 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1_000.0),
    }
}

/// A text as lines of at most so many characters, but for words that are longer; what follows is indented.
pub(super) fn wrapped(text: &str, chars_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars_max => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_wrapped_between_words() {
        assert_eq!(wrapped("a price differs here", 9), ["a price", "  differs", "  here"]);
        assert_eq!(wrapped("unbreakable", 5), ["unbreakable"]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 2_293_200].map(count), ["0", "999", "1,000", "2,293,200"]);
        assert_eq!([of(1, "row", "rows"), of(2_000, "row", "rows")], ["1 row", "2,000 rows"]);
        assert_eq!(time(Duration::from_micros(3_440)), "3.4 ms");
        assert_eq!(time(Duration::from_millis(14_240)), "14.2 s");
        assert_eq!(millis(312.4), "312 ms");
    }
}
