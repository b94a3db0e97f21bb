//! What a link stands on, on the host's side.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::link::{
    BridgeVlanInfoFlags, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, MacVlanMode,
};
use rtnetlink::{LinkBridgeVlan, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVlan};

use super::tables::{Link, Tables, within};
use super::{LanError, LanLink, Mode, Netns, VlanId};
use crate::{KernelError, LinkName};

/// Marks a VLAN device that was made for links of containers.
const ALIAS: &str = "flan: VLAN of attached containers";
/// The VLAN that a bridge gives a new port.
const DEFAULT_VLAN: u16 = 1;

/// Returns the device that the link stands on: the parent, or the device of the VLAN, which is made if there is none.
pub(super) async fn lower(host: &Tables, parent: &Link, wanted: &LanLink) -> Result<Link, LanError> {
    match (wanted.mode, wanted.vlan) {
        (Mode::Macvlan, Some(vlan)) => vlan_device(host, parent, vlan).await,
        _ => Ok(parent.clone()),
    }
}

async fn vlan_device(host: &Tables, parent: &Link, vlan: VlanId) -> Result<Link, LanError> {
    let links = host.links().await?;
    if let Some(device) = links.iter().find(|link| is_vlan_of(link, parent, vlan)) {
        return match device.is_up {
            true => Ok(device.clone()),
            false => {
                let text =
                    format!("{0}, which is VLAN {vlan}, is down; first: ip link set {0} up", device.name);
                Err(LanError::Unsuitable(text))
            }
        };
    }
    // As Docker names it.
    let name = format!("{}.{vlan}", parent.name);
    let name = if name.len() > 15 { format!("vlan{}.{vlan}", parent.index) } else { name };
    let name: LinkName = name.parse().map_err(|error| LanError::Unsuitable(format!("{error}")))?;
    if let Some(other) = links.iter().find(|link| link.name == name) {
        return Err(LanError::Unsuitable(format!(
            "{} is there already, and is not VLAN {vlan} of {}",
            other.name, parent.name
        )));
    }
    let message = LinkVlan::new(name.as_str(), parent.index, vlan.get()).alias(ALIAS).up().build();
    within(host.handle().link().add(message).execute())
        .await
        .map_err(without_module(format!("making the VLAN device {name}"), "8021q"))?;
    let made = host.link(name).await?;
    made.ok_or_else(|| LanError::Unsuitable(format!("{name} vanished as soon as it was made")))
}

fn is_vlan_of(link: &Link, parent: &Link, vlan: VlanId) -> bool {
    link.kind == Some(InfoKind::Vlan) && link.lower == Some(parent.index) && link.vlan == Some(vlan.get())
}

/// Makes the link, and puts it into the network namespace under this name.
pub(super) async fn make(
    host: &Tables,
    lower: &Link,
    name: LinkName,
    wanted: &LanLink,
    netns: &Netns,
) -> Result<(), LanError> {
    match wanted.mode {
        Mode::Macvlan => {
            let inside = LinkMacVlan::new(name.as_str(), lower.index, MacVlanMode::Bridge)
                .setns_by_fd(netns.as_fd().as_raw_fd());
            let inside = match wanted.mac {
                Some(mac) => inside.address(mac.into_array().to_vec()),
                None => inside,
            };
            within(host.handle().link().add(inside.build()).execute())
                .await
                .map_err(without_module(format!("making a macvlan on {}", lower.name), "macvlan"))
        }
        Mode::Bridge => port(host, lower, name, wanted, netns).await,
    }
}

/// Makes a pair of veths: one is a port of the bridge, the other is inside. With either goes the other.
async fn port(
    host: &Tables,
    bridge: &Link,
    name: LinkName,
    wanted: &LanLink,
    netns: &Netns,
) -> Result<(), LanError> {
    let mut inside = LinkMessage::default();
    inside.attributes.push(LinkAttribute::IfName(name.to_string()));
    inside.attributes.push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
    if let Some(mac) = wanted.mac {
        inside.attributes.push(LinkAttribute::Address(mac.into_array().to_vec()));
    }
    // The kernel takes the lowest free number.
    let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .name("lanport%d")
        .controller(bridge.index)
        .up();
    let before = host.links().await?;
    let what = format!("making a port of {}", bridge.name);
    within(host.handle().link().add(pair.build()).execute())
        .await
        .map_err(without_module(what.clone(), "veth"))?;
    let Some(vlan) = wanted.vlan else { return Ok(()) };
    let links = host.links().await?;
    let is_new = |link: &&Link| !before.iter().any(|known| known.index == link.index);
    let ours = links.iter().filter(is_new).find(|link| link.controller == Some(bridge.index));
    let Some(port) = ours else {
        return Err(LanError::Unsuitable(format!(
            "the new port of {} vanished as soon as it was made",
            bridge.name
        )));
    };
    let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    let set = within(
        host.handle().link().set(LinkBridgeVlan::new(port.index).vlan(vlan.get(), flags).build()).execute(),
    );
    let mut done = set.await;
    if done.is_ok() && vlan.get() != DEFAULT_VLAN {
        let del = LinkBridgeVlan::new(port.index).vlan(DEFAULT_VLAN, BridgeVlanInfoFlags::empty()).build();
        done = within(host.handle().link().del_with_message(del).execute()).await;
    }
    if let Err(reason) = done {
        let _ = within(host.handle().link().del(port.index).execute()).await;
        return Err(LanError::Kernel {
            what: format!("putting a port of {} into VLAN {vlan}", bridge.name),
            reason,
        });
    }
    Ok(())
}

/// Says which module a kernel lacks that does not know such a device.
fn without_module(what: String, module: &str) -> impl FnOnce(KernelError) -> LanError {
    let module = module.to_owned();
    move |reason| match reason.errno() {
        Some(libc::EOPNOTSUPP) => LanError::Unsuitable(format!(
            "{what}: this kernel lacks the module {module}; try: modprobe {module}"
        )),
        _ => LanError::Kernel { what, reason },
    }
}

/// Removes the VLAN devices that were made for links, except these. Returns those that it removed.
///
/// # Errors
/// [`LanError::Kernel`].
pub async fn remove_vlan_devices_except(used: &[LinkName]) -> Result<Vec<LinkName>, LanError> {
    let host = Tables::here()?;
    let mut removed = Vec::new();
    for link in host.links().await? {
        let is_ours = link.kind == Some(InfoKind::Vlan) && link.alias.as_deref() == Some(ALIAS);
        if !is_ours || used.contains(&link.name) {
            continue;
        }
        match within(host.handle().link().del(link.index).execute()).await {
            Ok(()) => removed.push(link.name),
            Err(reason) if reason.errno() == Some(libc::ENODEV) => {}
            Err(reason) => return Err(LanError::Kernel { what: format!("removing {}", link.name), reason }),
        }
    }
    Ok(removed)
}
