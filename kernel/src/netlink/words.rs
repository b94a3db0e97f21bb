//! Describes objects of other programs in the style of `ip(8)`.

use std::fmt::Write;

use crate::kind::link_name::LinkName;

/// Appends a device: ` dev eth0`.
pub(crate) fn device(text: &mut String, index: Option<u32>, mut name: impl FnMut(u32) -> Option<LinkName>) {
    let Some(index) = index else { return };
    let _ = match name(index) {
        Some(name) => write!(text, " dev {name}"),
        None => write!(text, " dev if{index}"),
    };
}

/// Returns the name of a protocol, from iproute2's `rt_protos`.
pub(crate) fn protocol(number: u8) -> String {
    let name = match number {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        number => return number.to_string(),
    };
    name.to_owned()
}
