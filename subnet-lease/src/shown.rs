//! Displays text that others wrote: cut, and without anything that controls a terminal or begins a new line. Otherwise
//! everybody with write access to the store could write into the log, or to a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// Most bytes to display of one text; a host name has at most 253.
const SHOWN: usize = 256;

/// Returns the text, printable; if long, its beginning and size: `AAAA... (1048576 bytes)`.
pub fn shown(text: &str) -> Cow<'_, str> {
    match cut(text) {
        Cow::Borrowed(whole) => printable(whole),
        Cow::Owned(cut) => printable(&cut).into_owned().into(),
    }
}

/// Does the same as [`shown`], for bytes that may not be text.
pub fn shown_bytes(bytes: &[u8]) -> String {
    // A few more than are shown, because a character may be cut in two; not all, because there may be a megabyte.
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    match bytes.len() > SHOWN {
        true => with_size(&printable(&head), bytes.len()),
        false => shown(&head).into_owned(),
    }
}

/// Escapes what a terminal would obey, and what is invisible: `\u{1b}`, `\n`.
pub fn printable(text: &str) -> Cow<'_, str> {
    // `escape_debug` also escapes quotes and backslashes, which are harmless.
    let harmless = |c: char| matches!(c, ' '..='~') || c.escape_debug().len() == 1;
    if text.chars().all(harmless) {
        return text.into();
    }
    let escaped = |c: char| match harmless(c) {
        true => c.to_string(),
        false => c.escape_debug().to_string(),
    };
    text.chars().map(escaped).collect::<String>().into()
}

/// Escapes control characters as in JSON, `\u001b`, except for those that `passes` accepts.
pub fn without_controls(text: &str, passes: impl Fn(char) -> bool) -> Cow<'_, str> {
    let is_harmless = |c: char| !c.is_control() || passes(c);
    if text.chars().all(is_harmless) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        if is_harmless(c) {
            escaped.push(c);
        } else {
            let _ = write!(escaped, "\\u{:04x}", u32::from(c));
        }
    }
    escaped.into()
}

/// Returns the text unescaped; if long, its beginning and size.
pub fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= SHOWN {
        return text.into();
    }
    let end = (0..=SHOWN).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    with_size(&text[..end], text.len()).into()
}

fn with_size(head: &str, bytes: usize) -> String {
    let mut text = head.to_owned();
    let _ = write!(text, "... ({bytes} bytes)");
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_megabyte_is_cut_and_its_size_is_told() {
        let megabyte = "A".repeat(1 << 20);
        let expected = format!("{}... (1048576 bytes)", "A".repeat(SHOWN));
        assert_eq!(shown(&megabyte), expected);
        assert_eq!(shown_bytes(megabyte.as_bytes()), expected);
        assert_eq!(shown(&"A".repeat(SHOWN)), "A".repeat(SHOWN));
        // A character across the end is omitted.
        assert!(shown(&format!("{}ö", "A".repeat(SHOWN - 1))).ends_with("A... (257 bytes)"));
    }

    #[test]
    fn what_would_steer_the_terminal_is_shown_as_text() {
        assert_eq!(shown("h1\u{1b}[2J\r\n\u{9b}31m\u{7f}"), "h1\\u{1b}[2J\\r\\n\\u{9b}31m\\u{7f}");
        assert_eq!(shown("a\u{202e}b"), "a\\u{202e}b", "right to left");
        assert_eq!(shown(r#"höst "x" \ y"#), r#"höst "x" \ y"#);
        assert_eq!(shown_bytes(b"\xff\x1b"), "\u{fffd}\\u{1b}");
    }

    proptest! {
        #[test]
        fn whatever_is_shown_is_short_and_steers_nothing(bytes: Vec<u8>, times in 1..400usize) {
            let bytes = bytes.repeat(times);
            let text = String::from_utf8_lossy(&bytes);
            for shown in [shown(&text).into_owned(), shown_bytes(&bytes)] {
                prop_assert!(!shown.chars().any(char::is_control), "{shown:?}");
                prop_assert!(shown.len() <= 10 * SHOWN + 30, "{} bytes", shown.len());
            }
        }
    }
}
