//! Texts for a port or device that another program holds.

use flan_backends::udp::DatapathError;
use flan_host::ports::taken;
use flan_kernel::netlink::{self, Holder};
use flan_kernel::process::Process;
use flan_kernel::tun::TunError;
use tracing::warn;

/// The same for a retry. If the holder is now unknown, repeats `before`, the text of the previous attempt.
pub(crate) fn still_taken(port: u16, holder: &Holder, before: Option<String>) -> String {
    match (holder, before) {
        (Holder::Unknown, Some(before)) => before,
        (holder, _) => taken(port, holder),
    }
}

/// Describes who holds the port or device that a data path needs; `None` for other errors. `before` is the text of the
/// previous attempt.
pub(crate) fn keeps_from_starting(error: &DatapathError, before: Option<String>) -> Option<String> {
    match error {
        DatapathError::Socket { address, source } if source.kind() == std::io::ErrorKind::AddrInUse => {
            Some(still_taken(address.port(), &netlink::port_holder(address.port()), before))
        }
        DatapathError::Tun { device, source: TunError::Attach { .. } } => {
            let process = Process::with_tun(*device)?;
            Some(format!(
                "device {device} is in use by {process}, so no packet of the overlay network gets through; stop it"
            ))
        }
        _ => None,
    }
}

/// Describes why a data path cannot start, and notes in `taken` who holds what it needs. Logs only what the status does not
/// report under its own problem code.
pub(crate) fn cannot_start(error: &DatapathError, taken: &mut Option<String>) -> String {
    let before = taken.take();
    *taken = keeps_from_starting(error, before);
    if taken.is_none() {
        warn!(reason = %error, "cannot start the data path");
    }
    taken.clone().unwrap_or_else(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_process_that_has_the_port_is_named() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let source = UdpSocket::bind(address).unwrap_err();
        let told = keeps_from_starting(&DatapathError::Socket { address, source }, None).unwrap();
        let (port, pid) = (address.port(), std::process::id());
        assert!(told.starts_with(&format!("UDP port {port} is taken by process {pid} (")), "{told}");
        assert!(told.contains("; stop it, or choose another port"), "{told}");
    }

    #[test]
    fn somebody_who_has_just_let_go_is_still_the_one_who_was_told_of() {
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = || DatapathError::Socket { address, source: std::io::ErrorKind::AddrInUse.into() };
        let before = Some("taken by process 77".to_owned());
        assert_eq!(keeps_from_starting(&refused(), before.clone()), before);
        assert!(keeps_from_starting(&refused(), None).is_some());
    }

    #[test]
    fn another_error_is_about_nobody() {
        let source = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        let address = "192.0.2.1:8285".parse().unwrap();
        assert_eq!(keeps_from_starting(&DatapathError::Socket { address, source }, None), None);
    }
}
