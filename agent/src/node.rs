//! Who this host is, whatever its address.

use flan_subnet_lease::NodeIdentity;
use sha2::{Digest, Sha256};

use crate::args::Args;

/// Where systemd keeps the machine's id (`machine-id(5)`).
const MACHINE_ID: &str = "/etc/machine-id";

/// The identity as the flags say, else from the host name and the machine id. The machine id itself is confidential
/// (`machine-id(5)`), so only a hash of it leaves the host.
pub fn identity(args: &Args) -> NodeIdentity {
    let host = args.node_name.clone().or_else(|| Some(hostname::get().ok()?.to_string_lossy().into_owned()));
    NodeIdentity { host: known(host), id: id(args.node_id.clone()) }
}

/// The machine's id, unless one is given.
pub fn id(given: Option<String>) -> Option<Box<str>> {
    known(given.or_else(|| {
        let machine = std::fs::read_to_string(MACHINE_ID).ok()?;
        Some(hash(machine.trim())).filter(|_| !machine.trim().is_empty())
    }))
}

fn known(text: Option<String>) -> Option<Box<str>> {
    text.filter(|text| !text.is_empty()).map(String::into_boxed_str)
}

fn hash(machine_id: &str) -> String {
    let digest = Sha256::digest(format!("flan node {machine_id}"));
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_id_is_hashed_to_32_digits_and_does_not_show() {
        let id = hash("0123456789abcdef0123456789abcdef");
        assert_eq!(id.len(), 32);
        assert!(!id.contains("0123456789"));
        assert_ne!(id, hash("1123456789abcdef0123456789abcdef"));
    }
}
