//! Everything of the overlay that a host's kernel holds, as lines that can be compared and read: what was there before
//! some damage must be there after its repair, whatever numbers the kernel gave it.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::Place;
use crate::netns::Netns;
use crate::overlay::json;

/// What the names of our devices begin with.
const DEVICES: &str = "flannel";

/// How `ip` shows the number of our routes and nexthop objects.
const PROTOCOL: &str = "102";

/// Links, addresses, routes, nexthop objects, neighbours and FDB entries, each a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings(BTreeSet<String>);

impl Holdings {
    /// Reads them all; what the kernel makes by itself is left out.
    pub fn of(netns: &Netns) -> Result<Holdings> {
        let mut lines = BTreeSet::new();
        for link in json(netns, "ip", "-details address show")? {
            if is_ours(&link["ifname"]) {
                lines.extend(link_lines(&link));
            }
        }
        for family in ["-4", "-6"] {
            for route in json(netns, "ip", &format!("{family} route show table main"))? {
                if route["protocol"] != "kernel" && (is_ours(&route["dev"]) || route["protocol"] == PROTOCOL)
                {
                    let fields = ["type", "dst", "nhid", "gateway", "dev", "protocol", "metric", "mtu"];
                    lines.insert(format!("route {}{}", fields_of(&route, &fields), onlink(&route)));
                }
            }
            for hop in json(netns, "ip", &format!("{family} nexthop show"))? {
                if is_ours(&hop["dev"]) || hop["protocol"] == PROTOCOL {
                    let fields = ["id", "gateway", "dev", "protocol"];
                    lines.insert(format!("nexthop {}{}", fields_of(&hop, &fields), onlink(&hop)));
                }
            }
            for neighbour in json(netns, "ip", &format!("{family} neighbour show nud permanent"))? {
                if is_ours(&neighbour["dev"]) {
                    lines.insert(format!("neighbour {}", fields_of(&neighbour, &["dst", "lladdr", "dev"])));
                }
            }
        }
        for entry in json(netns, "bridge", "fdb show")? {
            if is_ours(&entry["ifname"]) && entry["dst"].is_string() {
                lines.insert(format!("fdb {}", fields_of(&entry, &["mac", "dst", "ifname", "state"])));
            }
        }
        Ok(Holdings(lines))
    }

    /// The lines that contain all of these.
    pub fn lines(&self, parts: &[&str]) -> Vec<&str> {
        let lines = self.0.iter().filter(|line| parts.iter().all(|part| line.contains(part)));
        lines.map(String::as_str).collect()
    }

    /// An error that tells what is missing and what there is beyond, unless these are the same.
    pub fn ensure_as(&self, before: &Holdings) -> Result<()> {
        let (missing, more) = (Holdings(&before.0 - &self.0), Holdings(&self.0 - &before.0));
        ensure!(self == before, "missing:\n{missing}beyond what was there:\n{more}");
        Ok(())
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// The rules for packets of a host: the table `inet flan` as nft shows it, and iptables' rules without its policies and
/// without what others, such as Docker, have made.
pub fn rules(place: &Place) -> Result<Vec<String>> {
    let table = place.run("nft", ["list", "table", "inet", "flan"]).context("the nftables table")?;
    let iptables = place.run("iptables", ["-w", "-S"])?;
    let ours = iptables.lines().filter(|line| line.contains("FLAN-FORWARD"));
    Ok(table.lines().chain(ours).map(str::to_owned).collect())
}

fn link_lines(link: &Value) -> Vec<String> {
    let name = text(&link["ifname"]);
    let info = &link["linkinfo"];
    let is_up = link["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    let vxlan = ["id", "local", "local6", "link", "port", "learning", "gbp"];
    let mut lines = vec![format!(
        "link {}kind {} {}{}",
        fields_of(link, &["ifname", "mtu", "address"]),
        text(&info["info_kind"]),
        fields_of(&info["info_data"], &vxlan),
        if is_up { "up" } else { "down" }
    )];
    for address in link["addr_info"].as_array().into_iter().flatten() {
        // The kernel gives each device one, made from its MAC.
        if address["scope"] != "link" || address["family"] == "inet" {
            lines.push(format!("address {}dev {name}", fields_of(address, &["local", "prefixlen"])));
        }
    }
    lines
}

fn is_ours(device: &Value) -> bool {
    device.as_str().is_some_and(|device| device.starts_with(DEVICES))
}

fn onlink(object: &Value) -> &'static str {
    let flags = object["flags"].as_array();
    if flags.is_some_and(|flags| flags.iter().any(|flag| flag == "onlink")) { "onlink" } else { "" }
}

/// `name value ` of those that are there.
fn fields_of(object: &Value, names: &[&str]) -> String {
    let there = names.iter().filter(|name| !object[**name].is_null());
    there.map(|name| format!("{name} {} ", text(&object[*name]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_is_told_without_its_index_and_without_the_kernels_own_address() {
        let link = json!({
            "ifindex": 5, "ifname": "flannel.1", "flags": ["BROADCAST", "UP"], "mtu": 1450, "address": "02:00:00:00:00:01",
            "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1, "local": "192.168.64.11", "port": 8472}},
            "addr_info": [
                {"family": "inet", "local": "10.5.3.0", "prefixlen": 32, "scope": "global"},
                {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"},
            ],
        });
        assert_eq!(
            link_lines(&link),
            [
                "link ifname flannel.1 mtu 1450 address 02:00:00:00:00:01 kind vxlan id 1 local 192.168.64.11 port 8472 up",
                "address local 10.5.3.0 prefixlen 32 dev flannel.1",
            ]
        );
    }

    #[test]
    fn a_difference_is_told_line_by_line() {
        let holdings = |lines: &[&str]| Holdings(lines.iter().map(|line| (*line).to_owned()).collect());
        let error = holdings(&["a", "c"]).ensure_as(&holdings(&["a", "b"])).unwrap_err().to_string();
        assert_eq!(error, "missing:\n  b\nbeyond what was there:\n  c\n");
        holdings(&["a"]).ensure_as(&holdings(&["a"])).unwrap();
    }
}
