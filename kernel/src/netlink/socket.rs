//! A netlink socket with synchronous answers: the kernel carries out a request within the system call that sends it,
//! and the answers are queued when that returns.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP_INTR};
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::message::Request;
use super::wire::{self, Frame, Frames};
use crate::KernelError;

/// How long the kernel may take for the next part of an answer. It answers at once or, out of memory, never: it does
/// not resend a lost acknowledgement.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a dump is restarted because the table changed while it was read.
const DUMP_ATTEMPTS: usize = 5;

/// Bytes per receive call. With this much room the kernel fills 32 KiB of a dump at a time (`netlink_dump` in
/// `net/netlink/af_netlink.c`).
pub(super) const RECEIVE_BYTES: usize = 64 * 1024;

/// Most bytes in a batch: one datagram, well below the default send buffer of 208 KiB.
const BATCH_BYTES: usize = 64 * 1024;

/// Requested bytes of kernel memory for queued answers. The errors of one batch must fit.
const ANSWER_BYTES: usize = 2 * 1024 * 1024;

/// Approximate bytes of kernel memory per queued error.
const ERROR_BYTES: usize = 1024;

/// A socket for questions and changes, in the network namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    buffer: Vec<u8>,
    /// The sequence number of the next request.
    sequence: u32,
    /// Most requests in a batch, so that the errors of all of them fit in the receive buffer.
    most_requests: usize,
}

/// The outcome of a batch when the socket broke before everything was known.
#[derive(Debug)]
pub(super) struct Broken {
    /// Refusals received before that.
    pub(super) refusals: Vec<(usize, KernelError)>,
    pub(super) reason: KernelError,
}

impl Socket {
    /// Opens a socket in the current network namespace.
    pub(super) fn open() -> Result<Self, KernelError> {
        Self::open_for(NETLINK_ROUTE)
    }

    /// Opens a socket for one netlink protocol (`NETLINK_*`).
    pub(super) fn open_for(protocol: isize) -> Result<Self, KernelError> {
        let inner = open(protocol).map_err(socket_error)?;
        let limit = TimeVal::new(LIMIT.as_secs().cast_signed(), 0);
        setsockopt(&inner, sockopt::ReceiveTimeout, &limit).map_err(socket_error)?;
        let room = raise_receive_buffer(&inner, ANSWER_BYTES);
        if let Err(error) = setsockopt(&inner, sockopt::SndBufForce, &(4 * BATCH_BYTES)) {
            tracing::debug!(%error, "keeping the default send buffer, which is large enough");
        }
        let most_requests = (room / ERROR_BYTES).max(1);
        Ok(Self { inner, buffer: Vec::with_capacity(RECEIVE_BYTES), sequence: 1, most_requests })
    }

    /// Sends all changes of a batch at once. Returns the refused ones in the order of the answers, each with its owner.
    /// Empties the batch.
    pub(super) fn change(&mut self, batch: &mut Batch) -> Result<Vec<(usize, KernelError)>, Broken> {
        let mut refusals = Vec::new();
        let result = self.change_and_note(batch, &mut refusals);
        batch.clear();
        match result {
            Ok(()) => Ok(refusals),
            Err(reason) => Err(Broken { refusals, reason }),
        }
    }

    fn change_and_note(
        &mut self,
        batch: &mut Batch,
        refusals: &mut Vec<(usize, KernelError)>,
    ) -> Result<(), KernelError> {
        if batch.owners.is_empty() {
            return Ok(());
        }
        let first = self.take_numbers(batch.owners.len() as u32);
        self.send(batch.seal(first))?;
        let mut complete = false;
        while !complete {
            for frame in Frames(self.receive()?) {
                complete |= batch.note(first, &frame.map_err(message_error)?, refusals)?;
            }
        }
        Ok(())
    }

    /// Reserves sequence numbers, and returns the first.
    pub(super) fn take_numbers(&mut self, count: u32) -> u32 {
        let first = self.sequence;
        self.sequence = first.wrapping_add(count);
        first
    }

    pub(super) fn change_one(&mut self, request: Request) -> Result<(), KernelError> {
        let mut batch = Batch::default();
        batch.push(0, request);
        match self.change(&mut batch) {
            Ok(refusals) => refusals.into_iter().next().map_or(Ok(()), |(_, reason)| Err(reason)),
            Err(broken) => Err(broken.reason),
        }
    }

    /// Asks for one object, and passes the answer to `read`. A refusal means that the object does not exist, or says
    /// why the kernel will not answer.
    pub(crate) fn one<T>(
        &mut self,
        request: Request,
        read: impl FnOnce(&Frame<'_>) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let sequence = self.ask(request)?;
        loop {
            for frame in Frames(self.receive()?) {
                let frame = frame.map_err(message_error)?;
                if frame.sequence != sequence {
                    continue;
                }
                if frame.kind != wire::ERROR {
                    return read(&frame);
                }
                return Err(match wire::refusal(&frame).map_err(message_error)? {
                    Some(refusal) => refusal.into(),
                    None => KernelError::Message("a question was answered with success".to_owned()),
                });
            }
        }
    }

    /// Reads a table, and passes the body of every entry to `read`. Repeats readings during which the kernel reports a
    /// change, and calls `begin` before each.
    ///
    /// # Errors
    /// [`KernelError::Interrupted`] if it changed every time.
    pub(crate) fn dump<T>(
        &mut self,
        request: &Request,
        mut begin: impl FnMut() -> T,
        mut read: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut entries = begin();
            if self.dump_once(request.clone(), |body| read(&mut entries, body))? {
                return Ok(entries);
            }
        }
        Err(KernelError::Interrupted)
    }

    /// Returns whether the result is consistent.
    fn dump_once(&mut self, request: Request, mut read: impl FnMut(&[u8])) -> Result<bool, KernelError> {
        let sequence = self.ask(request)?;
        let mut consistent = true;
        loop {
            for frame in Frames(self.receive()?) {
                let frame = frame.map_err(message_error)?;
                if frame.sequence != sequence {
                    continue;
                }
                consistent &= frame.flags & NLM_F_DUMP_INTR == 0;
                match frame.kind {
                    wire::DONE => {
                        // An error that occurred on the way is at the end.
                        return match wire::refusal(&frame).map_err(message_error)? {
                            Some(refusal) => Err(refusal.into()),
                            None => Ok(consistent),
                        };
                    }
                    wire::ERROR => {
                        return Err(match wire::refusal(&frame).map_err(message_error)? {
                            Some(refusal) => refusal.into(),
                            None => KernelError::Message("a dump was answered with success".to_owned()),
                        });
                    }
                    _ => read(frame.body),
                }
            }
        }
    }

    /// Sends a question, and returns its sequence number.
    fn ask(&mut self, request: Request) -> Result<u32, KernelError> {
        let sequence = self.take_numbers(1);
        let mut bytes = Vec::with_capacity(request.bytes());
        request.emit(sequence, &mut bytes);
        self.send(&bytes)?;
        Ok(sequence)
    }

    /// Sends requests that have sequence numbers.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), KernelError> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.inner.send_to(bytes, &kernel, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_error(error)),
                Ok(sent) if sent == bytes.len() => return Ok(()),
                Ok(sent) => return Err(KernelError::Socket(format!("sent {sent} of {} bytes", bytes.len()))),
            }
        }
    }

    pub(super) fn receive(&mut self) -> Result<&[u8], KernelError> {
        match receive(&self.inner, &mut self.buffer) {
            Ok(()) => Ok(&self.buffer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(KernelError::TimedOut(LIMIT)),
            Err(error) => Err(socket_error(error)),
        }
    }
}

/// Changes to send in one datagram, each with the number of its owner.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    owners: Vec<usize>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    pub(super) fn push(&mut self, owner: usize, request: Request) {
        self.last = self.bytes.len();
        // Holds the position until `seal` knows the sequence numbers.
        request.emit(self.owners.len() as u32, &mut self.bytes);
        self.owners.push(owner);
    }

    /// Returns whether `request` should go into the next batch for `socket`.
    pub(super) fn is_full_for(&self, request: &Request, socket: &Socket) -> bool {
        !self.fits(request, socket.most_requests)
    }

    fn fits(&self, request: &Request, most_requests: usize) -> bool {
        self.owners.is_empty()
            || (self.owners.len() < most_requests && self.bytes.len() + request.bytes() <= BATCH_BYTES)
    }

    pub(super) fn owners(&self) -> &[usize] {
        &self.owners
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.owners.clear();
    }

    /// Returns the datagram with sequence numbers from `first`. The kernel answers each failure, and always the last
    /// message, which means that all are done.
    fn seal(&mut self, first: u32) -> &[u8] {
        let mut rest = &mut self.bytes[..];
        let mut sequence = first;
        while let Some(length) = wire::u32_at(rest, 0) {
            rest[8..12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
            rest = rest.get_mut(length as usize..).unwrap_or_default();
        }
        let flags = wire::u16_at(&self.bytes, self.last + 6).unwrap_or_default() | NLM_F_ACK;
        self.bytes[self.last + 6..self.last + 8].copy_from_slice(&flags.to_ne_bytes());
        &self.bytes
    }

    /// Records an answer. Returns whether it answers the last message.
    fn note(
        &self,
        first: u32,
        frame: &Frame<'_>,
        refusals: &mut Vec<(usize, KernelError)>,
    ) -> Result<bool, KernelError> {
        let number = frame.sequence.wrapping_sub(first) as usize;
        // An answer to an earlier request, which nobody awaits any more.
        let Some(&owner) = self.owners.get(number) else { return Ok(false) };
        if frame.kind != wire::ERROR {
            return Ok(false);
        }
        if let Some(refusal) = wire::refusal(frame).map_err(message_error)? {
            refusals.push((owner, refusal.into()));
        }
        Ok(number + 1 == self.owners.len())
    }
}

/// Opens a socket with the options that all of ours have.
pub(super) fn open(protocol: isize) -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(protocol)?;
    socket.bind_auto()?;
    // An error without a copy of its request is smaller, and more of them fit in the receive buffer.
    if let Err(error) = socket.set_cap_ack(true) {
        tracing::debug!(%error, "this kernel does not shorten netlink errors");
    }
    if let Err(error) = socket.set_ext_ack(true) {
        tracing::debug!(%error, "this kernel does not explain netlink errors");
    }
    // With strict checks the kernel filters dumps; without (before 4.20) it sends everything, and we drop the rest.
    if let Err(error) = socket.set_netlink_get_strict_chk(true) {
        tracing::debug!(%error, "this kernel does not filter netlink dumps");
    }
    Ok(socket)
}

/// Requests `bytes` for the receive buffer, and returns its actual size.
pub(super) fn raise_receive_buffer(socket: &netlink_sys::Socket, bytes: usize) -> usize {
    let raised = setsockopt(socket, sockopt::RcvBufForce, &bytes)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes));
    if let Err(error) = raised {
        tracing::debug!(%error, "keeping the default receive buffer");
    }
    // The kernel doubles the requested size, to cover its own overhead.
    getsockopt(socket, sockopt::RcvBuf).unwrap_or(128 * ERROR_BYTES)
}

/// Receives one datagram from the kernel into `buffer`, up to its capacity.
pub(super) fn receive(socket: &netlink_sys::Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv_from(buffer, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            // Other processes can write to us as well.
            Ok((_, from)) if from.port_number() != 0 => {}
            Ok((bytes, _)) if bytes > buffer.len() => {
                return Err(io::Error::other(format!(
                    "an answer of {bytes} bytes is longer than the buffer"
                )));
            }
            Ok(_) => return Ok(()),
        }
    }
}

/// Returns whether `error` makes the socket unusable: its pending answers no longer match any request.
pub(crate) fn breaks_socket(error: &KernelError) -> bool {
    matches!(error, KernelError::Socket(_) | KernelError::TimedOut(_))
}

/// Converts the error of a system call.
pub(super) fn socket_error(error: impl Into<io::Error>) -> KernelError {
    KernelError::Socket(error.into().to_string())
}

pub(super) fn message_error(error: wire::CutOff) -> KernelError {
    KernelError::Message(error.to_string())
}

impl From<wire::Refusal> for KernelError {
    fn from(refusal: wire::Refusal) -> Self {
        match refusal.text {
            Some(text) => Self::Refused { errno: refusal.errno, text },
            None => Self::Errno(refusal.errno),
        }
    }
}

#[cfg(test)]
mod tests;
