//! Combines wire packets into as few sends as the kernel allows.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use flan_kernel::udp_socket::{self, MAX_GSO_BYTES, MAX_SEGMENTS, Message, UdpSocket};
use tracing::warn;

use super::counters::add;
use super::gauge::Gauge;

/// Wire packets of `N` pieces each to send, grouped by peer and size.
pub(crate) struct Outgoing<'a, const N: usize> {
    gauge: &'a Gauge,
    socket: &'a UdpSocket,
    /// Whether the kernel segments sends.
    gso: bool,
    /// `N` for each wire packet.
    slices: Vec<IoSlice<'a>>,
    trains: Vec<Train>,
}

/// Wire packets that leave in one send.
struct Train {
    to: SocketAddr,
    /// Bytes of each but the last.
    size: usize,
    /// Bytes of the last one so far.
    last: usize,
    bytes: usize,
    /// The range of slices.
    first: usize,
    count: usize,
}

impl<'a, const N: usize> Outgoing<'a, N> {
    pub(crate) fn new(gauge: &'a Gauge, socket: &'a UdpSocket) -> Self {
        let gso = gauge.gso.load(Relaxed);
        Self { gauge, socket, gso, slices: Vec::with_capacity(256), trains: Vec::with_capacity(16) }
    }

    /// Queues a wire packet for the next [`Outgoing::send`], after those added before.
    pub(crate) fn add(&mut self, to: SocketAddr, packet: [IoSlice<'a>; N]) {
        let size = packet.iter().map(|piece| piece.len()).sum();
        let first = self.slices.len();
        self.slices.extend(packet);
        match self.trains.last_mut().filter(|train| self.gso && train.takes(to, size)) {
            Some(train) => {
                train.bytes += size;
                train.count += 1;
                train.last = size;
            }
            None => self.trains.push(Train { to, size, last: size, bytes: size, first, count: 1 }),
        }
    }

    /// Sends everything; passes each packet that is too big for the path to `too_big`.
    pub(crate) fn send(&self, mut too_big: impl FnMut(&[u8])) {
        let gso = &self.gauge.gso;
        let mut rest = &self.trains[..];
        while let [first, after @ ..] = rest {
            let several = first.count > 1;
            if several && !gso.load(Relaxed) {
                self.send_singly(first, &mut too_big);
                rest = after;
                continue;
            }
            match self.hand_over(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if several && udp_socket::is_gso_refused(&error) => {
                    warn!(%error, "the kernel refuses batches (UDP_SEGMENT); sending packets one by one from now on");
                    gso.store(false, Relaxed);
                }
                // Single datagrams are fragmented where the path needs it.
                Err(error) if several && udp_socket::is_too_big(&error) => {
                    self.send_singly(first, &mut too_big);
                    rest = after;
                }
                Err(error) => {
                    self.count_lost(first, &error, &mut too_big);
                    rest = after;
                }
            }
        }
    }

    fn send_singly(&self, train: &Train, too_big: &mut impl FnMut(&[u8])) {
        let singles: Vec<Train> = self.singles(train).collect();
        let mut rest = &singles[..];
        while let [first, after @ ..] = rest {
            match self.hand_over(rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) => {
                    self.count_lost(first, &error, too_big);
                    rest = after;
                }
            }
        }
    }

    /// Passes as many trains to the kernel as it takes, and returns their number.
    fn hand_over(&self, trains: &[Train]) -> io::Result<usize> {
        let messages: Vec<Message<'_>> = trains.iter().map(|train| self.message(train)).collect();
        let sent = self.socket.send_many(&messages)?;
        self.count(&trains[..sent]);
        Ok(sent)
    }

    fn message(&self, train: &Train) -> Message<'_> {
        Message {
            to: train.to,
            slices: &self.slices[train.first..train.first + N * train.count],
            segment_size: u16::try_from(train.size).ok().filter(|_| train.count > 1),
        }
    }

    fn singles(&self, train: &Train) -> impl Iterator<Item = Train> {
        let (to, first) = (train.to, train.first);
        (0..train.count).map(move |number| {
            let first = first + N * number;
            let size = self.slices[first..first + N].iter().map(|piece| piece.len()).sum();
            Train { to, size, last: size, bytes: size, first, count: 1 }
        })
    }

    fn count(&self, sent: &[Train]) {
        let counters = &self.gauge.counters;
        add(&counters.sent_batches, 1);
        add(&counters.sent_packets, sent.iter().map(|train| train.count).sum());
        add(&counters.sent_bytes, sent.iter().map(|train| train.bytes).sum());
    }

    fn count_lost(&self, train: &Train, error: &io::Error, too_big: &mut impl FnMut(&[u8])) {
        let counters = &self.gauge.counters;
        if udp_socket::is_too_big(error) {
            add(&counters.dropped_too_big, train.count);
            too_big(&gathered(&self.slices[train.first..train.first + N]));
        } else if udp_socket::is_full(error) {
            add(&counters.dropped_full, train.count);
        } else {
            add(&counters.dropped_refused, train.count);
        }
    }
}

impl Train {
    /// Returns whether another wire packet of this size may follow: all but the last have one size.
    fn takes(&self, to: SocketAddr, size: usize) -> bool {
        self.to == to
            && self.last == self.size
            && size <= self.size
            && self.count < MAX_SEGMENTS
            && self.bytes + size <= MAX_GSO_BYTES
    }
}

fn gathered(slices: &[IoSlice<'_>]) -> Vec<u8> {
    slices.iter().flat_map(|slice| slice.iter().copied()).collect()
}
