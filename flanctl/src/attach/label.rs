//! The label `flan.attach` of containers that want to be on a LAN whenever they run.

use std::net::IpAddr;
use std::str::FromStr;

use flan_kernel::LinkName;
use flan_kernel::lan::{LanLink, Mode, VlanId};
use ipnetwork::IpNetwork;
use macaddr::MacAddr6;

/// The label. One with a dot and anything behind it asks for a further LAN.
const LABEL: &str = "flan.attach";
/// What a value may say, as the flags of `flanctl attach` do.
const KEYS: &str = "parent, vlan, address, gateway, mode, mac, name";

/// Returns whether a label is about the LAN.
pub(super) fn is_ours(key: &str) -> bool {
    key == LABEL || key.strip_prefix(LABEL).is_some_and(|rest| rest.starts_with('.'))
}

/// Reads a value such as `parent=eth0,address=192.168.1.77/24,gateway=192.168.1.1`. `kept` is what must stay reachable
/// otherwise.
pub(super) fn parse(text: &str, kept: Vec<IpNetwork>) -> Result<LanLink, String> {
    let (mut parent, mut vlan, mut mode, mut mac, mut name) = (None, None, None, None, None);
    let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("{part:?} is no KEY=VALUE; keys are {KEYS}"))?;
        match key.trim() {
            "parent" => once(&mut parent, key, read::<LinkName>(key, value)?)?,
            "vlan" => once(&mut vlan, key, read::<VlanId>(key, value)?)?,
            "mode" => once(&mut mode, key, read::<Mode>(key, value)?)?,
            "mac" => once(&mut mac, key, read::<MacAddr6>(key, value)?)?,
            "name" => once(&mut name, key, read::<LinkName>(key, value)?)?,
            "address" => addresses.push(with_length(value)?),
            "gateway" => gateways.push(read::<IpAddr>(key, value)?),
            other => return Err(format!("there is no {other:?}; keys are {KEYS}")),
        }
    }
    let link = LanLink {
        parent: parent.ok_or("it names no parent, such as parent=eth0")?,
        vlan,
        mode: mode.unwrap_or(Mode::Macvlan),
        name,
        mac,
        addresses,
        gateways,
        kept,
        counted_in: String::new(),
    };
    link.check().map_err(|error| error.to_string())?;
    Ok(link)
}

/// Reads an address with its prefix length: without, it would be alone in its network.
pub(crate) fn with_length(text: &str) -> Result<IpNetwork, String> {
    let read = text.contains('/').then(|| text.trim().parse().ok()).flatten();
    read.ok_or_else(|| format!("{text:?} is no address with its prefix length, such as 192.168.1.77/24"))
}

fn read<T: FromStr<Err: ToString>>(key: &str, value: &str) -> Result<T, String> {
    value.trim().parse().map_err(|error: T::Err| format!("{key}={value}: {}", error.to_string()))
}

fn once<T>(slot: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{key} is there twice")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_says_what_the_flags_say() {
        let text = "parent=eth0, vlan=5,address=192.168.1.77/24,address=fd00::7/64,gateway=192.168.1.1,\
                    mode=bridge,mac=02:00:00:00:00:07,name=lan7";
        let link = parse(text, Vec::new()).unwrap();
        assert_eq!(link.parent.as_str(), "eth0");
        assert_eq!((link.vlan.unwrap().get(), link.mode), (5, Mode::Bridge));
        assert_eq!((link.addresses.len(), link.gateways.len()), (2, 1));
        assert_eq!(link.name.unwrap().as_str(), "lan7");
        assert_eq!(link.mac, Some(MacAddr6::new(2, 0, 0, 0, 0, 7)));
        assert_eq!(parse("parent=eth0,address=10.0.0.7/8", Vec::new()).unwrap().mode, Mode::Macvlan);
    }

    #[test]
    fn what_is_wrong_with_a_label_is_said() {
        for (text, part) in [
            ("address=10.0.0.7/8", "no parent"),
            ("parent=eth0", "an address is needed"),
            ("parent=eth0,address=10.0.0.7", "prefix length"),
            ("parent=eth0,parent=eth1,address=10.0.0.7/8", "twice"),
            ("parent=eth0,vlan=5000,address=10.0.0.7/8", "1 to 4094"),
            ("eth0", "keys are parent"),
            ("parnt=eth0", "\"parnt\""),
            ("parent=eth0,address=10.0.0.7/8,mac=zz", "mac=zz"),
        ] {
            let wrong = parse(text, Vec::new()).unwrap_err();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }

    #[test]
    fn labels_of_others_are_none_of_ours() {
        assert!(is_ours("flan.attach") && is_ours("flan.attach.storage"));
        assert!(!is_ours("flan.attachment") && !is_ours("flan") && !is_ours("com.docker.compose.project"));
    }
}
