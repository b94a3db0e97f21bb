//! Operations on devices: each takes several steps, and the next one needs what the last one gave.

use super::message;
use super::requests::{Requests, breaks_socket};
use super::snapshot::vxlan;
use crate::KernelError;
use crate::diff::{LinkChange, Operation};
use crate::state::{LinkName, VxlanLink};

/// Carries out an operation on a device; any other is refused.
pub(super) async fn change(requests: &Requests, operation: &Operation) -> Result<(), KernelError> {
    match operation {
        Operation::CreateLink { name, link } => create(requests, *name, link).await,
        Operation::ReplaceLink { name, link, .. } => {
            // Asked for before anything is taken away: without it there would be no device at all.
            let underlay = underlay(requests, link).await?;
            delete(requests, *name).await?;
            create_on(requests, *name, link, underlay).await
        }
        Operation::UpdateLink { name, change } => update(requests, *name, change).await,
        Operation::DeleteLink { name } => delete(requests, *name).await,
        other => Err(KernelError::Message(format!("not about a device: {other}"))),
    }
}

async fn create(requests: &Requests, name: LinkName, link: &VxlanLink) -> Result<(), KernelError> {
    let underlay = underlay(requests, link).await?;
    create_on(requests, name, link, underlay).await
}

async fn create_on(
    requests: &Requests,
    name: LinkName,
    link: &VxlanLink,
    underlay: Option<u32>,
) -> Result<(), KernelError> {
    requests.change_one(message::create_link(name, link, underlay)).await?;
    let index = index(requests, name).await?.ok_or(KernelError::NoSuchLink(name))?;
    if !link.local.is_some_and(|ip| ip.is_ipv6()) {
        match requests.change_one(message::without_link_local(index)).await {
            Err(error) if breaks_socket(&error) => return Err(error),
            // A kernel without IPv6 makes no such address anyway; on any other it is in nobody's way.
            Err(error) => tracing::debug!(%name, %error, "the device may get a link-local address"),
            Ok(()) => {}
        }
    }
    if link.up {
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        requests.change_one(message::update_link(index, &up)).await?;
    }
    Ok(())
}

async fn underlay(requests: &Requests, link: &VxlanLink) -> Result<Option<u32>, KernelError> {
    let Some(name) = link.underlay else { return Ok(None) };
    let message = requests.link(name).await?.ok_or(KernelError::NoSuchLink(name))?;
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

/// The index of our device of that name. One that is no VXLAN device is not ours, whatever its name.
async fn index(requests: &Requests, name: LinkName) -> Result<Option<u32>, KernelError> {
    let Some(message) = requests.link(name).await? else { return Ok(None) };
    vxlan(name, &message)?;
    Ok(Some(message.header.index))
}
