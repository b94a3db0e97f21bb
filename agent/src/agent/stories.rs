//! Stories of an agent from events to an in-memory kernel, without clock, store or root.

mod world;

use std::time::Duration;

use flan_agent_api::Code;
use flan_kernel::fake::FakeKernel;
use flan_kernel::{Change, KernelError, Object, Operation};
use flan_subnet_lease::WatchEvent;

use self::world::{PEER_2, PEER_3, World, deleted, listed, put};

const VXLAN: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const SECOND: &str = r#"{"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#;
const WIREGUARD: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}"#;
const UDP: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}"#;
const PORT: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 9472}}"#;
const ELSEWHERE: &str = r#"{"Network": "10.7.0.0/16", "Backend": {"Type": "vxlan"}}"#;
/// What the kernel of the stories cannot do.
const BY_KERNEL: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Path": "kernel"}}"#;
const IPSEC: &str = r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "ipsec"}}"#;
const OURS: &str = "10.5.1.0/24";

#[test]
fn a_host_that_held_nothing_before_is_ready_once_it_knows_all_leases() {
    let mut world = World::with(&[]);
    assert_eq!(world.waits_for(), "the network config at /coreos.com/network/config in the store");
    world.config_is(0, VXLAN);
    assert_eq!(world.claim(0).previous, None);
    assert_eq!(world.waits_for(), "a lease");
    world.lease(0, OURS);
    // Before the first list, a missing lease means nothing.
    assert_eq!(world.kernel.take_applied(), []);
    assert_eq!((world.saved.len(), world.notified_ready), (0, 0));
    world.leases(0, listed(&[PEER_2]));
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
    assert_eq!(world.saved[0].bridges.v4, Some("10.5.1.1/24".parse().unwrap()));
    assert_eq!((world.notified_ready, world.status().ready), (1, true));
    assert_eq!(world.systemd.last().unwrap(), "10.5.1.0/24 with 1 peers");
    assert_eq!(world.firewall.standing().families.len(), 1);
    world.leases(0, put(PEER_3));
    world.leases(0, deleted(PEER_2));
    assert_eq!(world.routes(), ["10.5.3.0/24"]);
    assert_eq!(world.systemd.last().unwrap(), "10.5.1.0/24 with 1 peers");
}

#[test]
fn a_restarted_agent_claims_its_subnet_again_and_leaves_what_stands() {
    let before = World::joined(VXLAN, OURS, &[PEER_2, PEER_3]);
    let mut world = World::restarted(before.kernel.clone(), OURS);
    world.config_is(0, VXLAN);
    assert_eq!(world.claim(0).previous, OURS.parse().ok());
    world.lease(0, OURS);
    // Peer 3 left in the meantime.
    world.kernel.take_applied();
    world.leases(0, listed(&[PEER_2]));
    let applied = world.kernel.take_applied();
    assert!(!applied.is_empty() && applied.iter().all(Operation::is_deletion), "{applied:?}");
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
}

#[test]
fn a_store_that_is_away_is_waited_for_and_peers_stay_while_it_is_away_later() {
    let mut world = World::with(&[]);
    for reason in ["no answer", "still none"] {
        world.config_answer(0, Err(reason.to_owned()));
        assert!(world.waits_for().ends_with(&format!(": {reason}")), "{}", world.waits_for());
        world.pass(Duration::from_secs(60));
    }
    assert_eq!(world.followed, 1);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    world.leases(0, WatchEvent::Interrupted { reason: "no answer".to_owned() });
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.problem(Code::Store).as_deref(), Some("no answer"));
    assert_eq!((world.routes(), world.status().ready), (vec!["10.5.2.0/24".to_owned()], true));
    world.kernel.take_applied();
    world.leases(0, listed(&[PEER_2]));
    assert_eq!((world.problem(Code::Store), world.kernel.take_applied()), (None, vec![]));
}

#[test]
fn a_config_that_this_host_cannot_run_is_waited_for_and_one_that_comes_later_is_told() {
    let mut world = World::with(&[]);
    world.config_is(0, IPSEC);
    assert!(world.waits_for().contains("ipsec"), "{}", world.waits_for());
    world.pass(Duration::from_secs(1));
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    world.kernel.take_applied();
    for (config, told) in [
        (Some(IPSEC), "that this agent cannot run, so it keeps the one before: "),
        (Some(ELSEWHERE), "this host's subnet 10.5.1.0/24 is not in it, so this agent keeps the one before"),
        (Some(BY_KERNEL), "this agent cannot go over to it, so it keeps the one before: "),
        (None, "is gone from the store"),
    ] {
        world.config_answer(0, Ok(config.map(|json| json.as_bytes().to_vec())));
        let problem = world.problem(Code::Config).unwrap();
        assert!(problem.contains(told), "{problem}");
        world.pass(Duration::from_secs(60));
        assert_eq!((world.routes(), world.status().ready), (vec!["10.5.2.0/24".to_owned()], true));
    }
    world.config_is(0, VXLAN);
    assert_eq!((world.problem(Code::Config), world.kernel.take_applied()), (None, vec![]));
}

#[test]
fn a_changed_config_is_gone_over_to_with_the_same_lease_and_back() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2, PEER_3]);
    let devices = |world: &World| -> Vec<String> {
        world.kernel.state().links.keys().map(ToString::to_string).collect()
    };
    world.config_is(0, PORT);
    assert_eq!((world.routes().len(), world.status().ready), (2, true));
    let link = world.kernel.state().links.into_values().next().expect("a device");
    assert!(format!("{link:?}").contains("port: 9472"), "{link:?}");

    world.config_is(0, WIREGUARD);
    assert_eq!(devices(&world), ["flannel-wg"]);
    assert_eq!((world.routes(), world.status().quarantined_count), (vec!["10.5.0.0/16".to_owned()], 2));
    assert!(world.attributes(0).data.v4.expect("data").wireguard().is_some());
    assert_eq!(world.attributes(0).backend.as_deref(), Some("wireguard"));
    assert_eq!((world.saved.last().unwrap().mtu, &*world.status().backend), (1420, "wireguard"));

    world.config_is(0, VXLAN);
    assert_eq!(devices(&world), ["flannel.1"]);
    assert_eq!(
        (world.routes(), world.status().quarantined_count),
        (vec!["10.5.2.0/24".to_owned(), "10.5.3.0/24".to_owned()], 0)
    );
    assert_eq!((world.saved.last().unwrap().mtu, world.problem(Code::Config)), (1450, None));

    // The peers still hold their leases of vxlan, with another VNI.
    world::datapaths(|datapaths| datapaths.starts = 0);
    world.config_is(0, UDP);
    world::datapaths(|datapaths| assert_eq!(datapaths.starts, 1));
    assert!(world.status().ready);
    assert_eq!(world.claim(0).attributes.backend.as_deref(), Some("vxlan"), "it was claimed once");
}

#[test]
fn a_host_without_a_lease_claims_one_of_the_changed_network() {
    let mut world = World::with(&[]);
    world.config_is(0, VXLAN);
    world.config_is(0, ELSEWHERE);
    assert_eq!(world.waits_for(), "a lease");
    world.lease(0, "10.7.1.0/24");
    world.leases(0, listed(&[PEER_2, ("10.7.2.0", "192.168.64.12", "02:00:00:00:02:0c")]));
    assert_eq!((world.routes(), world.status().ready), (vec!["10.7.2.0/24".to_owned()], true));
}

#[test]
fn a_changed_network_takes_nothing_that_another_has_and_moves_no_other() {
    let mut world = World::of_networks(2, FakeKernel::new(), &[], &[]);
    for (network, config, subnet) in [(0, VXLAN, OURS), (1, SECOND, "10.6.1.0/24")] {
        world.config_is(network, config);
        world.lease(network, subnet);
        world.leases(network, listed(&[]));
    }
    world.kernel.take_applied();
    world.config_is(0, r#"{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#);
    let problem = world.problem(Code::Config).unwrap();
    assert!(
        problem.ends_with(
            "another network of this host has the device flannel.2: give this one another VNI or name"
        ),
        "{problem}"
    );
    world.config_is(1, r#"{"Network": "10.6.0.0/16", "Backend": {"Type": "host-gw"}}"#);
    let applied = world.kernel.take_applied();
    assert!(applied.iter().all(|operation| !operation.to_string().contains("flannel.1")), "{applied:?}");
    assert!(world.status_of(0).ready && world.status_of(1).ready);
    let devices: Vec<String> = world.kernel.state().links.keys().map(ToString::to_string).collect();
    assert_eq!(devices, ["flannel.1"]);
    // Now it is free, and is taken without being told again.
    world.pass(Duration::from_secs(10));
    let devices: Vec<String> = world.kernel.state().links.keys().map(ToString::to_string).collect();
    assert_eq!((world.problem(Code::Config), devices), (None, vec!["flannel.2".to_owned()]));
}

#[test]
fn a_network_that_joined_by_another_config_forgets_the_one_that_it_could_not_have() {
    let mut world = World::of_networks(2, FakeKernel::new(), &[], &[]);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[]));
    world.config_is(1, r#"{"Network": "10.6.0.0/16", "Backend": {"Type": "vxlan", "VNI": 1}}"#);
    world.config_is(1, SECOND);
    world.lease(1, "10.6.1.0/24");
    world.leases(1, listed(&[("10.6.2.0", "192.168.64.12", "02:00:00:00:02:0c")]));
    world.pass(Duration::from_secs(60));
    assert_eq!((world.routes(), world.status_of(1).ready), (vec!["10.6.2.0/24".to_owned()], true));
}

#[test]
fn a_lease_that_comes_while_the_config_changes_is_kept_where_the_changed_network_has_it() {
    let mut world = World::with(&[]);
    world.config_is(0, VXLAN);
    world.reads_slowly = true;
    world.config_is(0, r#"{"Network": "10.7.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}"#);
    world.lease(0, OURS);
    world.reads_slowly = false;
    world.finish_reading();
    world.leases(0, listed(&[PEER_2]));
    let problem = world.problem(Code::Config).unwrap();
    assert!(problem.contains("10.5.1.0/24 is not in it"), "{problem}");
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
}

#[test]
fn a_default_route_that_comes_before_the_config_ends_nothing() {
    let mut world = World::with(&[]);
    for change in [Change::DefaultRoute, Change::Unknown, Change::SendersGone] {
        world.kernel.tell(change);
        world.hear();
        world.pass(Duration::from_secs(10));
    }
    assert_eq!((world.ended.take(), world.readings), (None, 0));
    world.config_is(0, VXLAN);
    assert_eq!(world.claim(0).attributes.public_ips.v4, Some("192.168.64.11".parse().unwrap()));
}

#[test]
fn while_a_lease_is_waited_for_the_hosts_networks_are_read_every_five_seconds() {
    let mut world = World::with(&[]);
    world.config_is(0, VXLAN);
    let before = world.network_readings;
    world.pass(Duration::from_secs(30));
    assert!((5..=7).contains(&(world.network_readings - before)), "{}", world.network_readings);
    world.lease(0, OURS);
    world.leases(0, listed(&[]));
    let before = world.network_readings;
    world.pass(Duration::from_secs(30));
    assert!(world.network_readings - before <= 2, "{}", world.network_readings);
}

#[test]
fn a_flag_that_names_no_interface_ends_the_agent_with_what_there_is() {
    let mut world = World::with(&["--iface", "eth7"]);
    world.config_is(0, VXLAN);
    let reason = world.ended.expect("it ends");
    assert!(reason.contains("no interface is called eth7; there are: eth0 (192.168.64.11)"), "{reason}");
}

#[test]
fn a_lease_that_is_lost_while_the_kernel_refuses_is_followed_when_it_no_longer_does() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2]);
    let is_address = |operation: &Operation| matches!(operation.object(), Object::Address(address) if address.address.to_string().starts_with("10.5.9."));
    world.kernel.fail_next(is_address, KernelError::Errno(12));
    world.holds(0, "10.5.9.0/24");
    assert!(!world.status().ready);
    assert!(world.problem(Code::Kernel).unwrap().contains("10.5.9.0"));
    assert_eq!(world.saved.len(), 1, "dockerd must not be told before its subnet stands");
    world.pass(Duration::from_millis(250));
    assert_eq!((world.status().ready, world.problem(Code::Kernel)), (true, None));
    assert_eq!(world.saved[1].bridges.v4, Some("10.5.9.1/24".parse().unwrap()));
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
}

#[test]
fn a_subnet_file_that_cannot_be_written_is_a_problem_and_tried_again() {
    let mut world = World::with(&[]);
    world.cannot_save = true;
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    world.pass(Duration::from_secs(5));
    assert!(world.problem(Code::Kernel).unwrap().starts_with("cannot write /run/flannel/subnet.env: "));
    assert_eq!((world.notified_ready, world.routes().len()), (0, 1), "packets pass all the same");
    world.pass(Duration::from_secs(86));
    assert!((6..=8).contains(&world.save_attempts), "slower each time: {}", world.save_attempts);
    world.cannot_save = false;
    world.pass(Duration::from_secs(30));
    assert_eq!((world.problem(Code::Kernel), world.notified_ready), (None, 1));
}

#[test]
fn peers_that_come_while_the_external_interface_changes_are_reached_from_its_new_address() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2]);
    world.interface.addresses = vec!["192.168.64.99/24".parse().unwrap()];
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.leases(0, put(PEER_3));
    assert_eq!(world.local_address(), "192.168.64.11");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.local_address(), "192.168.64.99");
    assert_eq!(world.routes(), ["10.5.2.0/24", "10.5.3.0/24"]);
    assert_eq!(world.attributes(0).public_ips.v4, Some("192.168.64.99".parse().unwrap()));
    assert_eq!(world.reconnects, 1);
    assert!(world.status().ready);
}

#[test]
fn an_external_interface_that_is_gone_for_a_moment_changes_nothing() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2]);
    world.kernel.take_applied();
    let addresses = std::mem::take(&mut world.interface.addresses);
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.pass(Duration::from_secs(20));
    assert!(world.problem(Code::Kernel).unwrap().contains("192.168.64.11 is gone"));
    world.interface.addresses = addresses;
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.pass(Duration::from_secs(60));
    assert_eq!((world.problem(Code::Kernel), world.kernel.take_applied()), (None, vec![]));
}

#[test]
fn an_external_interface_that_is_renamed_keeps_the_device_that_stands_on_it() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2]);
    world.kernel.take_applied();
    world.rename_interface("lan0");
    world.hear();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.kernel.take_applied(), []);
    assert_eq!((world.routes(), world.status().ready), (vec!["10.5.2.0/24".to_owned()], true));
    // What is deleted now is created again on the renamed interface.
    world.kernel.delete_link("flannel.1".parse().unwrap());
    world.hear();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
}

#[test]
fn an_external_interface_that_is_renamed_and_back_while_the_kernel_is_read_changes_nothing() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2]);
    world.kernel.take_applied();
    world.reads_slowly = true;
    world.rename_interface("tmp");
    world.hear();
    world.pass(Duration::from_secs(1));
    let readings = world.readings;
    // Others come and go meanwhile: what is being read is not read anew.
    for _ in 0..5 {
        world.kernel.tell(Change::Link("veth7".parse().unwrap()));
        world.kernel.tell(Change::DefaultRoute);
        world.hear();
        world.pass(Duration::from_secs(3));
    }
    assert_eq!(world.readings, readings);
    world.rename_interface("eth0");
    world.hear();
    world.pass(Duration::from_secs(1));
    world.reads_slowly = false;
    world.finish_reading();
    world.pass(Duration::from_secs(10));
    assert_eq!((world.kernel.take_applied(), world.routes()), (vec![], vec!["10.5.2.0/24".to_owned()]));
}

#[test]
fn a_device_that_went_with_its_interface_keeps_its_mac() {
    let before = World::joined(VXLAN, OURS, &[PEER_2]);
    // As flannel made it.
    before.kernel.edit(|state| {
        let device = state.links.values_mut().next().expect("a device");
        device.mac = "02:77:77:77:77:77".parse().ok();
    });
    let mut world = World::restarted(before.kernel.clone(), OURS);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    let data = world.attributes(0).data;
    assert!(format!("{data:?}").contains("MacAddr6([2, 119, 119, 119, 119, 119])"), "{data:?}");
    world.interface.addresses = vec!["192.168.64.99/24".parse().unwrap()];
    // It cannot be created before the new address is known.
    for _ in 0..2 {
        let is_device = |operation: &Operation| operation.object().as_device().is_some();
        world.kernel.fail_next(is_device, KernelError::Errno(19));
    }
    world.kernel.delete_link("flannel.1".parse().unwrap());
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.pass(Duration::from_secs(2));
    assert_eq!((world.attributes(0).data, world.local_address()), (data, "192.168.64.99".to_owned()));
}

#[test]
fn what_another_program_takes_away_is_put_back_and_counted() {
    let mut world = World::joined(VXLAN, OURS, &[PEER_2, PEER_3]);
    world
        .kernel
        .edit(|state| state.routes.retain(|key, _| key.destination != "10.5.2.0/24".parse().unwrap()));
    world.firewall.flush();
    world.hear();
    world.pass(Duration::from_millis(30));
    assert_eq!(world.routes(), ["10.5.2.0/24", "10.5.3.0/24"]);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.firewall.standing().families.len(), 1);
    assert_eq!(world.repairs().of("route"), 1);
    assert_eq!(world.repairs().of("rules"), 1);
}

#[test]
fn two_networks_stand_side_by_side_and_nothing_is_deleted_before_both_are_known() {
    let before = World::joined(VXLAN, OURS, &[PEER_2, PEER_3]);
    let mut world = World::of_networks(2, before.kernel.clone(), &[], &[]);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    assert_eq!(world.routes(), ["10.5.2.0/24", "10.5.3.0/24"], "who knows what the other network will want");
    assert!(world.status_of(0).ready, "the first does not wait for the second");
    world.leases(0, put(PEER_3));
    world.leases(0, deleted(PEER_2));
    assert_eq!(world.routes(), ["10.5.3.0/24"], "a peer that left is not waited for");
    world.leases(0, deleted(PEER_3));
    world.leases(0, put(PEER_2));
    world.config_is(1, SECOND);
    world.lease(1, "10.6.1.0/24");
    let peer = ("10.6.2.0", "192.168.64.12", "02:00:00:00:02:0c");
    world.leases(1, listed(&[peer]));
    assert_eq!(world.routes(), ["10.5.2.0/24", "10.6.2.0/24"]);
    let devices: Vec<String> = world.kernel.state().links.keys().map(ToString::to_string).collect();
    assert_eq!(devices, ["flannel.1", "flannel.2"]);
    assert_eq!(world.firewall.standing().families.len(), 2);
    let forward = world.firewall.standing().forward;
    let forward: Vec<String> =
        forward.iter().map(|(network, device)| format!("{network} {device}")).collect();
    assert_eq!(
        forward,
        ["10.5.0.0/16 flannel.1", "10.5.0.0/16 eth0", "10.6.0.0/16 flannel.2", "10.6.0.0/16 eth0"]
    );
    world.leases(0, deleted(PEER_2));
    assert_eq!(world.routes(), ["10.6.2.0/24"]);
    assert!(world.status_of(0).ready && world.status_of(1).ready);
}

#[test]
fn a_network_has_a_bridge_while_containers_need_it_and_nothing_stays_of_one_that_is_left() {
    let mut world = World::of_networks(2, FakeKernel::new(), &[], &[]);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    let before = world.kernel.state();
    world.config_is(1, SECOND);
    world.attach_containers(1, true);
    world.lease(1, "10.6.1.0/24");
    world.leases(1, listed(&[("10.6.2.0", "192.168.64.12", "02:00:00:00:02:0c")]));
    let links = |world: &World| -> Vec<String> {
        world.kernel.state().links.keys().map(ToString::to_string).collect()
    };
    assert_eq!(links(&world), ["flan-n1", "flannel.1", "flannel.2"]);
    let bridge = "10.6.1.1/24 dev flan-n1";
    assert!(world.kernel.state().addresses.keys().any(|address| address.to_string() == bridge));
    world.attach_containers(1, false);
    assert_eq!(links(&world), ["flannel.1", "flannel.2"]);
    assert!(world.status_of(1).ready && world.put_away.is_empty());
    world.leave(1);
    assert_eq!(world.kernel.state(), before);
    assert_eq!(world.put_away.len(), 1);
    assert_eq!(world.firewall.standing().families.len(), 1);
    assert!(world.status_of(0).ready);
}

#[test]
fn after_a_restart_a_network_has_its_rules_before_it_has_joined() {
    let mut before = World::of_networks(2, FakeKernel::new(), &[], &[]);
    assert_eq!(before.followed, 1, "the default network begins first");
    before.config_is(0, VXLAN);
    before.pass(Duration::ZERO);
    assert_eq!(before.followed, 2);
    before.config_is(1, SECOND);
    for (network, subnet) in [(0, OURS), (1, "10.6.1.0/24")] {
        before.lease(network, subnet);
        before.leases(network, listed(&[]));
    }
    let mut world = World::of_networks(2, before.kernel.clone(), &[OURS, "10.6.1.0/24"], &[]);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[]));
    let rules = world.firewall.standing();
    assert_eq!(rules.families, before.firewall.standing().families);
    for pair in before.firewall.standing().forward {
        assert!(rules.forward.contains(&pair), "{pair:?} in {rules:?}");
    }
}

#[test]
fn a_network_that_nobody_made_or_that_wants_what_is_taken_stops_no_other() {
    let before = World::joined(VXLAN, OURS, &[PEER_2, PEER_3]);
    let mut world = World::of_networks(4, before.kernel.clone(), &[], &[]);
    world.config_is(0, VXLAN);
    world.lease(0, OURS);
    world.leases(0, listed(&[PEER_2]));
    world.config_answer(1, Ok(None));
    world.config_answer(2, Ok(None));
    world.config_is(3, VXLAN);
    let waits = |world: &World, network| world.status_of(network).waiting_for.unwrap_or_default();
    assert!(waits(&world, 1).ends_with("n1/config in the store: there is none"), "{}", waits(&world, 1));
    assert!(waits(&world, 3).ends_with(
        "another network of this host has the device flannel.1: give this one another VNI or name"
    ));
    assert_eq!(world.routes(), ["10.5.2.0/24", "10.5.3.0/24"], "the fourth may have made the second route");
    world.config_answer(3, Ok(None));
    assert_eq!(world.routes(), ["10.5.2.0/24"]);
    // It is made later.
    world.config_is(1, SECOND);
    world.lease(1, "10.6.1.0/24");
    world.leases(1, listed(&[]));
    assert!(world.status_of(1).ready && !world.status_of(2).ready);
    assert_eq!(world.notified_ready, 1, "systemd waits for the default network alone");
}

#[test]
fn a_network_on_udp_is_ready_when_its_data_path_runs_and_not_before() {
    world::datapaths(|datapaths| datapaths.refuses = true);
    let mut world = World::with(&[]);
    world.config_is(0, UDP);
    world.lease(0, OURS);
    world.leases(0, listed(&[("10.5.2.0", "192.168.64.12", "")]));
    world.pass(Duration::from_secs(1));
    assert!(!world.status().ready);
    assert!(world.problem(Code::Kernel).unwrap().contains("no TUN here"));
    world::datapaths(|datapaths| datapaths.refuses = false);
    world.pass(Duration::from_secs(30));
    assert_eq!((world.status().ready, world.problem(Code::Kernel)), (true, None));
    world::datapaths(|datapaths| assert_eq!((datapaths.starts, datapaths.peers), (1, 1)));
    // A new address requires another data path; a new MTU alone does not.
    world.interface.addresses = vec!["192.168.64.99/24".parse().unwrap()];
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.pass(Duration::from_secs(1));
    world::datapaths(|datapaths| assert_eq!((datapaths.starts, datapaths.peers), (2, 1)));
}

#[test]
fn what_failed_for_a_long_time_is_tried_at_once_when_the_address_changes() {
    world::datapaths(|datapaths| datapaths.refuses = true);
    let mut world = World::with(&[]);
    world.config_is(0, UDP);
    world.lease(0, OURS);
    world.leases(0, listed(&[]));
    world.pass(Duration::from_secs(100));
    world::datapaths(|datapaths| datapaths.refuses = false);
    world.interface.addresses = vec!["192.168.64.99/24".parse().unwrap()];
    world.kernel.tell(Change::HostAddress("eth0".parse().unwrap()));
    world.hear();
    world.pass(Duration::from_secs(1));
    assert_eq!((world.status().ready, world.problem(Code::Kernel)), (true, None));
}

#[test]
fn another_wireguard_key_is_used_and_published_and_a_lost_one_stays_in_use() {
    let mut world = World::joined(WIREGUARD, OURS, &[]);
    let keys = |world: &World| {
        let state = world.kernel.state();
        let device = state.wireguards.values().next().expect("a device").private_key.public();
        let published = world.attributes(0).data.v4.expect("data").wireguard().expect("a key").public_key;
        (device, published)
    };
    let before = keys(&world).0;
    assert_eq!(keys(&world), (before, before));
    let other = flan_wireguard_keys::PrivateKey::from([72; 32]);
    world.key = Some(other.clone());
    world.pass(Duration::from_secs(3));
    assert_eq!(keys(&world), (other.public(), other.public()));
    world.key = None;
    world.pass(Duration::from_secs(3));
    assert_eq!(keys(&world), (other.public(), other.public()));
    let problems = world.status().problems;
    assert!(problems.iter().any(|problem| problem.code == Code::WireguardKey), "{problems:?}");
    world.key = Some(other);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.status().problems, []);
}
