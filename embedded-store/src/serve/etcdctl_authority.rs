//! The fix for the `:authority` of old etcdctl (decision 0015).
//!
//! `etcdctl endpoint status` of etcd 3.4 uses a gRPC for Go that sends the whole URL as `:authority`. HTTP/2 expects
//! host and port there (RFC 9113, 8.3.1). etcd ignores the value, but the HTTP/2 library of this server refuses the
//! request. So [`AuthorityFix`] replaces such a URL before the library reads it. All other bytes pass unchanged, and so
//! do bytes that are not HTTP/2. Over TLS, the same client sends only the host.

mod hpack;

use tokio::io::ReadBuf;

/// The first bytes of an HTTP/2 client (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header: length, type, flags and stream (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;
/// Type of a frame that starts a request.
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame that we accept (the default of `SETTINGS_MAX_FRAME_SIZE`).
const LARGEST_FRAME: usize = 1 << 14;

/// Replaces a URL as `:authority` in a client's bytes.
#[derive(Debug)]
pub(super) struct AuthorityFix {
    expected: Expected,
    /// Bytes of an incomplete frame.
    pending: Vec<u8>,
    /// Bytes for the server, and how many of them it has read.
    fixed: Vec<u8>,
    handed_on: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Preface,
    Frame,
    /// This many bytes of a frame that needs no fix.
    Payload(usize),
    /// Not HTTP/2: nothing to fix.
    Anything,
}

impl AuthorityFix {
    pub(super) fn new() -> Self {
        Self { expected: Expected::Preface, pending: Vec::new(), fixed: Vec::new(), handed_on: 0 }
    }

    /// Copies ready bytes to the buffer. Returns whether there were any.
    pub(super) fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let ready = &self.fixed[self.handed_on..];
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        self.handed_on += count;
        if self.handed_on == self.fixed.len() {
            self.fixed.clear();
            self.handed_on = 0;
        }
        count > 0
    }

    /// Accepts bytes from the client.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        while let Some(taken) = self.step(rest) {
            rest = &rest[taken..];
        }
        self.pending.extend_from_slice(rest);
    }

    /// Ends the client's bytes: passes an incomplete frame unchanged.
    pub(super) fn end(&mut self) {
        self.expected = Expected::Anything;
        self.take(&[]);
    }

    /// Returns whether all further bytes pass unchanged.
    pub(super) fn is_over(&self) -> bool {
        self.expected == Expected::Anything
    }

    /// Handles the next part, and returns its length; `None` if it is incomplete.
    fn step(&mut self, bytes: &[u8]) -> Option<usize> {
        if bytes.is_empty() {
            return None;
        }
        match self.expected {
            Expected::Preface if bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes) => None,
            Expected::Preface if bytes.starts_with(PREFACE) => {
                self.expected = Expected::Frame;
                Some(self.pass(&bytes[..PREFACE.len()]))
            }
            Expected::Preface | Expected::Anything => {
                self.expected = Expected::Anything;
                Some(self.pass(bytes))
            }
            Expected::Frame => self.frame(bytes),
            Expected::Payload(left) => {
                let count = left.min(bytes.len());
                self.expected = if count == left { Expected::Frame } else { Expected::Payload(left - count) };
                Some(self.pass(&bytes[..count]))
            }
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Option<usize> {
        let &[high, middle, low, kind, flags, ..] = bytes.get(..FRAME_HEADER)? else { return None };
        let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        if kind != HEADERS || flags & END_HEADERS == 0 || length > LARGEST_FRAME {
            if length > 0 {
                self.expected = Expected::Payload(length);
            }
            return Some(self.pass(&bytes[..FRAME_HEADER]));
        }
        let frame = bytes.get(..FRAME_HEADER + length)?;
        match fix_authority(frame) {
            Some(fixed) => self.pass(&fixed),
            None => self.pass(frame),
        };
        Some(frame.len())
    }

    fn pass(&mut self, bytes: &[u8]) -> usize {
        self.fixed.extend_from_slice(bytes);
        bytes.len()
    }
}

/// Returns the HEADERS frame with another `:authority`, if the original is a URL.
fn fix_authority(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, payload) = frame.split_at(FRAME_HEADER);
    let flags = header[4];
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let block = payload.get(before..payload.len().checked_sub(padding)?)?;
    let value = hpack::url_as_authority(block)?;
    let (from, to) = (FRAME_HEADER + before + value.start, FRAME_HEADER + before + value.end);
    let fixed = [&frame[..from], hpack::ANY_AUTHORITY, &frame[to..]].concat();
    let length = u32::try_from(fixed.len() - FRAME_HEADER).ok()?.to_be_bytes();
    Some([&length[1..], &fixed[3..]].concat())
}

/// Returns what the server reads if a client's bytes arrive in these pieces and the server reads `room` bytes at a
/// time. Also the most bytes that were held back.
#[cfg(fuzzing)]
pub fn fixed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, room: usize) -> (Vec<u8>, usize) {
    let (mut fix, mut all, mut most) = (AuthorityFix::new(), Vec::new(), 0);
    let mut read = |fix: &mut AuthorityFix| loop {
        let mut room = vec![0; room];
        let mut buffer = ReadBuf::new(&mut room);
        if !fix.hand_on(&mut buffer) {
            break;
        }
        all.extend_from_slice(buffer.filled());
    };
    for piece in pieces {
        fix.take(piece);
        read(&mut fix);
        most = most.max(fix.pending.len());
    }
    fix.end();
    read(&mut fix);
    (all, most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the server's view of bytes that arrive in these pieces.
    fn fixed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut fix = AuthorityFix::new();
        let mut all = Vec::new();
        for piece in pieces {
            fix.take(piece);
            all.append(&mut fix.fixed);
        }
        fix.end();
        all.append(&mut fix.fixed);
        all
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method: POST` and this `:authority:`, not compressed.
    fn request(authority: &[u8]) -> Vec<u8> {
        [&[0x83, 0x41, u8::try_from(authority.len()).unwrap()], authority].concat()
    }

    fn session(headers: &[u8]) -> Vec<u8> {
        [PREFACE, &frame(4, 0, &[]), headers, &frame(0, 1, b"data")].concat()
    }

    #[test]
    fn a_url_as_authority_is_replaced() {
        let url = frame(HEADERS, END_HEADERS, &request(b"http://127.0.0.1:2379"));
        let other = frame(HEADERS, END_HEADERS, &request(b"etcd"));
        assert_eq!(fixed([&session(&url)[..]]), session(&other));
        // As `etcdctl` compresses it: RFC 7541, appendix B.
        let compressed = [0x83, 0x41, 0x86, 0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x7f, 0x82];
        let compressed = frame(HEADERS, END_HEADERS, &compressed);
        let other = frame(HEADERS, END_HEADERS, &[&request(b"etcd")[..], &[0x82]].concat());
        assert_eq!(fixed([&session(&compressed)[..]]), session(&other));
    }

    #[test]
    fn padding_and_priority_are_not_taken_for_headers() {
        let around = |request: Vec<u8>| [&[3, 0, 0, 0, 0, 7][..], &request, &[0x41, 0, 0]].concat();
        let flags = END_HEADERS | PADDED | PRIORITY;
        let url = frame(HEADERS, flags, &around(request(b"http://a")));
        let other = frame(HEADERS, flags, &around(request(b"etcd")));
        assert_eq!(fixed([&session(&url)[..]]), session(&other));
    }

    #[test]
    fn what_is_right_passes_as_it_is() {
        for bytes in [
            session(&frame(HEADERS, END_HEADERS, &request(b"127.0.0.1:2379"))),
            session(&frame(HEADERS, END_HEADERS, &[0x83, 0xbf])),
            b"GET /health HTTP/1.1\r\nHost: http://a\r\n\r\n".to_vec(),
            b"PRI * HT".to_vec(),
        ] {
            assert_eq!(fixed([&bytes[..]]), bytes);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_the_same_as_in_one(
            is_http2: bool,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            pieces in 1_usize..40,
        ) {
            let url = frame(HEADERS, END_HEADERS, &request(b"http://a"));
            let bytes = if is_http2 { [&session(&url)[..], &bytes].concat() } else { bytes };
            prop_assert_eq!(fixed(bytes.chunks(pieces)), fixed([&bytes[..]]));
        }
    }
}
