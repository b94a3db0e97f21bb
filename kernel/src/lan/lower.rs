//! What a link stands on, on the host's side.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_route::link::{
    BridgeVlanInfoFlags, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, MacVlanMode,
};
use rtnetlink::{LinkBridgeVlan, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVlan};

use super::tables::{Link, Tables, within};
use super::{LanError, LanLink, Mode, Netns, VlanId};
use crate::mac::Mac;
use crate::{KernelError, LinkName};

/// Begins the alias of a VLAN device that was made for links of containers. Whoever keeps count of these follows.
const ALIAS: &str = "flan attach, counted in ";

/// Returns the device that the link stands on: the parent, or the device of the VLAN, which is made if there is none.
pub(super) async fn lower(host: &Tables, parent: &Link, wanted: &LanLink) -> Result<Link, LanError> {
    match (wanted.mode, wanted.vlan) {
        (Mode::Macvlan, Some(vlan)) => vlan_device(host, parent, vlan, &wanted.counted_in).await,
        _ => Ok(parent.clone()),
    }
}

async fn vlan_device(host: &Tables, parent: &Link, vlan: VlanId, counted_in: &str) -> Result<Link, LanError> {
    let links = host.links().await?;
    if let Some(device) = links.iter().find(|link| is_vlan_of(link, parent, vlan)) {
        return match device.is_up {
            true if device.controller.is_none() => Ok(device.clone()),
            true => {
                let text = format!(
                    "{}, which is VLAN {vlan}, is a port of a bridge; use that with the mode bridge",
                    device.name
                );
                Err(LanError::Unsuitable(text))
            }
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
    let made = LinkVlan::new(name.as_str(), parent.index, vlan.get()).build();
    within(host.handle().link().add(made).execute())
        .await
        .map_err(without_module(format!("making the VLAN device {name}"), "8021q"))?;
    // The kernel takes an alias of a device that is there already alone.
    let marked = LinkUnspec::new_with_name(name.as_str()).alias(format!("{ALIAS}{counted_in}")).up().build();
    let marked = within(host.handle().link().set(marked).execute()).await;
    let made = host.link(name).await?;
    let made = made.ok_or_else(|| LanError::Unsuitable(format!("{name} vanished as soon as it was made")))?;
    if let Err(reason) = marked {
        let _ = within(host.handle().link().del(made.index).execute()).await;
        return Err(LanError::Kernel { what: format!("setting up the VLAN device {name}"), reason });
    }
    Ok(made)
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
            within(host.handle().link().add(inside.build()).execute()).await.map_err(|reason| {
                match reason.errno() {
                    Some(libc::EBUSY | libc::EINVAL) => LanError::Unsuitable(format!(
                        "{} carries no macvlan beside what uses it: a switch, ipvlan, or a macvlan in mode passthru",
                        lower.name
                    )),
                    Some(libc::EADDRINUSE) => another_has_the_mac(lower, wanted),
                    _ => without_module(format!("making a macvlan on {}", lower.name), "macvlan")(reason),
                }
            })
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
    let port = format!("lan{:08x}", rand::random::<u32>());
    let pair = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .name(port.as_str())
        .controller(bridge.index)
        .up();
    let what = format!("making a port of {}", bridge.name);
    within(host.handle().link().add(pair.build()).execute()).await.map_err(without_module(what, "veth"))?;
    let Some(vlan) = wanted.vlan else { return Ok(()) };
    let port = host.links().await?.into_iter().find(|link| link.name.as_str() == port);
    let port = port.ok_or_else(|| {
        LanError::Unsuitable(format!("the new port of {} vanished as soon as it was made", bridge.name))
    })?;
    if let Err(reason) = move_to_vlan(host, bridge, &port, vlan).await {
        let _ = within(host.handle().link().del(port.index).execute()).await;
        let what = format!("putting a port of {} into VLAN {vlan}", bridge.name);
        return Err(LanError::Kernel { what, reason });
    }
    Ok(())
}

/// Puts a port into this VLAN alone.
async fn move_to_vlan(host: &Tables, bridge: &Link, port: &Link, vlan: VlanId) -> Result<(), KernelError> {
    let flags = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
    let set = LinkBridgeVlan::new(port.index).vlan(vlan.get(), flags).build();
    within(host.handle().link().set(set).execute()).await?;
    // The one that the bridge gave it.
    if let Some(default) = bridge.default_vlan.filter(|default| *default != 0 && *default != vlan.get()) {
        let del = LinkBridgeVlan::new(port.index).vlan(default, BridgeVlanInfoFlags::empty()).build();
        within(host.handle().link().del_with_message(del).execute()).await?;
    }
    Ok(())
}

fn another_has_the_mac(lower: &Link, wanted: &LanLink) -> LanError {
    let mac = wanted.mac.unwrap_or_default();
    LanError::Unsuitable(format!("another interface on {} has the MAC {}", lower.name, Mac(&mac)))
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

/// Removes the VLAN devices that were made for links that are counted in this place, except these.
///
/// # Errors
/// [`LanError::Kernel`].
pub async fn remove_vlan_devices_except(used: &[LinkName], counted_in: &str) -> Result<(), LanError> {
    let host = Tables::here()?;
    let ours = format!("{ALIAS}{counted_in}");
    for link in host.links().await? {
        let is_ours = link.kind == Some(InfoKind::Vlan) && link.alias.as_deref() == Some(ours.as_str());
        if !is_ours || used.contains(&link.name) {
            continue;
        }
        match within(host.handle().link().del(link.index).execute()).await {
            Err(reason) if reason.errno() != Some(libc::ENODEV) => {
                return Err(LanError::Kernel { what: format!("removing {}", link.name), reason });
            }
            _ => {}
        }
    }
    Ok(())
}
