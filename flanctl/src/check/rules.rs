//! The packet filter rules of other programs, and the bridge of the containers.

use flan_agent_api::Code;
use flan_backends::udp_port;
use flan_host::bridge;
use flan_kernel::firewall::others::{FamilyTraffic, OtherRules, Outer, Traffic, Way};
use flan_kernel::{LinkName, netlink};
use flan_subnet_lease::Family;

use super::report::Report;
use super::this_host::Examination;

const RULES: &str = "packet filter";
const BRIDGE: &str = "bridge";

/// Reads all rules, and judges them by the packets of this host.
pub(super) async fn look(seen: &Examination<'_>, report: &mut Report) {
    let Some(external) = seen.external else { return };
    let bridges = netlink::bridges().unwrap_or_default();
    let underlay = Way { link: external.underlay.link, ours: false };
    let is_underlay = |link: LinkName| link == underlay.link;
    let devices: Vec<Way> =
        seen.devices().into_iter().map(|link| Way { link, ours: !is_underlay(link) }).collect();
    let env = seen.host.env.as_ref();
    // Before it joins, nothing lets forwarded packets pass yet: fland's own rules do.
    let of_family = |(family, network): (Family, _)| {
        let own = *env?.bridges.get(family)?;
        Some(FamilyTraffic { network, subnet: own, devices: devices.clone() })
    };
    let traffic = Traffic {
        families: seen.config.networks().filter_map(of_family).collect(),
        bridges: env.map(|env| bridge::in_our_subnets(&bridges, env)).unwrap_or_default(),
        outer: udp_port(seen.config).map(|port| Outer {
            port,
            link: underlay.link,
            addresses: external.underlay.addresses.values().copied().collect(),
        }),
    };
    let rules = match OtherRules::read().await {
        Ok(rules) => rules,
        Err(reason) => return report.fine(RULES, format!("cannot be read: {reason}")),
    };
    let obstacles: Vec<String> = rules.obstacles(&traffic).iter().map(ToString::to_string).collect();
    let wrong = (!obstacles.is_empty()).then(|| obstacles.join("; "));
    report.judge(RULES, Code::PacketFilter, wrong, "no rule of another program drops flan's packets");
    if let Some(env) = env {
        let wrong = bridge::difference(&bridges, &rules.masquerading(&traffic), env);
        report.judge(BRIDGE, Code::BridgeDiffers, wrong, "as the subnet file says");
    }
}
