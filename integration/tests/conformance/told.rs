//! Messages as a person reads them: on one line, with keys and values as text.

use std::fmt::{Debug, Write};

/// Of a longer text, its length is told.
const MOST_SHOWN: usize = 40;

/// The message as Rust prints it, each list of bytes as a text.
pub(crate) fn told(message: &impl Debug) -> String {
    let printed = format!("{message:?}");
    let mut text = String::new();
    let mut rest = printed.as_str();
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

    #[test]
    fn bytes_are_text_and_nothing_else_is() {
        let message = Message {
            key: b"a/\0".to_vec(),
            keys: vec![b"b".to_vec(), b"cd".to_vec()],
            none: Vec::new(),
            large: vec![300],
        };
        assert_eq!(told(&message), r#"Message { key: "a/\x00", keys: ["b", "cd"], none: [], large: [300] }"#);
    }

    #[test]
    fn of_a_long_value_the_length_is_told() {
        let text = told(&vec![b'x'; 100]);
        assert!(text.ends_with("\"... (100 bytes)") && text.len() < 70, "{text}");
    }
}
