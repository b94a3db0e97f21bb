//! The kernel of this host over netlink.

mod batch;
mod changes;
mod interfaces;
mod link;
mod message;
mod requests;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};

pub use interfaces::{Interface, default_route, interfaces, route_to};

use self::batch::Batch;
use self::changes::Changes;
use self::requests::{Requests, breaks_socket};
use crate::diff::Operation;
use crate::state::{LinkName, Ownership, State};
use crate::{FailedOperation, Kernel, KernelError};

/// The [`Kernel`] of the network namespace in which it was made. Needs `CAP_NET_ADMIN` to change anything.
#[derive(Debug)]
pub struct Linux {
    /// `None` after it broke: the next one who needs it opens another.
    requests: Option<Requests>,
    changes: Changes,
}

impl Linux {
    /// Opens a socket for requests and one for changes, each served by a task that ends with this value. Must be
    /// called within a tokio runtime whose time and I/O are enabled.
    ///
    /// # Errors
    /// [`KernelError::Socket`] if the kernel refuses a socket.
    pub fn new() -> Result<Self, KernelError> {
        Ok(Self { requests: Some(Requests::open()?), changes: Changes::listen()? })
    }
}

impl Kernel for Linux {
    async fn snapshot(&mut self, ownership: &Ownership) -> Result<State, KernelError> {
        let requests = self.requests()?;
        let result = snapshot::snapshot(&requests, ownership).await;
        if result.as_ref().is_err_and(breaks_socket) {
            self.requests = None;
        }
        let (state, indices) = result?;
        self.changes.set_ours(indices);
        Ok(state)
    }

    async fn apply(&mut self, operations: &[Operation]) -> Vec<FailedOperation> {
        let mut failed = Vec::new();
        let mut rest = operations;
        // Device by device, and everything between two of them in batches: what is put on a device needs its index.
        for run in operations.chunk_by(|one, next| !is_about_link(one) && !is_about_link(next)) {
            if let Err(Interrupted { done, reason }) = self.apply_run(run, &mut failed).await {
                // Without a socket, or with a kernel that does not answer, the rest would take ten seconds a batch.
                failed.extend(rest[done..].iter().map(|operation| FailedOperation {
                    operation: operation.clone(),
                    reason: reason.clone(),
                }));
                break;
            }
            rest = &rest[run.len()..];
        }
        failed
    }

    async fn changed(&mut self) {
        self.changes.changed().await;
    }
}

/// The socket broke.
struct Interrupted {
    /// How many operations have a known fate.
    done: usize,
    reason: KernelError,
}

impl Linux {
    fn requests(&mut self) -> Result<Requests, KernelError> {
        let requests = match self.requests.take() {
            Some(requests) => requests,
            None => Requests::open()?,
        };
        Ok(self.requests.insert(requests).clone())
    }

    /// Carries out one operation on a device, or any number on what is on devices.
    async fn apply_run(
        &mut self,
        run: &[Operation],
        failed: &mut Vec<FailedOperation>,
    ) -> Result<(), Interrupted> {
        let requests = self.requests().map_err(|reason| Interrupted { done: 0, reason })?;
        let result = match run {
            [operation] if is_about_link(operation) => {
                let result = link::change(&requests, operation).await;
                settle(operation, result, failed).map_err(|reason| Interrupted { done: 0, reason })
            }
            _ => change_in_batches(&requests, run, failed).await,
        };
        if result.is_err() {
            self.requests = None;
        }
        result
    }
}

fn is_about_link(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::CreateLink { .. }
            | Operation::ReplaceLink { .. }
            | Operation::UpdateLink { .. }
            | Operation::DeleteLink { .. }
    )
}

/// Notes a refusal, unless what the operation wants is so already. An error that breaks the socket is handed on.
fn settle(
    operation: &Operation,
    result: Result<(), KernelError>,
    failed: &mut Vec<FailedOperation>,
) -> Result<(), KernelError> {
    match result {
        Err(KernelError::Errno(errno)) if message::is_so_already(operation, errno) => Ok(()),
        Err(KernelError::NoSuchLink(_)) if message::is_deletion(operation) => Ok(()),
        Err(reason) if breaks_socket(&reason) => Err(reason),
        Err(reason) => {
            failed.push(FailedOperation { operation: operation.clone(), reason });
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn change_in_batches(
    requests: &Requests,
    operations: &[Operation],
    failed: &mut Vec<FailedOperation>,
) -> Result<(), Interrupted> {
    let indices = indices(requests, operations).await.map_err(|reason| Interrupted { done: 0, reason })?;
    let index = |name| indices.get(&name).copied();
    let result = send_all(requests, operations, index, failed).await;
    // Those that could not be sent, up to where the fate of all the others is known.
    let done = result.as_ref().err().map_or(operations.len(), |interrupted| interrupted.done);
    for operation in &operations[..done] {
        if let Some(missing) = message::link(operation).filter(|name| index(*name).is_none()) {
            let refusal = Err(KernelError::NoSuchLink(missing));
            settle(operation, refusal, failed).map_err(|reason| Interrupted { done, reason })?;
        }
    }
    result
}

/// Sends all operations whose device exists.
async fn send_all(
    requests: &Requests,
    operations: &[Operation],
    index: impl Fn(LinkName) -> Option<u32>,
    failed: &mut Vec<FailedOperation>,
) -> Result<(), Interrupted> {
    let mut batch = Batch::default();
    for (number, operation) in operations.iter().enumerate() {
        let Some(message) = message::change(operation, &index) else { continue };
        if let Some(full) = batch.push(number, message) {
            send(requests, operations, full, failed).await?;
        }
    }
    send(requests, operations, batch, failed).await
}

/// Sends a batch in which each change has its number in `operations`.
async fn send(
    requests: &Requests,
    operations: &[Operation],
    batch: Batch<usize>,
    failed: &mut Vec<FailedOperation>,
) -> Result<(), Interrupted> {
    let (numbers, messages) = batch.into_parts();
    let Some(&done) = numbers.first() else { return Ok(()) };
    let interrupted = |reason| Interrupted { done, reason };
    let answers = requests.change(messages).await.map_err(interrupted)?;
    for (number, errno) in numbers.into_iter().zip(answers) {
        let result = errno.map_or(Ok(()), |errno| Err(KernelError::Errno(errno)));
        settle(&operations[number], result, failed).map_err(interrupted)?;
    }
    Ok(())
}

/// The indices of all devices that `operations` name; those that do not exist are missing.
async fn indices(
    requests: &Requests,
    operations: &[Operation],
) -> Result<BTreeMap<LinkName, u32>, KernelError> {
    let names: BTreeSet<LinkName> = operations.iter().filter_map(message::link).collect();
    let mut indices = BTreeMap::new();
    for name in names {
        if let Some(link) = requests.link(name).await? {
            indices.insert(name, link.header.index);
        }
    }
    Ok(indices)
}
