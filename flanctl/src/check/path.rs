//! Whether packets of full size pass to the hosts of peers, found by sending some.

use std::net::IpAddr;
use std::time::Duration;

use flan_agent_api::{Code, Probed, Status};
use flan_backends::outer_mtu;
use flan_kernel::echo::EchoSocket;
use flan_subnet_lease::BackendConfig;
use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::peers::peers;
use super::report::Report;
use super::this_host::Examination;
use crate::output;

const PATH: &str = "path";
/// Hosts that are asked.
const ASKED: usize = 8;
/// Bytes of small packets.
const SMALL: u16 = 64;
/// Sizes of which one is the usual limit: of IPv6, of tunnels, of PPPoE, of Ethernet, of jumbo frames.
const SIZES: [u16; 10] = [576, 1280, 1350, 1400, 1420, 1450, 1480, 1492, 1500, 9000];
/// How often each packet is sent: one may be lost.
const TIMES: usize = 3;
/// Time between two packets to one host, which answers only so many a second.
const PAUSE: Duration = Duration::from_millis(100);
/// How long to wait for the last answers.
const LIMIT: Duration = Duration::from_secs(1);

/// Tells what the agent has found.
pub(super) fn of_agent(status: &Status, report: &mut Report) {
    if let Some(Probed { reachable, unreachable, unknown, .. }) = status.default.probed {
        let text =
            format!("the agent's probes: {reachable} answer, {unreachable} do not, {unknown} not known yet");
        report.fine(PATH, text);
    }
}

/// Sends echo requests to the underlay addresses of some peers. Where nothing answers at all, ICMP may be blocked: only a
/// host that answers small packets says something about large ones.
pub(super) async fn look(seen: &Examination<'_>, report: &mut Report) {
    let Some(external) = seen.external else { return };
    let link = external.underlay.link;
    let ips = peers(seen).into_iter().flat_map(|peer| peer.attributes.public_ips.values().copied());
    let ips: Vec<IpAddr> = ips.take(ASKED).collect();
    if ips.is_empty() {
        return report.fine(PATH, "there are no other hosts yet");
    }
    let most = outer_mtu(seen.config).unwrap_or(external.underlay.mtu);
    let most = u16::try_from(most).unwrap_or(u16::MAX);
    let asked = ips.iter().map(|ip| {
        let from = external.underlay.addresses.values().copied().find(|own| own.is_ipv4() == ip.is_ipv4());
        async move { (*ip, largest(*ip, from, most).await) }
    });
    let (mut answers, mut wrong) = (0, Vec::new());
    for (ip, largest) in join_all(asked).await {
        let Ok(Some(largest)) = largest else { continue };
        answers += 1;
        if largest < most {
            let instead = match &seen.config.backend {
                BackendConfig::Vxlan(_) | BackendConfig::Wireguard(_) => {
                    format!(", or set Backend.MTU to {largest} in the network config")
                }
                _ => String::new(),
            };
            wrong.push(format!(
                "packets of {most} bytes from {link} to the host {ip} do not come back, those of {largest} do: something on the \
                 way has a smaller MTU; raise it there{instead}"
            ));
        }
    }
    let wrong = (!wrong.is_empty()).then(|| wrong.join("; "));
    let hosts = output::count(ips.len(), "host");
    let fine = match answers {
        0 => format!(
            "none of {hosts} answers an echo request: they may be down or cut off, or something on the way drops ICMP"
        ),
        answers => format!("answers came from {answers} of {hosts}, also to packets of {most} bytes"),
    };
    report.judge(PATH, Code::PeerMtu, wrong, fine);
}

/// Returns the size of the largest packet that this address answers; `None` if it answers none.
async fn largest(ip: IpAddr, from: Option<IpAddr>, most: u16) -> std::io::Result<Option<u16>> {
    let socket = if ip.is_ipv4() { EchoSocket::v4()? } else { EchoSocket::v6()? };
    let found = ask(&socket, ip, from, &[most, SMALL], most).await;
    match found {
        Some(found) if found < most => {
            let between: Vec<u16> = SIZES.into_iter().filter(|size| *size < most).collect();
            Ok(ask(&socket, ip, from, &between, most).await.max(Some(found)))
        }
        found => Ok(found),
    }
}

/// Sends packets of each size, and returns the largest that was answered. Ends at once with an answer to `enough`.
async fn ask(
    socket: &EchoSocket,
    ip: IpAddr,
    from: Option<IpAddr>,
    sizes: &[u16],
    enough: u16,
) -> Option<u16> {
    let base = rand::random::<u64>() << 8;
    let mut found = None;
    let mut sent = Vec::new();
    for _ in 0..TIMES {
        for size in sizes {
            // One that this host itself does not send answers nothing.
            let _ = socket.send(from, ip, base | sent.len() as u64, *size);
            sent.push(*size);
            let wait = if sent.len() == sizes.len() * TIMES { LIMIT } else { PAUSE };
            let until = Instant::now() + wait;
            while let Ok(Ok(nonce)) = timeout_at(until, socket.receive()).await {
                let of_ours = (nonce ^ base) >> 8 == 0;
                found = found.max(sent.get((nonce & 0xff) as usize).filter(|_| of_ours).copied());
                if found == Some(enough) {
                    return found;
                }
            }
        }
    }
    found
}
