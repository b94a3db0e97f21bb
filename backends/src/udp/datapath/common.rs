//! What all threads of a data path share.

use std::net::SocketAddr;
use std::sync::Arc;

use flan_kernel::tun::TunMode;
use flan_kernel::udp_socket::UdpModes;

use super::settings::Settings;
use crate::udp::forwarding::ForwardingReader;
use crate::userspace::running::Running;

pub(super) struct Common {
    pub(super) settings: Settings,
    pub(super) table: ForwardingReader,
    pub(super) running: Arc<Running>,
}

impl Common {
    /// Returns what threads with these modes share, and logs the modes.
    pub(super) fn new(settings: Settings, table: ForwardingReader, tun: TunMode, udp: UdpModes) -> Arc<Self> {
        let address = SocketAddr::new(settings.local.into(), settings.port);
        let running = Running::new(settings.device, address, tun, udp);
        Arc::new(Self { settings, table, running })
    }
}
