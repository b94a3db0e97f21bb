//! A machine whose agent is started by systemd, and its reboot.
//!
//! The agent is in the machine's own network, which only a virtual machine allows. What surrounds the machine is in
//! namespaces: a bridge, a store, a peer. Their units start at each boot; the store keeps its data on the disk.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flan_integration::command::{self, Place};
use flan_integration::overlay::DEVICE;
use flan_integration::subnet_env::SubnetEnv;
use flan_integration::{tools, vm, wait};
use serde::{Deserialize, Serialize};

use super::kernel_path::NETWORK_OF_AUTO;
use crate::stage::NETWORK;

/// Lasts over the reboot.
const DIR: &str = "/var/lib/flan-vm";

const AGENT: &str = "fland.service";

const STORE: &str = "http://192.168.64.2:2379";

const SETTINGS: &str = "FLAND_ETCD_ENDPOINTS=http://192.168.64.2:2379\nFLAND_IP_MASQ=true\n";

const PEERS_SUBNET: &str = "/var/lib/flan-vm/peer.env";

/// From the bridge a cable to each: the machine itself, the store, the peer.
const AROUND: &str = r#"
set -e
for name in bridge store peer; do
    ip netns add $name
    ip -n $name link set lo up
done
ip -n bridge link add br0 type bridge
ip -n bridge address add 192.168.64.1/24 dev br0
ip -n bridge link set br0 up
cable() {
    ip -n bridge link add "$1" type veth peer name eth0 netns "$2"
    ip -n bridge link set "$1" master br0 up
    nsenter --net="$3" ip address add "$4/24" dev eth0
    nsenter --net="$3" ip link set eth0 up
    nsenter --net="$3" ip route add default via 192.168.64.1
}
cable machine 1 /proc/1/ns/net 192.168.64.11
cable store store /run/netns/store 192.168.64.2
cable peer peer /run/netns/peer 192.168.64.12
"#;

/// Units of what surrounds the machine. The agent's own unit is that of `deploy/`.
const UNITS: [(&str, &str); 3] = [
    (
        "around.service",
        "[Unit]\nBefore=network-online.target\n\
         [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=sh /var/lib/flan-vm/around.sh\n\
         [Install]\nWantedBy=network-online.target multi-user.target\n",
    ),
    (
        "around-store.service",
        "[Unit]\nRequires=around.service\nAfter=around.service\n\
         [Service]\nType=notify\nNetworkNamespacePath=/run/netns/store\n\
         Environment=FLAND_DATA_DIR=/var/lib/flan-vm/store FLAND_STORE_INSECURE=true\n\
         Environment=FLAND_LISTEN_CLIENT_URLS=http://192.168.64.2:2379\nExecStart=fland store\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    (
        "around-peer.service",
        "[Unit]\nRequires=around.service\nAfter=around.service around-store.service\n\
         [Service]\nType=notify\nNetworkNamespacePath=/run/netns/peer\n\
         Environment=FLAND_ETCD_ENDPOINTS=http://192.168.64.2:2379 FLAND_NODE_ID=peer\n\
         Environment=FLAND_SUBNET_FILE=/var/lib/flan-vm/peer.env\nExecStart=fland\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
];

const LIMIT: Duration = Duration::from_secs(30);

/// What a boot must find as the one before left it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    subnet: String,
    mac: String,
}

/// Runs at each boot, as a unit.
#[test]
#[ignore = "needs a virtual machine that it restarts: make vm-reboot"]
fn a_machine_that_restarts_has_its_subnet_and_its_mac_again_and_packets_flow() -> Result<()> {
    vm::ensure_inside_with_systemd()?;
    let noted = Path::new(DIR).join("noted.json");
    match fs::read_to_string(&noted) {
        Err(_) => {
            install().context("first boot")?;
            let standing = settled().context("first boot")?;
            fs::write(&noted, serde_json::to_string(&standing)?)?;
            println!("first boot: {standing:?}; the machine restarts");
            systemctl(&["reboot"])?;
            wait::until("systemd to end this program", LIMIT, || bail!("it runs"))
        }
        Ok(text) => {
            let before: Standing = serde_json::from_str(&text)?;
            let standing = settled().context("second boot")?;
            println!("second boot: {standing:?}");
            ensure!(standing == before, "it was {before:?}");
            the_unit_gets_the_modules_of_udp()
        }
    }
}

/// As an operator does it: the binary, the unit, the settings, the network config.
fn install() -> Result<()> {
    fs::create_dir_all(DIR)?;
    fs::write(Path::new(DIR).join("around.sh"), AROUND)?;
    let units = Path::new("/etc/systemd/system");
    for (name, content) in UNITS {
        fs::write(units.join(name), content)?;
    }
    let place = Place::default();
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    fs::copy(deploy.join(AGENT), units.join(AGENT)).with_context(|| format!("cannot copy {AGENT}"))?;
    fs::write("/etc/default/fland", SETTINGS)?;
    let fland = tools::flan_binary("fland")?;
    place.run("install", [Path::new("-D"), Path::new("-t"), Path::new("/usr/local/bin"), &fland])?;

    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--now", "around.service", "around-store.service"])?;
    set_network(NETWORK)?;
    systemctl(&["enable", "--now", "around-peer.service", AGENT])
}

fn set_network(config: &str) -> Result<()> {
    let mut flanctl =
        Place::entered_by(["nsenter", "--net=/run/netns/store"]).command(tools::flan_binary("flanctl")?);
    flanctl.args(["--etcd-endpoints", STORE, "config", "set", "-"]);
    command::run_with_input(&flanctl, config)?.succeeded("flanctl config set -")
}

/// The agent may load no module; what its unit runs before it may. On vxlan, nothing else asks for this one.
fn the_unit_gets_the_modules_of_udp() -> Result<()> {
    let modules = fs::read_to_string("/proc/modules")?;
    ensure!(modules.lines().any(|line| line.starts_with("fou ")), "the unit did not load fou");
    set_network(NETWORK_OF_AUTO)?;
    systemctl(&["restart", AGENT])?;
    systemctl(&["restart", "around-peer.service"])?;
    packets_flow()?;
    let device = Place::default().run("ip", ["-details", "link", "show", "flannel0"])?;
    ensure!(device.contains("ipip ") && device.contains("encap fou"), "not the kernel's path: {device}");
    println!("on udp, the kernel moves the packets");
    Ok(())
}

/// Waits until packets flow; how the machine stands then.
fn settled() -> Result<Standing> {
    let own = packets_flow()?;
    let mac = fs::read_to_string(format!("/sys/class/net/{DEVICE}/address"))
        .with_context(|| format!("there is no {DEVICE}"))?;
    Ok(Standing { subnet: own.subnet.to_string(), mac: mac.trim().to_owned() })
}

/// Waits until the agent's unit runs and packets flow in both directions. Returns the machine's subnet.
fn packets_flow() -> Result<SubnetEnv> {
    wait::until("the agent's unit to be active", LIMIT, || {
        let state =
            Place::default().run("systemctl", ["show", "--value", "--property=ActiveState", AGENT])?;
        ensure!(state.trim() == "active", "it is {}", state.trim());
        Ok(())
    })
    .with_context(|| said_by(AGENT))?;
    let own = SubnetEnv::read(Path::new("/run/flannel/subnet.env"))?;
    let peer = wait::until("the peer to have its subnet", LIMIT, || SubnetEnv::read(Path::new(PEERS_SUBNET)))
        .with_context(|| said_by("around-peer.service"))?;
    let places = [Place::default(), Place::entered_by(["nsenter", "--net=/run/netns/peer"])];
    for (place, target) in places.iter().zip([peer.base_address(), own.base_address()]) {
        wait::until(&format!("{target} to answer"), LIMIT, || {
            place.run("ping", ["-n", "-c", "1", "-W", "1", &target.to_string()]).map(drop)
        })
        .with_context(|| said_by(AGENT))?;
        println!("{target} answers");
    }
    Ok(own)
}

fn systemctl(args: &[&str]) -> Result<()> {
    let unit = args.last().copied().unwrap_or_default();
    Place::default().run("systemctl", args).map(drop).with_context(|| said_by(unit))
}

fn said_by(unit: &str) -> String {
    let journal = ["--no-pager", "--lines=15", "--output=cat", "--unit", unit];
    Place::default().run("journalctl", journal).unwrap_or_else(|error| format!("{error:#}"))
}
