//! Keeps the external interface of a running agent. Peers and their connections depend on it: the mere appearance of
//! something better, such as another default route, does not move a working host.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use flan_kernel::netlink::Interface;
use flan_subnet_lease::PerFamily;
use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::{External, InterfaceError, Selection, Standing, Survey};

/// How long the interface, or its last usable address, may be gone before fland takes another. Longer than a DHCP
/// client, a driver or an administrator needs to bring it back.
const GRACE: Duration = Duration::from_secs(30);
/// The same for our address, if the interface also had another usable one all along.
const ADDRESS_GRACE: Duration = Duration::from_secs(3);
/// Delay before another check, after one that led nowhere.
pub const AGAIN: Duration = Duration::from_secs(5);

/// State of the external interface between checks.
#[derive(Debug, Default)]
pub struct Held {
    /// The addresses that were on it together with ours.
    seen: BTreeSet<IpAddr>,
    /// Since when nothing usable is there.
    gone_since: Option<Instant>,
    /// Since when only an older address could replace ours. Timed separately, because an interface that comes back gets
    /// its addresses one after another.
    replaced_since: Option<Instant>,
}

/// What to do with the external interface.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has not changed.
    Keep,
    /// Use this one: ours with another name, index, address or MTU, or another because ours is gone.
    Adopt(External),
    /// It cannot be used, and nothing replaces it yet. Check again at this time at the latest.
    Wait {
        /// When to check again.
        until: Instant,
        /// What is wrong, and what will happen.
        reason: String,
    },
}

/// Our interface as found again.
struct Again {
    external: External,
    /// The lost address and its replacement, if that existed before.
    replaced: Option<(IpAddr, IpAddr)>,
    seen: BTreeSet<IpAddr>,
}

impl Held {
    /// Compares the present state with the known interface and with the choice for a start.
    pub fn look(
        &mut self,
        was: &External,
        selection: Selection<'_>,
        survey: &Survey,
        chosen: &Result<External, InterfaceError>,
        now: Instant,
    ) -> Verdict {
        let name = was.underlay.link;
        let Some(again) = self.find_again(was, selection, survey) else {
            self.replaced_since = None;
            let until = *self.gone_since.get_or_insert(now) + GRACE;
            let gone = what_is_gone(was, survey);
            return match in_its_place(was, selection, survey, chosen) {
                _ if now < until => Verdict::Wait {
                    until,
                    reason: format!(
                        "{gone}; unless it is back within {}, another interface or address takes its place",
                        humantime::format_duration(GRACE)
                    ),
                },
                Ok(other) => Verdict::Adopt(other),
                Err(error) => Verdict::Wait {
                    until: now + AGAIN,
                    reason: format!("{gone}, and nothing takes its place: {error}"),
                },
            };
        };
        if let Some((before, other)) = again.replaced {
            self.gone_since = None;
            let until = *self.replaced_since.get_or_insert(now) + ADDRESS_GRACE;
            if now < until {
                let limit = humantime::format_duration(ADDRESS_GRACE);
                let reason = format!(
                    "address {before} is gone from {name}; unless it is back within {limit}, {other} takes its place"
                );
                return Verdict::Wait { until, reason };
            }
        }
        (self.gone_since, self.replaced_since, self.seen) = (None, None, again.seen);
        if again.external == *was { Verdict::Keep } else { Verdict::Adopt(again.external) }
    }

    /// Starts to watch the adopted interface.
    pub fn adopted(&mut self) {
        (self.gone_since, self.replaced_since) = (None, None);
    }

    /// Returns whether our interface or its address is gone at present.
    pub fn is_gone(&self) -> bool {
        self.gone_since.is_some() || self.replaced_since.is_some()
    }

    /// Finds ours by index, even if renamed; else by name, if it was created again; else by our addresses, for example
    /// after the interface became a port of a bridge.
    fn find_again(&self, was: &External, selection: Selection<'_>, survey: &Survey) -> Option<Again> {
        let by_index = survey.at(was.index);
        let same = by_index.or_else(|| survey.called(was.underlay.link));
        let again = same.and_then(|interface| self.again(was, selection, interface));
        again.or_else(|| {
            let has_all = |interface: &&Interface| {
                !interface.loopback && was.underlay.addresses.values().all(|ip| has(interface, *ip))
            };
            self.again(was, selection, survey.interfaces.iter().find(has_all)?)
        })
    }

    /// Rebuilds the external interface from this one; `None` if it has no usable address.
    fn again(&self, was: &External, selection: Selection<'_>, interface: &Interface) -> Option<Again> {
        let (mut addresses, mut replaced) = (PerFamily::default(), None);
        for (family, _) in selection.overlays.iter().copied() {
            let before = *was.underlay.addresses.get(family)?;
            if has(interface, before) {
                addresses.set(family, before);
                continue;
            }
            if selection.is_named(before) {
                return None;
            }
            let good = |ip: &IpAddr| selection.standing(*ip, interface) == Standing::Good;
            let usable = selection.addresses(interface, family).filter(good);
            // A new address is the likely replacement of ours.
            let instead = usable.min_by_key(|ip| self.seen.contains(ip))?;
            if self.seen.contains(&instead) {
                replaced = replaced.or(Some((before, instead)));
            }
            addresses.set(family, instead);
        }
        let external = selection.on(interface, addresses).ok()?;
        let seen = interface.addresses.iter().map(IpNetwork::ip).collect();
        Some(Again { external, replaced, seen })
    }
}

/// Describes how a start would differ from what is in use.
pub fn other_choice(is: &External, chosen: &Result<External, InterfaceError>) -> Option<String> {
    let shown = |external: &External| {
        let ips: Vec<String> = external.underlay.addresses.values().map(ToString::to_string).collect();
        format!("{} ({})", external.underlay.link, ips.join(" "))
    };
    match chosen {
        Ok(other) if (other.index, other.underlay.addresses) != (is.index, is.underlay.addresses) => {
            Some(format!(
                "{} would be chosen at a start; fland keeps {} while that has its address; restart fland to move, or name \
             one with --iface",
                shown(other),
                shown(is)
            ))
        }
        // A default route may be gone briefly, but what the flags name does not come back by itself.
        Err(error @ InterfaceError::NoMatch { .. }) => {
            Some(format!("fland keeps {}, and would not start again: {error}", shown(is)))
        }
        Ok(_) | Err(_) => None,
    }
}

/// Returns the choice of a start, in place of ours. While one of our addresses is still on our interface, its family
/// works there, so that address stays and no other interface is taken.
fn in_its_place(
    was: &External,
    selection: Selection<'_>,
    survey: &Survey,
    chosen: &Result<External, InterfaceError>,
) -> Result<External, String> {
    let other = chosen.as_ref().map_err(ToString::to_string)?;
    let Some(interface) = survey.at(was.index).or_else(|| survey.called(was.underlay.link)) else {
        return Ok(other.clone());
    };
    let here = was.underlay.addresses.values().filter(|ip| has(interface, **ip)).copied();
    let here: PerFamily<IpAddr> = here.collect();
    match here.values().next() {
        None => Ok(other.clone()),
        Some(_) if other.index == interface.index => {
            selection.on(interface, here).map_err(|error| error.to_string())
        }
        Some(ip) => Err(format!(
            "fland does not move to {} while {} still has {ip}",
            other.underlay.link, interface.name
        )),
    }
}

fn has(interface: &Interface, ip: IpAddr) -> bool {
    interface.addresses.iter().any(|address| address.ip() == ip)
}

fn what_is_gone(was: &External, survey: &Survey) -> String {
    let name = was.underlay.link;
    match survey.at(was.index).or_else(|| survey.called(name)) {
        None => format!("the external interface {name} is gone"),
        Some(interface) => {
            let gone = was.underlay.addresses.values().filter(|ip| !has(interface, **ip));
            let gone: Vec<String> = gone.map(ToString::to_string).collect();
            format!("address {} is gone from the external interface {}", gone.join(" and "), interface.name)
        }
    }
}

#[cfg(test)]
mod tests;
