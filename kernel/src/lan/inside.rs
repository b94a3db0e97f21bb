//! The side of a link that is in another network namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_route::address::AddressFlags;
use rtnetlink::LinkUnspec;
use tokio::time::{Instant, sleep};

use super::announce::Arp;
use super::tables::{Link, Tables, Way, route, within};
use super::{LanError, LanLink, Netns};
use crate::mac::Mac;
use crate::{KernelError, LinkName, sysctl};

/// How long the kernel asks the LAN whether somebody has an IPv6 address.
const DUPLICATES: Duration = Duration::from_secs(4);
/// How often it is asked for the result.
const LOOK: Duration = Duration::from_millis(50);
/// Names tried for a new link.
const NAMES: u32 = 100;

/// A namespace, and a socket in it.
pub(super) struct Inside<'a> {
    netns: &'a Netns,
    tables: Tables,
}

impl<'a> Inside<'a> {
    pub(super) fn enter(netns: &'a Netns) -> Result<Self, LanError> {
        let runtime = tokio::runtime::Handle::current();
        let open = || {
            let _context = runtime.enter();
            Tables::open()
        };
        let tables = netns.run(open).map_err(LanError::Netns)?;
        Ok(Self { netns, tables })
    }

    pub(super) fn netns(&self) -> &Netns {
        self.netns
    }

    /// A name that no link has.
    pub(super) async fn free_name(&self, wanted: Option<LinkName>) -> Result<LinkName, LanError> {
        let links = self.tables.links().await?;
        let is_free = |name: &LinkName| links.iter().all(|link| link.name != *name);
        if let Some(name) = wanted {
            return match is_free(&name) {
                true => Ok(name),
                false => Err(LanError::Unsuitable(format!("the container has an interface {name} already"))),
            };
        }
        let mut names = (0..NAMES).filter_map(|number| format!("lan{number}").parse().ok());
        names.find(is_free).ok_or_else(|| {
            LanError::Unsuitable(format!("the container has {NAMES} interfaces lan0, lan1, ... already"))
        })
    }

    /// Gives the new link its addresses and routes, and announces it. Returns its MAC.
    pub(super) async fn configure(&self, name: LinkName, wanted: &LanLink) -> Result<MacAddr6, LanError> {
        let made = self.tables.link(name).await?;
        let link =
            made.ok_or_else(|| LanError::Unsuitable(format!("{name} vanished as soon as it was made")))?;
        self.prepare(name, wanted)?;
        self.set_up(&link, wanted).await?;
        let arp = Arc::new(self.netns.run(|| Arp::open(link.index, link.mac)).map_err(LanError::Netns)?);
        for address in &wanted.addresses {
            if let IpAddr::V4(ip) = address.ip() {
                let asked = blocking(&arp, move |arp| arp.holder_of(ip)).await;
                if let Some(holder) = asked.map_err(failed("asking for the address"))? {
                    return Err(LanError::AddressTaken { address: ip.into(), holder: Some(holder) });
                }
            }
            let add = self.tables.handle().address().add(link.index, address.ip(), address.prefix());
            within(add.execute()).await.map_err(LanError::kernel(format!("adding {address} to {name}")))?;
        }
        self.no_duplicates(&link, wanted).await?;
        self.route(&link, wanted).await?;
        for address in &wanted.addresses {
            if let IpAddr::V4(ip) = address.ip() {
                let told = blocking(&arp, move |arp| arp.announce(ip)).await;
                told.map_err(failed("announcing the address"))?;
            }
        }
        Ok(link.mac)
    }

    /// Leaves the link with the addresses and routes alone that were asked for: a router on the LAN would add its own. Docker
    /// switches IPv6 off in containers that have none. The kernel announces IPv6 addresses itself.
    fn prepare(&self, name: LinkName, wanted: &LanLink) -> Result<(), LanError> {
        let is_v6 = wanted.addresses.iter().any(IpNetwork::is_ipv6);
        let set = || {
            let setting = |which: &str| format!("net/ipv6/conf/{name}/{which}");
            let values = [("accept_ra", "0"), ("autoconf", "0"), ("ndisc_notify", "1")];
            for (which, value) in values.into_iter().chain([("disable_ipv6", if is_v6 { "0" } else { "1" })])
            {
                match sysctl::write(&setting(which), value) {
                    // This kernel is without IPv6.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !is_v6 => return Ok(()),
                    written => written?,
                };
            }
            Ok(())
        };
        self.netns.run(set).map_err(failed("preparing IPv6"))
    }

    async fn set_up(&self, link: &Link, wanted: &LanLink) -> Result<(), LanError> {
        let up = LinkUnspec::new_with_index(link.index).up().build();
        let done = within(self.tables.handle().link().set(up).execute()).await;
        done.map_err(|reason| match reason.errno() {
            Some(libc::EADDRINUSE) => {
                let mac = Mac(&link.mac);
                LanError::Unsuitable(format!("another interface on {} has the MAC {mac}", wanted.parent))
            }
            _ => LanError::Kernel { what: format!("setting {} up", link.name), reason },
        })
    }

    /// Waits until the kernel knows that nobody has the IPv6 addresses.
    async fn no_duplicates(&self, link: &Link, wanted: &LanLink) -> Result<(), LanError> {
        let ours: Vec<Ipv6Addr> = wanted
            .addresses
            .iter()
            .filter_map(|address| match address.ip() {
                IpAddr::V6(ip) => Some(ip),
                IpAddr::V4(_) => None,
            })
            .collect();
        let start = Instant::now();
        while !ours.is_empty() {
            let mut waits = false;
            for (index, address, flags) in self.tables.addresses().await? {
                let is_ours = index == link.index && ours.iter().any(|ip| address.ip() == IpAddr::V6(*ip));
                if is_ours && flags.contains(AddressFlags::Dadfailed) {
                    return Err(LanError::AddressTaken { address: address.ip(), holder: None });
                }
                waits |= is_ours && flags.contains(AddressFlags::Tentative);
            }
            if !waits {
                return Ok(());
            }
            if start.elapsed() > DUPLICATES {
                let text =
                    format!("the kernel cannot ask on {} whether an IPv6 address is taken", wanted.parent);
                return Err(LanError::Unsuitable(text));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Adds the way to everywhere as two halves, each of which is preferred to a default route: that of the container stays
    /// as it is, for when the link and its routes are gone.
    async fn route(&self, link: &Link, wanted: &LanLink) -> Result<(), LanError> {
        self.keep(wanted).await?;
        for gateway in &wanted.gateways {
            let way = Way { gateway: Some(*gateway), interface: link.index };
            for half in halves(gateway.is_ipv4()) {
                match within(self.tables.handle().route().add(route(half, way)?).execute()).await {
                    Ok(()) => {}
                    Err(reason) if reason.errno() == Some(libc::EEXIST) => {
                        let text = format!("the container has another gateway already: a route to {half}");
                        return Err(LanError::Unsuitable(text));
                    }
                    Err(reason) => {
                        return Err(LanError::Kernel {
                            what: format!("making {gateway} the gateway"),
                            reason,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds routes to what must stay where the default route leads, and would go to the LAN.
    async fn keep(&self, wanted: &LanLink) -> Result<(), LanError> {
        for network in wanted.hidden() {
            let Some(way) = self.tables.default_route(network.is_ipv4()).await? else { continue };
            match within(self.tables.handle().route().add(route(network, way)?).execute()).await {
                // The container has a way there of its own.
                Err(reason) if reason.errno() != Some(libc::EEXIST) => {
                    return Err(LanError::Kernel { what: format!("keeping the route to {network}"), reason });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the link. One that is gone is no error.
    pub(super) async fn remove(&self, name: LinkName, mac: Option<MacAddr6>) -> Result<(), LanError> {
        let links: Vec<Link> = self.tables.links().await?.into_iter().filter(Link::is_for_lans).collect();
        let named = |link: &&Link| link.name == name && mac.is_none_or(|mac| link.mac == mac);
        let renamed = |link: &&Link| mac.is_some_and(|mac| link.mac == mac);
        let Some(link) = links.iter().find(named).or_else(|| links.iter().find(renamed)) else {
            return Ok(());
        };
        match within(self.tables.handle().link().del(link.index).execute()).await {
            Err(reason) if reason.errno() != Some(libc::ENODEV) => {
                Err(LanError::Kernel { what: format!("removing {name}"), reason })
            }
            _ => Ok(()),
        }
    }
}

/// The two halves of all addresses of a family.
fn halves(v4: bool) -> [IpNetwork; 2] {
    let half = |first: IpAddr| IpNetwork::new(first, 1).unwrap_or_else(|_| first.into());
    match v4 {
        true => [half(Ipv4Addr::UNSPECIFIED.into()), half(Ipv4Addr::new(128, 0, 0, 0).into())],
        false => [half(Ipv6Addr::UNSPECIFIED.into()), half(Ipv6Addr::from_bits(1 << 127).into())],
    }
}

/// Does what takes a while on another thread.
async fn blocking<T: Send + 'static>(
    arp: &Arc<Arp>,
    work: impl FnOnce(&Arp) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let arp = Arc::clone(arp);
    tokio::task::spawn_blocking(move || work(&arp)).await.map_err(io::Error::other)?
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> LanError {
    let what = what.to_owned();
    move |error| LanError::Kernel { what, reason: KernelError::Message(error.to_string()) }
}
