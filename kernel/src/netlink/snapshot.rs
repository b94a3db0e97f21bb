//! Reads what is ours from the kernel's tables.

use std::sync::Mutex;

use super::devices::Devices;
use super::reading::Reading;
use super::socket::Socket;
use crate::kinds::{self, State};
use crate::{KernelError, Ownership};

/// How often the reading is restarted because a device disappeared between two tables.
const ATTEMPTS: usize = 5;

/// Reads what is ours, with the allowed senders if `nftables` is given. Records the names of our devices in `devices`.
///
/// # Errors
/// [`KernelError::Interrupted`] if a table changed during every attempt.
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
