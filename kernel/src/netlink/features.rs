//! Which work a device leaves to the hardware (`ethtool -k`), by generic netlink (`linux/ethtool_netlink.h`).

use super::generic::Generic;
use super::raw::attribute;
use super::wire::Attributes;
use crate::KernelError;

const GET: u8 = 11;
const SET: u8 = 12;

const HEADER: u16 = 1;
const HEADER_INDEX: u16 = 1;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Checksums of anything.
const CHECKSUMS: &str = "tx-checksum-ip-generic";
/// What a device without checksums cannot do either. The kernel switches off only TCP segmentation by itself.
const SEGMENTS: [&str; 3] = ["tx-udp-segmentation", "tx-sctp-segmentation", "tx-gso-list"];

/// Switches whether a device takes packets without checksum, and larger than its MTU.
///
/// # Errors
/// If the kernel refuses or does not answer.
pub(crate) fn set_offload(index: u32, on: bool) -> Result<(), KernelError> {
    let lack =
        || KernelError::Message("the kernel has no ethtool over netlink (5.6 and later have)".to_owned());
    socket()?.ok_or_else(lack)?.change(SET, &[header(index), wanted(on)].concat())
}

/// Returns whether a device takes packets without checksum.
///
/// # Errors
/// If the kernel does not answer.
pub(crate) fn offloads(ethtool: &mut Generic, index: u32) -> Result<bool, KernelError> {
    ethtool.one(GET, &header(index), has_checksums)
}

/// Opens a socket in the current network namespace. `None` if the kernel has nothing of the kind.
pub(crate) fn socket() -> Result<Option<Generic>, KernelError> {
    Generic::open("ethtool")
}

fn header(index: u32) -> Vec<u8> {
    let mut header = Vec::new();
    nested(&mut header, HEADER, |header| attribute(header, HEADER_INDEX, &index.to_ne_bytes()));
    header
}

fn wanted(on: bool) -> Vec<u8> {
    let mut wanted = Vec::new();
    nested(&mut wanted, WANTED, |set| {
        nested(set, BITS, |bits| {
            for name in [CHECKSUMS].into_iter().chain(SEGMENTS) {
                nested(bits, BIT, |bit| {
                    attribute(bit, BIT_NAME, &[name.as_bytes(), &[0]].concat());
                    if on {
                        attribute(bit, BIT_VALUE, &[]);
                    }
                });
            }
        });
    });
    wanted
}

fn nested(buffer: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    attribute(buffer, kind | libc::NLA_F_NESTED as u16, &inner);
}

/// Reads an answer: the bits that are set are listed by name.
fn has_checksums(answer: Attributes<'_>) -> bool {
    let bits = answer.find(ACTIVE).and_then(|active| Attributes(active).find(BITS)).unwrap_or_default();
    Attributes(bits).any(|(_, bit)| {
        Attributes(bit)
            .find(BIT_NAME)
            .is_some_and(|name| name.strip_suffix(&[0]) == Some(CHECKSUMS.as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_whose_active_features_include_checksums_offloads_them() {
        let mut answer = wanted(true);
        assert!(!has_checksums(Attributes(&answer)), "that is what somebody wants, not what is");
        answer[2..4].copy_from_slice(&(ACTIVE | libc::NLA_F_NESTED as u16).to_ne_bytes());
        assert!(has_checksums(Attributes(&answer)));
        let name = answer.windows(8).position(|bytes| bytes == b"checksum").unwrap();
        answer[name] = b'C';
        assert!(!has_checksums(Attributes(&answer)));
    }
}
