//! One process of a store, with its data and its log.

use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{StoreKind, ensure_healthy};
use crate::command::Place;
use crate::forky;
use crate::netns::Netns;
use crate::process::{Lifetime, Process};
use crate::tools;
use crate::wait;

/// Mounts a file system and goes on as the program on it. Arguments: mount options, directory, command line.
const MOUNT_MEMORY: &str = r#"mount -t tmpfs -o "$0" flan "$1" && shift && exec "$@""#;

/// As [`MOUNT_MEMORY`], with the file system in the file DIRECTORY.img; its size instead of the options.
const MOUNT_EXT4: &str = r#"
set -e
[ -e "$1.img" ] || { truncate -s "$0" "$1.img"; mkfs.ext4 -q "$1.img"; }
mount -o loop,errors=remount-ro "$1.img" "$1"
shift
exec "$@"
"#;

const START_LIMIT: Duration = Duration::from_secs(20);

/// Where a member has its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreData {
    /// Below the lab's directory. They outlive the process.
    OnDisk,
    /// In memory, which goes when the process ends: for measurements that are not about the machine's disk.
    InMemory,
    /// As [`StoreData::InMemory`], with room for so many MiB: a disk that can be filled.
    InMemoryOf {
        /// The size of the file system.
        mib: u32,
    },
    /// On an ext4 file system of the member's own, of so many MiB, that becomes read-only after an error. It outlives the
    /// process.
    OnExt4Of {
        /// The size of the file system.
        mib: u32,
    },
}

/// A member, running or not.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) kind: StoreKind,
    pub(super) name: String,
    pub(super) address: Ipv4Addr,
    pub(super) netns: Netns,
    pub(super) data: StoreData,
    pub(super) lifetime: Lifetime,
    dir: PathBuf,
    process: Option<Process>,
}

impl Member {
    /// A member that does not run yet; `dir` is made.
    pub(super) fn new(
        kind: StoreKind,
        (name, netns, address): (String, Netns, Ipv4Addr),
        dir: PathBuf,
        data: StoreData,
        lifetime: Lifetime,
    ) -> Result<Member> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Member { kind, name, address, netns, data, lifetime, dir, process: None })
    }

    /// How the others of a cluster of etcd know it: `NAME=URL`.
    pub(super) fn as_peer(&self) -> String {
        format!("{}=http://{}:2380", self.name, self.address)
    }

    /// Where clients reach it from the underlay.
    pub(super) fn url(&self) -> String {
        format!("http://{}:2379", self.address)
    }

    pub(super) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Starts it on what data there are; `cluster` has all members as [`Member::as_peer`] names them.
    pub(super) fn spawn(&mut self, cluster: &[String]) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.name);
        let command = match self.kind {
            StoreKind::Etcd => self.etcd(self.place()?.command("etcd"), cluster),
            StoreKind::EtcdOfForky => self.etcd(forky::command(&self.place()?, "etcd")?, cluster),
            StoreKind::Embedded => self.fland_store()?,
        };
        let log = self.dir.join("store.log");
        self.process = Some(Process::spawn(&self.name, &command, &log, self.lifetime)?);
        Ok(())
    }

    /// Waits until it says that it is healthy, if it runs.
    pub(super) fn wait_healthy(&mut self) -> Result<()> {
        let Some(process) = &mut self.process else { return Ok(()) };
        let place = self.netns.place();
        wait::until(&format!("{} to be healthy", self.name), START_LIMIT, || {
            process.ensure_running()?;
            ensure_healthy(&place, "http://127.0.0.1:2379").with_context(|| process.last_lines())
        })
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.process.take().with_context(|| format!("{} does not run", self.name))?.kill()
    }

    /// Removes the data of a member that does not run.
    pub(super) fn wipe(&self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs", self.name);
        let data = self.data_dir();
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
    }

    /// The directory of its data as this program sees it, also where it is a file system of the member's own.
    pub(super) fn data_dir_seen(&self) -> Result<PathBuf> {
        let process = self.process.as_ref().with_context(|| format!("{} does not run", self.name))?;
        let inside = self.data_dir();
        let inside = inside.strip_prefix("/").unwrap_or(&inside);
        Ok(Path::new(&format!("/proc/{}/root", process.pid())).join(inside))
    }

    /// The process id, if it runs.
    pub(super) fn pid(&self) -> Result<u32> {
        self.process.as_ref().map(Process::pid).with_context(|| format!("{} does not run", self.name))
    }

    /// With the arguments of this member.
    fn etcd(&self, mut etcd: Command, cluster: &[String]) -> Command {
        let peer_url = format!("http://{}:2380", self.address);
        etcd.arg("--name").arg(&self.name);
        etcd.arg("--data-dir").arg(self.data_dir());
        etcd.arg("--listen-client-urls").arg(self.listened_on());
        etcd.arg("--advertise-client-urls").arg(self.url());
        etcd.arg("--listen-peer-urls").arg(&peer_url);
        etcd.arg("--initial-advertise-peer-urls").arg(&peer_url);
        etcd.arg("--initial-cluster").arg(cluster.join(","));
        // etcd 3.4 refuses to run on anything but amd64 unless told that this is meant.
        etcd.env("ETCD_UNSUPPORTED_ARCH", if cfg!(target_arch = "aarch64") { "arm64" } else { "" });
        etcd
    }

    fn fland_store(&self) -> Result<Command> {
        let mut fland = self.place()?.command(tools::flan_binary("fland")?);
        fland.arg("store");
        fland.arg("--data-dir").arg(self.data_dir());
        fland.arg("--listen-client-urls").arg(self.listened_on());
        // The underlay is beyond loopback, and nobody else is on it.
        fland.arg("--store-insecure");
        Ok(fland)
    }

    fn listened_on(&self) -> String {
        format!("{},http://127.0.0.1:2379", self.url())
    }

    /// Where it runs. Its memory goes when it ends: the file system is mounted in a namespace of its own.
    fn place(&self) -> Result<Place> {
        let (mount, option) = match self.data {
            StoreData::OnDisk => return Ok(self.netns.place()),
            StoreData::InMemory => (MOUNT_MEMORY, "mode=700".to_owned()),
            StoreData::InMemoryOf { mib } => (MOUNT_MEMORY, format!("mode=700,size={mib}m")),
            StoreData::OnExt4Of { mib } => (MOUNT_EXT4, format!("{mib}M")),
        };
        let data = self.data_dir();
        fs::create_dir_all(&data).with_context(|| format!("cannot make {}", data.display()))?;
        let words = ["unshare", "--mount", "sh", "-c", mount, &option].map(OsString::from);
        Ok(self.netns.place().then(words.into_iter().chain([data.into_os_string()])))
    }

    /// The directory of its data, as the member sees it.
    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }
}
