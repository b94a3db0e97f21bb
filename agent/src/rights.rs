//! Checks permissions before the agent does anything that others see.

use anyhow::Context;
use flan_kernel::netlink;

use crate::refused::refused;

/// Checks that the kernel accepts changes from this process. A host that cannot send packets must not take a subnet.
///
/// # Errors
/// [`RefusedSetting`](crate::refused::RefusedSetting) if it does not.
pub(crate) fn check() -> anyhow::Result<()> {
    if netlink::may_change().context("cannot reach the kernel over netlink")? {
        return Ok(());
    }
    Err(refused(
        "fland may not change the network of this host: it needs CAP_NET_ADMIN. Run it as root (sudo fland ...), or by its \
         systemd unit; a unit with User= needs AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW as well",
    ))
}
