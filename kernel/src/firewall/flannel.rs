//! flanneld's own rules, worded as its iptables mode does (`pkg/trafficmngr/iptables/iptables.go`).
//!
//! Masquerading goes where flanneld has it: into the chain `FLANNEL-POSTRTG`, which flanneld empties and refills at its
//! start. Forwarding does not go into `FLANNEL-FWD`: while flanneld refills that chain, for 20 ms, Docker's policy for
//! FORWARD would drop packets. It goes directly into FORWARD, as in older versions of flanneld.

use std::fmt::Write as _;

use super::{FamilyRules, FirewallError, prefix, program};

const FORWARD_COMMENT: &str = r#"-m comment --comment "flanneld forward""#;
const MASQUERADE_COMMENT: &str = r#"-m comment --comment "flanneld masq""#;
const MASQUERADE_CHAIN: &str = "FLANNEL-POSTRTG";

/// Accepts packets from and to the network, after all other rules.
pub(super) async fn forward(family: &FamilyRules) -> Result<(), FirewallError> {
    put(family, "filter", "FORWARD", |listing| forward_script(family, listing)).await
}

pub(super) async fn masquerade(family: &FamilyRules) -> Result<(), FirewallError> {
    put(family, "nat", "POSTROUTING", |listing| masquerade_script(family, listing)).await
}

/// Lists a chain's rules with `iptables -S`, and applies what `script` makes of them atomically.
async fn put(
    family: &FamilyRules,
    table: &str,
    chain: &str,
    script: impl Fn(&str) -> String,
) -> Result<(), FirewallError> {
    let (list, restore) = match family.network.is_ipv6() {
        true => ("ip6tables", "ip6tables-restore"),
        false => ("iptables", "iptables-restore"),
    };
    let listing = program::run(list, &["-w", "5", "-t", table, "-S", chain], "").await?;
    program::run(restore, &["-w", "5", "--noflush"], &script(&listing)).await.map(drop)
}

/// Adds the missing rules, for `iptables-restore --noflush`.
fn forward_script(family: &FamilyRules, standing: &str) -> String {
    let network = prefix(family.network);
    let rules = ["-s", "-d"].map(|way| format!("-A FORWARD {way} {network} {FORWARD_COMMENT} -j ACCEPT"));
    let missing = rules.iter().filter(|rule| !standing.lines().any(|line| line == rule.as_str()));
    let missing: String = missing.map(|rule| format!("{rule}\n")).collect();
    format!("*filter\n{missing}COMMIT\n")
}

/// Fills flanneld's chain and leaves one jump to it, after all other rules.
fn masquerade_script(family: &FamilyRules, standing: &str) -> String {
    let (network, subnet) = (prefix(family.network), prefix(family.subnet));
    let multicast = if family.network.is_ipv6() { "ff00::/8" } else { "224.0.0.0/4" };
    let rules = [
        ("-m mark --mark 0x4000/0x4000".to_owned(), "RETURN"),
        (format!("-s {subnet} -d {network}"), "RETURN"),
        (format!("-s {network} -d {subnet}"), "RETURN"),
        (format!("! -s {network} -d {subnet}"), "RETURN"),
        (format!("-s {network} ! -d {multicast}"), "MASQUERADE --random-fully"),
        (format!("! -s {network} -d {network}"), "MASQUERADE --random-fully"),
    ];
    let mut script = format!("*nat\n:{MASQUERADE_CHAIN} - [0:0]\n");
    // Writing to a String cannot fail.
    for (packets, target) in rules {
        let _ = writeln!(script, "-A {MASQUERADE_CHAIN} {packets} {MASQUERADE_COMMENT} -j {target}");
    }
    let jump = format!(" -j {MASQUERADE_CHAIN}");
    for rule in standing.lines().filter_map(|line| line.strip_prefix("-A ")) {
        if rule.ends_with(&jump) {
            let _ = writeln!(script, "-D {rule}");
        }
    }
    let _ = write!(script, "-A POSTROUTING {MASQUERADE_COMMENT}{jump}\nCOMMIT\n");
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(network: &str, subnet: &str) -> FamilyRules {
        FamilyRules { network: network.parse().unwrap(), subnet: subnet.parse().unwrap() }
    }

    #[test]
    fn masquerading_is_worded_as_flanneld_words_it_and_no_jump_is_doubled() {
        let jump = r#"POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;
        let standing = format!("-P POSTROUTING ACCEPT\n-A {jump}\n-A POSTROUTING -j FLANNEL-POSTRTG-OLD\n");
        // The subnet as in subnet.env, with the bridge's address.
        assert_eq!(
            masquerade_script(&family("10.5.0.0/16", "10.5.3.1/24"), &standing),
            format!(
                r#"*nat
:FLANNEL-POSTRTG - [0:0]
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.3.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.3.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.3.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-D {jump}
-A {jump}
COMMIT
"#
            )
        );
        let ipv6 = masquerade_script(&family("fd00:5::/48", "fd00:5:0:3::/64"), "");
        assert!(ipv6.contains("-s fd00:5::/48 ! -d ff00::/8 "), "{ipv6}");
    }

    #[test]
    fn forwarding_is_added_to_what_stands_and_never_twice() {
        let family = family("10.5.0.0/16", "10.5.3.1/24");
        let script = forward_script(&family, "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n");
        let rules = script.strip_prefix("*filter\n").and_then(|rest| rest.strip_suffix("COMMIT\n")).unwrap();
        assert_eq!(
            rules,
            "-A FORWARD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n\
             -A FORWARD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n"
        );
        assert_eq!(forward_script(&family, rules), "*filter\nCOMMIT\n");
    }
}
