//! What all threads of a data path see.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flan_kernel::tun::TunMode;

use super::settings::Settings;
use crate::udp::forwarding::ForwardingReader;
use crate::udp::gauge::Gauge;

/// What all threads of a data path see.
pub(super) struct Common {
    pub(super) settings: Settings,
    pub(super) table: ForwardingReader,
    /// How the device takes and gives packets.
    pub(super) tun: TunMode,
    pub(super) gauge: Arc<Gauge>,
    /// The threads shall end, or one has ended by itself, as when the device was deleted.
    pub(super) over: AtomicBool,
}
