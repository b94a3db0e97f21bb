//! An underlay that delays packets and loses some, by `tc-netem(8)`, as a bad line between two sites.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::host::on_all;
use flan_integration::process::{Lifetime, Process};
use flan_integration::traffic::Report;
use flan_integration::{Host, Lab, LabOptions, vm, wait};

use crate::stage::{NETWORK, NETWORK_OF_UDP, bare_hosts, ends_of, wait_until_reached};

/// Each host's packets, on their way out. A round trip has it twice.
const NETEM: &str = "qdisc add dev eth0 root netem delay 50ms loss 1%";

/// Pings answered, of 100 a second.
const PINGS: usize = 1200;

/// What of them may be lost, in percent. Two of them are expected, and one of them is more than four standard
/// deviations.
const LOSS: std::ops::RangeInclusive<f64> = 0.3..=4.5;

/// The bytes that are fetched in each direction.
const BODY: u32 = 1 << 20;

const LIMIT: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_on_vxlan_keep_their_leases_and_carry_tcp() -> Result<()> {
    hosts_on_a_bad_line_keep_their_leases_and_carry_tcp(NETWORK)
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_on_udp_keep_their_leases_and_carry_tcp() -> Result<()> {
    hosts_on_a_bad_line_keep_their_leases_and_carry_tcp(NETWORK_OF_UDP)
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_on_udp_by_the_kernel_keep_their_leases_and_carry_tcp() -> Result<()> {
    hosts_on_a_bad_line_keep_their_leases_and_carry_tcp(&NETWORK_OF_UDP.replace("user", "kernel"))
}

fn hosts_on_a_bad_line_keep_their_leases_and_carry_tcp(network: &str) -> Result<()> {
    vm::ensure_inside()?;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(network)?;
        let mut hosts = bare_hosts(lab, 2)?;
        for host in &hosts {
            host.run("tc", &NETEM.split(' ').collect::<Vec<_>>())?;
        }
        on_all(&mut hosts, Host::start_agent)?;
        let leases = leases(lab, &hosts)?;
        let ends = ends_of(&hosts)?;
        wait_until_reached(&ends[0], &ends[1], LIMIT)?;
        let pages = [Pages::serve(lab.dir(), &ends[0])?, Pages::serve(lab.dir(), &ends[1])?];

        let mut ping = hosts[0].ping_from_end(&ends[0], ends[1].address)?;
        pages[1].fetch_whole(&ends[0])?;
        pages[0].fetch_whole(&ends[1])?;
        ping.wait_for_answers(PINGS)?;
        ensure_lost_what_netem_makes(ping.stop()?)?;

        hosts[0].stop_agent()?;
        hosts[0].start_agent()?;
        wait_until_reached(&ends[1], &ends[0], LIMIT)?;
        pages[1].fetch_whole(&ends[0])?;
        ensure!(self::leases(lab, &hosts)? == leases, "other leases than {leases:?}");
        Ok(())
    })
}

fn ensure_lost_what_netem_makes(report: Report) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
    let percent = 100.0 * report.lost() as f64 / report.sent as f64;
    println!("lost {percent:.1} % of {} pings", report.sent);
    ensure!(LOSS.contains(&percent), "lost {percent:.2} % of {} pings, not {LOSS:?}", report.sent);
    Ok(())
}

/// The subnet of each host and the etcd lease that its key has.
fn leases(lab: &Lab, hosts: &[Host]) -> Result<Vec<(String, String)>> {
    let lease_of = |host: &Host| {
        let key = host.subnet_env()?.key();
        let lease = lab.store().lease_id(&format!("subnets/{key}"))?;
        Ok((key, format!("{lease:?}")))
    };
    hosts.iter().map(lease_of).collect()
}

/// A web server at an end, with one page of random bytes.
struct Pages {
    url: String,
    sum: String,
    _server: Process,
}

impl Pages {
    fn serve(dir: &Path, end: &End) -> Result<Pages> {
        let dir = dir.join(format!("pages-{}", end.address));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let write = format!("head -c {BODY} /dev/urandom > {0}/body && sha256sum < {0}/body", dir.display());
        let sum = end.place.run("sh", ["-c", &write])?;
        let mut httpd = end.place.command("busybox");
        httpd.args(["httpd", "-f", "-p", "80", "-h"]).arg(&dir);
        let server = Process::spawn("httpd", &httpd, &dir.with_extension("log"), Lifetime::Bound)?;
        Ok(Pages { url: format!("http://{}/body", end.address), sum, _server: server })
    }

    /// Fetches the page, which must arrive as it is.
    fn fetch_whole(&self, from: &End) -> Result<()> {
        wait::until(&format!("{} to arrive whole", self.url), LIMIT, || {
            let sum =
                from.place.run("sh", ["-c", &format!("busybox wget -q -O - {} | sha256sum", self.url)])?;
            ensure!(sum == self.sum, "{sum:?} arrived, not {:?}", self.sum);
            Ok(())
        })
    }
}
