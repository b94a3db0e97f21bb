//! Forwarding: our chain in the filter table of `iptables` or `ip6tables`, and one jump to it.
//!
//! Docker sets the policy of FORWARD in that table to DROP. A separate table could not undo that, because a packet must
//! pass every base chain. Without the program there is no policy, and nothing to do.

use std::fmt::Write as _;

use super::{FirewallError, Ruleset, prefix, program};

const CHAIN: &str = "FLAN-FORWARD";

/// The program of one address family, and what we know of its rules.
#[derive(Debug)]
pub(super) struct Forwarding {
    ipv6: bool,
    /// What we last requested and how it was listed afterwards: a version of `iptables` may word a rule differently
    /// than we do. `None` until this process has looked.
    settled: Option<(Vec<String>, Standing)>,
}

/// What the filter table holds of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    chain: bool,
    /// The chain's rules as `iptables -S` lists them, without `-A FLAN-FORWARD`.
    rules: Vec<String>,
    /// The rules of FORWARD that jump to our chain, without `-A FORWARD`.
    jumps: Vec<String>,
    /// Whether the first rule of FORWARD is such a jump.
    first: bool,
}

impl Forwarding {
    pub(super) fn new(ipv6: bool) -> Self {
        Self { ipv6, settled: None }
    }

    /// Makes the chain and the jump what `ruleset` says. Returns whether anything changed.
    pub(super) async fn apply(&mut self, ruleset: &Ruleset) -> Result<bool, FirewallError> {
        let wanted = rules(ruleset, self.ipv6);
        // Only we create the chain, so once it is gone there is no need to look again.
        if wanted.is_empty() && self.settled.as_ref().is_some_and(|(rules, _)| rules.is_empty()) {
            return Ok(false);
        }
        let (list, restore) = self.programs();
        if !program::exists(list) {
            if self.settled.is_none() {
                tracing::debug!("no {list} here, so nobody can have closed forwarding with it");
                self.settled = Some((wanted, Standing::default()));
            }
            return Ok(false);
        }
        let standing = match self.standing().await {
            Ok(standing) => standing,
            // A host without that family may lack even its filter table.
            Err(error) if wanted.is_empty() => {
                tracing::debug!(%error, "no rules to remove");
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let settled =
            self.settled.as_ref().is_some_and(|(rules, then)| *rules == wanted && *then == standing);
        if settled || standing == Standing::of(&wanted) {
            self.settled = Some((wanted, standing));
            return Ok(false);
        }
        program::run(restore, &["-w", "5", "--noflush"], &transaction(&wanted, &standing)).await?;
        // If another program removed our rules before we looked, this is not how they are worded.
        let standing = self.standing().await?;
        let (chain, jumps) = (!wanted.is_empty(), usize::from(!wanted.is_empty()));
        let is_ours = standing.chain == chain
            && standing.first == chain
            && standing.jumps.len() == jumps
            && standing.rules.len() == wanted.len();
        self.settled = is_ours.then_some((wanted, standing));
        Ok(true)
    }

    /// Returns whether the chain or a jump to it exists.
    pub(super) async fn stands(&self) -> Result<bool, FirewallError> {
        if !program::exists(self.programs().0) {
            return Ok(false);
        }
        match self.standing().await {
            Ok(standing) => Ok(standing.chain || !standing.jumps.is_empty()),
            // A host without that family may lack even its filter table.
            Err(FirewallError::Refused { message, .. })
                if ["does not exist", "not supported"].iter().any(|why| message.contains(why)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn programs(&self) -> (&'static str, &'static str) {
        if self.ipv6 { ("ip6tables", "ip6tables-restore") } else { ("iptables", "iptables-restore") }
    }

    async fn standing(&self) -> Result<Standing, FirewallError> {
        let (list, _) = self.programs();
        Ok(Standing::parse(&program::run(list, &["-w", "5", "-S"], "").await?))
    }
}

/// Returns the rules of our chain; empty if there should be no chain.
fn rules(ruleset: &Ruleset, ipv6: bool) -> Vec<String> {
    let of_family = ruleset.forward.iter().filter(|(network, _)| network.is_ipv6() == ipv6);
    of_family
        .flat_map(|(network, link)| {
            let network = prefix(*network);
            [
                format!(r#"-s {network} -o {link} -m comment --comment "flan: from the overlay network" -j ACCEPT"#),
                format!(r#"-d {network} -i {link} -m comment --comment "flan: to the overlay network" -j ACCEPT"#),
            ]
        })
        .collect()
}

fn jump() -> String {
    format!("-j {CHAIN}")
}

impl Standing {
    /// Returns what `rules` look like once applied.
    fn of(rules: &[String]) -> Self {
        if rules.is_empty() {
            return Self::default();
        }
        Self { chain: true, rules: rules.to_vec(), jumps: vec![jump()], first: true }
    }

    /// Finds our rules in the output of `iptables -S`.
    fn parse(listing: &str) -> Self {
        let mut standing = Self::default();
        let mut forward_rules = 0;
        for line in listing.lines() {
            if line == format!("-N {CHAIN}") {
                standing.chain = true;
            } else if let Some(rule) = line.strip_prefix(&format!("-A {CHAIN} ")) {
                standing.rules.push(rule.to_owned());
            } else if let Some(rule) = line.strip_prefix("-A FORWARD ") {
                if rule == jump() || rule.ends_with(&format!(" {}", jump())) {
                    standing.first |= forward_rules == 0;
                    standing.jumps.push(rule.to_owned());
                }
                forward_rules += 1;
            }
        }
        standing
    }
}

/// Builds the atomic `iptables-restore --noflush` input that turns what exists into what is wanted.
fn transaction(wanted: &[String], standing: &Standing) -> String {
    let mut lines = vec!["*filter".to_owned()];
    if !wanted.is_empty() || standing.chain {
        // Creates the chain, or empties it.
        lines.push(format!(":{CHAIN} - [0:0]"));
    }
    lines.extend(standing.jumps.iter().map(|rule| format!("-D FORWARD {rule}")));
    if wanted.is_empty() {
        if standing.chain {
            lines.push(format!("-X {CHAIN}"));
        }
    } else {
        lines.extend(wanted.iter().map(|rule| format!("-A {CHAIN} {rule}")));
        lines.push(format!("-I FORWARD 1 {}", jump()));
    }
    lines.push("COMMIT".to_owned());
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::super::FamilyRules;
    use super::*;

    fn ruleset() -> Ruleset {
        let family = |network: &str, subnet: &str| FamilyRules {
            network: network.parse().unwrap(),
            subnet: subnet.parse().unwrap(),
        };
        Ruleset {
            families: vec![family("10.5.0.0/16", "10.5.1.0/24"), family("fd00:5::/48", "fd00:5:0:1::/64")],
            masquerade: false,
            forward: ["10.5.0.0/16", "fd00:5::/48"]
                .into_iter()
                .flat_map(|network| ["flannel.1", "eth0"].map(|device| (network, device)))
                .map(|(network, device)| (network.parse().unwrap(), device.parse().unwrap()))
                .collect(),
        }
    }

    const DOCKERS: &str = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER-USER\n";

    #[test]
    fn each_family_has_its_own_rules() {
        assert_eq!(
            rules(&ruleset(), false),
            [
                r#"-s 10.5.0.0/16 -o flannel.1 -m comment --comment "flan: from the overlay network" -j ACCEPT"#,
                r#"-d 10.5.0.0/16 -i flannel.1 -m comment --comment "flan: to the overlay network" -j ACCEPT"#,
                r#"-s 10.5.0.0/16 -o eth0 -m comment --comment "flan: from the overlay network" -j ACCEPT"#,
                r#"-d 10.5.0.0/16 -i eth0 -m comment --comment "flan: to the overlay network" -j ACCEPT"#,
            ]
        );
        assert!(rules(&ruleset(), true)[0].starts_with("-s fd00:5::/48 "));
        assert!(rules(&Ruleset { forward: Vec::new(), ..ruleset() }, false).is_empty());
    }

    #[test]
    fn a_filter_table_without_our_chain_gets_it_in_one_transaction() {
        let standing = Standing::parse(&format!("{DOCKERS}-A FORWARD -j DOCKER-USER\n"));
        assert_eq!(standing, Standing::default());
        assert_eq!(
            transaction(&rules(&ruleset(), false)[..2], &standing),
            r#"*filter
:FLAN-FORWARD - [0:0]
-A FLAN-FORWARD -s 10.5.0.0/16 -o flannel.1 -m comment --comment "flan: from the overlay network" -j ACCEPT
-A FLAN-FORWARD -d 10.5.0.0/16 -i flannel.1 -m comment --comment "flan: to the overlay network" -j ACCEPT
-I FORWARD 1 -j FLAN-FORWARD
COMMIT
"#
        );
    }

    #[test]
    fn what_stands_as_wanted_is_known_by_its_listing() {
        let wanted = &rules(&ruleset(), false)[..2];
        let listing = format!(
            "{DOCKERS}-N FLAN-FORWARD\n-A FORWARD -j FLAN-FORWARD\n-A FORWARD -j DOCKER-USER\n\
             -A FLAN-FORWARD {}\n-A FLAN-FORWARD {}\n",
            wanted[0], wanted[1]
        );
        assert_eq!(Standing::parse(&listing), Standing::of(wanted));
    }

    #[test]
    fn every_jump_but_the_first_is_removed_and_one_put_in_front() {
        let listing = format!(
            "{DOCKERS}-N FLAN-FORWARD\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j FLAN-FORWARD\n\
             -A FORWARD -i eth0 -j FLAN-FORWARD\n-A FORWARD -j FLAN-FORWARD-OLD\n"
        );
        let standing = Standing::parse(&listing);
        assert!(!standing.first);
        let text = transaction(&["-j ACCEPT".to_owned()], &standing);
        assert_eq!(
            text,
            "*filter\n:FLAN-FORWARD - [0:0]\n-D FORWARD -j FLAN-FORWARD\n-D FORWARD -i eth0 -j FLAN-FORWARD\n\
             -A FLAN-FORWARD -j ACCEPT\n-I FORWARD 1 -j FLAN-FORWARD\nCOMMIT\n"
        );
    }

    #[test]
    fn without_forwarding_jump_and_chain_go() {
        let standing = Standing::of(&["-j ACCEPT".to_owned()]);
        assert_eq!(
            transaction(&[], &standing),
            "*filter\n:FLAN-FORWARD - [0:0]\n-D FORWARD -j FLAN-FORWARD\n-X FLAN-FORWARD\nCOMMIT\n"
        );
    }
}
