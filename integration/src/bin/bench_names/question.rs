//! One question about a name, by UDP.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

const PORT: u16 = 53;
const LIMIT: Duration = Duration::from_secs(1);
/// Where an answer says how it went, and how many records it has.
const CODE: usize = 3;
const ANSWERS: usize = 7;

/// Who asks one server.
pub(crate) struct Asker(UdpSocket);

impl Asker {
    /// Asks from this address. Call it in the network namespace of the server.
    pub(crate) fn new(from: IpAddr, server: IpAddr) -> Result<Asker> {
        let socket =
            UdpSocket::bind(SocketAddr::new(from, 0)).with_context(|| format!("no socket on {from}"))?;
        socket.connect(SocketAddr::new(server, PORT))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(Asker(socket))
    }

    /// Returns whether the name has an IPv4 address.
    pub(crate) fn knows(&self, name: &str) -> Result<bool> {
        self.0.send(&question(name)?)?;
        let mut answer = [0; 512];
        let length = self.0.recv(&mut answer)?;
        ensure!(length > ANSWERS, "an answer of {length} bytes");
        Ok(answer[CODE] & 0xf == 0 && answer[ANSWERS] > 0)
    }
}

/// A question about the IPv4 addresses of a name (RFC 1035).
fn question(name: &str) -> Result<Vec<u8>> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).context("a label that is too long")?);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    Ok(message)
}
