//! The side of a link that is in another network namespace.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use macaddr::MacAddr6;
use netlink_packet_route::address::AddressFlags;
use rtnetlink::LinkUnspec;
use tokio::time::{Instant, sleep};

use super::announce::Arp;
use super::tables::{Link, Tables, Way, route, route_of_anybody, within};
use super::{LanError, LanLink, Netns};
use crate::mac::Mac;
use crate::{KernelError, LinkName, sysctl};

/// How long the kernel asks the LAN whether somebody has an IPv6 address.
const DUPLICATES: Duration = Duration::from_secs(4);
/// How often it is asked for the result.
const LOOK: Duration = Duration::from_millis(50);
/// Names tried for a new link.
const NAMES: u32 = 100;
/// The metric of an IPv6 route that names none (`IP6_RT_PRIO_USER` in the kernel's `include/net/ip6_route.h`).
const IPV6_METRIC: u32 = 1024;

/// A namespace, and a socket in it.
pub(super) struct Inside<'a> {
    netns: &'a Netns,
    tables: Tables,
    links: Vec<Link>,
}

/// A default route that a gateway took the place of, and what remained with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Its gateway.
    pub gateway: IpAddr,
    /// Its interface.
    pub interface: LinkName,
    /// The destinations that got routes of their own.
    pub kept: Vec<IpNetwork>,
}

impl<'a> Inside<'a> {
    pub(super) async fn enter(netns: &'a Netns) -> Result<Self, LanError> {
        let runtime = tokio::runtime::Handle::current();
        let open = || {
            let _context = runtime.enter();
            Tables::open()
        };
        let tables = netns.run(open).map_err(LanError::Netns)?;
        let links = tables.links().await?;
        Ok(Self { netns, tables, links })
    }

    /// A name that no link has.
    pub(super) fn free_name(&self, wanted: Option<LinkName>) -> Result<LinkName, LanError> {
        let is_free = |name: &LinkName| self.links.iter().all(|link| link.name != *name);
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

    /// Gives the new link its addresses and routes, and announces it. Returns its MAC and what the gateways replaced.
    pub(super) async fn configure(
        &self,
        name: LinkName,
        wanted: &LanLink,
    ) -> Result<(MacAddr6, Vec<DefaultRoute>), LanError> {
        let made = self.tables.link(name).await?;
        let link =
            made.ok_or_else(|| LanError::Unsuitable(format!("{name} vanished as soon as it was made")))?;
        self.prepare(name, wanted)?;
        within(
            self.tables.handle().link().set(LinkUnspec::new_with_index(link.index).up().build()).execute(),
        )
        .await
        .map_err(LanError::kernel(format!("setting {name} up")))?;
        let arp = Arc::new(self.netns.run(|| Arp::open(link.index, link.mac)).map_err(LanError::Netns)?);
        for address in &wanted.addresses {
            if let IpAddr::V4(ip) = address.ip()
                && let Some(holder) = blocking(&arp, move |arp| arp.holder_of(ip))
                    .await
                    .map_err(failed("asking for the address"))?
            {
                return Err(taken(address.ip(), Some(holder)));
            }
            let add = self.tables.handle().address().add(link.index, address.ip(), address.prefix());
            within(add.execute()).await.map_err(LanError::kernel(format!("adding {address} to {name}")))?;
        }
        self.no_duplicates(&link, wanted).await?;
        let replaced = self.route(&link, wanted).await?;
        for address in &wanted.addresses {
            if let IpAddr::V4(ip) = address.ip() {
                blocking(&arp, move |arp| arp.announce(ip))
                    .await
                    .map_err(failed("announcing the address"))?;
            }
        }
        Ok((link.mac, replaced))
    }

    /// Docker switches IPv6 off in containers that have none. The kernel announces IPv6 addresses itself.
    fn prepare(&self, name: LinkName, wanted: &LanLink) -> Result<(), LanError> {
        if wanted.addresses.iter().all(IpNetwork::is_ipv4) {
            return Ok(());
        }
        let set = || {
            sysctl::write(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
            sysctl::write(&format!("net/ipv6/conf/{name}/ndisc_notify"), "1")
        };
        self.netns.run(set).map(drop).map_err(failed("enabling IPv6"))
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
                    return Err(taken(address.ip(), None));
                }
                waits |= is_ours && flags.contains(AddressFlags::Tentative);
            }
            if !waits || start.elapsed() > DUPLICATES {
                return Ok(());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn route(&self, link: &Link, wanted: &LanLink) -> Result<Vec<DefaultRoute>, LanError> {
        let mut replaced = Vec::new();
        for gateway in &wanted.gateways {
            match self.replace(link, *gateway, &wanted.kept).await {
                Ok(before) => replaced.extend(before),
                Err(error) => {
                    let _ = self.restore(&replaced).await;
                    return Err(error);
                }
            }
        }
        Ok(replaced)
    }

    async fn replace(
        &self,
        link: &Link,
        gateway: IpAddr,
        kept: &[IpNetwork],
    ) -> Result<Option<DefaultRoute>, LanError> {
        let routes = self.tables.handle().route();
        let before = self.tables.default_route(gateway.is_ipv4()).await?;
        let before = before.and_then(|(metric, way)| {
            let interface = self.links.iter().find(|known| known.index == way.interface)?.name;
            Some((metric, way, DefaultRoute { gateway: way.gateway, interface, kept: Vec::new() }))
        });
        let mut replaced = None;
        let done = async {
            if let Some((metric, way, before)) = before {
                let before = replaced.insert(before);
                for network in kept.iter().filter(|network| network.is_ipv4() == gateway.is_ipv4()) {
                    match within(routes.add(route(Some(*network), way)?).execute()).await {
                        Ok(()) => before.kept.push(*network),
                        // The container has a way there of its own.
                        Err(reason) if reason.errno() == Some(libc::EEXIST) => {}
                        Err(reason) => {
                            return Err(LanError::kernel(format!("keeping the route to {network}"))(reason));
                        }
                    }
                }
                // One that is less preferred than the new one may stay.
                let own_metric = if gateway.is_ipv4() { 0 } else { IPV6_METRIC };
                if metric <= own_metric {
                    within(routes.del(route_of_anybody(None, way)?).execute())
                        .await
                        .map_err(LanError::kernel(format!("replacing the gateway {}", way.gateway)))?;
                }
            }
            let way = Way { gateway, interface: link.index };
            within(routes.add(route(None, way)?).execute())
                .await
                .map_err(LanError::kernel(format!("making {gateway} the gateway")))
        };
        match done.await {
            Ok(()) => Ok(replaced),
            Err(error) => {
                let _ = self.restore(replaced.as_slice()).await;
                Err(error)
            }
        }
    }

    /// Removes the link. One that is gone is no error.
    pub(super) async fn remove(&self, name: LinkName) -> Result<(), LanError> {
        let Some(link) = self.tables.link(name).await? else { return Ok(()) };
        match within(self.tables.handle().link().del(link.index).execute()).await {
            Err(reason) if reason.errno() != Some(libc::ENODEV) => {
                Err(LanError::Kernel { what: format!("removing {name}"), reason })
            }
            _ => Ok(()),
        }
    }

    /// Gives back the default routes, unless there are others by now.
    pub(super) async fn restore(&self, replaced: &[DefaultRoute]) -> Result<(), LanError> {
        for before in replaced {
            let Some(link) = self.tables.link(before.interface).await? else { continue };
            let way = Way { gateway: before.gateway, interface: link.index };
            if self.tables.default_route(before.gateway.is_ipv4()).await?.is_none() {
                within(self.tables.handle().route().add(route(None, way)?).execute()).await.map_err(
                    LanError::kernel(format!("restoring the default route via {}", before.gateway)),
                )?;
            }
            for network in &before.kept {
                // One that somebody has changed is theirs.
                let _ = within(
                    self.tables.handle().route().del(route_of_anybody(Some(*network), way)?).execute(),
                )
                .await;
            }
        }
        Ok(())
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

fn taken(ip: IpAddr, holder: Option<MacAddr6>) -> LanError {
    let by = holder.map(|mac| format!(", with the MAC {}", Mac(&mac))).unwrap_or_default();
    LanError::Unsuitable(format!("somebody on the LAN has the address {ip} already{by}"))
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> LanError {
    let what = what.to_owned();
    move |error| LanError::Kernel { what, reason: KernelError::Message(error.to_string()) }
}
