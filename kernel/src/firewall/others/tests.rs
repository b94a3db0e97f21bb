//! Real listings of those that hosts have, against the traffic of a host with vxlan.

use super::*;

const FIREWALLD: &str = include_str!("samples/firewalld-public.json");
/// After `--zone=trusted --add-source=10.5.0.0/16` and `--add-port=8472/udp`.
const FIREWALLD_CURED: &str = include_str!("samples/firewalld-source.json");
const UFW: &str = include_str!("samples/ufw.rules");
/// After `ufw allow 8472/udp`, and `ufw route allow in on flannel.1` and `out on flannel.1`.
const UFW_CURED: &str = include_str!("samples/ufw-allowed.rules");
/// Docker 20.10 with iptables over nftables, and our chain first.
const DOCKER: &str = include_str!("samples/docker.rules");
/// Docker 29 with `--firewall-backend=nftables`.
const DOCKER_BRIDGES: &str = include_str!("samples/docker-bridges.json");

fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn traffic() -> Traffic {
    Traffic {
        families: vec![FamilyTraffic {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.52.0/24".parse().unwrap(),
            devices: vec![Way { link: name("flannel.1"), ours: true }],
        }],
        bridges: vec![(name("docker0"), "10.5.52.1/24".parse().unwrap())],
        outer: Some(Outer {
            port: 8472,
            link: name("eth0"),
            addresses: vec!["192.168.64.11".parse().unwrap()],
        }),
    }
}

fn nft(listing: &str) -> OtherRules {
    OtherRules(nft_listing::parse(listing).unwrap())
}

fn iptables(listing: &str) -> OtherRules {
    OtherRules(vec![iptables_listing::parse("iptables", false, listing)])
}

fn told(rules: &OtherRules) -> Vec<String> {
    rules.obstacles(&traffic()).iter().map(ToString::to_string).collect()
}

#[test]
fn firewalld_rejects_both_until_it_is_told() {
    assert_eq!(
        told(&nft(FIREWALLD)),
        [
            "nftables chain inet firewalld filter_FORWARD (priority 10) rejects what this host forwards between \
             containers in 10.5.0.0/16; to let it pass: firewall-cmd --permanent --zone=trusted \
             --add-source=10.5.0.0/16 && firewall-cmd --reload",
            "nftables chain inet firewalld filter_INPUT (priority 10) rejects what other hosts send to UDP port 8472; \
             to let it pass: firewall-cmd --permanent --add-port=8472/udp && firewall-cmd --reload",
        ]
    );
    assert_eq!(told(&nft(FIREWALLD_CURED)), [""; 0]);
}

#[test]
fn ufw_drops_both_until_it_is_told() {
    assert_eq!(
        told(&iptables(UFW)),
        [
            "chain FORWARD of iptables drops what this host forwards between containers in 10.5.0.0/16; to let it \
             pass: ufw route allow in on flannel.1 && ufw route allow out on flannel.1",
            "chain INPUT of iptables drops what other hosts send to UDP port 8472; to let it pass: ufw allow 8472/udp",
        ]
    );
    assert_eq!(told(&iptables(UFW_CURED)), [""; 0]);
}

#[test]
fn our_chain_first_undoes_dockers_policy() {
    assert_eq!(told(&iptables(DOCKER)), [""; 0]);
    let without_ours = DOCKER.replace("-A FORWARD -j FLAN-FORWARD\n", "");
    assert_eq!(
        told(&iptables(&without_ours)),
        [
            "chain FORWARD of iptables drops what this host forwards between containers in 10.5.0.0/16; to let it pass: \
          iptables -I FORWARD -s 10.5.0.0/16 -d 10.5.0.0/16 -j ACCEPT"
        ]
    );
}

#[test]
fn dockers_own_nftables_drop_what_comes_to_its_bridge() {
    let found = told(&nft(DOCKER_BRIDGES));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with(
        "nftables chain ip docker-bridges filter-FORWARD (priority 0) drops what this host forwards"
    ));
    assert!(found[0].contains(
        "nft insert rule ip docker-bridges filter-FORWARD ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 accept"
    ));
    // A bridge of Docker's without an address of ours is none of our concern.
    let elsewhere =
        Traffic { bridges: vec![(name("br-apps"), "10.5.52.129/25".parse().unwrap())], ..traffic() };
    assert_eq!(nft(DOCKER_BRIDGES).obstacles(&elsewhere), []);
}

#[test]
fn who_masquerades_is_found_with_each_of_dockers_backends() {
    assert_eq!(nft(DOCKER_BRIDGES).masquerading(&traffic()), [name("docker0")]);
    let rule = |rule: &str| iptables(&format!("-P POSTROUTING ACCEPT\n{rule}\n"));
    let docker = rule("-A POSTROUTING -s 10.5.52.0/24 ! -o docker0 -j MASQUERADE");
    assert_eq!(docker.masquerading(&traffic()), [name("docker0")]);
    assert_eq!(docker.obstacles(&traffic()), []);
    let others = rule("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE");
    assert_eq!(others.masquerading(&traffic()), []);
    let spared = rule(
        "-A POSTROUTING -d 10.5.0.0/16 -j RETURN\n-A POSTROUTING -s 10.5.52.0/24 ! -o docker0 -j MASQUERADE",
    );
    assert_eq!(spared.masquerading(&traffic()), []);
}

#[test]
fn a_table_of_ones_own_is_cured_by_its_own_name() {
    let chain = |policy: &str, rules: &str| {
        nft(&format!(
            r#"{{"nftables":[{{"chain":{{"family":"inet","table":"mine","name":"fwd","type":"filter","hook":"forward","prio":-5,"policy":"{policy}"}}}}{rules}]}}"#
        ))
    };
    let rule = |expression: &str| {
        format!(r#",{{"rule":{{"family":"inet","table":"mine","chain":"fwd","expr":[{expression}]}}}}"#)
    };
    let cure = "nft insert rule inet mine fwd ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 accept";
    let dropping = chain("drop", "");
    assert_eq!(dropping.obstacles(&traffic())[0].cure, cure);
    let rejecting = chain("accept", &rule(r#"{"counter":{}},{"reject":null}"#));
    assert!(told(&rejecting)[0].starts_with("nftables chain inet mine fwd (priority -5) rejects "));
    let address = |field: &str| {
        format!(
            r#"{{"match":{{"op":"==","left":{{"payload":{{"protocol":"ip","field":"{field}"}}}},"right":{{"prefix":{{"addr":"10.5.0.0","len":16}}}}}}}}"#
        )
    };
    let cured = rule(&format!(r#"{},{},{{"accept":null}}"#, address("saddr"), address("daddr")));
    assert_eq!(told(&chain("drop", &cured)), [""; 0]);
    let one_way = rule(
        r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"flannel.1"}},{"accept":null}"#,
    );
    assert_eq!(told(&chain("drop", &one_way)).len(), 1, "the other direction is dropped yet");
}

#[test]
fn each_family_is_judged_and_cured_by_itself() {
    let both = Traffic {
        families: vec![
            traffic().families.remove(0),
            FamilyTraffic {
                network: "fd00:5::/48".parse().unwrap(),
                subnet: "fd00:5:0:34::/64".parse().unwrap(),
                devices: vec![Way { link: name("flannel-v6.1"), ours: true }],
            },
        ],
        ..traffic()
    };
    let rules = OtherRules(vec![iptables_listing::parse("ip6tables-legacy", true, "-P FORWARD DROP\n")]);
    let found = rules.obstacles(&both);
    // A table of one family sees packets of that family alone.
    assert_eq!(found[0].cure, "ip6tables-legacy -I FORWARD -s fd00:5::/48 -d fd00:5::/48 -j ACCEPT");
    assert_eq!(rules.obstacles(&traffic()), []);
}
