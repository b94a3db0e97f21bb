//! `flanctl wireguard`: this host's WireGuard key.

use flan_wireguard_keys::{KeyFile, KeyFileError, PrivateKey};

use crate::failure::{Failure, Kind};

/// Replaces this host's key. A running agent notices within two seconds, uses it and publishes it.
pub(crate) fn rotate_key(file: &KeyFile) -> Result<(), Failure> {
    let failed = |reason: KeyFileError| Failure::new(Kind::Other, reason);
    let path = file.path().display();
    let Some(old) = file.read().map_err(failed)? else {
        let message = format!(
            "there is no key to replace at {path}; fland makes one when it starts with the wireguard backend"
        );
        return Err(Failure::new(Kind::NotFound, message));
    };
    let new = PrivateKey::generate();
    file.write(&new).map_err(failed)?;
    println!("{path}: this host's public key was {} and is now {}", old.public(), new.public());
    Ok(())
}
