use super::super::tests::{args, interface, overlays};
use super::*;
use flan_agent_api::InterfaceArgs;

const CONFIG: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const BOTH: &str = r#"{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": {"Type": "vxlan"}}"#;

/// An agent, and its host at present.
struct Story {
    args: InterfaceArgs,
    config: &'static str,
    held: Held,
    external: External,
    host: Survey,
    now: Instant,
}

impl Story {
    /// Starts an agent with these flags on a host with eth0, which has the default route.
    fn with(arguments: &[&str], config: &'static str, addresses: &[&str]) -> Self {
        let (args, interfaces) = (args(arguments), vec![interface("eth0", 2, addresses)]);
        let host = Survey { interfaces, default_routes: vec![2], way: None };
        let parsed = overlays(config);
        let external = Selection { args: &args, overlays: &parsed }.choose(&host).unwrap();
        let mut story = Self { args, config, held: Held::default(), external, host, now: Instant::now() };
        assert_eq!(story.look(), Verdict::Keep);
        story
    }

    fn new() -> Self {
        Self::with(&[], CONFIG, &["192.168.64.11/24"])
    }

    fn look(&mut self) -> Verdict {
        let overlays = overlays(self.config);
        let selection = Selection { args: &self.args, overlays: &overlays };
        let chosen = selection.choose(&self.host);
        let verdict = self.held.look(&self.external, selection, &self.host, &chosen, self.now);
        if let Verdict::Adopt(external) = &verdict {
            self.external = external.clone();
            self.held.adopted();
        }
        verdict
    }

    /// Returns what has been adopted by now.
    fn adopted(&mut self) -> Option<String> {
        match self.look() {
            Verdict::Adopt(external) => {
                Some(format!("{} {}", external.underlay.link, external.underlay.addresses.v4.unwrap()))
            }
            Verdict::Keep | Verdict::Wait { .. } => None,
        }
    }

    fn waits_for(&mut self) -> String {
        match self.look() {
            Verdict::Wait { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self
    }

    fn problem(&self) -> Option<String> {
        let overlays = overlays(self.config);
        other_choice(&self.external, &Selection { args: &self.args, overlays: &overlays }.choose(&self.host))
    }

    fn addresses_are(&mut self, addresses: &[&str]) {
        self.host.interfaces[0].addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    }
}

fn vpn() -> Interface {
    interface("tun7", 7, &["10.99.0.2/24"])
}

#[test]
fn a_better_default_route_moves_nobody_and_is_named() {
    let mut story = Story::new();
    story.host.interfaces.push(vpn());
    story.host.default_routes = vec![7, 2];
    for _ in 0..100 {
        assert_eq!(story.after(Duration::from_secs(60)).look(), Verdict::Keep);
    }
    assert_eq!(
        story.problem().unwrap(),
        "tun7 (10.99.0.2) would be chosen at a start; fland keeps eth0 (192.168.64.11) while that has its address; restart \
         fland to move, or name one with --iface"
    );
    story.host.default_routes = vec![2, 7];
    assert_eq!((story.look(), story.problem()), (Verdict::Keep, None));
}

#[test]
fn a_default_route_that_goes_and_comes_changes_nothing() {
    let mut story = Story::new();
    story.host.default_routes.clear();
    assert_eq!((story.after(Duration::from_secs(600)).look(), story.problem()), (Verdict::Keep, None));
}

#[test]
fn an_interface_that_comes_first_in_the_list_of_the_flags_moves_nobody() {
    let mut story = Story::with(&["--iface=eth1,eth0"], CONFIG, &["192.168.64.11/24"]);
    story.host.interfaces.push(interface("eth1", 3, &["192.168.65.11/24"]));
    assert_eq!(story.look(), Verdict::Keep);
    assert!(story.problem().unwrap().starts_with("eth1 (192.168.65.11) would be chosen at a start"));
}

#[test]
fn another_way_to_the_address_that_must_be_reached_moves_nobody() {
    let mut story = Story::new();
    story.args = args(&["--iface-can-reach", "203.0.113.1"]);
    story.host.interfaces.push(vpn());
    story.host.way = Some(Ok((7, None)));
    assert_eq!(story.look(), Verdict::Keep);
    assert!(story.problem().unwrap().starts_with("tun7"));
}

#[test]
fn when_ours_is_gone_another_is_taken_after_the_grace_and_not_before() {
    let mut story = Story::new();
    story.host.interfaces = vec![vpn()];
    story.host.default_routes = vec![7];
    assert_eq!(
        story.waits_for(),
        "the external interface eth0 is gone; unless it is back within 30s, another interface or address takes its place"
    );
    assert_eq!(story.after(GRACE - Duration::from_millis(1)).adopted(), None);
    assert_eq!(story.after(Duration::from_millis(1)).adopted().unwrap(), "tun7 10.99.0.2");
    assert_eq!(story.look(), Verdict::Keep);
    // From now on the agent keeps this one.
    story.host.interfaces.push(interface("eth0", 9, &["192.168.64.11/24"]));
    story.host.default_routes = vec![9, 7];
    assert_eq!(story.after(GRACE).look(), Verdict::Keep);
}

#[test]
fn when_ours_is_gone_and_there_is_no_other_it_is_waited_for() {
    let mut story = Story::new();
    let before = std::mem::take(&mut story.host.interfaces);
    story.look();
    let reason = story.after(GRACE).waits_for();
    assert!(
        reason.starts_with("the external interface eth0 is gone, and nothing takes its place: there is no"),
        "{reason}"
    );
    story.host.interfaces = before;
    assert_eq!(story.after(GRACE).look(), Verdict::Keep);
}

#[test]
fn an_address_that_dhcp_takes_away_and_gives_back_is_waited_for() {
    let mut story = Story::new();
    for _ in 0..3 {
        story.addresses_are(&[]);
        assert!(
            story.waits_for().starts_with("address 192.168.64.11 is gone from the external interface eth0")
        );
        // The grace period starts again each time that it comes back.
        assert!(matches!(story.after(GRACE / 2).look(), Verdict::Wait { .. }));
        story.addresses_are(&["192.168.64.11/24"]);
        assert_eq!(story.after(GRACE / 4).look(), Verdict::Keep);
    }
}

#[test]
fn another_address_that_dhcp_gives_is_followed_at_once() {
    let mut story = Story::new();
    story.addresses_are(&["192.168.64.177/24"]);
    assert_eq!(story.adopted().unwrap(), "eth0 192.168.64.177");
    // Even if it changes at once, and beside an older address.
    story.addresses_are(&["10.7.0.1/24", "192.168.64.177/24"]);
    story.adopted();
    assert_eq!(story.look(), Verdict::Keep);
    story.addresses_are(&["10.7.0.1/24", "192.168.64.178/24"]);
    assert_eq!(story.adopted().unwrap(), "eth0 192.168.64.178");
    story.addresses_are(&[]);
    assert_eq!(story.adopted(), None);
    story.addresses_are(&["192.168.64.179/24"]);
    assert_eq!(story.after(Duration::from_secs(2)).adopted().unwrap(), "eth0 192.168.64.179");
}

#[test]
fn an_address_that_was_there_all_the_time_waits_a_little_for_ours_to_come_back() {
    let mut story = Story::with(&[], CONFIG, &["192.168.64.11/24", "192.168.64.99/24"]);
    story.addresses_are(&["192.168.64.99/24"]);
    assert_eq!(
        story.waits_for(),
        "address 192.168.64.11 is gone from eth0; unless it is back within 3s, 192.168.64.99 takes its place"
    );
    story.addresses_are(&["192.168.64.99/24", "192.168.64.11/24"]);
    assert_eq!(story.after(Duration::from_secs(2)).look(), Verdict::Keep);
    story.addresses_are(&["192.168.64.99/24"]);
    assert_eq!(story.adopted(), None);
    assert_eq!(story.after(ADDRESS_GRACE).adopted().unwrap(), "eth0 192.168.64.99");
}

#[test]
fn an_interface_that_comes_back_without_our_address_waits_a_little_for_it() {
    let mut story = Story::with(&[], CONFIG, &["192.168.64.11/24", "192.168.64.99/24"]);
    let before = std::mem::take(&mut story.host.interfaces);
    assert!(story.waits_for().starts_with("the external interface eth0 is gone"));
    story.host.interfaces = before;
    story.addresses_are(&["192.168.64.99/24"]);
    let reason = story.after(Duration::from_secs(5)).waits_for();
    assert!(
        reason.starts_with("address 192.168.64.11 is gone from eth0; unless it is back within 3s"),
        "{reason}"
    );
    assert!(story.held.is_gone());
    assert_eq!(story.after(ADDRESS_GRACE - Duration::from_millis(1)).adopted(), None);
    assert_eq!(story.after(Duration::from_millis(1)).adopted().unwrap(), "eth0 192.168.64.99");
    assert!(!story.held.is_gone());
}

#[test]
fn an_additional_address_that_comes_first_moves_nobody_and_is_named() {
    let mut story = Story::new();
    story.addresses_are(&["192.168.64.5/24", "192.168.64.11/24"]);
    assert_eq!(story.look(), Verdict::Keep);
    assert!(story.problem().unwrap().starts_with("eth0 (192.168.64.5) would be chosen at a start"));
}

#[test]
fn a_link_local_address_takes_the_place_of_ours_only_after_the_grace() {
    let mut story = Story::new();
    story.addresses_are(&["169.254.7.7/16"]);
    assert_eq!(story.adopted(), None);
    assert_eq!(story.after(GRACE / 2).adopted(), None);
    assert_eq!(story.after(GRACE / 2).adopted().unwrap(), "eth0 169.254.7.7");
}

#[test]
fn an_interface_that_is_renamed_is_followed_under_its_new_name() {
    let mut story = Story::with(&["--iface", "eth0"], CONFIG, &["192.168.64.11/24"]);
    story.host.interfaces[0].name = "lan0".parse().unwrap();
    // Another interface may have the old name by now.
    story.host.interfaces.push(interface("eth0", 3, &["192.168.65.11/24"]));
    assert_eq!(story.adopted().unwrap(), "lan0 192.168.64.11");
    assert_eq!(story.look(), Verdict::Keep);
    story.host.interfaces.pop();
    assert!(story.problem().unwrap().starts_with(
        "fland keeps lan0 (192.168.64.11), and would not start again: no interface is called eth0"
    ));
}

#[test]
fn an_interface_that_is_made_anew_is_followed_by_its_name_once_it_has_an_address() {
    let mut story = Story::new();
    story.host.interfaces = vec![interface("eth0", 9, &[])];
    assert_eq!(story.adopted(), None);
    story.addresses_are(&["192.168.64.11/24"]);
    assert_eq!(story.after(Duration::from_secs(1)).adopted().unwrap(), "eth0 192.168.64.11");
    assert_eq!(story.external.index, 9);
}

#[test]
fn our_address_is_followed_to_the_bridge_that_takes_it_over() {
    let mut story = Story::new();
    story.addresses_are(&[]);
    story.host.interfaces[0].master = Some(3);
    let bridge = Interface { bridge: true, ..interface("br0", 3, &["192.168.64.11/24"]) };
    story.host.interfaces.push(bridge);
    assert_eq!(story.adopted().unwrap(), "br0 192.168.64.11");
}

#[test]
fn an_address_that_the_flags_name_is_not_exchanged_for_another() {
    let both = ["192.168.64.11/24", "192.168.64.111/24"];
    for flag in ["--iface=192.168.64.111", "--public-ip=192.168.64.111"] {
        let mut story = Story::with(&[flag], CONFIG, &both);
        story.addresses_are(&both[..1]);
        assert_eq!(story.adopted(), None, "{flag}");
        assert_eq!(story.after(GRACE / 2).adopted(), None, "{flag}");
        story.addresses_are(&both);
        assert_eq!(story.look(), Verdict::Keep);
    }
}

#[test]
fn without_a_usable_address_of_each_family_ours_is_gone() {
    let both = ["192.168.64.11/24", "fd64::11/64"];
    let mut story = Story::with(&[], BOTH, &both);
    story.addresses_are(&["192.168.64.11/24", "fe80::11/64"]);
    assert!(story.waits_for().starts_with("address fd64::11 is gone from the external interface eth0"));
    story.addresses_are(&both);
    assert_eq!(story.after(GRACE / 2).look(), Verdict::Keep);
}

#[test]
fn the_loss_of_one_family_does_not_move_the_other_to_another_interface() {
    let both = ["192.168.64.11/24", "fd64::11/64"];
    let mut story = Story::with(&[], BOTH, &both);
    story.addresses_are(&both[..1]);
    story.host.interfaces.push(interface("eth1", 3, &["192.168.65.11/24", "fd65::11/64"]));
    story.host.default_routes = vec![3, 2];
    story.look();
    let reason = story.after(GRACE).waits_for();
    assert!(reason.ends_with("fland does not move to eth1 while eth0 still has 192.168.64.11"), "{reason}");
    story.addresses_are(&both);
    assert_eq!(story.look(), Verdict::Keep);
    story.addresses_are(&["fe80::11/64"]);
    story.look();
    assert_eq!(story.after(GRACE).adopted().unwrap(), "eth1 192.168.65.11");
}

#[test]
fn another_mtu_is_followed_at_once() {
    let mut story = Story::new();
    story.host.interfaces[0].mtu = 9000;
    assert!(matches!(story.look(), Verdict::Adopt(External { underlay, .. }) if underlay.mtu == 9000));
}
