//! flanneld's own rules, worded and placed as its iptables mode does (`pkg/trafficmngr/iptables/iptables.go`): at its
//! start it empties and fills the same chains, and moves its jumps to the end, so that there is one set at any moment.

use std::fmt::Write as _;

use super::{FamilyRules, FirewallError, prefix, program};

/// A chain of flanneld's and the jump to it.
struct Chain {
    table: &'static str,
    /// The chain that packets come from.
    from: &'static str,
    name: &'static str,
    /// What flanneld knows its rules by.
    comment: &'static str,
}

const FORWARD: Chain =
    Chain { table: "filter", from: "FORWARD", name: "FLANNEL-FWD", comment: "flanneld forward" };
const MASQUERADE: Chain =
    Chain { table: "nat", from: "POSTROUTING", name: "FLANNEL-POSTRTG", comment: "flanneld masq" };

/// Accepts what comes from the network and what goes there.
pub(super) async fn forward(family: &FamilyRules) -> Result<(), FirewallError> {
    let network = prefix(family.network);
    let rules = [format!("-s {network} {{}} -j ACCEPT"), format!("-d {network} {{}} -j ACCEPT")];
    put(&FORWARD, family.network.is_ipv6(), &rules).await
}

/// Masquerades what leaves the network.
pub(super) async fn masquerade(family: &FamilyRules) -> Result<(), FirewallError> {
    put(&MASQUERADE, family.network.is_ipv6(), &masquerade_rules(family)).await
}

/// `{}` stands for the comment.
fn masquerade_rules(family: &FamilyRules) -> [String; 6] {
    let (network, subnet) = (prefix(family.network), prefix(family.subnet));
    let multicast = if family.network.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" };
    [
        "-m mark --mark 0x4000/0x4000 {} -j RETURN".to_owned(),
        format!("-s {subnet} -d {network} {{}} -j RETURN"),
        format!("-s {network} -d {subnet} {{}} -j RETURN"),
        format!("! -s {network} -d {subnet} {{}} -j RETURN"),
        format!("-s {network} ! -d {multicast} {{}} -j MASQUERADE --random-fully"),
        format!("! -s {network} -d {network} {{}} -j MASQUERADE --random-fully"),
    ]
}

async fn put(chain: &Chain, ipv6: bool, rules: &[String]) -> Result<(), FirewallError> {
    let (list, restore) =
        if ipv6 { ("ip6tables", "ip6tables-restore") } else { ("iptables", "iptables-restore") };
    let listing = program::run(list, &["-w", "5", "-t", chain.table, "-S", chain.from], "").await?;
    let script = transaction(chain, rules, &jumps(chain, &listing));
    program::run(restore, &["-w", "5", "--noflush"], &script).await.map(drop)
}

/// The jumps to the chain that stand, as `iptables -S` lists them, without `-A`.
fn jumps(chain: &Chain, listing: &str) -> Vec<String> {
    let jump = format!(" -j {}", chain.name);
    let rules = listing.lines().filter_map(|line| line.strip_prefix("-A "));
    rules.filter(|rule| rule.ends_with(&jump)).map(str::to_owned).collect()
}

/// What fills the chain and leaves one jump to it, behind all others, for `iptables-restore --noflush`: all of it or
/// nothing.
fn transaction(chain: &Chain, rules: &[String], standing: &[String]) -> String {
    let Chain { table, from, name, comment } = chain;
    let comment = format!(r#"-m comment --comment "{comment}""#);
    let mut script = format!("*{table}\n:{name} - [0:0]\n");
    // Writing to a String does not fail.
    for rule in rules {
        let _ = writeln!(script, "-A {name} {}", rule.replace("{}", &comment));
    }
    for jump in standing {
        let _ = writeln!(script, "-D {jump}");
    }
    let _ = write!(script, "-A {from} {comment} -j {name}\nCOMMIT\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(network: &str, subnet: &str) -> FamilyRules {
        FamilyRules { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
    }

    #[test]
    fn masquerading_is_worded_as_flanneld_words_it() {
        // The subnet as subnet.env has it, with the bridge's address.
        let rules = masquerade_rules(&family("10.5.0.0/16", "10.5.3.1/24"));
        assert_eq!(
            transaction(&MASQUERADE, &rules, &[]),
            r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.3.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.3.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.3.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
COMMIT
"#
        );
        assert!(masquerade_rules(&family("fd00:5::/48", "fd00:5:0:3::/64"))[4].contains("! -d ff00::/8"));
    }

    #[test]
    fn a_jump_that_stands_is_not_doubled() {
        let jump = r#"-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD"#;
        let listing =
            format!("-P FORWARD DROP\n{jump}\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j FLANNEL-FWD-OLD\n");
        let jumps = jumps(&FORWARD, &listing);
        assert_eq!(
            transaction(&FORWARD, &["-j ACCEPT".to_owned()], &jumps),
            format!(
                "*filter\n:FLANNEL-FWD - [0:0]\n-A FLANNEL-FWD -j ACCEPT\n{}\n{jump}\nCOMMIT\n",
                jump.replace("-A", "-D")
            )
        );
    }
}
