//! Escapes control characters in log lines: none reaches a terminal or the log, and each event stays on one line.

use std::borrow::Cow;
use std::io::{self, Write};

use flan_subnet_lease::without_controls;

/// Writes log lines with control characters escaped as in JSON.
pub(super) struct Guard<W> {
    inner: W,
    /// Whether lines have colours. The formatter has already escaped colour sequences in the texts.
    coloured: bool,
}

impl<W> Guard<W> {
    pub(super) fn new(inner: W, coloured: bool) -> Self {
        Self { inner, coloured }
    }
}

impl<W: Write> Write for Guard<W> {
    /// Writes one whole line from the formatter.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, end) = match line {
            [text @ .., b'\n'] => (text, "\n"),
            text => (text, ""),
        };
        match without_controls(&String::from_utf8_lossy(text), |c| c == '\u{1b}' && self.coloured) {
            Cow::Borrowed(_) => self.inner.write_all(line)?,
            Cow::Owned(escaped) => self.inner.write_all((escaped + end).as_bytes())?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(line: &str, coloured: bool) -> String {
        let mut log = Vec::new();
        Guard::new(&mut log, coloured).write_all(line.as_bytes()).unwrap();
        String::from_utf8(log).unwrap()
    }

    #[test]
    fn no_text_ends_a_line_or_steers_a_terminal() {
        assert_eq!(written("a\nb\u{1b}[2J\u{9b}\u{7f}\n", false), "a\\u000ab\\u001b[2J\\u009b\\u007f\n");
        assert_eq!(written("höst ready\n", false), "höst ready\n");
        assert_eq!(written("\u{1b}[32mINFO\u{1b}[0m a\rb\n", true), "\u{1b}[32mINFO\u{1b}[0m a\\u000db\n");
    }
}
