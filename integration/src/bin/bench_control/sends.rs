//! How many times fland speaks to the kernel: a start of its own under strace, which slows it down too much for times.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flan_integration::Lab;
use flan_integration::witness::Witness;

use crate::measure::{Measure, Values};
use crate::peers::Programmed;
use crate::subject::Subject;

/// The most peers with which it is done.
pub(crate) const MOST: u32 = 10_000;

/// Counts the sends on netlink sockets until all peers are programmed and fland is quiet.
pub(crate) fn run(lab: &Lab, name: &str, peers: u32, values: &mut Values) -> Result<()> {
    let host = lab.host(name)?;
    let witness = Witness::start(host.netns())?;
    let mut subject = Subject { host, witness, peers };
    let record = lab.dir().join("strace.txt");
    let path = record.display().to_string();
    // -yy names the socket's protocol; -s 0 and abbreviation keep the lines short.
    let strace = ["strace", "-f", "-qq", "-yy", "-s", "0", "--seccomp-bpf", "-o", &path];
    let calls = ["-e", "trace=sendto,sendmsg,sendmmsg,write,writev"];
    let mark = subject.witness.mark();
    subject.host.spawn_agent_under(&[&strace[..], &calls[..]].concat(), &[])?;
    let mut programmed = Programmed::default();
    // strace stops the agent at each call.
    let limit = 5 * subject.limit();
    subject.witness.wait_for("the last peer, under strace", mark, limit, |change| {
        programmed.follow(change);
        programmed.are(peers)
    })?;
    subject.host.wait_for_agent()?;
    subject.wait_until_quiet()?;
    let sends = netlink_sends(&record)?;
    ensure!(sends > 0, "strace has seen no send on a netlink socket: {path}");
    values.entry(Measure::NetlinkSends).or_default().push(sends as f64);
    subject.end(lab)
}

fn netlink_sends(record: &Path) -> Result<usize> {
    let text = fs::read(record).with_context(|| format!("cannot read {}", record.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().filter(|line| is_netlink_send(line)).count())
}

/// A call is two lines where another thread came in between; the second one does not begin with a name.
fn is_netlink_send(line: &str) -> bool {
    line.contains("<NETLINK:") && !line.contains("resumed>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginnings_of_netlink_sends_count() {
        // From strace 6.1.
        let sent = "71 sendto(9<NETLINK:[ROUTE:71]>, [{nlmsg_len=44}], 44, 0, NULL, 0) = 44";
        let begun = "71 sendmsg(9<NETLINK:[ROUTE:71]>, {msg_name=NULL} <unfinished ...>";
        let ended = "71 <... sendmsg resumed>) = 44";
        let store = "71 writev(11<TCP:[192.168.64.11:40812->192.168.64.2:2379]>, [{iov_len=9}], 1) = 9";
        assert_eq!([sent, begun, ended, store].map(is_netlink_send), [true, true, false, false]);
    }
}
