//! The programs and rights that a lab needs. What is missing is an error that says how to get it, never a skip.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::forky;
use crate::store::StoreKind;

/// Program, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 18] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("timeout", "coreutils"),
    ("tar", "tar"),
    ("mkfs.ext4", "e2fsprogs"),
    ("ping", "iputils-ping"),
    ("busybox", "busybox-static"),
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
    ("tcpdump", "tcpdump"),
];

/// As [`PROGRAMS`]: what a lab runs whose store is etcd.
const ETCD_PROGRAMS: [(&str, &str); 1] = [("etcd", "etcd-server")];

/// As [`PROGRAMS`]: what the stories look into a store with.
const ETCDCTL_PROGRAMS: [(&str, &str); 1] = [("etcdctl", "etcd-client")];

/// As [`PROGRAMS`]: applications of several services.
const COMPOSE_PROGRAMS: [(&str, &str); 1] = [("docker-compose", "docker-compose")];

/// As [`PROGRAMS`]: containers without Docker.
const PODMAN_PROGRAMS: [(&str, &str); 2] = [("podman", "podman"), ("runc", "runc")];

/// As [`PROGRAMS`]: what reads the metrics, and checks the alerts.
const PROMETHEUS_PROGRAMS: [(&str, &str); 2] = [("prometheus", "prometheus"), ("promtool", "prometheus")];

/// As [`PROGRAMS`]: what the manual has operators make certificates with.
const OPENSSL_PROGRAMS: [(&str, &str); 1] = [("openssl", "openssl")];

/// As [`PROGRAMS`]: what the bench and the soak run beside them.
const BENCH_PROGRAMS: [(&str, &str); 4] =
    [("iperf3", "iperf3"), ("ethtool", "ethtool"), ("ss", "iproute2"), ("nstat", "iproute2")];

/// As [`PROGRAMS`]: what the bench of the control plane runs beside them.
const BENCH_CONTROL_PROGRAMS: [(&str, &str); 1] = [("strace", "strace")];

/// As [`PROGRAMS`]: what the bench of names runs beside them.
const BENCH_NAMES_PROGRAMS: [(&str, &str); 2] = [("dnsmasq", "dnsmasq-base"), ("dnsperf", "dnsperf")];

/// As [`PROGRAMS`]: what a virtual machine is made with, and what runs in it.
const VM_PROGRAMS: [(&str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("modprobe", "kmod"),
    ("mkfs.ext4", "e2fsprogs"),
    ("busybox", "busybox-static"),
];

/// The variable that names the directory of `fland` and `flanctl`, where it is not that of the running program.
pub const BIN_DIR_VARIABLE: &str = "FLAN_BIN_DIR";

/// An error that names everything that is missing and how to get it.
pub fn check() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root, for it makes network namespaces: `sudo make demo`, `sudo make test`, `sudo make bench`"
    );
    check_programs(&PROGRAMS)?;
    check_busybox_is_static()
}

/// An error unless there is what a store of this kind runs.
pub fn check_for_store(kind: StoreKind) -> Result<()> {
    match kind {
        StoreKind::Etcd => check_programs(&ETCD_PROGRAMS),
        StoreKind::EtcdOfForky => forky::root().map(drop),
        StoreKind::Embedded => flan_binary("fland").map(drop),
    }
}

/// An error unless there is an `etcdctl`.
pub fn check_for_etcdctl() -> Result<()> {
    check_programs(&ETCDCTL_PROGRAMS)
}

/// An error unless there is an `openssl`.
pub fn check_for_openssl() -> Result<()> {
    check_programs(&OPENSSL_PROGRAMS)
}

/// An error unless there are a `prometheus` and a `promtool`.
pub fn check_for_prometheus() -> Result<()> {
    check_programs(&PROMETHEUS_PROGRAMS)
}

/// An error unless there is a Docker Compose.
pub fn check_for_compose() -> Result<()> {
    check_programs(&COMPOSE_PROGRAMS)
}

/// An error unless there is a podman, with CNI plugins.
pub fn check_for_podman() -> Result<()> {
    check_programs(&PODMAN_PROGRAMS)?;
    ensure!(
        is_executable(Path::new("/usr/lib/cni/bridge")),
        "missing: the CNI plugin bridge; `sudo integration/install-tools.sh` or `sudo apt-get install \
         containernetworking-plugins` gets it"
    );
    Ok(())
}

/// The library that shows a program another wall clock, or an error that says how to get it.
pub fn faketime() -> Result<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").context("cannot list /usr/lib")?;
    // In the directory of the architecture, as Debian has it.
    let found = libraries.flatten().map(|entry| entry.path().join("faketime/libfaketimeMT.so.1"));
    let mut found = found.filter(|path| path.exists());
    found.next().context(
        "missing: libfaketimeMT.so.1; `sudo integration/install-tools.sh` or `sudo apt-get install libfaketime` gets it",
    )
}

/// As [`check`], with the programs that only the bench and the soak run.
pub fn check_for_bench() -> Result<()> {
    check()?;
    check_for_flan()?;
    check_programs(&BENCH_PROGRAMS)
}

/// As [`check`], with the programs that only the bench of the control plane runs.
pub fn check_for_bench_control() -> Result<()> {
    check()?;
    check_for_flan()?;
    check_programs(&BENCH_CONTROL_PROGRAMS)
}

/// An error unless there is what the bench of names needs.
pub fn check_for_bench_names() -> Result<()> {
    check()?;
    check_for_flan()?;
    check_programs(&BENCH_NAMES_PROGRAMS)
}

/// An error unless there is what a virtual machine needs.
pub fn check_for_vm() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root, for the virtual machine shares all files of this one: `sudo make vm`"
    );
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the virtual machine is of x86_64 alone, and this machine is of {}",
        std::env::consts::ARCH
    );
    check_programs(&VM_PROGRAMS)?;
    check_busybox_is_static()
}

/// An error unless `fland` and `flanctl` are built.
pub fn check_for_flan() -> Result<()> {
    ["fland", "flanctl"].into_iter().try_for_each(|binary| flan_binary(binary).map(drop))
}

/// The path of `fland` or `flanctl`: in `$FLAN_BIN_DIR`, or where cargo put the running program.
pub fn flan_binary(name: &str) -> Result<PathBuf> {
    let dir = match env::var_os(BIN_DIR_VARIABLE) {
        Some(dir) => PathBuf::from(dir),
        None => target_dir()?,
    };
    let path = dir.join(name);
    ensure!(
        is_executable(&path),
        "there is no {}: `cargo build --workspace` makes it (or set {BIN_DIR_VARIABLE})",
        path.display()
    );
    Ok(path)
}

/// The path of a program on `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| is_executable(candidate))
}

fn check_programs(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&(&str, &str)> =
        programs.iter().filter(|(program, _)| find(program).is_none()).collect();
    if !missing.is_empty() {
        let programs: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
        let packages: BTreeSet<_> = missing.iter().map(|(_, package)| *package).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        bail!(
            "missing: {}; `sudo integration/install-tools.sh` or `sudo apt-get install {}` gets it",
            programs.join(", "),
            packages.join(" ")
        );
    }
    Ok(())
}

fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let dir = program.parent().context("this program is in no directory")?;
    // Test programs are one level further down.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// The containers hold nothing but busybox, so it must bring everything that it needs.
fn check_busybox_is_static() -> Result<()> {
    let path = find("busybox").context("no busybox")?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let loader = b"/ld-linux";
    let start = &bytes[..bytes.len().min(4096)];
    ensure!(
        !start.windows(loader.len()).any(|window| window == loader),
        "{} is not statically linked: `sudo apt-get install busybox-static` replaces it",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_on_the_path_is_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
