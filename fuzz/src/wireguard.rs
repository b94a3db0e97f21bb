//! What arrives on WireGuard's port brings a packet only if a peer sent it, once, and takes the peer nowhere.
//!
//! `bytes` are steps, each begun by a byte of what it is, modulo six:
//!
//! | the step is | what follows |
//! | --- | --- |
//! | a packet of the peer that arrives | the length of its payload, a byte |
//! | the same, but damaged on the way | the same; a place, two bytes, and what is changed there |
//! | an earlier message again, from elsewhere | which, a byte |
//! | datagrams of a stranger | their length, two bytes; the size of each, a byte; themselves |
//! | the same, begun as a message | its type, a byte; then the same |
//! | a handshake of somebody who is no peer, damaged | a place, two bytes, and what is changed there |

use std::net::SocketAddr;

use flan_backends::wireguard::ends::{Arrival, End, settle};

const COOKIE: u8 = 3;
const MOST_STEPS: usize = 100;

pub fn check(bytes: &[u8]) {
    let mut hosts = Hosts::new();
    let mut input = Input(bytes);
    for _ in 0..MOST_STEPS {
        let Some(step) = input.byte() else { break };
        if hosts.step(step % 6, &mut input).is_none() {
            break;
        }
        let endpoint = hosts.other.peers.reports()[0].endpoint;
        assert_eq!(endpoint, Some(hosts.one.address), "the peer was taken elsewhere");
    }
    hosts.both_ways();
}

struct Hosts {
    one: End,
    other: End,
    stranger: End,
    /// What the peer has sent, and whether it arrived.
    sent: Vec<(Vec<u8>, Vec<u8>, bool)>,
}

impl Hosts {
    fn new() -> Self {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut one = End::new(1, at("192.168.64.11:51820"));
        let mut other = End::new(2, at("192.168.64.12:51820"));
        let stranger = End::new(3, at("203.0.113.66:9"));
        one.add(&other, &["10.5.2.0/24"]);
        other.add(&one, &["10.5.1.0/24"]);
        stranger.add(&other, &["10.5.2.0/24"]);
        let init = one.send(&packet(1, 2, 0)).expect("a peer");
        settle(&mut one, &mut other, init);
        Self { one, other, stranger, sent: Vec::new() }
    }

    fn step(&mut self, step: u8, input: &mut Input<'_>) -> Option<()> {
        match step {
            0 => {
                let (packet, message) = self.message(input.byte()?);
                let arrival = self.other.take(self.one.address, &message, message.len());
                assert_eq!(arrival.packets, [&packet[..]], "a packet of the peer is lost or changed");
                self.sent.push((packet, message, true));
            }
            1 => {
                let (packet, message) = self.message(input.byte()?);
                let damaged = input.damaged(&message)?;
                if damaged != message {
                    self.is_refused(&damaged, damaged.len());
                }
                self.sent.push((packet, message, false));
            }
            2 => {
                let which = usize::from(input.byte()?);
                let count = self.sent.len().max(1);
                let Some((packet, message, arrived)) = self.sent.get_mut(which % count) else { return Some(()) };
                let (again, message) = (*arrived, message.clone());
                if again {
                    self.is_refused(&message, message.len());
                } else {
                    // Late, but for the first time.
                    *arrived = true;
                    let arrival = self.other.take(self.one.address, &message, message.len());
                    assert_eq!(arrival.packets, [&packet[..]], "a late packet is lost or changed");
                }
            }
            3 => {
                let (datagrams, size) = input.datagrams()?;
                self.is_refused(&datagrams, size);
            }
            4 => {
                let kind = input.byte()?;
                let (mut datagrams, size) = input.datagrams()?;
                for message in datagrams.chunks_mut(size).filter(|message| message.len() >= 4) {
                    message[..4].copy_from_slice(&[kind % 6, 0, 0, 0]);
                }
                self.is_refused(&datagrams, size);
            }
            _ => {
                let init = self.stranger.send(&packet(3, 2, 0)).expect("a peer");
                let Some((_, init)) = init.first() else { return Some(()) };
                let damaged = input.damaged(init)?;
                let Arrival { packets, answers } =
                    self.other.take(self.stranger.address, &damaged, damaged.len());
                assert!(packets.is_empty(), "a packet of a stranger");
                let is_cookie = |message: &[u8]| message.first() == Some(&COOKIE);
                assert!(answers.iter().all(|(_, message)| is_cookie(message)), "a stranger is answered");
            }
        }
        Some(())
    }

    /// Returns a packet of the peer, and its message.
    fn message(&mut self, length: u8) -> (Vec<u8>, Vec<u8>) {
        let packet = packet(1, 2, length);
        let [(_, message)] = &self.one.send(&packet).expect("a peer")[..] else { panic!("no session") };
        (packet, message.clone())
    }

    fn is_refused(&mut self, datagrams: &[u8], size: usize) {
        let arrival = self.other.take(self.stranger.address, datagrams, size);
        assert_eq!(arrival, Arrival::default(), "brought something");
    }

    fn both_ways(&mut self) {
        for (from, to) in [(1, 2), (2, 1)] {
            let packet = packet(from, to, 9);
            let end = if from == 1 { &mut self.one } else { &mut self.other };
            let messages = end.send(&packet).expect("a peer");
            let arrived = settle(&mut self.one, &mut self.other, messages);
            assert_eq!(arrived[usize::from(to) - 1], [packet], "the session is harmed");
        }
    }
}

/// Returns an IPv4 packet of an experimental protocol with so many bytes after its header.
fn packet(from: u8, to: u8, length: u8) -> Vec<u8> {
    let total = 20 + u16::from(length);
    let mut packet = vec![0x45, 0, (total >> 8) as u8, total as u8, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend([10, 5, from, 7, 10, 5, to, 8]);
    packet.resize(total.into(), length);
    packet
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn word(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    fn damaged(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let (at, change) = (self.word()? % message.len(), self.byte()?);
        let mut damaged = message.to_vec();
        damaged[at] ^= change;
        Some(damaged)
    }

    /// Returns datagrams, and the size of each, as many as the kernel merges.
    fn datagrams(&mut self) -> Option<(Vec<u8>, usize)> {
        let (length, size) = (self.word()?, self.byte()?);
        let (datagrams, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        Some((datagrams.to_vec(), usize::from(size).max(datagrams.len() / 64).max(1)))
    }
}
