//! The nftables tables that only we use and replace as a whole: `inet flan` masquerades, `inet flan-networks` keeps
//! networks apart.

use std::fmt::Write as _;

use ipnetwork::IpNetwork;

use super::{FamilyRules, FirewallError, Ruleset, program};

/// A table as we last saw it.
#[derive(Debug)]
pub(super) struct Table {
    name: &'static str,
    /// Builds the rules; `None` if there should be no table.
    rules: fn(&Ruleset) -> Option<String>,
    /// What we last wrote, and how `nft` lists it. `nft` rewords rules, so a listing can only be compared with a
    /// listing. `None` until this process first writes.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    rules: Option<String>,
    listing: Option<String>,
}

impl Table {
    /// The table that masquerades.
    pub(super) fn masquerade() -> Self {
        Self { name: "flan", rules: masquerade, written: None }
    }

    /// The table that keeps networks apart.
    pub(super) fn networks() -> Self {
        Self { name: "flan-networks", rules: apart, written: None }
    }

    /// Makes the table what `ruleset` says. Returns whether it was different before.
    pub(super) async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, FirewallError> {
        let rules = (self.rules)(ruleset);
        let is_settled = self.written.as_ref().is_some_and(|written| written.rules.is_none());
        if rules.is_none() && (is_settled || !program::exists("nft")) {
            return Ok(false);
        }
        let before = self.listing().await?;
        if self.written.as_ref().is_some_and(|written| written.rules == rules && written.listing == before) {
            return Ok(false);
        }
        // In one transaction: deletes the table, whether or not it exists, and creates it.
        let remove = format!("add table inet {0}\ndelete table inet {0}\n", self.name);
        match &rules {
            Some(rules) => {
                let script = format!("{remove}table inet {} {{\n{rules}}}\n", self.name);
                program::run("nft", &["-f", "-"], &script).await?
            }
            None if before.is_some() => program::run("nft", &["-f", "-"], &remove).await?,
            None => String::new(),
        };
        let after = self.listing().await?;
        let changed = before != after;
        // If another program removed the table before we looked, this is not how ours is worded.
        let is_ours = after.is_some() == rules.is_some();
        self.written = is_ours.then_some(Written { rules, listing: after });
        Ok(changed)
    }

    /// Returns whether the table exists.
    pub(super) async fn stands(&self) -> Result<bool, FirewallError> {
        Ok(program::exists("nft") && self.listing().await?.is_some())
    }

    /// Lists the table as `nft` shows it, without counters, which would make every listing differ. `None` if missing.
    async fn listing(&self) -> Result<Option<String>, FirewallError> {
        match program::run("nft", &["-s", "list", "table", "inet", self.name], "").await {
            Ok(listing) => Ok(Some(listing)),
            Err(FirewallError::Refused { message, .. }) if message.contains("No such file or directory") => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Builds the rules that masquerade.
fn masquerade(ruleset: &Ruleset) -> Option<String> {
    if !ruleset.masquerade || ruleset.families.is_empty() {
        return None;
    }
    let mut script = "\tchain postrouting {\n".to_owned();
    script.push_str("\t\ttype nat hook postrouting priority srcnat; policy accept;\n");
    for (rule, comment) in [("meta mark & 0x00004000 == 0x00004000 return", "packets marked to skip NAT")]
        .map(|(rule, comment)| (rule.to_owned(), comment))
        .into_iter()
        .chain(ruleset.families.iter().flat_map(rules))
    {
        // Writing to a String cannot fail.
        let _ = writeln!(script, "\t\t{rule} comment \"{comment}\"");
    }
    script.push_str("\t}\n");
    Some(script)
}

/// Builds the rules that drop packets from one network to another. Packets of one network to itself, and packets from or
/// to anything else, are not concerned.
fn apart(ruleset: &Ruleset) -> Option<String> {
    let mut script = String::new();
    let mut begin =
        "\tchain forward {\n\t\ttype filter hook forward priority filter - 10; policy accept;\n".to_owned();
    for (ip, kind, is_ipv6) in [("ip", "ipv4_addr", false), ("ip6", "ipv6_addr", true)] {
        let networks: Vec<IpNetwork> = ruleset.families.iter().map(|family| family.network).collect();
        let networks: Vec<String> =
            networks.into_iter().filter(|network| network.is_ipv6() == is_ipv6).map(super::prefix).collect();
        if networks.len() < 2 {
            continue;
        }
        let all = networks.join(", ");
        // Writing to a String cannot fail.
        let _ = writeln!(
            script,
            "\tset {ip}_networks {{\n\t\ttype {kind}; flags interval; elements = {{ {all} }}\n\t}}"
        );
        let mut places = Vec::new();
        for (number, network) in networks.iter().enumerate() {
            let _ = writeln!(
                script,
                "\tchain from_{ip}_{number} {{\n\t\t{ip} daddr != {network} {ip} daddr @{ip}_networks drop\n\t}}"
            );
            places.push(format!("{network} : jump from_{ip}_{number}"));
        }
        let _ = writeln!(begin, "\t\t{ip} saddr vmap {{ {} }}", places.join(", "));
    }
    (!script.is_empty()).then(|| format!("{script}{begin}\t}}\n"))
}

/// Returns the rules of one family, each with its purpose. The first match decides.
fn rules(family: &FamilyRules) -> [(String, &'static str); 5] {
    let (ip, multicast) = if family.network.is_ipv4() { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
    let (network, subnet) = (super::prefix(family.network), super::prefix(family.subnet));
    [
        (
            format!("{ip} saddr {subnet} {ip} daddr {network} return"),
            "our containers keep their addresses inside the overlay",
        ),
        (
            format!("{ip} saddr {network} {ip} daddr {subnet} return"),
            "other hosts' containers keep theirs towards ours",
        ),
        (
            format!("{ip} saddr != {network} {ip} daddr {subnet} return"),
            "packets from outside to our containers keep their source",
        ),
        (
            format!("{ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random"),
            "containers use this host's address towards the outside",
        ),
        (
            format!("{ip} saddr != {network} {ip} daddr {network} masquerade fully-random"),
            "replies to packets that this host forwards return through it",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(network: &str, subnet: &str) -> FamilyRules {
        FamilyRules { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
    }

    #[test]
    fn both_families_share_one_table() {
        let ruleset = Ruleset {
            // The subnet as dockerd has it, with the bridge's address: the rules use its network.
            families: vec![family("10.5.0.0/16", "10.5.52.1/24"), family("fd00:5::/48", "fd00:5:0:34::/64")],
            masquerade: true,
            forward: Vec::new(),
        };
        assert_eq!(
            masquerade(&ruleset).unwrap(),
            r#"	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "packets marked to skip NAT"
		ip saddr 10.5.52.0/24 ip daddr 10.5.0.0/16 return comment "our containers keep their addresses inside the overlay"
		ip saddr 10.5.0.0/16 ip daddr 10.5.52.0/24 return comment "other hosts' containers keep theirs towards ours"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.52.0/24 return comment "packets from outside to our containers keep their source"
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "containers use this host's address towards the outside"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random comment "replies to packets that this host forwards return through it"
		ip6 saddr fd00:5:0:34::/64 ip6 daddr fd00:5::/48 return comment "our containers keep their addresses inside the overlay"
		ip6 saddr fd00:5::/48 ip6 daddr fd00:5:0:34::/64 return comment "other hosts' containers keep theirs towards ours"
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5:0:34::/64 return comment "packets from outside to our containers keep their source"
		ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random comment "containers use this host's address towards the outside"
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 masquerade fully-random comment "replies to packets that this host forwards return through it"
	}
"#
        );
    }

    #[test]
    fn there_is_no_table_without_masquerading() {
        let families = vec![family("10.5.0.0/16", "10.5.52.0/24")];
        assert_eq!(masquerade(&Ruleset { families, ..Ruleset::default() }), None);
        assert_eq!(masquerade(&Ruleset { masquerade: true, ..Ruleset::default() }), None);
    }

    #[test]
    fn packets_from_one_network_to_another_are_dropped_and_no_others() {
        let families = vec![
            family("10.5.0.0/16", "10.5.52.0/24"),
            family("10.7.0.0/16", "10.7.1.0/24"),
            family("fd00:5::/48", "fd00:5:0:34::/64"),
        ];
        let ruleset = Ruleset { families, ..Ruleset::default() };
        assert_eq!(
            apart(&ruleset).unwrap(),
            r#"	set ip_networks {
		type ipv4_addr; flags interval; elements = { 10.5.0.0/16, 10.7.0.0/16 }
	}
	chain from_ip_0 {
		ip daddr != 10.5.0.0/16 ip daddr @ip_networks drop
	}
	chain from_ip_1 {
		ip daddr != 10.7.0.0/16 ip daddr @ip_networks drop
	}
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ip saddr vmap { 10.5.0.0/16 : jump from_ip_0, 10.7.0.0/16 : jump from_ip_1 }
	}
"#
        );
        let alone = Ruleset { families: ruleset.families[..1].to_vec(), ..Ruleset::default() };
        assert_eq!(apart(&alone), None);
    }
}
