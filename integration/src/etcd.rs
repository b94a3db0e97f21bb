//! A real etcd of one or more members, each in a namespace of its own on the underlay.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{self, Outcome, Place};
use crate::netns::Netns;
use crate::process::{Lifetime, Process};
use crate::wait;

/// Where agents and command line keep everything.
pub const PREFIX: &str = "/coreos.com/network";

const START_LIMIT: Duration = Duration::from_secs(20);

/// The nftables table that cuts hosts off, in a member's namespace.
const CUT_TABLE: &str = "flan_lab_cut";

/// The store of a lab.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    address: Ipv4Addr,
    netns: Netns,
    dir: PathBuf,
    in_memory: bool,
    lifetime: Lifetime,
    process: Option<Process>,
}

impl Etcd {
    /// Starts a member in each of the namespaces and waits until they are healthy.
    pub(crate) fn start(
        places: Vec<(Netns, Ipv4Addr)>,
        dir: &Path,
        in_memory: bool,
        lifetime: Lifetime,
    ) -> Result<Etcd> {
        let mut members = Vec::new();
        for (number, (netns, address)) in (1..).zip(places) {
            let name = format!("etcd{number}");
            let dir = dir.join(&name);
            fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            members.push(Member { name, address, netns, dir, in_memory, lifetime, process: None });
        }
        let mut etcd = Etcd { members };
        for member in 0..etcd.members.len() {
            etcd.spawn_member(member)?;
        }
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// The client URLs of all members, separated by commas: the value of `--etcd-endpoints`.
    pub fn endpoints(&self) -> String {
        let urls: Vec<_> =
            self.members.iter().map(|member| format!("http://{}:2379", member.address)).collect();
        urls.join(",")
    }

    /// Kills a member (`kill -9`), counted from 0. Its data stay.
    pub fn kill_member(&mut self, member: usize) -> Result<()> {
        self.members[member].process.take().context("this etcd member does not run")?.kill()
    }

    /// Starts a member that was killed, on its old data, and waits until it is healthy.
    pub fn start_member(&mut self, member: usize) -> Result<()> {
        self.spawn_member(member)?;
        self.wait_healthy()
    }

    /// Removes the data of a member that was killed.
    pub fn wipe_member(&mut self, member: usize) -> Result<()> {
        let member = &self.members[member];
        ensure!(member.process.is_none(), "{} runs", member.name);
        let data = member.data_dir();
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
    }

    /// `etcdctl` with these arguments, on the first member that runs, whether or not hosts are cut off from it.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let outcome = self.ctl_outcome(args, "")?;
        outcome.succeeded(&format!("etcdctl {}", args.join(" ")))?;
        Ok(outcome.stdout)
    }

    /// Writes a key below [`PREFIX`], without a lease: `put("config", ...)`, `put("subnets/10.5.3.0-24", ...)`.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        // By way of standard input: a value may start with a dash.
        let outcome = self.ctl_outcome(&["put", &format!("{PREFIX}/{key}")], value)?;
        outcome.succeeded(&format!("etcdctl put {key}"))
    }

    /// As [`Etcd::put`], with a new etcd lease of `seconds`, whose id (hexadecimal) is returned.
    pub fn put_leased(&self, key: &str, value: &str, seconds: u32) -> Result<String> {
        let answer = self.ctl(&["lease", "grant", &seconds.to_string()])?;
        let id = answer
            .split_whitespace()
            .nth(1)
            .with_context(|| format!("no lease id in {answer:?}"))?
            .to_owned();
        let outcome =
            self.ctl_outcome(&["put", &format!("--lease={id}"), &format!("{PREFIX}/{key}")], value)?;
        outcome.succeeded(&format!("etcdctl put --lease {key}"))?;
        Ok(id)
    }

    /// The value of a key below [`PREFIX`], or `None`.
    pub fn value(&self, key: &str) -> Result<Option<String>> {
        let value = self.ctl(&["get", "--print-value-only", &format!("{PREFIX}/{key}")])?;
        let value = value.strip_suffix('\n').unwrap_or(&value);
        Ok((!value.is_empty()).then(|| value.to_owned()))
    }

    /// The id (decimal) of the etcd lease that a key below [`PREFIX`] hangs on; 0 for none.
    pub fn lease_id(&self, key: &str) -> Result<i64> {
        self.field(key, "Lease")
    }

    /// The revision at which a key below [`PREFIX`] was last written.
    pub fn modified_at(&self, key: &str) -> Result<i64> {
        self.field(key, "ModRevision")
    }

    /// Removes a key below [`PREFIX`].
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ctl(&["del", &format!("{PREFIX}/{key}")]).map(drop)
    }

    /// The names below `<prefix>/subnets/`, sorted: `10.5.52.0-24`.
    pub fn subnet_keys(&self) -> Result<Vec<String>> {
        let prefix = format!("{PREFIX}/subnets/");
        let keys = self.ctl(&["get", "--prefix", "--keys-only", &prefix])?;
        Ok(keys.lines().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect())
    }

    /// Forgets all history up to now: a watch from an older revision fails.
    pub fn compact(&self) -> Result<()> {
        let fields = self.ctl(&["get", "-w", "fields", PREFIX])?;
        let revision = field(&fields, "Revision").with_context(|| format!("no revision in {fields}"))?;
        self.ctl(&["compact", &revision.to_string()]).map(drop)
    }

    /// Cuts a host off from all members: its connections are reset and new ones refused, until [`Etcd::reconnect`].
    pub fn cut_off(&self, host: Ipv4Addr) -> Result<()> {
        self.install_cut(&format!(
            "table inet {CUT_TABLE} {{
                chain from {{ type filter hook input priority 0; ip saddr {host} meta l4proto tcp reject with tcp reset; }}
                chain to {{ type filter hook output priority 0; ip daddr {host} meta l4proto tcp reject with tcp reset; }}
            }}"
        ))
    }

    /// Loses every packet between a host and all members without a word, until [`Etcd::reconnect`]: a dead link.
    pub fn silence(&self, host: Ipv4Addr) -> Result<()> {
        self.install_cut(&format!(
            "table inet {CUT_TABLE} {{
                chain from {{ type filter hook input priority 0; ip saddr {host} drop; }}
                chain to {{ type filter hook output priority 0; ip daddr {host} drop; }}
            }}"
        ))
    }

    /// Ends [`Etcd::cut_off`] and [`Etcd::silence`].
    pub fn reconnect(&self) -> Result<()> {
        for member in &self.members {
            member.netns.place().run("nft", ["delete", "table", "inet", CUT_TABLE])?;
        }
        Ok(())
    }

    fn install_cut(&self, ruleset: &str) -> Result<()> {
        for member in &self.members {
            let mut nft = member.netns.place().command("nft");
            nft.args(["-f", "-"]);
            command::run_with_input(&nft, ruleset)?.succeeded("nft -f -")?;
        }
        Ok(())
    }

    fn field(&self, key: &str, name: &str) -> Result<i64> {
        let fields = self.ctl(&["get", "-w", "fields", &format!("{PREFIX}/{key}")])?;
        field(&fields, name).with_context(|| format!("no {name} of {key} in {fields:?}"))
    }

    fn ctl_outcome(&self, args: &[&str], input: &str) -> Result<Outcome> {
        let member =
            self.members.iter().find(|member| member.process.is_some()).context("no etcd member runs")?;
        let mut etcdctl = member.netns.place().command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", "http://127.0.0.1:2379"]).args(args);
        command::run_with_input(&etcdctl, input)
    }

    fn spawn_member(&mut self, number: usize) -> Result<()> {
        let peers: Vec<_> = self
            .members
            .iter()
            .map(|member| format!("{}=http://{}:2380", member.name, member.address))
            .collect();
        let member = &mut self.members[number];
        let mut etcd: Command = member.place()?.command("etcd");
        etcd.arg("--name").arg(&member.name);
        etcd.arg("--data-dir").arg(member.data_dir());
        etcd.arg("--listen-client-urls").arg(format!("http://{}:2379,http://127.0.0.1:2379", member.address));
        etcd.arg("--advertise-client-urls").arg(format!("http://{}:2379", member.address));
        etcd.arg("--listen-peer-urls").arg(format!("http://{}:2380", member.address));
        etcd.arg("--initial-advertise-peer-urls").arg(format!("http://{}:2380", member.address));
        etcd.arg("--initial-cluster").arg(peers.join(","));
        // etcd 3.4 refuses to run on anything but amd64 unless told that this is meant.
        etcd.env("ETCD_UNSUPPORTED_ARCH", if cfg!(target_arch = "aarch64") { "arm64" } else { "" });
        let log = member.dir.join("etcd.log");
        member.process = Some(Process::spawn(&member.name, &etcd, &log, member.lifetime)?);
        Ok(())
    }

    /// Waits until every member that runs answers a read that needs the agreement of the cluster.
    fn wait_healthy(&mut self) -> Result<()> {
        for member in &mut self.members {
            let Some(process) = &mut member.process else { continue };
            wait::until(&format!("{} to be healthy", member.name), START_LIMIT, || {
                process.ensure_running()?;
                let mut etcdctl = member.netns.place().command("etcdctl");
                etcdctl.env("ETCDCTL_API", "3");
                etcdctl.args(["--endpoints=http://127.0.0.1:2379", "--command-timeout=1s", "get", PREFIX]);
                let outcome = command::run(&etcdctl)?;
                ensure!(outcome.code == Some(0), "{}\n{}", outcome.stderr.trim(), process.last_lines());
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Member {
    /// Where it runs. Its memory goes when it ends: the file system is mounted in a namespace of its own.
    fn place(&self) -> Result<Place> {
        if !self.in_memory {
            return Ok(self.netns.place());
        }
        let data = self.data_dir();
        fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let mount = r#"mount -t tmpfs -o mode=700 flan "$0" && exec "$@""#;
        let words = ["unshare", "--mount", "sh", "-c", mount].map(OsString::from);
        Ok(self.netns.place().then(words.into_iter().chain([data.into_os_string()])))
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }
}

/// A number from `etcdctl -w fields`, whose lines read `"Name" : 12`.
fn field(fields: &str, name: &str) -> Option<i64> {
    let quoted = format!("\"{name}\"");
    let line = fields.lines().find(|line| line.starts_with(&quoted))?;
    line.split_once(" : ")?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn fields_are_read_from_the_output_of_etcdctl() {
        let text =
            "\"ClusterID\" : 14841639068965178418\n\"Revision\" : 7\n\"Key\" : \"/a\"\n\"Lease\" : 7587862\n";
        assert_eq!(field(text, "Revision"), Some(7));
        assert_eq!(field(text, "Lease"), Some(7_587_862));
        assert_eq!(field(text, "ModRevision"), None);
    }
}
