//! Operations on devices: each takes several steps, and the next one needs what the last one gave.

use super::message;
use super::requests::{Requests, breaks_socket};
use super::snapshot::device;
use crate::KernelError;
use crate::diff::{LinkChange, Operation};
use crate::state::{Link, LinkKind, LinkName, Vxlan};
use crate::tun::{self, TunMode};

/// Carries out an operation on a device; any other is refused.
pub(super) async fn change(requests: &Requests, operation: &Operation) -> Result<(), KernelError> {
    match operation {
        Operation::CreateLink { name, link } => create(requests, *name, link).await,
        Operation::ReplaceLink { name, link, .. } => {
            // Asked for before anything is taken away: without it there would be no device at all.
            let underlay = underlay(requests, &link.kind).await?;
            delete(requests, *name).await?;
            create_on(requests, *name, link, underlay).await
        }
        Operation::UpdateLink { name, change } => update(requests, *name, change).await,
        Operation::DeleteLink { name } => delete(requests, *name).await,
        other => Err(KernelError::Message(format!("not about a device: {other}"))),
    }
}

async fn create(requests: &Requests, name: LinkName, link: &Link) -> Result<(), KernelError> {
    let underlay = underlay(requests, &link.kind).await?;
    create_on(requests, name, link, underlay).await
}

async fn create_on(
    requests: &Requests,
    name: LinkName,
    link: &Link,
    underlay: Option<u32>,
) -> Result<(), KernelError> {
    let over_ipv6 = match &link.kind {
        LinkKind::Vxlan(vxlan) => {
            requests.change_one(message::create_vxlan(name, link, vxlan, underlay)).await?;
            vxlan.local.is_some_and(|ip| ip.is_ipv6())
        }
        LinkKind::Tun { vnet_header } => {
            tun::create(name, TunMode { vnet_header: *vnet_header, ..TunMode::PLAIN })
                .map_err(|error| KernelError::Message(error.to_string()))?;
            false
        }
    };
    let index = index(requests, name).await?.ok_or(KernelError::NoSuchLink(name))?;
    if !over_ipv6 {
        match requests.change_one(message::without_link_local(index)).await {
            Err(error) if breaks_socket(&error) => return Err(error),
            // A kernel without IPv6 makes no such address anyway; on any other it is in nobody's way.
            Err(error) => tracing::debug!(%name, %error, "the device may get a link-local address"),
            Ok(()) => {}
        }
    }
    let change = LinkChange {
        mtu: matches!(link.kind, LinkKind::Tun { .. }).then_some(link.mtu),
        up: link.up.then_some(true),
        mac: None,
    };
    if change != LinkChange::default() {
        requests.change_one(message::update_link(index, &change)).await?;
    }
    Ok(())
}

async fn underlay(requests: &Requests, kind: &LinkKind) -> Result<Option<u32>, KernelError> {
    let LinkKind::Vxlan(Vxlan { underlay: Some(name), .. }) = kind else { return Ok(None) };
    let message = requests.link(*name).await?.ok_or(KernelError::NoSuchLink(*name))?;
    Ok(Some(message.header.index))
}

async fn update(requests: &Requests, name: LinkName, change: &LinkChange) -> Result<(), KernelError> {
    let index = index(requests, name).await?.ok_or(KernelError::NoSuchLink(name))?;
    requests.change_one(message::update_link(index, change)).await
}

async fn delete(requests: &Requests, name: LinkName) -> Result<(), KernelError> {
    let Some(index) = index(requests, name).await? else { return Ok(()) };
    requests.change_one(message::delete_link(index)).await
}

/// The index of our device of that name. One of a kind that we do not make is not ours, whatever its name.
async fn index(requests: &Requests, name: LinkName) -> Result<Option<u32>, KernelError> {
    let Some(message) = requests.link(name).await? else { return Ok(None) };
    device(name, &message)?;
    Ok(Some(message.header.index))
}
