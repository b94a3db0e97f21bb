//! Whether this kernel has FOU, with which it carries the packets of the udp backend itself.

use std::process::{Command, Stdio};

/// An IPIP device that sends FOU datagrams, in a namespace of its own. The module has no alias: it is asked for by name.
const TRIAL: &str = "modprobe -q fou; ip fou add port 8285 ipproto 4 \
    && ip link add flannel0 type ipip local 192.0.2.1 remote any encap fou encap-dport 8285";

/// Tries it.
pub fn is_there() -> bool {
    let mut trial = Command::new("unshare");
    trial.args(["--net", "sh", "-c", TRIAL]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    trial.status().is_ok_and(|status| status.success())
}
