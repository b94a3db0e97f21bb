//! What all threads of a data path share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flan_kernel::tun::TunMode;

use super::settings::Settings;
use crate::udp::forwarding::ForwardingReader;
use crate::udp::gauge::Gauge;

pub(super) struct Common {
    pub(super) settings: Settings,
    pub(super) table: ForwardingReader,
    /// How the device exchanges packets.
    pub(super) tun: TunMode,
    pub(super) gauge: Arc<Gauge>,
    /// The threads must end, or one has ended by itself, for instance because the device was deleted.
    pub(super) over: AtomicBool,
}
