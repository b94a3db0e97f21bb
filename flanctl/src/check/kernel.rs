//! What the kernel can do, and how it is set.

use std::net::{Ipv4Addr, UdpSocket};

use flan_agent_api::Code;
use flan_backends::{Udp, ownership, udp_port};
use flan_host::ports;
use flan_host::settings::Settings;
use flan_host::tables::Tables;
use flan_kernel::LinkName;
use flan_kernel::netlink::{self, Trial, check_fou, try_device};
use flan_subnet_lease::{BackendConfig, Family, NetworkConfig, PathChoice};

use super::report::{Examination, Report};

const KERNEL: &str = "kernel";
const PORT: &str = "port";
const FORWARDING: &str = "forwarding";
const TABLES: &str = "tables";

/// Tries what the backend needs.
pub(super) fn look_at_features(config: &NetworkConfig, report: &mut Report) {
    let backend = config.backend.name();
    let by_kernel = |choice: PathChoice, can: &dyn Fn() -> bool| match choice {
        PathChoice::User => false,
        PathChoice::Kernel => true,
        PathChoice::Auto => can(),
    };
    let has_wireguard = || netlink::has_wireguard().unwrap_or_default();
    let fou = || check_fou(Udp::device_name());
    let (needed, tried) = match &config.backend {
        BackendConfig::Vxlan(_) => ("VXLAN devices (module vxlan)", tried(Trial::Vxlan)),
        BackendConfig::Wireguard(wireguard) if by_kernel(wireguard.path, &has_wireguard) => {
            ("WireGuard devices (module wireguard)", tried(Trial::Wireguard))
        }
        BackendConfig::Udp(udp) if by_kernel(udp.path, &|| fou().is_ok()) => {
            ("FOU (module fou)", fou().map_err(|lack| lack.to_string()))
        }
        // fland itself moves the packets.
        BackendConfig::Wireguard(_) | BackendConfig::Udp(_) => {
            ("TUN devices (module tun)", tried(Trial::Tun))
        }
        BackendConfig::HostGw(_) | BackendConfig::Alloc => ("nothing beyond routes", Ok(())),
    };
    let wrong = tried.err().map(|reason| {
        format!(
            "this kernel makes no {needed}, which the backend {backend} needs: {reason}; install the kernel's modules and load \
             it (modprobe), or choose another backend"
        )
    });
    report.judge(KERNEL, Code::KernelFeature, wrong, format!("has what {backend} needs: {needed}"));
    if !netlink::has_nftables() {
        let text = "this kernel has no nftables (module nf_tables), so fland cannot check who sends packets of the overlay: \
                    anybody who reaches this host can";
        report.judge(KERNEL, Code::UncheckedSenders, Some(text.to_owned()), "");
    }
}

fn tried(trial: Trial) -> Result<(), String> {
    try_device(trial).map_err(|reason| reason.to_string())
}

/// Looks who has the backend's port, where fland does not run yet.
pub(super) async fn look_at_port(config: &NetworkConfig, has_agent: bool, report: &mut Report) {
    let Some(port) = udp_port(config) else { return };
    let ours = ownership(config, true).links;
    let interfaces = netlink::interfaces().await.unwrap_or_default();
    // A device that an agent left behind has the port, and rightly so.
    if has_agent || interfaces.iter().any(|interface| ours.contains(&interface.name)) {
        return;
    }
    let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_err();
    let wrong = taken.then(|| ports::taken(port, &netlink::port_holder(port)));
    report.judge(PORT, Code::PortTaken, wrong, format!("UDP {port} is free"));
}

/// Looks at forwarding once the host has joined: fland turns it on when it starts.
pub(super) async fn look_at_settings(seen: &Examination<'_>, report: &mut Report) {
    let settings = Settings::default();
    let Some(env) = seen.env else {
        return report.fine(FORWARDING, "fland turns it on when it starts");
    };
    let families: Vec<Family> = seen.config.networks().map(|(family, _)| family).collect();
    let bridges = netlink::bridges().unwrap_or_default();
    let mut devices: Vec<LinkName> =
        flan_host::bridge::in_our_subnets(&bridges, env).into_iter().map(|(name, _)| name).collect();
    devices.extend(ownership(seen.config, true).links);
    devices.extend(seen.external.map(|external| external.underlay.link));
    let wrong = settings.forwarding_off(&families, &devices);
    report.judge(FORWARDING, Code::ForwardingOff, wrong, "on");
    let bridge = seen.external.map(|external| external.underlay.link);
    let filters = bridge.filter(|link| bridges.iter().any(|bridge| bridge.name == *link));
    if let Some(text) = filters.and_then(|bridge| settings.bridge_filter(bridge)) {
        report.judge(FORWARDING, Code::BridgeFilter, Some(text), "");
    }
}

/// Looks at tables that can be full.
pub(super) fn look_at_tables(report: &mut Report) {
    report.judge(TABLES, Code::TableFull, Tables::default().nearly_full(), "none is nearly full");
}
