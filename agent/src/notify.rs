//! Notifications to systemd (`sd_notify(3)`). Without systemd, these do nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

pub(crate) fn ready() {
    send(&[NotifyState::Ready]);
}

/// Reports what the agent is doing or waiting for, for `systemctl status`.
pub(crate) fn status(line: &str) {
    send(&[NotifyState::Status(line)]);
}

pub(crate) fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Returns an interval at half the watchdog's limit.
pub(crate) fn watchdog() -> Interval {
    let limit = sd_notify::watchdog_enabled().unwrap_or(Duration::from_secs(3600));
    let mut interval = interval((limit / 2).max(Duration::from_millis(1)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Sends without waiting, so that a stuck systemd cannot block the agent. A failed send is ignored.
fn send(states: &[NotifyState<'_>]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(reason) = send_to(&path, message.as_bytes()) {
        tracing::debug!(%reason, "cannot notify systemd");
    }
}

/// Sends to a path or, after an `@`, to a name in the abstract namespace (`unix(7)`).
fn send_to(path: &OsStr, message: &[u8]) -> std::io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let reader = UnixDatagram::bind(&path).unwrap();
        let sent = (0..10_000).take_while(|_| send_to(path.as_os_str(), b"STATUS=x\n").is_ok()).count();
        assert!((1..10_000).contains(&sent), "{sent}");
        let mut buffer = [0; 16];
        assert_eq!(reader.recv(&mut buffer).unwrap(), 9);
    }
}
