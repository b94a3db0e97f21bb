//! Whether packets of full size pass to the hosts of peers, found by sending some.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use flan_agent_api::{Code, Probed, Status};
use flan_kernel::echo::EchoSocket;
use tokio::time::{Instant, timeout_at};

use super::peers::peers;
use super::report::{Examination, Report};
use crate::output;

const PATH: &str = "path";
/// Hosts that are asked.
const ASKED: usize = 8;
/// Bytes of small packets.
const SMALL: u16 = 64;
/// Sizes of which one is the usual limit: of IPv6, of tunnels, of PPPoE, of Ethernet, of jumbo frames.
const SIZES: [u16; 10] = [576, 1280, 1350, 1400, 1420, 1450, 1480, 1492, 1500, 9000];
/// How often each packet is sent: one may be lost.
const TIMES: u64 = 3;
/// How long to wait for answers.
const LIMIT: Duration = Duration::from_secs(1);

/// Tells what the agent has found.
pub(super) fn of_agent(status: &Status, report: &mut Report) {
    if let Some(Probed { reachable, unreachable, unknown, .. }) = status.default.probed {
        let text =
            format!("the agent's probes: {reachable} answer, {unreachable} do not, {unknown} not known yet");
        report.fine(PATH, text);
    }
}

/// Sends echo requests to the underlay addresses of some peers. Where nothing answers at all, ICMP may be blocked.
pub(super) async fn look(seen: &Examination<'_>, report: &mut Report) {
    let Some(external) = seen.external else { return };
    let own = &external.underlay.addresses;
    let ips = peers(seen).into_iter().flat_map(|peer| peer.attributes.public_ips.values().copied());
    let ips: Vec<IpAddr> = ips.take(ASKED).collect();
    if ips.is_empty() {
        return report.fine(PATH, "there are no other hosts yet");
    }
    let most = u16::try_from(external.underlay.mtu).unwrap_or(u16::MAX);
    let (mut answers, mut wrong) = (0, Vec::new());
    for v4 in [true, false] {
        let ips: Vec<IpAddr> = ips.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
        let from = own.values().copied().find(|own| own.is_ipv4() == v4);
        let Ok(found) = largest(&ips, from, most).await else {
            return report.fine(PATH, "cannot be tried: no raw socket");
        };
        for ip in &ips {
            match found.get(ip) {
                Some(largest) if *largest < most => wrong.push(format!(
                    "packets of {most} bytes to the host {ip} do not come back, those of {largest} do: something on the way has \
                     a smaller MTU than {}; raise it there, or lower that of {} (ip link set {} mtu {largest}) and restart \
                     fland",
                    external.underlay.link, external.underlay.link, external.underlay.link
                )),
                Some(_) => {}
                None => continue,
            }
            answers += 1;
        }
    }
    if !wrong.is_empty() {
        return report.judge(PATH, Code::PeerMtu, Some(wrong.join("; ")), "");
    }
    let hosts = output::count(ips.len(), "host");
    let none = (answers == 0).then(|| {
        format!("none of {hosts} answers an echo request from here: they are cut off or down, or something on the way drops ICMP")
    });
    let fine = format!("{answers} of {hosts} answer, also packets of {most} bytes");
    report.judge(PATH, Code::PeerUnreachable, none, fine);
}

/// Returns the largest packet that each address answers, if it answers at all.
async fn largest(ips: &[IpAddr], from: Option<IpAddr>, most: u16) -> std::io::Result<HashMap<IpAddr, u16>> {
    let Some(first) = ips.first() else { return Ok(HashMap::new()) };
    let socket = if first.is_ipv4() { EchoSocket::v4()? } else { EchoSocket::v6()? };
    let sizes = [SMALL].into_iter().chain(SIZES.into_iter().filter(|size| *size < most)).chain([most]);
    let packets: Vec<(IpAddr, u16)> = sizes.flat_map(|size| ips.iter().map(move |ip| (*ip, size))).collect();
    let base = u64::from(std::process::id()) << 32;
    let mut found = HashMap::new();
    for time in 0..TIMES {
        for (number, (ip, size)) in packets.iter().enumerate() {
            // One that this host itself does not send, answers nothing.
            let _ = socket.send(from, *ip, base | time << 24 | number as u64, *size);
        }
        let until = Instant::now() + LIMIT;
        while let Ok(Ok(nonce)) = timeout_at(until, socket.receive()).await {
            let of_ours = nonce >> 32 == base >> 32;
            if let Some((ip, size)) = packets.get((nonce & 0xff_ffff) as usize).filter(|_| of_ours) {
                let largest = found.entry(*ip).or_insert(*size);
                *largest = (*largest).max(*size);
            }
            if ips.iter().all(|ip| found.get(ip) == Some(&most)) {
                return Ok(found);
            }
        }
    }
    Ok(found)
}
