//! Tables of the kernel that can be full: then new connections, or packets to new neighbours, are dropped.

use std::path::{Path, PathBuf};

/// Where the kernel shows its tables and their limits.
#[derive(Debug)]
pub struct Tables {
    /// `/proc/sys`.
    limits: PathBuf,
    /// `/proc/net`.
    entries: PathBuf,
}

impl Default for Tables {
    fn default() -> Self {
        // That of this thread's network namespace.
        Self { limits: PathBuf::from("/proc/sys"), entries: PathBuf::from("/proc/thread-self/net") }
    }
}

/// A table is nearly full when this many tenths of it are taken, and no longer at this many.
const NEARLY: u64 = 9;
const NO_LONGER: u64 = 8;
/// The flag of an entry that somebody has set and that does not count (`ATF_PERM` in `linux/if_arp.h`).
const PERMANENT: u32 = 0x04;

impl Tables {
    /// Describes the tables that are nearly full. One that was stays so until there is some room again.
    pub fn nearly_full(&self, were: bool) -> Option<String> {
        let tenths = if were { NO_LONGER } else { NEARLY };
        let found = [
            ("connections (conntrack)", self.connections(), "net.netfilter.nf_conntrack_max"),
            ("IPv4 neighbours", self.neighbours(), "net.ipv4.neigh.default.gc_thresh3"),
        ];
        let full = found.into_iter().filter_map(|(what, table, limit)| {
            let (count, most) = table?;
            (most > 0 && count * 10 > most * tenths).then(|| {
                format!(
                    "the kernel's table of {what} has {count} entries and room for {most}, and drops packets when it is full; \
                     raise {limit} (sysctl -w {limit}={})",
                    most * 4
                )
            })
        });
        let texts: Vec<String> = full.collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// A limit of 0 is none.
    fn connections(&self) -> Option<(u64, u64)> {
        let read = |name: &str| number(&self.limits.join("net/netfilter").join(name));
        Some((read("nf_conntrack_count")?, read("nf_conntrack_max")?))
    }

    /// Those that the kernel has learned; those that fland has set do not count (`neigh_alloc()` in the kernel's
    /// `net/core/neighbour.c`).
    fn neighbours(&self) -> Option<(u64, u64)> {
        let most = number(&self.limits.join("net/ipv4/neigh/default/gc_thresh3"))?;
        let table = std::fs::read_to_string(self.entries.join("arp")).ok()?;
        Some((learned(&table), most))
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Counts entries of a table such as `/proc/net/arp`: address, hardware type, flags, ...
fn learned(table: &str) -> u64 {
    let flags = table.lines().skip(1).filter_map(|line| {
        let flags = line.split_whitespace().nth(2)?.strip_prefix("0x")?;
        u32::from_str_radix(flags, 16).ok()
    });
    flags.filter(|flags| flags & PERMANENT == 0).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tree;

    const ARP: &str = "IP address       HW type     Flags       HW address            Mask     Device\n\
        192.168.64.1     0x1         0x2         02:00:00:00:00:01     *        eth0\n\
        192.168.64.2     0x1         0x0         00:00:00:00:00:00     *        eth0\n\
        10.5.9.0         0x1         0x6         02:00:00:00:00:09     *        flannel.1\n";

    fn told(were: bool, files: &[(&str, &str)]) -> Option<String> {
        let root = tree(files);
        Tables { limits: root.path().to_owned(), entries: root.path().to_owned() }.nearly_full(were)
    }

    #[test]
    fn a_table_that_is_nine_tenths_full_is_told_with_its_limit() {
        let connections = |were, count| {
            told(
                were,
                &[("net/netfilter/nf_conntrack_count", count), ("net/netfilter/nf_conntrack_max", "1000")],
            )
        };
        assert_eq!(connections(false, "900"), None);
        let text = connections(false, "901").unwrap();
        assert!(
            text.contains("has 901 entries and room for 1000") && text.contains("nf_conntrack_max=4000"),
            "{text}"
        );
        assert!(connections(true, "801").is_some() && connections(true, "800").is_none());
    }

    #[test]
    fn neighbours_that_were_set_by_hand_do_not_count() {
        assert_eq!(learned(ARP), 2);
        let limit = |most| told(false, &[("arp", ARP), ("net/ipv4/neigh/default/gc_thresh3", most)]);
        assert!(limit("2").unwrap().contains("IPv4 neighbours has 2 entries and room for 2"));
        assert_eq!(limit("3"), None);
        assert_eq!(told(false, &[]), None, "as in a namespace that does not show the limit");
    }
}
