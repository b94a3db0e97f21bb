//! The underlay: a namespace with a bridge for each segment, and what hangs on them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, ensure};

use super::directory::prefixed;
use crate::netns::Netns;
use crate::store::MemberPlace;

/// The prefix length of both segments.
const PREFIX_LENGTH: u8 = 24;

/// The underlay's router, which is also the rest of the world.
pub const ROUTER: Ipv4Addr = Segment::HOME.router();

/// An address that is neither on the underlay nor on the overlay. A web server answers there.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The same of IPv6, in a lab with [`LabOptions::ipv6`](crate::LabOptions::ipv6).
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The last octet of the first member of a store.
const FIRST_STORE: u8 = 2;

/// The first host's last octet; the members of stores come before.
const FIRST_HOST: u8 = 11;

/// Hosts that reach each other without a router.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    bridge: &'static str,
    /// All its addresses start with 192.168 and this.
    third: u8,
}

impl Segment {
    /// The one that everything is on.
    pub(super) const HOME: Segment = Segment { bridge: "br0", third: 64 };

    /// That of [`Lab::host_behind_router`](crate::Lab::host_behind_router).
    pub(super) const BEYOND: Segment = Segment { bridge: "br1", third: 65 };

    const fn address(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.third, last)
    }

    const fn router(self) -> Ipv4Addr {
        self.address(1)
    }
}

/// The namespace with the bridges, which names and addresses what comes.
#[derive(Debug)]
pub(super) struct Underlay {
    pub(super) netns: Netns,
    /// Of the lab.
    id: String,
    pub(super) ipv6: bool,
    next_store: AtomicU8,
    next_host: AtomicU8,
}

impl Underlay {
    /// Makes it, with the segment that everything is on.
    pub(super) fn make(id: &str, ipv6: bool) -> Result<Underlay> {
        let underlay = Underlay {
            netns: Netns::create(&format!("{}-underlay", prefixed(id)))?,
            id: id.to_owned(),
            ipv6,
            next_store: AtomicU8::new(FIRST_STORE),
            next_host: AtomicU8::new(FIRST_HOST),
        };
        underlay.make_segment(Segment::HOME)?;
        let netns = &underlay.netns;
        netns.ip(&format!("address add {OUTSIDE}/32 dev lo"))?;
        if ipv6 {
            netns.ip(&format!("address add {}/64 dev {} nodad", address6(1), Segment::HOME.bridge))?;
            netns.ip(&format!("address add {OUTSIDE6}/128 dev lo"))?;
        }
        Ok(underlay)
    }

    /// Makes the segment beyond, unless it is there, and routes between both.
    pub(super) fn reach_beyond(&self) -> Result<()> {
        ensure!(!self.ipv6, "the segment behind the router has no IPv6");
        if self.netns.ip(&format!("link show dev {}", Segment::BEYOND.bridge)).is_err() {
            self.make_segment(Segment::BEYOND)?;
            self.netns.place().run("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        }
        Ok(())
    }

    /// A namespace for the next member of a store: `store1`, `store2` and so on.
    pub(super) fn place_for_store(&self) -> Result<MemberPlace> {
        let number = self.next_store.fetch_add(1, Ordering::Relaxed);
        ensure!(number < FIRST_HOST, "the underlay has no address left for a store");
        let (name, address) = (format!("store{}", number + 1 - FIRST_STORE), Segment::HOME.address(number));
        let netns = self.attach(&name, Segment::HOME, address)?;
        Ok((name, netns, address))
    }

    /// A namespace for a new host, and its addresses.
    pub(super) fn place_for_host(
        &self,
        name: &str,
        segment: Segment,
    ) -> Result<(Netns, Ipv4Addr, Option<Ipv6Addr>)> {
        let number = self.next_host.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 255, "the underlay has no address left");
        let address = segment.address(number);
        let netns = self.attach(name, segment, address)?;
        let address6 = self.ipv6.then(|| address6(number));
        if let Some(address6) = address6 {
            netns.ip(&format!("address add {address6}/64 dev eth0 nodad"))?;
            netns.ip(&format!("-6 route add default via {}", self::address6(1)))?;
        }
        Ok((netns, address, address6))
    }

    /// An interface with this address on a segment, by a cable with these ends: the port here, the interface there.
    pub(super) fn plug_in(
        &self,
        netns: &Netns,
        (port, interface): (&str, &str),
        segment: Segment,
        address: Ipv4Addr,
    ) -> Result<()> {
        let bridges = &self.netns;
        bridges.ip(&format!("link add {port} type veth peer name {interface} netns {}", netns.name()))?;
        bridges.ip(&format!("link set {port} master {} up", segment.bridge))?;
        netns.ip(&format!("address add {address}/{PREFIX_LENGTH} dev {interface}"))?;
        netns.ip(&format!("link set {interface} up")).map(drop)
    }

    fn make_segment(&self, segment: Segment) -> Result<()> {
        let Segment { bridge, .. } = segment;
        self.netns.ip(&format!("link add {bridge} type bridge"))?;
        self.netns.ip(&format!("address add {}/{PREFIX_LENGTH} dev {bridge}", segment.router()))?;
        self.netns.ip(&format!("link set {bridge} up")).map(drop)
    }

    /// A namespace with eth0 on a segment.
    fn attach(&self, name: &str, segment: Segment, address: Ipv4Addr) -> Result<Netns> {
        let netns = Netns::create(&format!("{}-{name}", prefixed(&self.id)))?;
        self.plug_in(&netns, (name, "eth0"), segment, address)?;
        netns.ip(&format!("route add default via {}", segment.router()))?;
        Ok(netns)
    }
}

/// On the segment that everything is on; 1 is the router.
fn address6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, last.into())
}
