//! What is drawn again and again on a terminal: how many rows of it that takes, and how it is taken back.
//!
//! What is drawn is not known here.

/// Moves up over what was drawn, so many rows of the screen, and clears it.
pub(crate) fn erase(rows: usize) -> String {
    if rows == 0 { String::new() } else { format!("\x1b[{rows}A\x1b[J") }
}

/// How wide the terminal is; where it does not say, wide enough for anything.
pub(crate) fn columns() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        Ok(_) | Err(_) => usize::MAX,
    }
}

/// How many rows of a screen lines take: the terminal goes on in the next row where one is full.
pub(crate) fn rows_of(lines: &[String], columns: usize) -> usize {
    lines.iter().map(|line| line.chars().count().div_ceil(columns).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_wider_than_the_screen_takes_several_rows() {
        let lines = ["", "1234567890", "12345678901", "ääääääääää"].map(str::to_owned);
        assert_eq!((rows_of(&lines, 10), rows_of(&lines, usize::MAX)), (5, 4));
    }
}
