//! The kernel of this host over netlink.

mod apply;
mod bridges;
mod changes;
mod devices;
mod entry;
mod holder;
mod interfaces;
mod kinds;
mod link;
mod lookup;
mod message;
mod networks;
mod next_hop;
mod nft;
mod questions;
mod snapshot;
mod socket;
#[cfg(test)]
mod test_bytes;
mod wire;

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

pub use bridges::{Bridge, bridges};
pub use holder::{Holder, port_holder};
pub use interfaces::{Interface, default_routes, interfaces, may_change, name_of, route_to};
pub use kinds::devices_of_our_kinds;
pub use networks::{DeviceKind, HostNetwork, Origin, host_networks};

use self::apply::{Hands, Round, TakenIds};
use self::changes::Changes;
use self::devices::Devices;
use self::lookup::Lookup;
use self::socket::Socket;
use crate::change::Change;
use crate::diff::Operation;
use crate::state::{Ownership, State};
use crate::sysctl::FibSyncMem;
use crate::{FailedOperation, Kernel, KernelError};

/// Operations on routes from which on the kernel is asked to be generous with memory.
const MANY_ROUTES: usize = 2000;

/// The [`Kernel`] of the network namespace in which it was made. Needs `CAP_NET_ADMIN` to change anything.
#[derive(Debug)]
pub struct Linux {
    /// `None` after it broke: the next one who needs it opens another.
    socket: Option<Socket>,
    changes: Changes,
    devices: Arc<Mutex<Devices>>,
    taken: TakenIds,
}

impl Linux {
    /// Opens a socket for requests and one for changes. Must be called within a tokio runtime whose time and I/O are
    /// enabled.
    ///
    /// # Errors
    /// [`KernelError::Socket`] if the kernel refuses a socket.
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self {
            socket: Some(Socket::open()?),
            changes: Changes::listen()?,
            devices: Arc::default(),
            taken: TakenIds::default(),
        })
    }

    /// Takes in what the kernel has told by now.
    fn hear(&mut self) {
        if self.socket.is_none() {
            self.socket = Socket::open().ok();
        }
        self.changes.hear(&mut Lookup::new(&self.devices, self.socket.as_mut()));
    }

    async fn carry_out(&mut self, round: &mut Round<'_>) -> Result<(), KernelError> {
        loop {
            let socket = match self.socket.take() {
                Some(socket) => socket,
                None => Socket::open()?,
            };
            let socket = self.socket.insert(socket);
            let mut hands = Hands { socket, devices: &self.devices, taken: &mut self.taken };
            let more = round.go_on(&mut hands)?;
            // Before more notifications of what we do ourselves lie there than there is room for.
            self.hear();
            if !more {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Kernel for Linux {
    fn snapshot(&mut self, ownership: &Ownership) -> BoxFuture<'static, Result<State, KernelError>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).set_ours(ownership);
        // Opened here, in the network namespace of the caller: that of the thread that reads may be another.
        let socket = Socket::open();
        let nft = ownership.senders.then(nft::socket).transpose();
        let devices = Arc::clone(&self.devices);
        let ownership = ownership.clone();
        Box::pin(async move {
            let (mut socket, mut nft) = (socket?, nft?);
            let read = move || snapshot::snapshot(&mut socket, &ownership, &devices, &mut nft);
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| KernelError::Message(format!("reading the kernel's tables: {error}")))?
        })
    }

    async fn apply(&mut self, operations: &[Operation]) -> Vec<FailedOperation> {
        let routes = operations.iter().filter(|operation| is_about_route(operation)).count();
        let _generous = (routes > MANY_ROUTES).then(FibSyncMem::raise);
        let (senders, others): (Vec<Operation>, Vec<Operation>) =
            operations.iter().cloned().partition(nft::is_about);
        let mut failed = nft::apply(&senders);
        let mut round = Round::new(&others);
        if let Err(reason) = self.carry_out(&mut round).await {
            self.socket = None;
            round.give_up(&reason);
            self.hear();
        }
        failed.extend(round.into_failed());
        failed
    }

    async fn changes(&mut self) -> Vec<Change> {
        loop {
            self.hear();
            let heard = self.changes.take();
            if !heard.is_empty() {
                return heard;
            }
            self.changes.wait().await;
        }
    }
}

/// Whether the kernel has nftables, in which it can be told who may send us packets of the overlay.
pub fn has_nftables() -> bool {
    nft::is_there()
}

/// Deletes the table of those who may send us packets of the overlay. Answers whether there was one.
///
/// # Errors
/// When the kernel refuses.
pub fn delete_senders() -> Result<bool, KernelError> {
    nft::delete_tables()
}

/// Whether there is that table.
///
/// # Errors
/// When the kernel does not say.
pub fn has_senders() -> Result<bool, KernelError> {
    nft::has_table()
}

/// Whether the kernel of the current network namespace knows next hop objects (5.3 and later).
///
/// # Errors
/// If the netlink socket cannot be opened or does not answer.
pub async fn has_next_hops() -> Result<bool, KernelError> {
    Socket::open()?.has_next_hops()
}

fn is_about_route(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::AddRoute { .. } | Operation::ReplaceRoute { .. } | Operation::DeleteRoute { .. }
    )
}
