//! Messages as a person reads them: on one line, with keys and values as text, and without what is not set.

use std::fmt::{Debug, Write};

/// Of a longer text, its length is told.
const MOST_SHOWN: usize = 40;

/// What a field says that nobody has set.
const UNSET: [&str; 6] = ["0", "false", "[]", "None", "\"\"", "Key"];

/// The message as Rust prints it, each list of bytes as a text, and only what says something.
pub(crate) fn told(message: &impl Debug) -> String {
    without_unset(&with_texts(&format!("{message:?}")))
}

fn with_texts(printed: &str) -> String {
    let mut text = String::new();
    let mut rest = printed;
    while let Some(start) = rest.find('[') {
        let (before, from) = rest.split_at(start);
        text.push_str(before);
        let end = from.find(']').map_or(from.len(), |end| end + 1);
        match bytes_of(&from[..end]) {
            Some(bytes) => {
                write_bytes(&mut text, &bytes);
                rest = &from[end..];
            }
            None => {
                text.push('[');
                rest = &from[1..];
            }
        }
    }
    text + rest
}

/// From `[97, 98]`; an empty list may be one of anything.
fn bytes_of(list: &str) -> Option<Vec<u8>> {
    list.strip_prefix('[')?.strip_suffix(']')?.split(", ").map(|number| number.parse().ok()).collect()
}

fn write_bytes(text: &mut String, bytes: &[u8]) {
    let shown = &bytes[..bytes.len().min(MOST_SHOWN)];
    // Writing to a string does not fail.
    let _ = write!(text, "\"{}\"", shown.escape_ascii());
    if bytes.len() > MOST_SHOWN {
        let _ = write!(text, "... ({} bytes)", bytes.len());
    }
}

/// Leaves out fields such as `lease: 0`; what stands around them stays.
fn without_unset(printed: &str) -> String {
    let mut text = String::new();
    for part in printed.split(", ") {
        let start = part.rfind("{ ").map_or(0, |at| at + 2);
        let (opening, field) = part.split_at(start);
        let value = field.split_once(": ").map_or("", |(_, value)| value);
        let (said, closing) = value.split_at(value.find([' ', ')']).unwrap_or(value.len()));
        let unset = UNSET.contains(&said);
        let first = text.is_empty() || text.ends_with("{ ");
        let gone = unset && opening.is_empty();
        if !first && !gone {
            text.push_str(", ");
        }
        text.push_str(opening);
        text.push_str(if unset {
            closing.trim_start_matches(|c| c == ' ' && text.ends_with("{ "))
        } else {
            field
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[expect(dead_code, reason = "they are printed")]
    struct Message {
        key: Vec<u8>,
        keys: Vec<Vec<u8>>,
        none: Vec<u8>,
        large: Vec<i64>,
    }

    #[derive(Debug)]
    #[expect(dead_code, reason = "they are printed")]
    struct Outer {
        lease: i64,
        inner: Option<Message>,
        more: bool,
    }

    fn message() -> Message {
        Message {
            key: b"a/\0".to_vec(),
            keys: vec![b"b".to_vec(), b"cd".to_vec()],
            none: Vec::new(),
            large: vec![300],
        }
    }

    #[test]
    fn bytes_are_text_and_nothing_else_is() {
        assert_eq!(told(&message()), r#"Message { key: "a/\x00", keys: ["b", "cd"], large: [300] }"#);
    }

    #[test]
    fn what_is_not_set_is_left_out() {
        let inner = Message { keys: Vec::new(), large: Vec::new(), ..message() };
        let outer = Outer { lease: 0, inner: Some(inner), more: false };
        assert_eq!(told(&outer), r#"Outer { inner: Some(Message { key: "a/\x00" }) }"#);
        assert_eq!(told(&Outer { lease: 7, inner: None, more: true }), "Outer { lease: 7, more: true }");
    }

    #[test]
    fn of_a_long_value_the_length_is_told() {
        let text = told(&vec![b'x'; 100]);
        assert!(text.ends_with("\"... (100 bytes)") && text.len() < 70, "{text}");
    }
}
