//! Whatever is said to the health port, the connection ends in time, and what it answers is one answer of HTTP/1.

use std::time::Duration;

use flan_agent::status::fuzz::answered;

/// No connection lasts longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an endless request.
const ENDLESS: usize = 64 << 10;

/// The first byte says how the others come: in pieces of so many bytes, the last of them again and again (bit 6), and that
/// there will be no more (bit 7).
pub fn check(bytes: &[u8]) {
    let Some((&how, said)) = bytes.split_first() else { return };
    let size = 1 << (how & 0x0f);
    let mut pieces: Vec<&[u8]> = said.chunks(size).take(200).collect();
    if how & 0x40 != 0
        && let Some(last) = pieces.last().copied()
    {
        pieces.extend(std::iter::repeat_n(last, (ENDLESS / last.len()).min(2000)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let leaves = how & 0x80 != 0;
    let (answer, took) = runtime.expect("no runtime").block_on(answered(&pieces, leaves));
    assert!(took <= PATIENCE + Duration::from_millis(1), "it lasts {took:?}");
    if !answer.is_empty() {
        check_answer(&answer, said);
    } else if leaves {
        assert!(took < PATIENCE, "nobody is there, and it lasts {took:?}");
    }
}

fn check_answer(answer: &[u8], said: &[u8]) {
    let text = std::str::from_utf8(answer).expect("an answer that is no text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head without an end");
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let (version, rest) = status.split_once(' ').expect("no status");
    let code: u16 = rest.split(' ').next().and_then(|code| code.parse().ok()).expect("no status");
    assert!(matches!(version, "HTTP/1.0" | "HTTP/1.1"), "{status}");
    assert!([200, 400, 404, 405, 414, 431, 501, 503, 505].contains(&code), "{status}");
    let mut length = None;
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no field: {line}"));
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(!name.is_empty() && name.bytes().all(is_token), "{line}");
        assert!(value.bytes().all(|byte| byte == b'\t' || (b' '..0x7f).contains(&byte)), "{line}");
        if name.eq_ignore_ascii_case("content-length") {
            assert!(length.replace(value.parse::<usize>().expect("no length")).is_none(), "two lengths");
        }
        assert!(!name.eq_ignore_ascii_case("transfer-encoding"), "{line}");
    }
    // Who asks for the head is sent no body; lines without anything may stand before the request.
    let begin = said.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or_default();
    if said[begin..].starts_with(b"HEAD ") && body.is_empty() {
        return;
    }
    assert_eq!(length, Some(body.len()), "length of {text}");
}
