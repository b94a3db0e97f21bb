//! The thread that does what is due at a time: it repeats handshakes, renews sessions, keeps paths open.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use flan_kernel::udp_socket::UdpSocket;
use flan_kernel::wait::{Waker, wait_woken};
use tracing::warn;

use super::Common;
use crate::wireguard::wire::Wire;

/// boringtun's own device does the same as often.
const INTERVAL: Duration = Duration::from_millis(250);
/// Peers between two sends.
const PEERS: usize = 64;

pub(super) struct Timers {
    pub(super) common: Arc<Common>,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) waker: Waker,
}

impl Timers {
    /// Runs until the data path is over.
    pub(super) fn run(self) {
        let mut wire = Wire::default();
        loop {
            self.tick(&mut wire);
            match wait_woken(&self.waker, INTERVAL) {
                Ok(false) => {}
                Ok(true) => return,
                Err(reason) => return warn!(%reason, "cannot wait for the next handshakes"),
            }
        }
    }

    fn tick(&self, wire: &mut Wire) {
        let common = &*self.common;
        let identity = common.peers.identity();
        identity.gate.reset_count();
        let peers = common.peers.all();
        for some in peers.chunks(PEERS) {
            if common.running.over.load(Relaxed) {
                return;
            }
            // What is done for a peer does not need the table; a reader that stays would make each change copy it.
            let table = Default::default();
            let exchange = common.exchange(&table, &identity);
            some.iter().for_each(|peer| exchange.tick(peer, wire));
            common.send(wire, &self.socket);
        }
    }
}
