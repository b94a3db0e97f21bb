//! What the kernel of a host holds in the end, counted by its own tools.

use anyhow::{Context, Result, ensure};
use flan_integration::Host;
use flan_integration::overlay::DEVICE;

/// An error unless it holds so many routes, neighbours and FDB entries, no more and no fewer.
pub(crate) fn ensure_holds(host: &Host, peers: u32) -> Result<()> {
    let place = host.netns().place();
    let count = |program: &str, words: &str, part: &str| -> Result<usize> {
        let text = place.run(program, words.split(' '))?;
        Ok(text.lines().filter(|line| line.contains(part)).count())
    };
    let routes = count("ip", &format!("-4 route show dev {DEVICE}"), "/24 ")?;
    let neighbours = count("ip", &format!("-4 neighbour show dev {DEVICE} nud permanent"), "lladdr")?;
    let fdb = count("bridge", &format!("fdb show dev {DEVICE}"), " dst ")?;
    let wanted = peers as usize;
    ensure!(
        (routes, neighbours, fdb) == (wanted, wanted, wanted),
        "the kernel holds {routes} routes, {neighbours} neighbours and {fdb} FDB entries for {peers} peers"
    );
    Ok(())
}

/// Takes everything off the host again: namespaces share the kernel's table of neighbours, and the next one shall find
/// it empty.
pub(crate) fn clear(host: &Host) -> Result<()> {
    host.ip(&format!("link del {DEVICE}")).map(drop)
}

/// The index of the host's VXLAN device.
pub(crate) fn device_index(host: &Host) -> Result<u32> {
    let text = host.ip(&format!("-oneline link show dev {DEVICE}"))?;
    let index = text.split(':').next().and_then(|index| index.trim().parse().ok());
    index.with_context(|| format!("no index in {text:?}"))
}
