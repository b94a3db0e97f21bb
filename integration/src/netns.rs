//! Named network namespaces, and finding the processes in them.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::Place;
use crate::wait;

const NETNS_DIR: &str = "/run/netns";

/// A network namespace that `ip netns` lists. It stays until [`delete_all`] removes it.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace, its loopback up.
    pub fn create(name: &str) -> Result<Netns> {
        let netns = Netns { name: name.to_owned() };
        Place::default().run("ip", ["netns", "add", name]).context("cannot make a network namespace")?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that pins it.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Commands here see this namespace's network and the machine's files. Unlike `ip netns exec` this leaves /sys as
    /// it is, with the cgroups in it.
    pub fn place(&self) -> Place {
        Place::entered_by(["nsenter".to_owned(), format!("--net={}", self.path().display())])
    }

    /// Moves the calling thread into this namespace, for good: what it opens from now on is here, and so are the threads
    /// that it starts.
    pub fn enter(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the namespace {}", self.name))
    }

    /// `ip` with these words as arguments, in this namespace.
    pub fn ip(&self, words: &str) -> Result<String> {
        Place::default().run("ip", ["-n", &self.name].into_iter().chain(words.split_whitespace()))
    }
}

/// The names of all namespaces that start with `prefix`.
pub fn names_with_prefix(prefix: &str) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Ok(Vec::new()); // Nobody has made a namespace since boot.
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Kills every process in the namespaces, waits until they are gone, and deletes the namespaces. Carries on after
/// errors and returns them all.
pub fn delete_all(names: &[String]) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    if let Err(error) = kill_all_in(names) {
        errors.push(error);
    }
    for name in names {
        errors.extend(Place::default().run("ip", ["netns", "delete", name]).err());
    }
    errors
}

fn kill_all_in(names: &[String]) -> Result<()> {
    let namespaces: HashSet<(u64, u64)> =
        names.iter().filter_map(|name| identity(&Path::new(NETNS_DIR).join(name))).collect();
    let own = identity(Path::new("/proc/self/ns/net")).context("cannot read /proc/self/ns/net")?;
    ensure!(!namespaces.contains(&own), "this program runs inside a namespace that it should delete");
    wait::until_cleaned_up("the processes in the lab's namespaces to go", Duration::from_secs(15), || {
        let pids = pids_in(&namespaces)?;
        for &pid in &pids {
            // Gone in the meantime is as good as killed.
            let _ = kill_process(pid, Signal::KILL);
        }
        ensure!(pids.is_empty(), "{} processes, among them {}", pids.len(), pids[0].as_raw_nonzero());
        Ok(())
    })
}

fn pids_in(namespaces: &HashSet<(u64, u64)>) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        if identity(&entry.path().join("ns/net")).is_some_and(|namespace| namespaces.contains(&namespace)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn identity(namespace: &Path) -> Option<(u64, u64)> {
    fs::metadata(namespace).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
