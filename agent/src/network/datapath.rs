//! The data path of backends that move packets through this process.

use std::any::Any;
use std::sync::Arc;

use flan_backends::Udp;
use flan_backends::udp::{self, ForwardingTable, Gauge};
use flan_backends::wireguard::Peers;
use flan_kernel::sysctl;
use flan_subnet_lease::{Lease, PeerChange, Subnets};
use tracing::warn;

use crate::ports;

/// A data path. It receives all peers, whether it runs or not.
pub trait Datapath: Any + Send {
    /// Applies changes of some peers.
    fn change(&mut self, changes: &[PeerChange]);

    /// Replaces all peers.
    fn replace(&mut self, peers: &mut dyn Iterator<Item = &Lease>);

    /// Starts the data path, or restarts it if the device was created again or our subnet has changed.
    ///
    /// # Errors
    /// If it cannot be started. Retry later.
    fn keep_running(&mut self, own: &Subnets, device_is_new: bool) -> Result<(), String>;

    /// Returns whether the other data path is equivalent.
    fn does_the_same_as(&self, other: &dyn Datapath) -> bool;

    /// Returns who holds the port or device that it needs, and what to do.
    fn taken(&self) -> Option<String>;

    /// Returns whether it runs.
    fn is_running(&self) -> bool;

    /// Returns its modes and counters, for the status.
    fn gauge(&self) -> Option<Arc<Gauge>>;

    /// Returns where to ask what WireGuard peers do; empty if it has none.
    fn wireguard_peers(&self) -> Vec<Peers> {
        Vec::new()
    }
}

/// Keeps the udp backend's data path running and its forwarding table up to date.
pub struct UdpRunner {
    backend: Udp,
    table: ForwardingTable,
    running: Option<(Subnets, udp::Datapath)>,
    /// Who holds the port or device that it needs.
    taken: Option<String>,
}

impl UdpRunner {
    /// Creates a data path that does not run yet.
    pub fn boxed(backend: Udp) -> Box<dyn Datapath> {
        Box::new(Self { backend, table: ForwardingTable::default(), running: None, taken: None })
    }
}

impl Datapath for UdpRunner {
    fn change(&mut self, changes: &[PeerChange]) {
        self.table.change(changes);
    }

    fn replace(&mut self, peers: &mut dyn Iterator<Item = &Lease>) {
        self.table.replace(peers);
    }

    fn keep_running(&mut self, own: &Subnets, device_is_new: bool) -> Result<(), String> {
        let stands = |(subnets, datapath): &(Subnets, udp::Datapath)| {
            subnets == own && !datapath.is_over() && !device_is_new
        };
        if self.running.as_ref().is_some_and(stands) {
            return Ok(());
        }
        self.running = None; // ends its threads, and frees the port
        // ICMP errors for senders on this host come from the device's own address.
        if let Err(reason) = sysctl::accept_local(self.backend.device()) {
            warn!(%reason, "senders will get no ICMP error if no peer has the destination");
        }
        let started = self.backend.start(own, &self.table);
        let datapath = started.map_err(|reason| ports::cannot_start(&reason, &mut self.taken))?;
        (self.running, self.taken) = (Some((*own, datapath)), None);
        Ok(())
    }

    fn does_the_same_as(&self, other: &dyn Datapath) -> bool {
        (other as &dyn Any).downcast_ref::<Self>().is_some_and(|other| self.backend == other.backend)
    }

    fn taken(&self) -> Option<String> {
        self.taken.clone()
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    fn gauge(&self) -> Option<Arc<Gauge>> {
        let (_, datapath) = self.running.as_ref()?;
        Some(datapath.gauge())
    }
}
