//! Reads what is ours from the kernel's tables.

use std::sync::Mutex;

use super::devices::Devices;
use super::reading::{Reading, Sockets};
use crate::kinds::{self, State};
use crate::{KernelError, Ownership};

/// How often the reading is restarted because a device disappeared between two tables.
const ATTEMPTS: usize = 5;

/// Reads what is ours. Records the names of our devices in `devices`.
///
/// # Errors
/// [`KernelError::Interrupted`] if a table changed during every attempt.
pub(super) fn snapshot(
    sockets: &mut Sockets,
    ownership: &Ownership,
    devices: &Mutex<Devices>,
) -> Result<State, KernelError> {
    for _ in 0..ATTEMPTS {
        match kinds::read(&mut Reading::new(sockets, devices, ownership)) {
            Err(error) if error.errno() == Some(libc::ENODEV) => {}
            read => return read,
        }
    }
    Err(KernelError::Interrupted)
}
