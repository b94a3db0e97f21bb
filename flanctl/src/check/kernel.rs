//! What the kernel can do, and how it is set.

use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use flan_agent_api::Code;
use flan_backends::{Udp, ownership, relies_on_sender_checks, udp_port};
use flan_host::ports;
use flan_host::settings::Settings;
use flan_host::tables::Tables;
use flan_kernel::netlink::{self, FouLack, Holder, Trial, TrialError, check_fou, try_device};
use flan_kernel::{KernelError, LinkName};
use flan_subnet_lease::{BackendConfig, Family, NetworkConfig, PathChoice};

use super::report::Report;
use super::this_host::{Examination, ThisHost};

const KERNEL: &str = "kernel";
const PORT: &str = "port";
const FORWARDING: &str = "forwarding";
const TABLES: &str = "tables";

/// Tries what the backend needs, where no agent runs: one that does tells by itself what the kernel refuses, and may try the
/// same at this moment.
pub(super) fn look_at_features(config: &NetworkConfig, host: &ThisHost, report: &mut Report) {
    if host.running.is_some() {
        return report.fine(KERNEL, "fland tells what it refuses");
    }
    let backend = config.backend.name();
    let tun = || ("TUN devices (module tun)", try_device(Trial::Tun));
    let wireguard = || ("WireGuard devices (module wireguard)", try_device(Trial::Wireguard));
    let fou = || {
        let lacks = |lack: FouLack| TrialError::Lacks(KernelError::Message(lack.to_string()));
        ("FOU (module fou)", check_fou(Udp::device_name()).map_err(lacks))
    };
    // With auto, fland itself moves the packets where the kernel cannot.
    let (needed, tried) = match &config.backend {
        BackendConfig::Vxlan(_) => ("VXLAN devices (module vxlan)", try_device(Trial::Vxlan)),
        BackendConfig::Wireguard(config) => match config.path {
            PathChoice::Kernel => wireguard(),
            PathChoice::User => tun(),
            PathChoice::Auto => Some(wireguard()).filter(|(_, tried)| tried.is_ok()).unwrap_or_else(tun),
        },
        BackendConfig::Udp(config) => match config.path {
            PathChoice::Kernel => fou(),
            PathChoice::User => tun(),
            PathChoice::Auto => Some(tun()).filter(|(_, tried)| tried.is_ok()).unwrap_or_else(fou),
        },
        BackendConfig::HostGw(_) | BackendConfig::Alloc => ("nothing beyond routes", Ok(())),
    };
    let (wrong, fine) = match tried {
        Ok(()) => (None, format!("has what {backend} needs: {needed}")),
        Err(TrialError::Untried(reason)) => {
            (None, format!("whether it has {needed} cannot be tried here: {reason}"))
        }
        Err(TrialError::Lacks(reason)) => {
            let text = format!(
                "this kernel makes no {needed}, which the backend {backend} needs: {reason}; install the kernel's modules and \
                 load it (modprobe), or choose another backend"
            );
            (Some(text), String::new())
        }
    };
    report.judge(KERNEL, Code::KernelFeature, wrong, fine);
    if relies_on_sender_checks(config) && !netlink::has_nftables() {
        let text = "this kernel has no nftables (module nf_tables), so fland cannot check who sends packets of the overlay: \
                    anybody who reaches this host can";
        report.judge(KERNEL, Code::UncheckedSenders, Some(text.to_owned()), "");
    }
}

/// Looks who has the backend's port, where fland does not run yet.
pub(super) async fn look_at_port(config: &NetworkConfig, host: &ThisHost, report: &mut Report) {
    let Some(port) = udp_port(config) else { return };
    let ours = ownership(config, true).links;
    let interfaces = netlink::interfaces().await.unwrap_or_default();
    // A device that an agent left behind has the port, and rightly so.
    if host.running.is_some() || interfaces.iter().any(|interface| ours.contains(&interface.name)) {
        return;
    }
    let is_taken = |(family, _)| match family {
        Family::V4 => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_err(),
        Family::V6 => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).is_err(),
    };
    let holder = config.over_underlay().any(is_taken).then(|| netlink::port_holder(port));
    // VXLAN devices with different VNIs share one.
    let shares = matches!(config.backend, BackendConfig::Vxlan(_))
        && matches!(holder, Some(Holder::Vxlan { external: false, .. }));
    let wrong = holder.filter(|_| !shares).map(|holder| ports::taken(port, &holder));
    report.judge(PORT, Code::PortTaken, wrong, format!("UDP {port} is free"));
}

/// Looks at forwarding once the host has joined: fland turns it on when it starts.
pub(super) async fn look_at_settings(seen: &Examination<'_>, report: &mut Report) {
    let settings = Settings::default();
    if !seen.host.has_joined {
        return report.fine(FORWARDING, "fland turns it on when it starts");
    }
    let families: Vec<Family> = seen.config.networks().map(|(family, _)| family).collect();
    let bridges = netlink::bridges().unwrap_or_default();
    let env = seen.host.env.as_ref();
    let of_containers = env.map(|env| flan_host::bridge::in_our_subnets(&bridges, env)).unwrap_or_default();
    let mut devices: Vec<LinkName> = of_containers.into_iter().map(|(name, _)| name).collect();
    devices.extend(seen.devices());
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
    report.judge(TABLES, Code::TableFull, Tables::default().nearly_full(false), "none is nearly full");
}
