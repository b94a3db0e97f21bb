//! Masquerading: the nftables table `inet flan`, which only we use and replace as a whole.

use std::fmt::Write as _;

use super::{FamilyRules, FirewallError, Ruleset, program};

/// The table as we last saw it.
#[derive(Debug, Default)]
pub(super) struct Masquerade {
    /// What we last wrote, and how `nft` lists it. `nft` rewords rules, so a listing can only be compared with a
    /// listing. `None` until this process first writes.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    script: Option<String>,
    listing: Option<String>,
}

impl Masquerade {
    /// Makes the table what `ruleset` says. Returns whether it was different before.
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
        // If another program removed the table before we looked, this is not how ours is worded.
        let is_ours = after.is_some() == script.is_some();
        self.written = is_ours.then_some(Written { script, listing: after });
        Ok(changed)
    }
}

/// Returns whether the table exists.
pub(super) async fn stands() -> Result<bool, FirewallError> {
    Ok(program::exists("nft") && listing().await?.is_some())
}

/// Deletes the table, whether or not it exists, in the same transaction as what follows.
const REMOVE: &str = "add table inet flan\ndelete table inet flan\n";

/// Lists the table as `nft` shows it, without counters, which would make every listing differ. `None` if missing.
async fn listing() -> Result<Option<String>, FirewallError> {
    match program::run("nft", &["-s", "list", "table", "inet", "flan"], "").await {
        Ok(listing) => Ok(Some(listing)),
        Err(FirewallError::Refused { message, .. }) if message.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Builds the transaction that creates the table, for `nft -f`. `None` if there should be no table.
fn script(ruleset: &Ruleset) -> Option<String> {
    if !ruleset.masquerade || ruleset.families.is_empty() {
        return None;
    }
    let mut script = REMOVE.to_owned();
    script.push_str("table inet flan {\n");
    script.push_str("\tchain postrouting {\n");
    script.push_str("\t\ttype nat hook postrouting priority srcnat; policy accept;\n");
    for (rule, comment) in [("meta mark & 0x00004000 == 0x00004000 return", "packets marked to skip NAT")]
        .map(|(rule, comment)| (rule.to_owned(), comment))
        .into_iter()
        .chain(ruleset.families.iter().flat_map(rules))
    {
        // Writing to a String cannot fail.
        let _ = writeln!(script, "\t\t{rule} comment \"{comment}\"");
    }
    script.push_str("\t}\n}\n");
    Some(script)
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
            script(&ruleset).unwrap(),
            r#"add table inet flan
delete table inet flan
table inet flan {
	chain postrouting {
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
