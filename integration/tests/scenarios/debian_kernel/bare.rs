//! A machine whose kernel lacks what flan needs, and whose tables are small. It keeps modules from being loaded, so that no
//! other story can be told beside it: `make vm-bare`.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use flan_integration::host::STATUS_FLAGS;
use flan_integration::{Lab, LabOptions, tools, vm};

use crate::checks::is_found_in;
use crate::stage::{NETWORK, NETWORK_OF_UDP, problem};

/// Says which modules may be loaded: not these.
const RULES: &str = "/etc/modprobe.d/bare.conf";
const MISSING: &str = "install vxlan /bin/false\ninstall nf_tables /bin/false\n";

/// As a kernel without nftables has it, iptables can do nothing.
const WITHOUT_RULES: [&str; 2] = ["--iptables-forward-rules=false", "--udp-path=user"];

#[test]
#[ignore = "needs Debian's kernel, alone: make vm-bare"]
fn what_the_kernel_lacks_and_what_is_nearly_full_is_named() -> Result<()> {
    vm::ensure_inside()?;
    fs::create_dir_all("/etc/modprobe.d")?;
    fs::write(RULES, MISSING)?;
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        let checked = host.flanctl(&["check", "--iface", "eth0"])?;
        ensure!(checked.code == Some(9), "{checked:?}");
        is_found_in(&checked.stdout, "kernel-feature", "makes no VXLAN devices (module vxlan)")?;
        is_found_in(&checked.stdout, "unchecked-senders", "no nftables")?;

        lab.set_network(NETWORK_OF_UDP)?;
        host.start_agent_with(&[&WITHOUT_RULES[..], &STATUS_FLAGS[1..]].concat())?;
        problem(&host, "unchecked-senders", &["nftables"])
    })?;
    // Tables belong to the machine and not to a host of the lab.
    for words in [
        "link add one type veth peer name other",
        "link set one up",
        "link set other up",
        "neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 nud reachable dev one",
        "neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 nud reachable dev one",
    ] {
        ensure!(Command::new("ip").args(words.split(' ')).status()?.success(), "ip {words}");
    }
    fs::write("/proc/sys/net/ipv4/neigh/default/gc_thresh3", "2")?;
    let checked =
        Command::new(tools::flan_binary("flanctl")?).args(["check", "--env-file", "/dev/null"]).output()?;
    let said = String::from_utf8_lossy(&checked.stdout);
    is_found_in(&said, "table-full", "IPv4 neighbours has 2 entries and room for 2")
}
