//! Measures the memory of a lease. Alone in its process, because it measures the process.

use std::net::Ipv4Addr;

use flan_subnet_lease::{Admission, Caution, Entry, KeyChange, LeaseSet, Listing, NetworkConfig, WatchEvent};
use tokio::time::Instant;

const LEASES: u32 = 50_000;
/// Bytes per lease, with the allocator's overhead. Some 350 are needed.
const LIMIT: u64 = 450;

#[test]
fn fifty_thousand_leases_take_some_twenty_megabytes() {
    let config = NetworkConfig::parse(br#"{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}"#).unwrap();
    let mut set = LeaseSet::new(Admission { config, own: None }, Caution::default());
    let now = Instant::now();
    set.apply(WatchEvent::Listed(Listing::of(vec![], 1, 1)), now);
    let before = resident();
    // In batches, so that what is read takes little memory compared to what is kept.
    for batch in (0..LEASES).collect::<Vec<_>>().chunks(500) {
        set.apply(WatchEvent::Changed(batch.iter().map(|host| KeyChange::put(entry(*host))).collect()), now);
        assert_eq!(set.take_changes().peers.len(), batch.len());
    }
    let each = (resident() - before) / u64::from(LEASES);
    assert_eq!(set.peer_count(), LEASES as usize);
    println!("{each} bytes a lease");
    assert!(each <= LIMIT, "{each} bytes a lease");
}

/// Returns what flannel or flan write for a VXLAN host with a name and a node id. The subnets are unordered.
fn entry(host: u32) -> Entry {
    let block = host * 31 % (1 << 16);
    let ip = Ipv4Addr::from_bits(0xac10_0000 + host);
    let [_, _, high, low] = host.to_be_bytes();
    Entry {
        key: format!("10.{}.{}.0-24", block >> 8, block & 255),
        value: format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:5e:{low:02x}:{high:02x}:01"}},"HostName":"host-{host}","NodeID":"{host:032x}"}}"#
        )
        .into_bytes(),
        create_revision: i64::from(host),
        mod_revision: i64::from(host),
        etcd_lease: Some(i64::from(host) + 1),
    }
}

/// Returns the resident memory of the process in bytes (`proc_pid_status(5)`, `VmRSS`).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is not mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there is no VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("VmRSS is no number") * 1024
}
