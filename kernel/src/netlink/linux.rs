//! The kernel of this host.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;

use super::apply::{Access, Round, TakenIds};
use super::changes::Changes;
use super::devices::Devices;
use super::fou;
use super::generic::Generic;
use super::lookup::Lookup;
use super::nft;
use super::reading::Sockets;
use super::snapshot;
use super::socket::Socket;
use super::wireguard;
use crate::kind::Changed;
use crate::kinds::{Change, Fact, Operation, State};
use crate::sysctl::FibSyncMem;
use crate::{FailedOperation, Kernel, KernelError, Ownership};

/// Number of operations from which on the kernel is asked to spend more memory on routes.
const MANY: usize = 2000;

/// The [`Kernel`] of the network namespace in which it was created. Needs `CAP_NET_ADMIN` to change anything.
#[derive(Debug)]
pub struct Linux {
    /// `None` after it broke; reopened when next needed.
    socket: Option<Socket>,
    /// Opened when first needed.
    nftables: Option<Socket>,
    changes: Changes,
    fou: fou::Watch,
    /// Opened when first needed.
    wireguard: Option<Generic>,
    peers: wireguard::Watch,
    devices: Arc<Mutex<Devices>>,
    taken: TakenIds,
}

impl Linux {
    /// Opens sockets for requests and notifications. Must be called in a tokio runtime with time and I/O enabled.
    ///
    /// # Errors
    /// [`KernelError::Socket`] if the kernel refuses a socket.
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self {
            socket: Some(Socket::open()?),
            nftables: None,
            changes: Changes::listen()?,
            fou: fou::Watch::new(),
            wireguard: None,
            peers: wireguard::Watch::new(),
            devices: Arc::default(),
            taken: TakenIds::default(),
        })
    }

    /// Reads the notifications so far.
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
            let mut access = Access { socket, devices: &self.devices, taken: &mut self.taken };
            let more = round.go_on(&mut access)?;
            // Read before our own operations fill the queue with notifications.
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
        self.fou.set_ours(&ownership.fou_ports);
        self.peers.set_ours(if ownership.wireguard { ownership.links.clone() } else { Default::default() });
        // Opened here, in the caller's network namespace: the reading thread may be in another.
        let sockets = Sockets::open(ownership);
        let devices = Arc::clone(&self.devices);
        let ownership = ownership.clone();
        Box::pin(async move {
            let mut sockets = sockets?;
            let read = move || snapshot::snapshot(&mut sockets, &ownership, &devices);
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| KernelError::Message(format!("reading the kernel's tables: {error}")))?
        })
    }

    async fn apply(&mut self, operations: &[Operation]) -> Vec<FailedOperation> {
        let _generous = (operations.len() > MANY).then(FibSyncMem::raise);
        let (mut failed, mut broken, mut took_renamed) = (Vec::new(), None, false);
        operations.iter().for_each(|operation| self.peers.carried_out(operation));
        // Senders are admitted before anything leads to them, and excluded afterwards. Both take time.
        for run in operations.chunk_by(|one, next| Protocol::of(one) == Protocol::of(next)) {
            let refused = match Protocol::of(&run[0]) {
                Protocol::Route => None,
                Protocol::Nftables => Some(nft::apply(&mut self.nftables, run.len(), |number, socket| {
                    run[number].transaction(socket)
                })),
                Protocol::Wireguard => {
                    let changes = run.iter().map(Operation::wireguard_change);
                    let mut refused = wireguard::apply(&mut self.wireguard, changes);
                    for (number, reason) in &mut refused {
                        if let (Some(libc::ENODEV), Some(device)) = (reason.errno(), run[*number].device()) {
                            *reason = match run[*number].is_deletion() {
                                true => KernelError::Errno(libc::ENODEV),
                                false => KernelError::NoSuchLink(device),
                            };
                        }
                    }
                    refused.retain(|(number, reason)| {
                        !reason.errno().is_some_and(|errno| run[*number].is_so_already(errno))
                    });
                    Some(refused)
                }
            };
            if let Some(refused) = refused {
                let failure =
                    |(number, reason): (usize, _)| FailedOperation { operation: run[number].clone(), reason };
                failed.extend(refused.into_iter().map(failure));
                continue;
            }
            if let Some(reason) = &broken {
                failed.extend(all_failed(run, reason));
                continue;
            }
            let mut round = Round::new(run, took_renamed);
            if let Err(reason) = self.carry_out(&mut round).await {
                self.socket = None;
                round.give_up(&reason);
                broken = Some(reason);
                self.hear();
            }
            took_renamed = round.took_renamed;
            failed.extend(round.into_failed());
        }
        failed
    }

    async fn changes(&mut self) -> Vec<Change> {
        loop {
            self.hear();
            let mut heard = self.changes.take();
            let ports = self.fou.look().into_iter();
            heard.extend(ports.map(|(port, stands)| Change::Fact(Fact::FouPort(port, stands.then_some(())))));
            heard.extend(self.peers.look());
            if !heard.is_empty() {
                return heard;
            }
            tokio::select! {
                () = self.changes.wait() => {}
                () = self.fou.due() => {}
                () = self.peers.due() => {}
            }
        }
    }
}

/// The netlink protocol over which an operation is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Route,
    Nftables,
    Wireguard,
}

impl Protocol {
    fn of(operation: &Operation) -> Self {
        match operation.changed() {
            Changed::ByOneRequest | Changed::ByDevice => Self::Route,
            Changed::ByNftables => Self::Nftables,
            Changed::ByWireguard => Self::Wireguard,
        }
    }
}

/// Fails operations that were not sent because the kernel does not answer.
fn all_failed<'a>(
    operations: &'a [Operation],
    reason: &'a KernelError,
) -> impl Iterator<Item = FailedOperation> + 'a {
    operations
        .iter()
        .map(|operation| FailedOperation { operation: operation.clone(), reason: reason.clone() })
}
