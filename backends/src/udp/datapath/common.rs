//! What all threads of a data path share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flan_kernel::tun::TunMode;
use flan_kernel::udp_socket::UdpModes;
use tracing::info;

use super::settings::Settings;
use crate::udp::forwarding::ForwardingReader;
use crate::udp::gauge::{Gauge, Modes};

pub(super) struct Common {
    pub(super) settings: Settings,
    pub(super) table: ForwardingReader,
    /// How the device exchanges packets.
    pub(super) tun: TunMode,
    pub(super) gauge: Arc<Gauge>,
    /// The threads must end, or one has ended by itself, for instance because the device was deleted.
    pub(super) over: AtomicBool,
}

impl Common {
    /// Returns what threads with these modes share, and logs the modes.
    pub(super) fn new(settings: Settings, table: ForwardingReader, tun: TunMode, udp: UdpModes) -> Arc<Self> {
        let address = SocketAddr::new(settings.local.into(), settings.port);
        info!(device = %settings.device, %address, %tun, gso = udp.gso, gro = udp.gro, "data path");
        let gauge = Arc::new(Gauge::new(Modes { tun, udp, merge: tun.tso }));
        Arc::new(Self { settings, table, tun, gauge, over: AtomicBool::new(false) })
    }
}
