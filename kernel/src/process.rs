//! Finds the process that has something open, through `proc(5)`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::LinkName;

/// A process of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its name, up to 15 bytes.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

impl Process {
    /// Returns the first process with a socket on this UDP port, at any address, in the network namespace of this
    /// thread. `None` if there is none, or it is the kernel or hidden from us.
    pub fn on_udp_port(port: u16) -> Option<Self> {
        let sockets: Vec<String> = ["udp", "udp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
            .flat_map(|table| inodes(&table, port))
            .map(|inode| format!("socket:[{inode}]"))
            .collect();
        if sockets.is_empty() {
            return None;
        }
        Self::first(|descriptor| {
            fs::read_link(descriptor)
                .is_ok_and(|target| target.to_str().is_some_and(|target| sockets.iter().any(|s| s == target)))
        })
    }

    /// Returns the first process that has this TUN device open, in the network namespace of this thread.
    pub fn with_tun(device: LinkName) -> Option<Self> {
        let namespace = fs::read_link("/proc/thread-self/ns/net").ok()?;
        let interface = format!("iff:\t{device}");
        Self::first(|descriptor| {
            let process = descriptor.parent().and_then(Path::parent);
            let (Some(process), Some(number)) = (process, descriptor.file_name()) else { return false };
            fs::read_link(descriptor).is_ok_and(|target| target == Path::new("/dev/net/tun"))
                && fs::read_link(process.join("ns/net")).is_ok_and(|theirs| theirs == namespace)
                && fs::read_to_string(process.join("fdinfo").join(number))
                    .is_ok_and(|info| info.lines().any(|line| line == interface))
        })
    }

    /// Returns the first process of this name. Process names are visible to everybody.
    pub fn called(name: &str) -> Option<Self> {
        let mut pids = pids();
        pids.find_map(|pid| Some(Self { pid, name: name_of(pid)? }).filter(|process| process.name == name))
    }

    /// Returns the first process of this name in the network namespace of this thread. Needs root where it is another
    /// user's.
    pub fn called_here(name: &str) -> Option<Self> {
        let here = fs::read_link("/proc/thread-self/ns/net").ok()?;
        let is_here = |pid: &u32| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|its| its == here);
        let mut named = pids().filter_map(|pid| Some(Self { pid, name: name_of(pid)? }));
        named.find(|process| process.name == name && is_here(&process.pid))
    }

    /// Returns its command line.
    pub fn arguments(&self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let parts = line.split(|byte| *byte == 0).filter(|part| !part.is_empty());
        parts.map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    /// Returns the first process with an open descriptor that `is_it` accepts, by its link target in `/proc/PID/fd`.
    fn first(is_it: impl Fn(&Path) -> bool) -> Option<Self> {
        let pid = pids()
            .find(|pid| entries(&PathBuf::from(format!("/proc/{pid}/fd"))).any(|entry| is_it(&entry)))?;
        Some(Self { pid, name: name_of(pid).unwrap_or_default() })
    }
}

/// Returns all processes, usually oldest first.
fn pids() -> impl Iterator<Item = u32> {
    let pids = entries(Path::new("/proc"));
    let mut pids: Vec<u32> = pids.filter_map(|process| process.file_name()?.to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter()
}

fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// Returns nothing if the directory no longer exists.
fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Returns the inodes of the sockets on this port in a table such as `/proc/net/udp`: `sl local_address rem_address st
/// tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ..`, with ports in hexadecimal.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (_, local_port) = fields.nth(1)?.rsplit_once(':')?;
            (u16::from_str_radix(local_port, 16).ok()? == port).then_some(())?;
            fields.nth(7)?.parse().ok().filter(|inode| *inode != 0)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_process_is_found_by_its_name() {
        let own = name_of(std::process::id()).unwrap();
        assert_eq!(Process::called(&own).map(|process| process.name), Some(own));
        assert_eq!(Process::called("no process is so called"), None);
        let process = Process::called_here(&name_of(std::process::id()).unwrap()).unwrap();
        assert_eq!(process.arguments().first(), std::env::args().next().as_ref());
    }

    #[test]
    fn a_table_names_the_sockets_on_a_port() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            13994: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 100326 2 000000003538079e 0\n\
            13995: 0100007F:2119 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 100327 2 000000003538079e 0\n\
            13996: 00000000000000000000000000000000:2118 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 7 2 0 0\n";
        assert_eq!(inodes(table, 8472), [100_326, 7]);
        assert_eq!(inodes(table, 53), [0; 0]);
    }

    #[test]
    fn this_process_is_found_by_its_socket() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(Process::on_udp_port(port).unwrap().pid, std::process::id());
        let socket = UdpSocket::bind("[::1]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(Process::on_udp_port(port).unwrap().pid, std::process::id());
    }

    #[test]
    fn nobody_has_a_device_that_is_not_there() {
        assert_eq!(Process::with_tun("no-such-device".parse().unwrap()), None);
    }
}
