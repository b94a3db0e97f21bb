//! Packets for peers that read one datagram at a time from a small buffer, as flanneld does: they leave in short bursts
//! with pauses between.
//!
//! Such a socket holds `net.core.rmem_default`, 212,992 bytes, of which each datagram takes its `truesize`: about 2,300
//! bytes for one of 1,472, so 90 of them at most. One batch of a worker is more than that. A sender that is as fast as
//! ours, before a receiver that is not, fills the buffer at each chance, and the losses are the sender's only brake. A
//! pause moves the queue to this side, where it is as long as that of flanneld's own device.
//!
//! One thread sends for all workers, so that the packets of one flow stay in order whichever worker reads them.

use std::collections::{HashMap, VecDeque};
use std::io::IoSlice;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flan_kernel::scheduling;
use flan_kernel::udp_socket::UdpSocket;
use tracing::debug;

use super::Shared;
use super::outgoing::Outgoing;
use crate::udp::counters::add;
use crate::udp::segmentation::Split;

/// Datagrams that leave for one peer at once: a sixth of what its buffer holds.
const BURST: usize = 16;

/// Datagrams that wait for one peer at most, as many as in the queue of flanneld's device (`txqueuelen` of a TUN).
const LANE: usize = 500;

/// Datagrams that wait for this thread to look at them. It looks after each pause.
const HANDED_OVER: usize = 1024;

/// After a burst, its peer is left alone for this many times as long as sending it took. What a datagram costs here is
/// what tells how fast hosts of this kind are, and a datagram costs flanneld several times as much.
const PAUSE_FACTOR: u32 = 5;

/// And for at least this long for each datagram of the burst: 200,000 in a second are more than flanneld reads.
const LEAST_PAUSE: Duration = Duration::from_micros(5);

/// But no longer than this, however long the thread was kept from its processor while it sent.
const LONGEST_PAUSE: Duration = Duration::from_micros(500);

/// A datagram on its way to the thread.
struct Packet {
    peer: Ipv4Addr,
    bytes: Vec<u8>,
}

/// Where a worker leaves packets for paced peers.
#[derive(Clone)]
pub(super) struct Entrance(SyncSender<Packet>);

/// The sending thread's end.
pub(super) struct Pacer {
    handed_over: Receiver<Packet>,
    lanes: Lanes,
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
}

impl Entrance {
    /// Leaves copies of the wire packets of `split`, and says how many found no room.
    pub(super) fn leave(&self, peer: Ipv4Addr, split: &Split<'_>) -> usize {
        let left = split.segments().map(|(headers, payload)| {
            let bytes = [headers, payload].concat();
            self.0.try_send(Packet { peer, bytes })
        });
        left.filter(Result::is_err).count()
    }
}

impl Pacer {
    pub(super) fn new(shared: Arc<Shared>, socket: Arc<UdpSocket>) -> (Self, Entrance) {
        let (entrance, handed_over) = sync_channel(HANDED_OVER);
        (Self { handed_over, lanes: Lanes::default(), shared, socket }, Entrance(entrance))
    }

    /// Runs until every [`Entrance`] is dropped. At ordinary priority, other than the workers: what these peers can
    /// take is bounded by the processor time of an ordinary process.
    pub(super) fn run(mut self) {
        if let Err(reason) = scheduling::wake_on_time() {
            debug!(%reason, "pauses between bursts are longer than needed");
        }
        loop {
            while let Ok(packet) = self.handed_over.try_recv() {
                self.take(packet);
            }
            let now = Instant::now();
            match self.lanes.next(now) {
                Some((peer, ready)) if ready <= now => self.send(peer),
                Some((_, ready)) => std::thread::sleep(ready - now),
                None => match self.handed_over.recv() {
                    Ok(packet) => self.take(packet),
                    Err(_) => return,
                },
            }
        }
    }

    fn take(&mut self, packet: Packet) {
        if !self.lanes.add(packet) {
            add(&self.shared.gauge.counters.dropped_full, 1);
        }
    }

    fn send(&mut self, peer: Ipv4Addr) {
        let burst = self.lanes.burst(peer);
        let begun = Instant::now();
        let mut outgoing = Outgoing::new(&self.shared, &self.socket);
        for bytes in &burst {
            outgoing.add(peer, [IoSlice::new(bytes), IoSlice::new(&[])]);
        }
        // A datagram that is larger than the path carries leaves in fragments, so nobody has to be told.
        outgoing.send(|_| {});
        let now = Instant::now();
        self.lanes.rest(peer, now + pause(burst.len(), now - begun));
    }
}

/// How long a peer is left alone after a burst of so many datagrams that took so long to send.
fn pause(datagrams: usize, took: Duration) -> Duration {
    let least = LEAST_PAUSE * u32::try_from(datagrams).unwrap_or(u32::MAX);
    (took * PAUSE_FACTOR).min(LONGEST_PAUSE).max(least)
}

/// What waits, a lane for each peer.
#[derive(Default)]
struct Lanes(HashMap<Ipv4Addr, Lane>);

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Vec<u8>>,
    /// When the next burst may leave; `None` if none has left yet.
    ready: Option<Instant>,
}

impl Lanes {
    /// Lets a datagram wait for its turn. False if too many do already.
    fn add(&mut self, packet: Packet) -> bool {
        let waiting = &mut self.0.entry(packet.peer).or_default().waiting;
        let room = waiting.len() < LANE;
        if room {
            waiting.push_back(packet.bytes);
        }
        room
    }

    /// The peer whose turn is next, and when: in the past for one that may be sent to at once. `None` if nothing waits.
    fn next(&mut self, now: Instant) -> Option<(Ipv4Addr, Instant)> {
        self.0.retain(|_, lane| !lane.waiting.is_empty() || lane.ready.is_some_and(|ready| ready > now));
        let waiting = self.0.iter().filter(|(_, lane)| !lane.waiting.is_empty());
        waiting.map(|(peer, lane)| (*peer, lane.ready.unwrap_or(now))).min_by_key(|(_, ready)| *ready)
    }

    /// Takes the next burst for a peer.
    fn burst(&mut self, peer: Ipv4Addr) -> Vec<Vec<u8>> {
        let Some(lane) = self.0.get_mut(&peer) else { return Vec::new() };
        lane.waiting.drain(..lane.waiting.len().min(BURST)).collect()
    }

    /// Leaves a peer alone until then.
    fn rest(&mut self, peer: Ipv4Addr, until: Instant) {
        self.0.entry(peer).or_default().ready = Some(until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 11);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 12);

    fn lanes(packets: &[(Ipv4Addr, usize)]) -> Lanes {
        let mut lanes = Lanes::default();
        for (peer, count) in packets {
            for number in 0..*count {
                assert!(lanes.add(Packet { peer: *peer, bytes: vec![number as u8] }));
            }
        }
        lanes
    }

    #[test]
    fn what_waits_for_a_peer_leaves_in_bursts_and_in_order() {
        let mut lanes = lanes(&[(ONE, BURST + 2)]);
        let mut left = lanes.burst(ONE);
        assert_eq!(left.len(), BURST);
        left.extend(lanes.burst(ONE));
        assert!(left.iter().map(|bytes| usize::from(bytes[0])).eq(0..BURST + 2));
    }

    #[test]
    fn two_bursts_fit_into_the_buffer_of_a_plain_socket() {
        const RMEM_DEFAULT: usize = 212_992;
        // What a driver that receives into half a page charges for a datagram of 1,472 bytes, with the kernel's own part.
        const TRUESIZE: usize = 2048 + 2048;
        const { assert!(2 * BURST * TRUESIZE <= RMEM_DEFAULT) };
    }

    #[test]
    fn a_peer_that_rests_keeps_nobody_else_waiting() {
        let now = Instant::now();
        let mut lanes = lanes(&[(ONE, 2 * BURST), (OTHER, 1)]);
        lanes.burst(ONE);
        lanes.rest(ONE, now + Duration::from_micros(80));
        assert_eq!(lanes.next(now), Some((OTHER, now)));
        lanes.burst(OTHER);
        lanes.rest(OTHER, now + Duration::from_micros(5));
        assert_eq!(lanes.next(now), Some((ONE, now + Duration::from_micros(80))));
    }

    #[test]
    fn a_peer_rests_even_if_nothing_waits_for_it_in_between() {
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_micros(10), now + Duration::from_micros(80));
        let mut lanes = lanes(&[(ONE, 1)]);
        lanes.burst(ONE);
        lanes.rest(ONE, later);
        assert_eq!(lanes.next(soon), None);
        lanes.add(Packet { peer: ONE, bytes: vec![1] });
        assert_eq!(lanes.next(soon), Some((ONE, later)));
    }

    #[test]
    fn nothing_is_kept_of_a_peer_that_nothing_was_sent_to_lately() {
        let now = Instant::now();
        let mut lanes = lanes(&[(ONE, 1)]);
        lanes.burst(ONE);
        lanes.rest(ONE, now);
        assert_eq!(lanes.next(now), None);
        assert!(lanes.0.is_empty());
    }

    #[test]
    fn a_lane_that_is_full_takes_no_more_and_others_do() {
        let mut lanes = lanes(&[(ONE, LANE)]);
        assert!(!lanes.add(Packet { peer: ONE, bytes: vec![0] }));
        assert!(lanes.add(Packet { peer: OTHER, bytes: vec![0] }));
    }

    #[test]
    fn a_pause_is_as_long_as_the_burst_was_costly_within_bounds() {
        let micros = Duration::from_micros;
        assert_eq!(pause(16, micros(30)), micros(150));
        assert_eq!(pause(16, micros(1)), micros(80));
        assert_eq!(pause(16, Duration::from_millis(4)), micros(500));
    }
}
