//! Packets for peers that read one datagram at a time from a small buffer, as flanneld does: short bursts with pauses.
//!
//! Such a socket holds `net.core.rmem_default`, 212,992 bytes, of which each datagram takes its `truesize`: about 2,300
//! bytes for one of 1,472, so at most 90 of them. One batch of a worker is more than that. A sender as fast as ours
//! fills the buffer of a slower receiver at each chance, and only losses slow the sender down. A pause moves the queue
//! to this side, where it is as long as that of flanneld's own device.
//!
//! One thread sends for all workers, so that the packets of one flow stay in order whichever worker reads them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use flan_kernel::scheduling;
use flan_kernel::udp_socket::UdpSocket;
use tracing::debug;

use super::common::Common;
use crate::userspace::counters::add;
use crate::userspace::outgoing::Outgoing;
use crate::userspace::segmentation::Split;

/// Datagrams per burst to one peer: a sixth of its buffer.
const BURST: usize = 16;

/// Most datagrams queued for one peer: as many as in the queue of flanneld's device (`txqueuelen` of a TUN).
const LANE: usize = 500;

/// Most datagrams queued for all peers together: 25 MB of 1,472 bytes each, however many peers are slow at once.
const ALL_LANES: usize = 16_384;

/// Datagrams that wait for this thread to take them. It does so before each burst, and whenever it waits.
const HANDED_OVER: usize = 1024;

/// After a burst, its peer rests for this many times as long as sending took. The cost of a datagram here shows how
/// fast hosts of this kind are, and a datagram costs flanneld several times as much.
const PAUSE_FACTOR: u32 = 5;

/// The minimum rest per datagram of the burst: 200,000 per second are more than flanneld reads.
const LEAST_PAUSE: Duration = Duration::from_micros(5);

/// The maximum rest, however long the thread lost its processor while sending.
const LONGEST_PAUSE: Duration = Duration::from_micros(500);

/// A datagram on its way to the thread.
struct Packet {
    peer: Ipv4Addr,
    bytes: Vec<u8>,
}

/// Where workers leave packets for paced peers.
#[derive(Clone)]
pub(super) struct Entrance(SyncSender<Packet>);

/// The sending thread's end.
pub(super) struct Pacer {
    handed_over: Receiver<Packet>,
    lanes: Lanes,
    common: Arc<Common>,
    socket: Arc<UdpSocket>,
}

impl Entrance {
    /// Leaves copies of the wire packets of `split`, and returns how many found no room.
    pub(super) fn leave(&self, peer: Ipv4Addr, split: &Split<'_>) -> usize {
        let left = split.segments().map(|(headers, payload)| {
            let bytes = [headers, payload].concat();
            self.0.try_send(Packet { peer, bytes })
        });
        left.filter(Result::is_err).count()
    }
}

impl Pacer {
    pub(super) fn new(common: Arc<Common>, socket: Arc<UdpSocket>) -> (Self, Entrance) {
        let (entrance, handed_over) = sync_channel(HANDED_OVER);
        (Self { handed_over, lanes: Lanes::default(), common, socket }, Entrance(entrance))
    }

    /// Runs until the data path is over; drops what is still queued. Runs at ordinary priority, unlike the workers:
    /// these peers are limited by the processor time of an ordinary process.
    pub(super) fn run(mut self) {
        if let Err(reason) = scheduling::wake_on_time() {
            debug!(%reason, "pauses between bursts are longer than needed");
        }
        // While it waits for a packet, it notices the end because the workers drop their entrances.
        while !self.common.running.over.load(Relaxed) {
            let mut without_room = self.lanes.fill(&self.handed_over, Instant::now());
            let now = Instant::now();
            let received = match self.lanes.next(now) {
                Some((peer, ready)) if ready <= now => {
                    self.send(peer);
                    Err(RecvTimeoutError::Timeout)
                }
                // A packet for a peer that does not rest must not wait for one that does.
                Some((_, ready)) => self.handed_over.recv_timeout(ready - now),
                None => self.handed_over.recv().map_err(RecvTimeoutError::from),
            };
            match received {
                Ok(packet) => without_room += usize::from(!self.lanes.add(packet, Instant::now())),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if without_room > 0 {
                add(&self.common.running.gauge.counters.dropped_full, without_room);
            }
        }
    }

    fn send(&mut self, peer: Ipv4Addr) {
        let burst = self.lanes.burst(peer);
        let begun = Instant::now();
        let mut outgoing = Outgoing::new(&self.common.running.gauge, &self.socket);
        let to = SocketAddr::new(peer.into(), self.common.settings.port);
        for bytes in &burst {
            outgoing.add(to, [IoSlice::new(bytes)]);
        }
        // A datagram that is too large for the path leaves in fragments, so nobody has to be told.
        outgoing.send(|_| {});
        let now = Instant::now();
        self.lanes.rest(peer, now + pause(burst.len(), now - begun));
    }
}

/// Returns how long a peer rests after a burst of this many datagrams that took this long to send.
fn pause(datagrams: usize, took: Duration) -> Duration {
    let least = LEAST_PAUSE * u32::try_from(datagrams).unwrap_or(u32::MAX);
    (took * PAUSE_FACTOR).min(LONGEST_PAUSE).max(least)
}

/// The queues: a lane for each peer with queued datagrams or at rest.
#[derive(Default)]
struct Lanes {
    by_peer: HashMap<Ipv4Addr, Lane>,
    /// Each lane once, by when its next burst may leave.
    turns: BTreeSet<(Instant, Ipv4Addr)>,
    waiting: usize,
}

struct Lane {
    waiting: VecDeque<Vec<u8>>,
    /// When the next burst may leave.
    ready: Instant,
}

impl Lanes {
    /// Takes what was handed over, but at most one channel's worth at a time: workers that hand over as fast as this
    /// takes must not keep it from sending. Returns how many datagrams found no room here.
    fn fill(&mut self, handed_over: &Receiver<Packet>, now: Instant) -> usize {
        let taken = handed_over.try_iter().take(HANDED_OVER);
        taken.map(|packet| self.add(packet, now)).filter(|room| !room).count()
    }

    /// Queues a datagram. Returns false if too many are queued already.
    fn add(&mut self, packet: Packet, now: Instant) -> bool {
        if self.waiting >= ALL_LANES {
            return false;
        }
        let lane = match self.by_peer.entry(packet.peer) {
            Entry::Occupied(lane) => lane.into_mut(),
            Entry::Vacant(place) => {
                self.turns.insert((now, packet.peer));
                place.insert(Lane { waiting: VecDeque::new(), ready: now })
            }
        };
        let room = lane.waiting.len() < LANE;
        if room {
            lane.waiting.push_back(packet.bytes);
            self.waiting += 1;
        }
        room
    }

    /// Returns the peer whose turn is next, and when: in the past if it can be sent to at once. A resting peer may have
    /// nothing queued. `None` if nothing is queued and nobody rests.
    fn next(&mut self, now: Instant) -> Option<(Ipv4Addr, Instant)> {
        loop {
            let &(ready, peer) = self.turns.first()?;
            let is_empty = self.by_peer.get(&peer).is_none_or(|lane| lane.waiting.is_empty());
            if ready > now || !is_empty {
                return Some((peer, ready));
            }
            self.turns.pop_first();
            self.by_peer.remove(&peer);
        }
    }

    fn burst(&mut self, peer: Ipv4Addr) -> Vec<Vec<u8>> {
        let Some(lane) = self.by_peer.get_mut(&peer) else { return Vec::new() };
        let burst: Vec<_> = lane.waiting.drain(..lane.waiting.len().min(BURST)).collect();
        self.waiting -= burst.len();
        burst
    }

    fn rest(&mut self, peer: Ipv4Addr, until: Instant) {
        let Some(lane) = self.by_peer.get_mut(&peer) else { return };
        self.turns.remove(&(lane.ready, peer));
        lane.ready = until;
        self.turns.insert((until, peer));
    }
}

#[cfg(test)]
mod tests {
    use flan_kernel::tun::TunMode;
    use flan_kernel::udp_socket::UdpOptions;

    use super::super::settings::Settings;
    use super::*;
    use crate::udp::forwarding::ForwardingTable;

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 11);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 12);

    fn packet(peer: Ipv4Addr, number: usize) -> Packet {
        Packet { peer, bytes: vec![number as u8] }
    }

    fn lanes(now: Instant, packets: &[(Ipv4Addr, usize)]) -> Lanes {
        let mut lanes = Lanes::default();
        for &(peer, count) in packets {
            assert!((0..count).all(|number| lanes.add(packet(peer, number), now)));
        }
        lanes
    }

    #[test]
    fn what_waits_for_a_peer_leaves_in_bursts_and_in_order() {
        let mut lanes = lanes(Instant::now(), &[(ONE, BURST + 2)]);
        let mut left = lanes.burst(ONE);
        assert_eq!(left.len(), BURST);
        left.extend(lanes.burst(ONE));
        assert!(left.iter().map(|bytes| usize::from(bytes[0])).eq(0..BURST + 2));
    }

    #[test]
    fn two_bursts_fit_into_the_buffer_of_a_plain_socket() {
        const RMEM_DEFAULT: usize = 212_992;
        // What a driver that receives into half a page charges for a datagram of 1,472 bytes, plus the kernel's part.
        const TRUESIZE: usize = 2048 + 2048;
        const { assert!(2 * BURST * TRUESIZE <= RMEM_DEFAULT) };
    }

    #[test]
    fn a_peer_that_rests_keeps_nobody_else_waiting() {
        let now = Instant::now();
        let mut lanes = lanes(now, &[(ONE, 2 * BURST), (OTHER, 1)]);
        assert_eq!(lanes.next(now), Some((ONE, now)));
        lanes.burst(ONE);
        lanes.rest(ONE, now + Duration::from_micros(80));
        assert_eq!(lanes.next(now), Some((OTHER, now)));
        lanes.burst(OTHER);
        lanes.rest(OTHER, now + Duration::from_micros(5));
        assert_eq!(lanes.next(now + Duration::from_micros(5)), Some((ONE, now + Duration::from_micros(80))));
    }

    #[test]
    fn a_peer_rests_even_if_nothing_waits_for_it_in_between() {
        let now = Instant::now();
        let (soon, later) = (now + Duration::from_micros(10), now + Duration::from_micros(80));
        let mut lanes = lanes(now, &[(ONE, 1)]);
        lanes.burst(ONE);
        lanes.rest(ONE, later);
        assert_eq!(lanes.next(soon), Some((ONE, later)));
        lanes.add(packet(ONE, 1), soon);
        assert_eq!(lanes.next(soon), Some((ONE, later)));
    }

    #[test]
    fn nothing_is_kept_of_a_peer_that_nothing_was_sent_to_lately() {
        let now = Instant::now();
        let mut lanes = lanes(now, &[(ONE, 1)]);
        lanes.burst(ONE);
        lanes.rest(ONE, now);
        assert_eq!(lanes.next(now), None);
        assert!(lanes.by_peer.is_empty() && lanes.turns.is_empty());
    }

    #[test]
    fn a_lane_that_is_full_takes_no_more_and_others_do() {
        let now = Instant::now();
        let mut lanes = lanes(now, &[(ONE, LANE)]);
        assert!(!lanes.add(packet(ONE, 0), now));
        assert!(lanes.add(packet(OTHER, 0), now));
    }

    #[test]
    fn many_slow_peers_together_keep_no_more_than_the_bound() {
        let now = Instant::now();
        let mut lanes = Lanes::default();
        let peers = (0..5_000).map(|number| Ipv4Addr::from_bits(ONE.to_bits() + number));
        let room =
            peers.flat_map(|peer| [peer; LANE]).filter(|peer| lanes.add(packet(*peer, 0), now)).count();
        assert_eq!(room, ALL_LANES);
        // Sending makes room for others.
        assert!(!lanes.add(packet(OTHER, 0), now));
        let (peer, _) = lanes.next(now).unwrap();
        assert_eq!(lanes.burst(peer).len(), BURST);
        assert!((0..BURST).all(|number| lanes.add(packet(peer, number), now)));
        assert!(!lanes.add(packet(peer, 0), now));
    }

    #[test]
    fn who_hands_over_without_end_keeps_nobody_from_sending() {
        let now = Instant::now();
        let (entrance, handed_over) = std::sync::mpsc::channel();
        for number in 0..3 * HANDED_OVER {
            entrance.send(packet(ONE, number)).unwrap();
        }
        let mut lanes = Lanes::default();
        assert_eq!(lanes.fill(&handed_over, now), HANDED_OVER - LANE);
        assert_eq!(lanes.waiting, LANE);
        assert_eq!(handed_over.try_iter().count(), 2 * HANDED_OVER);
    }

    /// Returns the pacer of a data path without workers, which sends from and to this machine.
    fn pacer() -> (Pacer, Entrance) {
        let local = Ipv4Addr::LOCALHOST;
        let options = UdpOptions { gso: false, gro: false, shared: false, buffer_bytes: 1 << 16 };
        let (socket, udp) = UdpSocket::bind((local, 0).into(), options).unwrap();
        let tun = TunMode::default();
        let settings = Settings {
            device: "flannel0".parse().unwrap(),
            tun,
            gso: false,
            gro: false,
            local,
            port: 9, // discard
            address: local,
            mtu: 1472,
            strict: None,
        };
        let table = ForwardingTable::default().reader();
        Pacer::new(Common::new(settings, table, tun, udp), Arc::new(socket))
    }

    #[test]
    fn the_thread_ends_with_the_data_path_though_much_waits() {
        let (mut pacer, _entrance) = pacer();
        let later = Instant::now() + Duration::from_secs(3600);
        assert!(pacer.lanes.add(packet(ONE, 0), later));
        let common = pacer.common.clone();
        common.running.over.store(true, Relaxed);
        pacer.run();
        assert_eq!(common.running.gauge.totals().sent_packets, 0);
    }

    #[test]
    fn a_peer_that_rests_delays_no_packet_for_another() {
        let (mut pacer, entrance) = pacer();
        let later = Instant::now() + Duration::from_secs(3600);
        assert!(pacer.lanes.add(packet(ONE, 0), later));
        let common = pacer.common.clone();
        let thread = std::thread::spawn(move || pacer.run());
        entrance.0.send(packet(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let limit = Instant::now() + Duration::from_secs(10);
        let left = || {
            let totals = common.running.gauge.totals();
            totals.sent_packets + totals.dropped_refused
        };
        while left() == 0 {
            assert!(Instant::now() < limit, "nothing was sent, though its peer does not rest");
            std::thread::yield_now();
        }
        // As when the last worker ends.
        drop(entrance);
        thread.join().unwrap();
    }

    #[test]
    fn a_pause_is_as_long_as_the_burst_was_costly_within_bounds() {
        let micros = Duration::from_micros;
        assert_eq!(pause(16, micros(30)), micros(150));
        assert_eq!(pause(16, micros(1)), micros(80));
        assert_eq!(pause(16, Duration::from_millis(4)), micros(500));
    }
}
