//! Masquerading: the nftables table `inet flan`, which is ours alone and replaced as a whole.

use std::fmt::Write as _;

use super::{FamilyRules, FirewallError, Ruleset, program};

/// The table as we last saw it.
#[derive(Debug, Default)]
pub(super) struct Masquerade {
    /// What we last wrote, and how `nft` lists it: rules come back in another wording than they went in, so only a
    /// listing can be compared with a listing. `None` until the first write of this process.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    script: Option<String>,
    listing: Option<String>,
}

impl Masquerade {
    /// Makes the table what `ruleset` says. The answer says whether it was anything else before.
    pub(super) async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, FirewallError> {
        let script = script(ruleset);
        if script.is_none() && !program::exists("nft") {
            return Ok(false);
        }
        let before = listing().await?;
        if self.written.as_ref().is_some_and(|written| written.script == script && written.listing == before)
        {
            return Ok(false);
        }
        match &script {
            Some(script) => program::run("nft", &["-f", "-"], script).await?,
            None if before.is_some() => program::run("nft", &["-f", "-"], REMOVE).await?,
            None => String::new(),
        };
        let after = listing().await?;
        let changed = before != after;
        // Another program may have taken the table away again before we looked: that is not how ours is worded.
        let is_ours = after.is_some() == script.is_some();
        self.written = is_ours.then_some(Written { script, listing: after });
        Ok(changed)
    }
}

/// Whether there is such a table.
pub(super) async fn stands() -> Result<bool, FirewallError> {
    Ok(program::exists("nft") && listing().await?.is_some())
}

/// Deletes the table whether it exists or not, and in the same transaction as what follows.
const REMOVE: &str = "add table inet flan\ndelete table inet flan\n";

/// The table as `nft` shows it, without counters that would make each listing another; `None` if there is none.
async fn listing() -> Result<Option<String>, FirewallError> {
    match program::run("nft", &["-s", "list", "table", "inet", "flan"], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(FirewallError::Refused { message, .. }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What makes the table, for `nft -f`: one transaction. `None` if there shall be no table.
fn script(ruleset: &Ruleset) -> Option<String> {
    if !ruleset.masquerade || ruleset.families.is_empty() {
        return None;
    }
    let mut script = REMOVE.to_owned();
    script.push_str("table inet flan {\n");
    script.push_str("\tchain postrouting {\n");
    script.push_str("\t\ttype nat hook postrouting priority srcnat; policy accept;\n");
    for (rule, comment) in
        [("meta mark & 0x00004000 == 0x00004000 return", "marked by somebody who wants no NAT")]
            .map(|(rule, comment)| (rule.to_owned(), comment))
            .into_iter()
            .chain(ruleset.families.iter().flat_map(rules))
    {
        // Writing to a String does not fail.
        let _ = writeln!(script, "\t\t{rule} comment \"{comment}\"");
    }
    script.push_str("\t}\n}\n");
    Some(script)
}

/// The rules of one family, each with what it is for. The first that matches decides.
fn rules(family: &FamilyRules) -> [(String, &'static str); 5] {
    let (ip, multicast) = if family.network.is_ipv4() { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
    let (network, subnet) = (super::prefix(family.network), super::prefix(family.subnet));
    [
        (
            format!("{ip} saddr {subnet} {ip} daddr {network} return"),
            "own containers keep their address inside the overlay",
        ),
        (
            format!("{ip} saddr {network} {ip} daddr {subnet} return"),
            "so do other hosts' containers towards ours",
        ),
        (
            format!("{ip} saddr != {network} {ip} daddr {subnet} return"),
            "what comes from outside to our containers keeps its address",
        ),
        (
            format!("{ip} saddr {network} {ip} daddr != {multicast} masquerade fully-random"),
            "containers reach the outside by this host's address",
        ),
        (
            format!("{ip} saddr != {network} {ip} daddr {network} masquerade fully-random"),
            "answers to what this host sends on for others come back here",
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
            // The subnet as dockerd has it, with the bridge's address: the rules take the network.
            families: vec![family("10.5.0.0/16", "10.5.52.1/24"), family("fd00:5::/48", "fd00:5:0:34::/64")],
            masquerade: true,
            forward: Vec::new(),
        };
        assert_eq!(
            script(&ruleset).unwrap(),
            r#"add table inet flan
delete table inet flan
table inet flan {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x00004000 == 0x00004000 return comment "marked by somebody who wants no NAT"
		ip saddr 10.5.52.0/24 ip daddr 10.5.0.0/16 return comment "own containers keep their address inside the overlay"
		ip saddr 10.5.0.0/16 ip daddr 10.5.52.0/24 return comment "so do other hosts' containers towards ours"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.52.0/24 return comment "what comes from outside to our containers keeps its address"
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random comment "containers reach the outside by this host's address"
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random comment "answers to what this host sends on for others come back here"
		ip6 saddr fd00:5:0:34::/64 ip6 daddr fd00:5::/48 return comment "own containers keep their address inside the overlay"
		ip6 saddr fd00:5::/48 ip6 daddr fd00:5:0:34::/64 return comment "so do other hosts' containers towards ours"
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5:0:34::/64 return comment "what comes from outside to our containers keeps its address"
		ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random comment "containers reach the outside by this host's address"
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 masquerade fully-random comment "answers to what this host sends on for others come back here"
	}
}
"#
        );
    }

    #[test]
    fn there_is_no_table_without_masquerading() {
        let families = vec![family("10.5.0.0/16", "10.5.52.0/24")];
        assert_eq!(script(&Ruleset { families, ..Ruleset::default() }), None);
        assert_eq!(script(&Ruleset { masquerade: true, ..Ruleset::default() }), None);
    }
}
