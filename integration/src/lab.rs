//! One world of hosts, with everything that it needs, and its removal without a trace.

mod cgroups;
mod directory;
mod logs;
mod options;
mod removal;
mod underlay;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, Result, ensure};

use self::directory::prefixed;
use self::removal::Remains;
use self::underlay::{Segment, Underlay};
use crate::command::Outcome;
use crate::detour::Detour;
use crate::docker;
use crate::flanctl;
use crate::forky;
use crate::host::{Host, HostSpec};
use crate::netns::Netns;
use crate::process::{LOG_HEAD, Lifetime, Process};
use crate::store::{PREFIX, Store, StoreData, StoreKind};
use crate::tools;
use crate::wait;

pub(crate) use self::directory::claim as claim_directory;
pub use self::options::LabOptions;
pub use self::removal::{Removal, is_kept, remove};
pub use self::underlay::{OUTSIDE, OUTSIDE6, ROUTER};

/// A running world. Dropping it removes everything, also after a panic, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    lifetime: Lifetime,
    underlay: Underlay,
    store: Store,
    outside: Option<Process>,
    remains: Remains,
    // Unlocked when the program ends, however it ends.
    _lock: File,
}

impl Lab {
    /// Runs a story in a new lab. If it fails, the ends of the logs are shown. The lab is removed in any case.
    pub fn run(options: LabOptions, story: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
        let mut lab = Lab::start(options)?;
        let told = story(&mut lab);
        if let Err(error) = &told {
            lab.show_logs_after(error);
        }
        told
    }

    /// Makes the underlay and starts the store.
    pub fn start(options: LabOptions) -> Result<Lab> {
        let kind = options.store_kind()?;
        tools::check()?;
        if options.store_members > 0 {
            tools::check_for_store(kind)?;
        }
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            if let Err(error) = removal::remove_abandoned() {
                eprintln!("removing what earlier runs left: {error:#}");
            }
        });
        let (id, dir, lock) = directory::claim(options.name)?;
        // From here on whatever fails is cleaned up by this guard; a lab takes it over.
        let remains = Remains { id: id.clone(), armed: true };

        let underlay = Underlay::make(&id, options.ipv6).context("step: make the underlay")?;
        let image = dir.join("image");
        docker::build_image(&image, &dir.join("image.tar")).context("step: pack the container image")?;
        let places = (0..options.store_members).map(|_| underlay.place_for_store()).collect::<Result<_>>()?;
        let store = Store::start(kind, places, &dir, options.store_data, options.lifetime)
            .with_context(|| format!("step: start {kind}"))?;
        let lifetime = options.lifetime;
        let mut lab = Lab { dir, lifetime, underlay, store, outside: None, remains, _lock: lock };
        lab.start_outside().context("step: start the web server outside")?;
        Ok(lab)
    }

    /// A new host on the underlay, without agent and Docker.
    pub fn host(&self, name: &str) -> Result<Host> {
        self.host_at(PREFIX, name)
    }

    /// As [`Lab::host`], for an agent that keeps everything below another prefix of the store: several networks in one
    /// lab.
    pub fn host_at(&self, etcd_prefix: &str, name: &str) -> Result<Host> {
        self.host_on(Segment::HOME, etcd_prefix, name, None)
    }

    /// As [`Lab::host`], with the programs of Debian forky: its dockerd, its nft and iptables.
    pub fn host_of_forky(&self, name: &str) -> Result<Host> {
        self.host_on(Segment::HOME, PREFIX, name, Some(forky::root()?))
    }

    /// As [`Lab::host`], on a second segment: between it and everything else the underlay routes.
    pub fn host_behind_router(&self, name: &str) -> Result<Host> {
        self.underlay.reach_beyond().context("step: make the segment behind the router")?;
        self.host_on(Segment::BEYOND, PREFIX, name, None)
    }

    fn host_on(
        &self,
        segment: Segment,
        etcd_prefix: &str,
        name: &str,
        forky_root: Option<&'static Path>,
    ) -> Result<Host> {
        let (netns, address, address6) = self.underlay.place_for_host(name, segment)?;
        Host::start(HostSpec {
            name: name.to_owned(),
            address,
            address6,
            netns,
            dir: self.dir.join(name),
            etcd_endpoints: self.store.endpoints(),
            etcd_prefix: etcd_prefix.to_owned(),
            cgroup: prefixed(&self.remains.id),
            image: self.dir.join("image.tar"),
            forky_root,
            lifetime: self.lifetime,
        })
        .with_context(|| format!("step: make host {name}"))
    }

    /// Gives a host one interface more on the segment that everything is on, as when a cable is plugged in, with this
    /// address and no default route.
    pub fn plug_in(&self, host: &Host, interface: &str, address: Ipv4Addr) -> Result<()> {
        let port = format!("{}.{interface}", host.name());
        self.underlay.plug_in(host.netns(), (&port, interface), Segment::HOME, address)
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The store, to kill and start members.
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Starts another store beside that of the lab, of one member; nobody uses it unless told to.
    pub fn another_store(&self, kind: StoreKind, data: StoreData) -> Result<Store> {
        tools::check_for_store(kind)?;
        let place = self.underlay.place_for_store()?;
        Store::start(kind, vec![place], &self.dir, data, self.lifetime)
            .with_context(|| format!("step: start another store, {kind}"))
    }

    /// Another way to the first member of the store, from everywhere on the underlay; nobody takes it unless told to.
    pub fn detour(&self, seed: u64) -> Result<Detour> {
        let endpoints = self.store.endpoints();
        let first = endpoints.split(',').next().unwrap_or_default();
        Detour::start(&self.underlay.netns, ROUTER.into(), first, seed)
            .context("step: make a way to the store")
    }

    /// The namespace of the underlay's bridge and of the world outside.
    pub fn underlay(&self) -> &Netns {
        &self.underlay.netns
    }

    /// The lab's directory: logs, sockets, data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `flanctl` with the store's address and these arguments, run on the underlay; any exit code is fine.
    pub fn flanctl(&self, args: &[&str]) -> Result<Outcome> {
        self.flanctl_with_input(args, "")
    }

    /// As [`Lab::flanctl`], with `input` on its standard input.
    pub fn flanctl_with_input(&self, args: &[&str], input: &str) -> Result<Outcome> {
        self.flanctl_at(PREFIX, args, input)
    }

    /// Writes the network config by `flanctl config set -`.
    pub fn set_network(&self, config: &str) -> Result<()> {
        self.set_network_at(PREFIX, config)
    }

    /// As [`Lab::set_network`], below another prefix of the store.
    pub fn set_network_at(&self, etcd_prefix: &str, config: &str) -> Result<()> {
        self.flanctl_at(etcd_prefix, &["config", "set", "-"], config)?.succeeded("flanctl config set -")
    }

    /// Leaves everything running: nothing is removed when this value is dropped. The lab must have been made with
    /// [`Lifetime::Kept`].
    pub fn keep(mut self) -> Result<()> {
        ensure!(self.lifetime == Lifetime::Kept, "this lab's processes are bound to this program");
        directory::keep(&self.dir)?;
        self.remains.armed = false;
        Ok(())
    }

    /// Prints the ends of the logs that were written last, unless the error comes with that of the culprit, or a
    /// person has interrupted.
    pub fn show_logs_after(&self, error: &anyhow::Error) {
        if wait::ensure_not_interrupted().is_ok() && !format!("{error:#}").contains(LOG_HEAD) {
            self.show_logs();
        }
    }

    /// Prints the ends of the logs that were written last.
    pub fn show_logs(&self) {
        logs::show(&self.dir);
    }

    fn flanctl_at(&self, etcd_prefix: &str, args: &[&str], input: &str) -> Result<Outcome> {
        flanctl::run(&self.underlay.netns.place(), (&self.store.endpoints(), etcd_prefix), args, input)
    }

    /// A web server on [`OUTSIDE`] that tells who asks.
    fn start_outside(&mut self) -> Result<()> {
        let pages = self.dir.join("outside/cgi-bin");
        fs::create_dir_all(&pages)?;
        docker::write_page(&pages.join("source"), "$REMOTE_ADDR")?;
        let mut httpd = self.underlay.netns.place().command("busybox");
        httpd.args(["httpd", "-f", "-p", &format!("{OUTSIDE}:80"), "-h"]).arg(self.dir.join("outside"));
        let log = self.dir.join("outside.log");
        self.outside = Some(Process::spawn("the web server outside", &httpd, &log, self.lifetime)?);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && self.remains.armed {
            self.show_logs();
        }
        // The fields follow: processes first, then `remains` removes the rest.
    }
}
