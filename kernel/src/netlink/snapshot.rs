//! Reading what is ours out of the kernel's tables.

use std::sync::Mutex;

use super::devices::Devices;
use super::reading::Reading;
use super::socket::Socket;
use crate::kinds::{self, State};
use crate::{KernelError, Ownership};

/// How often everything is read anew because a device went away between two tables.
const ATTEMPTS: usize = 5;

/// What is ours; who may send to us if there is a socket to ask. The names of our devices are noted in `devices`.
///
/// # Errors
/// [`KernelError::Interrupted`] if a table changed each time that it was read.
pub(super) fn snapshot(
    socket: &mut Socket,
    ownership: &Ownership,
    devices: &Mutex<Devices>,
    nftables: &mut Option<Socket>,
) -> Result<State, KernelError> {
    for _ in 0..ATTEMPTS {
        let wanted = ownership.links.iter().copied().collect();
        match kinds::read(&mut Reading::new(socket, nftables.as_mut(), devices, wanted)) {
            Err(error) if error.errno() == Some(libc::ENODEV) => {}
            read => return read,
        }
    }
    Err(KernelError::Interrupted)
}
