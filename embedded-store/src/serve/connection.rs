//! Connections, of clients that name the server wrongly too.
//!
//! gRPC for Go, as of etcd 3.4's `etcdctl endpoint status`, sends the whole URL that it was given as `:authority`. HTTP/2
//! has a host and a port there (RFC 9113, 8.3.1); etcd does not look, and the library that serves us refuses the request.
//! So such a name is replaced on its way. What is encrypted (there the same client names the host alone), or no HTTP/2, passes
//! as it is.
//!
//! A connection that says nothing, or nothing more, is closed.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flan_connections::Slot;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::hpack;
use crate::in_flight::Client;

/// What a client of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length, type, flags and stream of a frame (RFC 9113, 4.1).
const FRAME_HEADER: usize = 9;
/// The type of frames that begin a request.
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The largest frame that we ask for (`SETTINGS_MAX_FRAME_SIZE`, as it is by default).
const LARGEST_FRAME: usize = 1 << 14;
/// Bytes that are read at once.
const READ: usize = 16 << 10;

/// How long a client may take until it has answered what we said first, which is what no client does by chance.
pub(super) const FIRST_WORDS: Duration = Duration::from_secs(10);
/// How long a client may be silent later. One that lives answers the server's pings, which come more often.
const SILENCE: Duration = Duration::from_secs(90);

/// A connection.
pub(crate) struct Connection {
    tcp: TcpStream,
    mender: Mender,
    slot: Slot,
    client: Client,
    /// Whether we have said something. What a client says without waiting for that proves nothing.
    has_answered: bool,
    has_spoken: bool,
    /// When something came last.
    heard: Instant,
    /// Until when the client may be silent, at the least.
    patience: Pin<Box<Sleep>>,
}

/// Replaces what is wrong in the bytes of a client.
#[derive(Debug)]
struct Mender {
    expected: Expected,
    /// Bytes that came, and are to be looked at together with those that follow.
    pending: Vec<u8>,
    /// Bytes to hand on, and how many of them were.
    mended: Vec<u8>,
    handed_on: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Preface,
    Frame,
    /// So many bytes of a frame that nothing is wrong with.
    Payload(usize),
    /// No HTTP/2: nothing to look at.
    Anything,
}

impl Connection {
    pub(crate) fn new(tcp: TcpStream, slot: Slot) -> Self {
        let mender = Mender::new();
        let heard = Instant::now();
        let patience = Box::pin(tokio::time::sleep_until(heard + FIRST_WORDS));
        let client = Client::default();
        Self { tcp, mender, slot, client, has_answered: false, has_spoken: false, heard, patience }
    }

    /// The client's address.
    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.tcp.peer_addr().ok().map(|address| address.ip().to_canonical())
    }

    fn poll_mended(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, mender, .. } = self;
        while !mender.hand_on(buffer) && buffer.remaining() > 0 {
            if mender.expected == Expected::Anything {
                return Pin::new(tcp).poll_read(context, buffer);
            }
            let mut room = [MaybeUninit::uninit(); READ];
            let mut came = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut *tcp).poll_read(context, &mut came))?;
            match came.filled() {
                [] => mender.end(),
                bytes => mender.take(bytes),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once the client has been silent for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.patience.as_mut().poll(context).is_ready() {
            let until = self.heard + if self.has_spoken { SILENCE } else { FIRST_WORDS };
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.patience.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl Mender {
    fn new() -> Self {
        Self { expected: Expected::Preface, pending: Vec::new(), mended: Vec::new(), handed_on: 0 }
    }

    /// Hands on what is ready; answers whether there was something.
    fn hand_on(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let ready = &self.mended[self.handed_on..];
        let count = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready[..count]);
        self.handed_on += count;
        if self.handed_on == self.mended.len() {
            self.mended.clear();
            self.handed_on = 0;
        }
        count > 0
    }

    /// Takes bytes that came.
    fn take(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let mut rest = &pending[..];
        while let Some(taken) = self.step(rest) {
            rest = &rest[taken..];
        }
        self.pending.extend_from_slice(rest);
    }

    /// Nothing more comes: what is not whole is handed on as it is.
    fn end(&mut self) {
        self.expected = Expected::Anything;
        self.take(&[]);
    }

    /// Looks at the next thing, and answers how many bytes that is; `None` for one that is not whole.
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
        match mend(frame) {
            Some(mended) => self.pass(&mended),
            None => self.pass(frame),
        };
        Some(frame.len())
    }

    fn pass(&mut self, bytes: &[u8]) -> usize {
        self.mended.extend_from_slice(bytes);
        bytes.len()
    }
}

/// A HEADERS frame with another `:authority`, if that is a URL.
fn mend(frame: &[u8]) -> Option<Vec<u8>> {
    let (header, payload) = frame.split_at(FRAME_HEADER);
    let flags = header[4];
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let block = payload.get(before..payload.len().checked_sub(padding)?)?;
    let value = hpack::url_as_authority(block)?;
    let (from, to) = (FRAME_HEADER + before + value.start, FRAME_HEADER + before + value.end);
    let mended = [&frame[..from], hpack::ANY_AUTHORITY, &frame[to..]].concat();
    let length = u32::try_from(mended.len() - FRAME_HEADER).ok()?.to_be_bytes();
    Some([&length[1..], &mended[3..]].concat())
}

/// What the server reads of a client's bytes that come in these pieces, `room` bytes at once; and how many bytes were kept
/// back at most.
#[cfg(fuzzing)]
pub fn mended<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, room: usize) -> (Vec<u8>, usize) {
    let (mut mender, mut all, mut most) = (Mender::new(), Vec::new(), 0);
    let mut read = |mender: &mut Mender| loop {
        let mut room = vec![0; room];
        let mut buffer = ReadBuf::new(&mut room);
        if !mender.hand_on(&mut buffer) {
            break;
        }
        all.extend_from_slice(buffer.filled());
    };
    for piece in pieces {
        mender.take(piece);
        read(&mut mender);
        most = most.max(mender.pending.len());
    }
    mender.end();
    read(&mut mender);
    (all, most)
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_spoken && self.slot.poll_must_go(context).is_ready() {
            return Poll::Ready(Err(io::Error::other("made room for a client that has something to say")));
        }
        match self.poll_mended(context, buffer) {
            Poll::Ready(read) => {
                if self.has_answered && !self.has_spoken {
                    self.has_spoken = true;
                    self.slot.has_spoken();
                }
                if self.has_spoken {
                    self.heard = Instant::now();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_silence(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is handed on of bytes that come in these pieces.
    fn mended<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut mender = Mender::new();
        let mut all = Vec::new();
        for piece in pieces {
            mender.take(piece);
            all.append(&mut mender.mended);
        }
        mender.end();
        all.append(&mut mender.mended);
        all
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// `:method: POST`, `:authority:` with this value, not compressed.
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
        assert_eq!(mended([&session(&url)[..]]), session(&other));
        // As `etcdctl` compresses it: RFC 7541, appendix B.
        let compressed = [0x83, 0x41, 0x86, 0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x7f, 0x82];
        let compressed = frame(HEADERS, END_HEADERS, &compressed);
        let other = frame(HEADERS, END_HEADERS, &[&request(b"etcd")[..], &[0x82]].concat());
        assert_eq!(mended([&session(&compressed)[..]]), session(&other));
    }

    #[test]
    fn padding_and_priority_are_not_taken_for_headers() {
        let around = |request: Vec<u8>| [&[3, 0, 0, 0, 0, 7][..], &request, &[0x41, 0, 0]].concat();
        let flags = END_HEADERS | PADDED | PRIORITY;
        let url = frame(HEADERS, flags, &around(request(b"http://a")));
        let other = frame(HEADERS, flags, &around(request(b"etcd")));
        assert_eq!(mended([&session(&url)[..]]), session(&other));
    }

    #[test]
    fn what_is_right_passes_as_it_is() {
        for bytes in [
            session(&frame(HEADERS, END_HEADERS, &request(b"127.0.0.1:2379"))),
            session(&frame(HEADERS, END_HEADERS, &[0x83, 0xbf])),
            b"GET /health HTTP/1.1\r\nHost: http://a\r\n\r\n".to_vec(),
            b"PRI * HT".to_vec(),
        ] {
            assert_eq!(mended([&bytes[..]]), bytes);
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
            prop_assert_eq!(mended(bytes.chunks(pieces)), mended([&bytes[..]]));
        }
    }
}
