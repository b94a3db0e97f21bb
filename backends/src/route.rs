//! The route to a peer's subnet.

use std::net::IpAddr;

use flan_kernel::{
    LinkName, NextHop, NextHopId, NextHops, Plan, ROUTE_PROTOCOL, Route, RouteKey, RouteTarget, Routes,
};
use ipnetwork::IpNetwork;

/// How a route into an overlay device names its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gateways {
    /// IPv4 routes name a next hop object, which the kernel finds by its id. IPv6 routes always have their gateway
    /// inline: there the kernel does not search for an equal one first, and one message is cheaper than two.
    Objects,
    /// Each route has its gateway inline: kernels before 5.3 support nothing else.
    Inline,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Via {
    pub(crate) gateway: IpAddr,
    pub(crate) link: LinkName,
    /// Set if no route of the host says that the gateway is on the link.
    pub(crate) onlink: bool,
}

/// Plans a route for `subnet` through a host on the link of the external interface. The gateway is inline on every
/// kernel, so that flanneld, or a person, can replace and delete the route. The kernel then searches all gateways, but
/// a link has few hosts: 1,000 routes take as long as with objects, 4,000 take 0.3 s.
pub(crate) fn plan_direct(subnet: IpNetwork, gateway: IpAddr, link: LinkName, plan: &mut dyn Plan) {
    plan_via(subnet, Via { gateway, link, onlink: false }, Gateways::Inline, plan);
}

pub(crate) fn plan_via(subnet: IpNetwork, via: Via, gateways: Gateways, plan: &mut dyn Plan) {
    let Via { gateway, link, onlink } = via;
    let target = match (gateways, gateway) {
        (Gateways::Objects, IpAddr::V4(address)) => {
            let id = NextHopId::from(address);
            let next_hop = NextHop { gateway, link, onlink, protocol: ROUTE_PROTOCOL };
            plan.add::<NextHops>(id, next_hop);
            RouteTarget::NextHop { id, link }
        }
        _ => RouteTarget::Via { gateway, link, onlink },
    };
    let key = RouteKey { destination: subnet, metric: default_metric(subnet) };
    plan.add::<Routes>(key, Route { target, protocol: ROUTE_PROTOCOL });
}

/// Returns the kernel's default route metric: 0 for IPv4, 1024 for IPv6 (`IP6_RT_PRIO_USER`).
pub(crate) fn default_metric(subnet: IpNetwork) -> u32 {
    if subnet.is_ipv4() { 0 } else { 1024 }
}
