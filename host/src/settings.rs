//! Settings of the kernel (`/proc/sys`) that keep packets from passing (`Documentation/networking/ip-sysctl.rst`).

use std::path::PathBuf;

use flan_kernel::LinkName;
use flan_subnet_lease::Family;

/// The settings, as they are now.
#[derive(Debug)]
pub struct Settings {
    root: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc/sys") }
    }
}

impl Settings {
    /// Reads a setting: `net/ipv4/ip_forward`. `None` if this kernel or namespace does not have it.
    fn read(&self, path: &str) -> Option<String> {
        Some(std::fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    fn is_off(&self, path: &str) -> bool {
        self.read(path).as_deref() == Some("0")
    }

    /// Describes where forwarding is off, for these families and between these devices.
    pub fn forwarding_off(&self, families: &[Family], devices: &[LinkName]) -> Option<String> {
        let mut off = Vec::new();
        for family in families {
            let all = match family {
                Family::V4 => "net/ipv4/ip_forward",
                Family::V6 => "net/ipv6/conf/all/forwarding",
            };
            if self.is_off(all) {
                // Whoever sets it sets that of each device, too.
                off.push(all.to_owned());
            } else if *family == Family::V4 {
                // With IPv6, that of a device says whether it listens to routers, and not whether it forwards.
                let of_devices = devices.iter().map(|device| format!("net/ipv4/conf/{device}/forwarding"));
                off.extend(of_devices.filter(|path| self.is_off(path)));
            }
        }
        let (first, names) = (off.first()?, off.iter().map(|path| dotted(path)).collect::<Vec<_>>());
        let (is, it) = if names.len() == 1 { ("is", dotted(first)) } else { ("are", names.join(", ")) };
        let on: Vec<String> = names.iter().map(|name| format!("{name}=1")).collect();
        Some(format!(
            "{it} {is} 0, so this host forwards nothing between its containers and other hosts; run sysctl -w {}, and see \
             what switches it off (/etc/sysctl.d)",
            on.join(" ")
        ))
    }

    /// Returns whether the kernel takes packets on this interface only from where it would answer them.
    pub fn is_reverse_path_strict(&self, link: LinkName) -> bool {
        // Of the two settings, the kernel takes the larger.
        let of = |name: &str| -> u8 {
            let value = self.read(&format!("net/ipv4/conf/{name}/rp_filter"));
            value.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        of("all").max(of(link.as_str())) == 1
    }

    /// Describes that packets which other machines exchange over this bridge pass the packet filter.
    pub fn bridge_filter(&self, bridge: LinkName) -> Option<String> {
        let on = |name: &str| self.read(&format!("net/bridge/{name}")).as_deref() == Some("1");
        let name =
            ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"].into_iter().find(|name| on(name))?;
        Some(format!(
            "the external interface {bridge} is a bridge and net.bridge.{name} is 1, so packets between other machines on it \
             pass this host's FORWARD rules; run sysctl -w net.bridge.{name}=0 unless other programs need it"
        ))
    }
}

/// Returns `net.ipv4.ip_forward` for `net/ipv4/ip_forward`. A dot in a device's name is a slash there (`sysctl(8)`).
fn dotted(path: &str) -> String {
    path.chars()
        .map(|c| {
            if c == '/' {
                '.'
            } else if c == '.' {
                '/'
            } else {
                c
            }
        })
        .collect()
}

/// Sets up a tree like `/proc/sys`.
#[cfg(test)]
pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, value) in files {
        let file = root.path().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, format!("{value}\n")).unwrap();
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> LinkName {
        text.parse().unwrap()
    }

    #[test]
    fn forwarding_is_looked_at_as_a_whole_and_on_each_device() {
        let off = |files: &[(&str, &str)], families: &[Family]| {
            let root = tree(files);
            Settings { root: root.path().to_owned() }
                .forwarding_off(families, &[name("docker0"), name("flannel.1")])
        };
        let on = ("net/ipv4/ip_forward", "1");
        assert_eq!(off(&[on, ("net/ipv4/conf/docker0/forwarding", "1")], &[Family::V4]), None);
        let text = off(&[("net/ipv4/ip_forward", "0")], &[Family::V4]).unwrap();
        assert!(
            text.starts_with("net.ipv4.ip_forward is 0, so") && text.contains("-w net.ipv4.ip_forward=1")
        );
        let text = off(&[on, ("net/ipv4/conf/flannel.1/forwarding", "0")], &[Family::V4]).unwrap();
        assert!(text.contains("sysctl -w net.ipv4.conf.flannel/1.forwarding=1"), "{text}");
        let all_v6 = ("net/ipv6/conf/all/forwarding", "1");
        assert_eq!(
            off(&[on, all_v6, ("net/ipv6/conf/docker0/forwarding", "0")], &[Family::V4, Family::V6]),
            None
        );
        let v6 = ("net/ipv6/conf/all/forwarding", "0");
        assert_eq!(off(&[on, v6], &[Family::V4]), None, "the network has no IPv6");
        assert!(
            off(&[on, v6], &[Family::V4, Family::V6])
                .unwrap()
                .starts_with("net.ipv6.conf.all.forwarding is 0")
        );
    }

    #[test]
    fn the_larger_of_two_settings_says_whether_the_way_back_matters() {
        let is_strict = |all: &str, own: &str| {
            let root = tree(&[("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/eth0/rp_filter", own)]);
            Settings { root: root.path().to_owned() }.is_reverse_path_strict(name("eth0"))
        };
        assert!(is_strict("0", "1") && is_strict("1", "0") && is_strict("1", "1"));
        assert!(!is_strict("0", "0") && !is_strict("1", "2") && !is_strict("2", "1"));
    }

    #[test]
    fn a_bridge_that_filters_is_told_of() {
        let root = tree(&[("net/bridge/bridge-nf-call-iptables", "1")]);
        let settings = Settings { root: root.path().to_owned() };
        assert!(
            settings.bridge_filter(name("br0")).unwrap().contains("net.bridge.bridge-nf-call-iptables=0")
        );
        assert_eq!(Settings { root: "/nowhere".into() }.bridge_filter(name("br0")), None);
    }
}
