//! One world of hosts, with everything that it needs, and its removal without a trace.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::command::{self, Outcome};
use crate::detour::Detour;
use crate::docker;
use crate::forky;
use crate::host::{Host, HostSpec};
use crate::netns::{self, Netns};
use crate::process::{LOG_HEAD, Lifetime, Process, last_lines};
use crate::store::{MemberPlace, PREFIX, Store, StoreData, StoreKind};
use crate::tools;
use crate::wait;

/// The prefix length of both segments.
const PREFIX_LENGTH: u8 = 24;

/// The underlay's router, which is also the rest of the world.
pub const ROUTER: Ipv4Addr = HOME.router();

/// An IPv6 address that is neither on the underlay nor on the overlay, in a lab with [`LabOptions::ipv6`].
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The segment that everything is on.
const HOME: Segment = Segment { bridge: "br0", third: 64 };

/// The segment of [`Lab::host_behind_router`].
const BEYOND: Segment = Segment { bridge: "br1", third: 65 };

/// An address that is neither on the underlay nor on the overlay. A web server answers there.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// The last octet of the first member of a store.
const FIRST_STORE: u8 = 2;

/// The first host's last octet; the members of stores come before.
const FIRST_HOST: u8 = 11;

/// Where labs are, each in a directory `flan-ID`.
const LABS_DIR: &str = "/tmp";

/// In a lab's directory: locked for as long as the program that made the lab runs.
const LOCK_FILE: &str = "lock";

/// In a lab's directory: the lab is meant to stay.
const KEPT_FILE: &str = "kept";

/// How many logs a failure shows.
const SHOWN_LOGS: usize = 6;

/// What a lab is to be.
#[derive(Debug, Clone, Copy)]
pub struct LabOptions {
    /// A name of its own, of which there is one at a time on a machine; `None` for one made up.
    pub name: Option<&'static str>,
    /// What keeps the store; `None` for what [`STORE_VARIABLE`](crate::store::STORE_VARIABLE) says, and etcd where that
    /// says nothing, or a store of one member and there are more.
    pub store: Option<StoreKind>,
    /// Members of the store. Without any, some host of the lab keeps it.
    pub store_members: u8,
    /// Where they have their data.
    pub store_data: StoreData,
    /// Hosts have IPv6 addresses as well, the store has not.
    pub ipv6: bool,
    /// The lab outlives the program: see [`Lab::keep`].
    pub lifetime: Lifetime,
}

impl Default for LabOptions {
    fn default() -> LabOptions {
        LabOptions {
            name: None,
            store: None,
            store_members: 1,
            store_data: StoreData::OnDisk,
            ipv6: false,
            lifetime: Lifetime::Bound,
        }
    }
}

impl LabOptions {
    fn store_kind(&self) -> Result<StoreKind> {
        match self.store {
            Some(StoreKind::Embedded) if self.store_members > 1 => {
                bail!("{} members of {}, which has one", self.store_members, StoreKind::Embedded)
            }
            Some(kind) => Ok(kind),
            None => match StoreKind::from_environment()? {
                StoreKind::Embedded if self.store_members > 1 => Ok(StoreKind::Etcd),
                kind => Ok(kind),
            },
        }
    }
}

/// A running world. Dropping it removes everything, also after a panic, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    id: String,
    dir: PathBuf,
    lifetime: Lifetime,
    ipv6: bool,
    underlay: Netns,
    store: Store,
    outside: Option<Process>,
    next_store: AtomicU8,
    next_host: AtomicU8,
    remains: Remains,
    kept: bool,
    // Unlocked when the program ends, however it ends.
    _lock: File,
}

/// What a removal did.
#[derive(Debug, Default)]
pub struct Removal {
    /// The labs that are gone.
    pub removed: Vec<String>,
    /// The labs that belong to a program that runs.
    pub in_use: Vec<String>,
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
            if let Err(error) = remove_abandoned() {
                eprintln!("removing what earlier runs left: {error:#}");
            }
        });
        let (id, dir, lock) = claim_directory(options.name)?;
        // From here on whatever fails is cleaned up by this guard; a lab takes it over.
        let remains = Remains { id: id.clone(), armed: true };

        let underlay = make_underlay(&id, options.ipv6).context("step: make the underlay")?;
        let image = dir.join("image");
        docker::build_image(&image, &dir.join("image.tar")).context("step: pack the container image")?;
        let next_store = AtomicU8::new(FIRST_STORE);
        let places = (0..options.store_members)
            .map(|_| place_for_store(&id, &underlay, &next_store))
            .collect::<Result<Vec<_>>>()?;
        let store = Store::start(kind, places, &dir, options.store_data, options.lifetime)
            .with_context(|| format!("step: start {kind}"))?;
        let mut lab = Lab {
            id,
            dir,
            lifetime: options.lifetime,
            ipv6: options.ipv6,
            underlay,
            store,
            outside: None,
            next_store,
            next_host: AtomicU8::new(FIRST_HOST),
            remains,
            kept: false,
            _lock: lock,
        };
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
        self.host_on(HOME, etcd_prefix, name, None)
    }

    /// As [`Lab::host`], with the programs of Debian forky: its dockerd, its nft and iptables.
    pub fn host_of_forky(&self, name: &str) -> Result<Host> {
        self.host_on(HOME, PREFIX, name, Some(forky::root()?))
    }

    /// As [`Lab::host`], on a second segment: between it and everything else the underlay routes.
    pub fn host_behind_router(&self, name: &str) -> Result<Host> {
        ensure!(!self.ipv6, "the segment behind the router has no IPv6");
        if self.underlay.ip(&format!("link show dev {}", BEYOND.bridge)).is_err() {
            make_segment(&self.underlay, BEYOND).context("step: make the segment behind the router")?;
            let place = self.underlay.place();
            place.run("sh", ["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        }
        self.host_on(BEYOND, PREFIX, name, None)
    }

    fn host_on(
        &self,
        segment: Segment,
        etcd_prefix: &str,
        name: &str,
        forky_root: Option<&'static Path>,
    ) -> Result<Host> {
        let number = self.next_host.fetch_add(1, Ordering::Relaxed);
        ensure!(number < 255, "the underlay has no address left");
        let address = segment.address(number);
        let netns = attach(&self.id, &self.underlay, name, segment, address)?;
        let address6 = self.ipv6.then(|| address6(number));
        if let Some(address6) = address6 {
            netns.ip(&format!("address add {address6}/64 dev eth0 nodad"))?;
            netns.ip(&format!("-6 route add default via {}", self::address6(1)))?;
        }
        Host::start(HostSpec {
            name: name.to_owned(),
            address,
            address6,
            netns,
            dir: self.dir.join(name),
            etcd_endpoints: self.store.endpoints(),
            etcd_prefix: etcd_prefix.to_owned(),
            cgroup: prefixed(&self.id),
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
        plug_in(&self.underlay, host.netns(), (&port, interface), HOME, address)
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
        let place = place_for_store(&self.id, &self.underlay, &self.next_store)?;
        Store::start(kind, vec![place], &self.dir, data, self.lifetime)
            .with_context(|| format!("step: start another store, {kind}"))
    }

    /// Another way to the first member of the store, from everywhere on the underlay; nobody takes it unless told to.
    pub fn detour(&self, seed: u64) -> Result<Detour> {
        let endpoints = self.store.endpoints();
        let first = endpoints.split(',').next().unwrap_or_default();
        Detour::start(&self.underlay, ROUTER.into(), first, seed).context("step: make a way to the store")
    }

    /// The namespace of the underlay's bridge and of the world outside.
    pub fn underlay(&self) -> &Netns {
        &self.underlay
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
        fs::write(self.dir.join(KEPT_FILE), "").context("cannot mark the lab as kept")?;
        self.kept = true;
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
        let mut logs = Vec::new();
        collect_logs(&self.dir, &mut logs);
        logs.sort();
        for (_, log) in logs.iter().rev().take(SHOWN_LOGS) {
            eprintln!("{}", last_lines(log));
        }
    }

    fn flanctl_at(&self, etcd_prefix: &str, args: &[&str], input: &str) -> Result<Outcome> {
        let mut command = self.underlay.place().command(tools::flan_binary("flanctl")?);
        // Not the settings of the machine.
        command.env("FLAND_ENV_FILE", "/dev/null");
        command.args(["--etcd-endpoints", &self.store.endpoints(), "--etcd-prefix", etcd_prefix]).args(args);
        command::run_with_input(&command, input)
    }

    /// A web server on [`OUTSIDE`] that tells who asks.
    fn start_outside(&mut self) -> Result<()> {
        let pages = self.dir.join("outside/cgi-bin");
        fs::create_dir_all(&pages)?;
        docker::write_page(&pages.join("source"), "$REMOTE_ADDR")?;
        let mut httpd = self.underlay.place().command("busybox");
        httpd.args(["httpd", "-f", "-p", &format!("{OUTSIDE}:80"), "-h"]).arg(self.dir.join("outside"));
        let log = self.dir.join("outside.log");
        self.outside = Some(Process::spawn("the web server outside", &httpd, &log, self.lifetime)?);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.kept {
            self.show_logs();
        }
        // The fields follow: processes first, then `remains` removes the rest.
    }
}

/// Removes the lab of this name even if it was kept, and all labs that no running program owns and nobody meant to keep.
pub fn remove(name: &str) -> Result<Removal> {
    remove_labs(|id, kept| id == name || !kept)
}

/// True if a lab of this name was left up on purpose.
pub fn is_kept(name: &str) -> bool {
    Path::new(LABS_DIR).join(prefixed(name)).join(KEPT_FILE).exists()
}

fn remove_abandoned() -> Result<()> {
    remove_labs(|_, kept| !kept).map(drop)
}

fn remove_labs(wanted: impl Fn(&str, bool) -> bool) -> Result<Removal> {
    let mut removal = Removal::default();
    let mut errors = Vec::new();
    for entry in fs::read_dir(LABS_DIR).with_context(|| format!("cannot list {LABS_DIR}"))? {
        let dir = entry?.path();
        let id = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("flan-"));
        let Some(id) = id.filter(|id| wanted(id, dir.join(KEPT_FILE).exists())) else { continue };
        // Without this file it is no lab, or one that is being made.
        let Ok(lock) = File::open(dir.join(LOCK_FILE)) else { continue };
        if lock.try_lock().is_err() {
            removal.in_use.push(id.to_owned());
            continue;
        }
        errors.extend(remove_everything(id));
        removal.removed.push(id.to_owned());
    }
    one_error(&errors)?;
    Ok(removal)
}

/// Removes what a lab has left when it is dropped.
#[derive(Debug)]
struct Remains {
    id: String,
    armed: bool,
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.armed {
            for error in remove_everything(&self.id) {
                eprintln!("cleaning up the lab {}: {error:#}", self.id);
            }
        }
    }
}

/// Everything that a lab can have made, found by its name alone. Carries on after errors and returns them all.
fn remove_everything(id: &str) -> Vec<anyhow::Error> {
    let mut errors = Vec::new();
    match netns::names_with_prefix(&format!("{}-", prefixed(id))) {
        Ok(names) => errors.extend(netns::delete_all(&names)),
        Err(error) => errors.push(error),
    }
    let name = prefixed(id);
    errors.extend(remove_cgroups(&name).err());
    let dir = Path::new(LABS_DIR).join(&name);
    // A mount that has just lost its last user may still keep a directory busy.
    let removed = wait::until_cleaned_up("the lab's directory to go", Duration::from_secs(5), || {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(anyhow!(error).context(dir.display().to_string()))
            }
            _ => Ok(()),
        }
    });
    errors.extend(removed.err());
    errors
}

/// Containers' cgroups outlive a dockerd that was killed: remove them in every hierarchy (version 1 has several).
fn remove_cgroups(name: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    let mut parents = vec![root.to_owned()];
    if let Ok(hierarchies) = fs::read_dir(root) {
        parents.extend(hierarchies.flatten().map(|entry| entry.path()));
    }
    let mut errors = Vec::new();
    for group in parents.into_iter().map(|parent| parent.join(name)) {
        let result = wait::until_cleaned_up("a cgroup to be empty", Duration::from_secs(5), || {
            remove_cgroup(&group).with_context(|| group.display().to_string())
        });
        errors.extend(result.err());
    }
    one_error(&errors)
}

/// A cgroup's files go with it, but its children must go before.
fn remove_cgroup(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(());
        }
        entries => entries?,
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    match fs::remove_dir(group) {
        // Two names of one hierarchy: `cpu` and `cpu,cpuacct`.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn one_error(errors: &[anyhow::Error]) -> Result<()> {
    if errors.is_empty() {
        return Ok(());
    }
    let texts: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
    bail!("{}", texts.join("\n"))
}

/// Makes the lab's directory, which claims its id, and locks it.
fn claim_directory(name: Option<&str>) -> Result<(String, PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let id = match name {
            Some(name) => name.to_owned(),
            None => format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        };
        let dir = Path::new(LABS_DIR).join(prefixed(&id));
        match fs::create_dir(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && name.is_none() => continue,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("a lab {id:?} exists already, in {}", dir.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot make {}", dir.display())),
        }
        // Under its name only once it is locked, or a sweep by another program would take it for abandoned.
        let fresh = dir.join("lock.new");
        let lock = File::create(&fresh).context("cannot make the lab's lock")?;
        lock.lock().context("cannot lock the lab")?;
        fs::rename(&fresh, dir.join(LOCK_FILE)).context("cannot name the lab's lock")?;
        return Ok((id, dir, lock));
    }
}

/// Hosts that reach each other without a router.
#[derive(Debug, Clone, Copy)]
struct Segment {
    bridge: &'static str,
    /// All its addresses start with 192.168 and this.
    third: u8,
}

impl Segment {
    const fn address(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.third, last)
    }

    const fn router(self) -> Ipv4Addr {
        self.address(1)
    }
}

/// A namespace on the underlay for the next member of a store: `store1`, `store2` and so on.
fn place_for_store(id: &str, underlay: &Netns, next: &AtomicU8) -> Result<MemberPlace> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    ensure!(number < FIRST_HOST, "the underlay has no address left for a store");
    let (name, address) = (format!("store{}", number + 1 - FIRST_STORE), HOME.address(number));
    Ok((name.clone(), attach(id, underlay, &name, HOME, address)?, address))
}

/// The namespace with the bridge that all hosts hang on.
fn make_underlay(id: &str, ipv6: bool) -> Result<Netns> {
    let underlay = Netns::create(&format!("{}-underlay", prefixed(id)))?;
    make_segment(&underlay, HOME)?;
    underlay.ip(&format!("address add {OUTSIDE}/32 dev lo"))?;
    if ipv6 {
        underlay.ip(&format!("address add {}/64 dev {} nodad", address6(1), HOME.bridge))?;
        underlay.ip(&format!("address add {OUTSIDE6}/128 dev lo"))?;
    }
    Ok(underlay)
}

fn make_segment(underlay: &Netns, segment: Segment) -> Result<()> {
    let Segment { bridge, .. } = segment;
    underlay.ip(&format!("link add {bridge} type bridge"))?;
    underlay.ip(&format!("address add {}/{PREFIX_LENGTH} dev {bridge}", segment.router()))?;
    underlay.ip(&format!("link set {bridge} up")).map(drop)
}

/// A namespace with eth0 on a segment of the underlay.
fn attach(id: &str, underlay: &Netns, name: &str, segment: Segment, address: Ipv4Addr) -> Result<Netns> {
    let netns = Netns::create(&format!("{}-{name}", prefixed(id)))?;
    plug_in(underlay, &netns, (name, "eth0"), segment, address)?;
    netns.ip(&format!("route add default via {}", segment.router()))?;
    Ok(netns)
}

/// An interface with this address on a segment, by a cable with these ends: the port there, the interface here.
fn plug_in(
    underlay: &Netns,
    netns: &Netns,
    (port, interface): (&str, &str),
    segment: Segment,
    address: Ipv4Addr,
) -> Result<()> {
    underlay.ip(&format!("link add {port} type veth peer name {interface} netns {}", netns.name()))?;
    underlay.ip(&format!("link set {port} master {} up", segment.bridge))?;
    netns.ip(&format!("address add {address}/{PREFIX_LENGTH} dev {interface}"))?;
    netns.ip(&format!("link set {interface} up")).map(drop)
}

/// On the segment that everything is on; 1 is the router.
fn address6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, 0, last.into())
}

fn prefixed(id: &str) -> String {
    format!("flan-{id}")
}

fn collect_logs(dir: &Path, logs: &mut Vec<(std::time::SystemTime, PathBuf)>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        // Below a host's directory only: dockerd's data hold files by the thousand.
        if path.is_dir() && !path.ends_with("data") && !path.ends_with("run") {
            collect_logs(&path, logs);
        } else if path.extension().is_some_and(|extension| extension == "log")
            && let Ok(metadata) = entry.metadata()
            && metadata.len() > 0
            && let Ok(modified) = metadata.modified()
        {
            logs.push((modified, path));
        }
    }
}
