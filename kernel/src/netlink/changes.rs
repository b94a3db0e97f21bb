//! Hearing of changes from the kernel.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use netlink_packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::KernelError;
use crate::state::ROUTE_PROTOCOL;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Pause before the socket is opened again after it broke.
const REOPEN: Duration = Duration::from_secs(1);

/// A socket that hears what changes, and the task that listens. Changes that nobody has asked for yet become one.
#[derive(Debug)]
pub(super) struct Changes {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    changed: Notify,
    /// Our devices, by index: neighbours come and go all the time on those of others.
    ours: Mutex<BTreeSet<u32>>,
}

impl Changes {
    /// Opens the socket in the current network namespace. Must be called in a tokio runtime.
    pub(super) fn listen() -> Result<Self, KernelError> {
        let shared = Arc::new(Shared::default());
        let socket = Socket::open()?;
        let listener = tokio::spawn(listen(socket, Arc::clone(&shared)));
        Ok(Self { shared, listener })
    }

    /// Says which devices are ours.
    pub(super) fn set_ours(&self, ours: BTreeSet<u32>) {
        *self.shared.ours.lock().unwrap_or_else(PoisonError::into_inner) = ours;
    }

    /// Waits for a change since the last time that this came back. Cancel-safe.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

struct Socket {
    connection: netlink_proto::Connection<RouteNetlinkMessage>,
    messages: futures::channel::mpsc::UnboundedReceiver<(
        NetlinkMessage<RouteNetlinkMessage>,
        netlink_sys::SocketAddr,
    )>,
}

impl Socket {
    fn open() -> Result<Self, KernelError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|error| KernelError::Socket(error.to_string()))?;
        Ok(Self { connection, messages })
    }
}

/// Listens for ever: opens the socket again when it breaks.
async fn listen(socket: Socket, shared: Arc<Shared>) {
    let mut socket = Some(socket);
    loop {
        if let Some(Socket { connection, mut messages }) = socket {
            let hear = async {
                while let Some((message, _)) = messages.next().await {
                    let ours = shared.ours.lock().unwrap_or_else(PoisonError::into_inner);
                    if concerns_us(&message, &ours) {
                        shared.changed.notify_one();
                    }
                }
            };
            tokio::select! {
                () = connection => {}
                () = hear => {}
            }
            tracing::warn!("the netlink socket for changes broke");
        }
        tokio::time::sleep(REOPEN).await;
        socket = Socket::open().inspect_err(|error| tracing::warn!(%error, "no changes are heard of")).ok();
        // What happened meanwhile, nobody knows.
        shared.changed.notify_one();
    }
}

/// Whether a message may mean that something of ours, or something that we build on, has changed.
fn concerns_us(message: &NetlinkMessage<RouteNetlinkMessage>, ours: &BTreeSet<u32>) -> bool {
    use RouteNetlinkMessage::*;
    match &message.payload {
        NetlinkPayload::InnerMessage(NewLink(link) | DelLink(link)) => {
            // With AF_BRIDGE it is about a port of a bridge.
            link.header.interface_family != AddressFamily::Bridge
        }
        NetlinkPayload::InnerMessage(NewAddress(_) | DelAddress(_)) => true,
        NetlinkPayload::InnerMessage(NewNeighbour(neighbour) | DelNeighbour(neighbour)) => {
            ours.contains(&neighbour.header.ifindex)
        }
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            // A route that was replaced is not named, only the one that took its place.
            message.header.flags & NLM_F_REPLACE != 0 || route_concerns_us(route, ours)
        }
        NetlinkPayload::InnerMessage(_) => false,
        // Messages were lost, or something else is amiss: better look.
        _ => true,
    }
}

fn route_concerns_us(route: &RouteMessage, ours: &BTreeSet<u32>) -> bool {
    let mut table = u32::from(route.header.table);
    let mut on_ours = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Oif(index) => on_ours |= ours.contains(index),
            _ => {}
        }
    }
    // The default route decides which interface is the external one.
    let is_default = route.header.destination_prefix_length == 0;
    table == u32::from(RouteHeader::RT_TABLE_MAIN)
        && (on_ours || is_default || route.header.protocol == RouteProtocol::from(ROUTE_PROTOCOL))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkHeader;
    use netlink_packet_route::link::LinkMessage;
    use netlink_packet_route::neighbour::NeighbourMessage;

    use super::*;

    fn heard(message: RouteNetlinkMessage, flags: u16) -> bool {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        concerns_us(&message, &[7].into())
    }

    fn route(table: u32, oif: u32, protocol: u8) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.destination_prefix_length = 24;
        route.header.protocol = protocol.into();
        route.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(oif)];
        route
    }

    #[test]
    fn neighbours_count_on_our_devices_only() {
        for (index, counts) in [(7, true), (8, false)] {
            let mut neighbour = NeighbourMessage::default();
            neighbour.header.ifindex = index;
            assert_eq!(heard(RouteNetlinkMessage::DelNeighbour(neighbour), 0), counts);
        }
    }

    #[test]
    fn of_the_routes_count_ours_those_on_our_devices_and_the_default() {
        let new = |route| heard(RouteNetlinkMessage::NewRoute(route), 0);
        assert!(new(route(254, 7, 3)));
        assert!(new(route(254, 8, ROUTE_PROTOCOL)));
        assert!(!new(route(254, 8, 3)));
        assert!(!new(route(255, 7, 2)), "the local table");
        let mut default = route(254, 8, 3);
        default.header.destination_prefix_length = 0;
        assert!(new(default));
    }

    #[test]
    fn a_route_that_takes_anothers_place_counts() {
        assert!(heard(RouteNetlinkMessage::NewRoute(route(254, 8, 3)), NLM_F_REPLACE));
    }

    #[test]
    fn devices_count_unless_it_is_about_their_place_in_a_bridge() {
        let mut link = LinkMessage::default();
        assert!(heard(RouteNetlinkMessage::NewLink(link.clone()), 0));
        link.header.interface_family = AddressFamily::Bridge;
        assert!(!heard(RouteNetlinkMessage::NewLink(link), 0));
    }

    #[test]
    fn lost_messages_count() {
        let message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(Vec::new()));
        assert!(concerns_us(&message, &BTreeSet::new()));
    }
}
