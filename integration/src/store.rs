//! The store of a lab: etcd of one or more members, or `fland store`, each process in a namespace of its own on the
//! underlay.
//!
//! What the lab itself needs of a store goes by `flanctl`. The keys here are read and written by `etcdctl`, whichever
//! store it is: an eye that is not ours.

mod client;
mod disk;
mod health;
mod kind;
mod member;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::member::Member;
use crate::command::{self, Outcome};
use crate::netns::Netns;
use crate::process::Lifetime;
use crate::tools;

pub use self::client::StoreClient;
pub use self::disk::Disk;
pub use self::health::ensure_healthy;
pub use self::kind::{STORE_VARIABLE, StoreKind};
pub use self::member::StoreData;

/// Where agents and command line keep everything.
pub const PREFIX: &str = "/coreos.com/network";

/// The nftables table that cuts hosts off, in a member's namespace.
const CUT_TABLE: &str = "flan_lab_cut";

/// A store.
#[derive(Debug)]
pub struct Store {
    members: Vec<Member>,
}

/// A place for a member: its name, its namespace, and its address on the underlay.
pub(crate) type MemberPlace = (String, Netns, Ipv4Addr);

impl Store {
    /// Starts a member in each of the places and waits until they are healthy. Their directories are made in `dir`.
    pub(crate) fn start(
        kind: StoreKind,
        places: Vec<MemberPlace>,
        dir: &Path,
        data: StoreData,
        lifetime: Lifetime,
    ) -> Result<Store> {
        let mut members = Vec::new();
        for place in places {
            let dir = dir.join(&place.0);
            members.push(Member::new(kind, place, dir, data, lifetime)?);
        }
        let mut store = Store { members };
        for member in 0..store.members.len() {
            store.spawn_member(member)?;
        }
        store.wait_healthy()?;
        Ok(store)
    }

    /// The client URLs of all members, separated by commas: the value of `--etcd-endpoints`.
    pub fn endpoints(&self) -> String {
        self.members.iter().map(Member::url).collect::<Vec<_>>().join(",")
    }

    /// Kills a member (`kill -9`), counted from 0. Its data stay.
    pub fn kill_member(&mut self, member: usize) -> Result<()> {
        self.members[member].kill()
    }

    /// Starts a member that was killed, on its old data, and waits until it is healthy.
    pub fn start_member(&mut self, member: usize) -> Result<()> {
        self.spawn_member(member)?;
        self.wait_healthy()
    }

    /// Removes the data of a member that was killed.
    pub fn wipe_member(&mut self, member: usize) -> Result<()> {
        self.members[member].wipe()
    }

    /// The directory of a running member's data, as this program sees it.
    pub fn data_dir(&self, member: usize) -> Result<PathBuf> {
        self.members[member].data_dir_seen()
    }

    /// The disk of a running member that has its data on [`StoreData::OnExt4Of`].
    pub fn disk(&self, member: usize) -> Result<Disk> {
        let member = &self.members[member];
        Disk::of(member.pid()?, member.data_dir())
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

    /// As [`Store::put`], with a new etcd lease of `seconds`, whose id (hexadecimal) is returned.
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

    /// Cuts a host off from all members: its connections are reset and new ones refused, until [`Store::reconnect`].
    pub fn cut_off(&self, host: Ipv4Addr) -> Result<()> {
        self.install_cut(&format!(
            "table inet {CUT_TABLE} {{
                chain from {{ type filter hook input priority 0; ip saddr {host} meta l4proto tcp reject with tcp reset; }}
                chain to {{ type filter hook output priority 0; ip daddr {host} meta l4proto tcp reject with tcp reset; }}
            }}"
        ))
    }

    /// Loses every packet between a host and all members without a word, until [`Store::reconnect`]: a dead link.
    pub fn silence(&self, host: Ipv4Addr) -> Result<()> {
        self.install_cut(&format!(
            "table inet {CUT_TABLE} {{
                chain from {{ type filter hook input priority 0; ip saddr {host} drop; }}
                chain to {{ type filter hook output priority 0; ip daddr {host} drop; }}
            }}"
        ))
    }

    /// Ends [`Store::cut_off`] and [`Store::silence`].
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
        tools::check_for_etcdctl()?;
        let member =
            self.members.iter().find(|member| member.runs()).context("no member of the store runs")?;
        let mut etcdctl = member.netns.place().command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", "http://127.0.0.1:2379"]);
        // Its own 5 s are too few for a store whose disk is busy with other scenarios.
        etcdctl.args(["--command-timeout", "30s"]).args(args);
        command::run_with_input(&etcdctl, input)
    }

    fn spawn_member(&mut self, number: usize) -> Result<()> {
        let cluster: Vec<_> = self.members.iter().map(Member::as_peer).collect();
        self.members[number].spawn(&cluster)
    }

    fn wait_healthy(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(Member::wait_healthy)
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
