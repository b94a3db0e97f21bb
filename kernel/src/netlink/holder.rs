//! Who uses a port that we need.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

use super::entry::link_name;
use super::message;
use super::questions::link_entry;
use super::socket::Socket;
use crate::kind::link_name::LinkName;
use crate::process::Process;

/// Who uses a UDP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A VXLAN device.
    Vxlan {
        /// Its name.
        name: LinkName,
        /// Whether it takes packets of every VNI (`external`), so that no other device can share its port.
        external: bool,
    },
    /// A FOU port, in the style of `ip fou show`.
    Fou(String),
    /// A process.
    Process(Process),
    /// A process that we may not inspect, but that is known to use such ports.
    Suspect(Process),
    /// Unknown: a tunnel device of another kind, or a process that we cannot see.
    Unknown,
}

impl Holder {
    /// Returns how to free the port.
    pub fn remedy(&self) -> String {
        match self {
            Self::Vxlan { name, .. } => format!("delete it (ip link del {name})"),
            Self::Fou(_) => "delete it (ip fou del)".to_owned(),
            Self::Process(_) | Self::Suspect(_) => "stop it".to_owned(),
            Self::Unknown => "find it (ss -ulnp, ip -d link) and stop it".to_owned(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vxlan { name, external: true } => write!(f, "VXLAN device {name} in external mode"),
            Self::Vxlan { name, external: false } => write!(f, "VXLAN device {name}"),
            Self::Fou(port) => f.write_str(port),
            Self::Process(process) => process.fmt(f),
            Self::Suspect(process) => write!(f, "probably {process}"),
            Self::Unknown => f.write_str("another tunnel device, or a process that is not visible here"),
        }
    }
}

/// Returns who uses a UDP port in the network namespace of this thread.
pub fn port_holder(port: u16) -> Holder {
    // Without a socket, still search the processes.
    match Socket::open() {
        Ok(mut socket) => holder_of_port(&mut socket, port, |_| false),
        Err(_) => process_on(port),
    }
}

/// Returns who uses a UDP port, other than our own devices.
pub(crate) fn holder_of_port(socket: &mut Socket, port: u16, is_ours: impl Fn(LinkName) -> bool) -> Holder {
    let device = socket.dump(
        &message::dump_links_of_kind(InfoKind::Vxlan),
        || None,
        |found, body| {
            let device = link_entry(body).and_then(|link| vxlan_on(&link, port));
            *found = found.take().or(device.filter(|(name, _)| !is_ours(*name)));
        },
    );
    if let Ok(Some((name, external))) = device {
        return Holder::Vxlan { name, external };
    }
    process_on(port)
}

/// flanneld uses our ports. It may run with more rights than our unit, so that we cannot inspect it.
const FLANNELD: &str = "flanneld";

/// How long to remember the process that uses the port, or that there is none.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The port of the last process search, its time, and its result.
type Looked = Option<(u16, Instant, Holder)>;

/// Returns the process that uses a UDP port. Searching all processes takes long on a busy host, and callers ask again
/// at every attempt to take the port.
fn process_on(port: u16) -> Holder {
    static LAST: Mutex<Looked> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let search = || match Process::on_udp_port(port) {
        Some(process) => Holder::Process(process),
        None => Process::called(FLANNELD).map_or(Holder::Unknown, Holder::Suspect),
    };
    remembered(&mut last, port, Instant::now(), search)
}

fn remembered(last: &mut Looked, port: u16, now: Instant, search: impl FnOnce() -> Holder) -> Holder {
    match last {
        Some((looked_for, at, holder)) if *looked_for == port && now < *at + REMEMBERED => holder.clone(),
        _ => {
            let holder = search();
            *last = Some((port, now, holder.clone()));
            holder
        }
    }
}

/// Returns the name of a VXLAN device that is up on this port, and whether it is in external mode.
fn vxlan_on(link: &LinkMessage, port: u16) -> Option<(LinkName, bool)> {
    let settings = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Data(InfoData::Vxlan(settings)) => Some(settings),
            _ => None,
        }),
        _ => None,
    })?;
    let is_on = link.header.flags.contains(LinkFlags::Up) && settings.contains(&InfoVxlan::Port(port));
    let external = settings.contains(&InfoVxlan::CollectMetadata(true));
    is_on.then_some((link_name(link).ok()?, external))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoKind;

    use super::*;

    #[test]
    fn a_vxlan_device_holds_its_port_only_while_it_is_up() {
        let mut link = LinkMessage::default();
        let settings = vec![InfoVxlan::Port(8472), InfoVxlan::CollectMetadata(true)];
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(settings))];
        link.attributes = vec![LinkAttribute::IfName("vx9".to_owned()), LinkAttribute::LinkInfo(info)];
        assert_eq!(vxlan_on(&link, 8472), None);
        link.header.flags = LinkFlags::Up;
        let name: LinkName = "vx9".parse().unwrap();
        assert_eq!(vxlan_on(&link, 8472), Some((name, true)));
        assert_eq!(vxlan_on(&link, 4789), None);
        let holder = Holder::Vxlan { name, external: true };
        assert_eq!(holder.to_string(), "VXLAN device vx9 in external mode");
        assert_eq!(holder.remedy(), "delete it (ip link del vx9)");
    }

    #[test]
    fn processes_are_not_searched_again_for_the_same_port_within_ten_seconds() {
        let (mut last, start) = (None, Instant::now());
        let process = |pid| Holder::Process(Process { pid, name: "named".to_owned() });
        let mut found = |port, seconds, pid| {
            remembered(&mut last, port, start + Duration::from_secs(seconds), || process(pid))
        };
        assert_eq!(found(8472, 0, 1), process(1));
        assert_eq!(found(8472, 9, 2), process(1));
        assert_eq!(found(8472, 10, 3), process(3));
        assert_eq!(found(8285, 11, 4), process(4));
    }
}
