//! The modes and counters of a data path, readable even after its end.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use flan_kernel::tun::TunMode;
use flan_kernel::udp_socket::UdpModes;

use super::counters::{Counters, Totals};

/// The granted options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// How packets are exchanged with the device.
    pub tun: TunMode,
    /// How datagrams are exchanged with the sockets.
    pub udp: UdpModes,
    /// Whether arriving segments are merged for the device.
    pub merge: bool,
}

/// The modes and counters of one data path; its threads write them, and anybody may read them.
#[derive(Debug)]
pub struct Gauge {
    modes: Modes,
    /// Whether batches are sent with `UDP_SEGMENT`; permanently off once the kernel has refused one.
    pub(crate) gso: AtomicBool,
    /// Whether packets are merged for the device; permanently off once the kernel has refused a merged one.
    pub(crate) merge: AtomicBool,
    pub(crate) counters: Counters,
}

impl Gauge {
    pub(crate) fn new(modes: Modes) -> Self {
        let (gso, merge) = (AtomicBool::new(modes.udp.gso), AtomicBool::new(modes.merge));
        Self { modes, gso, merge, counters: Counters::default() }
    }

    /// Returns the modes in force.
    pub fn modes(&self) -> Modes {
        let mut modes = self.modes;
        modes.udp.gso &= self.gso.load(Relaxed);
        modes.merge &= self.merge.load(Relaxed);
        modes
    }

    /// Returns the counters so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }
}
