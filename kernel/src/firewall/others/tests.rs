//! Real listings from hosts, against the traffic of a vxlan host.

use super::*;

const FIREWALLD: &str = include_str!("samples/firewalld-public.json");
/// After `--zone=trusted --add-source=10.5.0.0/16` and `--add-port=8472/udp`.
const FIREWALLD_CURED: &str = include_str!("samples/firewalld-source.json");
const UFW: &str = include_str!("samples/ufw.rules");
/// After `ufw allow 8472/udp`, and `ufw route allow in on flannel.1` and `out on flannel.1`.
const UFW_CURED: &str = include_str!("samples/ufw-allowed.rules");
/// Docker 20.10 with iptables over nftables, with our chain first.
const DOCKER: &str = include_str!("samples/docker.rules");
/// Docker 29 with `--firewall-backend=nftables`.
const DOCKER_BRIDGES: &str = include_str!("samples/docker-bridges.json");
/// The table `raw` of Docker 28.5 without `--allow-direct-routing`, as iptables lists it and as nft does.
const DOCKER_RAW: &str = include_str!("samples/docker-28-raw.rules");
const DOCKER_RAW_BY_NFT: &str = include_str!("samples/docker-28-raw.json");

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
    OtherRules(vec![iptables_listing::parse("iptables", false, "filter", listing)])
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
    // A Docker bridge without an address of ours does not concern us.
    let elsewhere =
        Traffic { bridges: vec![(name("br-apps"), "10.5.52.129/25".parse().unwrap())], ..traffic() };
    assert_eq!(nft(DOCKER_BRIDGES).obstacles(&elsewhere), []);
}

fn raw(listing: &str) -> OtherRules {
    OtherRules(vec![iptables_listing::parse("iptables", false, "raw", listing)])
}

#[test]
fn docker_28_drops_what_comes_from_other_hosts_until_it_is_told_to_let_it_in() {
    let told_of = |chain: &str| {
        format!(
            "{chain} drops what other hosts send to containers at docker0; to let it pass: start dockerd with \
             --allow-direct-routing (Docker 28.2 or newer)"
        )
    };
    assert_eq!(told(&raw(DOCKER_RAW)), [told_of("chain PREROUTING of iptables -t raw")]);
    let by_nft = nft(DOCKER_RAW_BY_NFT);
    assert_eq!(told(&by_nft), [told_of("nftables chain ip raw PREROUTING (priority -300)")]);
    // One problem, however many containers there are.
    let another = "-A PREROUTING -d 10.5.52.3/32 ! -i docker0 -j DROP\n";
    assert_eq!(told(&raw(&format!("{DOCKER_RAW}{another}"))).len(), 1);

    let let_in = "-P PREROUTING ACCEPT\n-A PREROUTING -i flannel.1 -j ACCEPT\n";
    assert_eq!(told(&raw(&format!("{let_in}{another}"))), [""; 0]);
    for no_matter in [
        "-d 10.5.52.2/32 -j DROP",
        "-d 10.5.52.2/32 ! -i br-apps -j DROP",
        "-d 172.18.0.2/32 ! -i docker0 -j DROP",
        "-d 127.0.0.1/32 ! -i lo -p tcp -m tcp --dport 8080 -j DROP",
    ] {
        assert_eq!(told(&raw(&format!("-P PREROUTING ACCEPT\n-A PREROUTING {no_matter}\n"))), [""; 0]);
    }
}

#[test]
fn what_is_dropped_as_soon_as_it_arrives_is_told_too() {
    let rule = |rule: &str| told(&raw(&format!("-P PREROUTING ACCEPT\n-A PREROUTING {rule}\n")));
    assert_eq!(
        rule("-s 10.0.0.0/8 ! -i docker0 -j DROP"),
        [
            "chain PREROUTING of iptables -t raw drops what this host forwards between containers in 10.5.0.0/16; to let it \
          pass: iptables -t raw -I PREROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -j ACCEPT"
        ]
    );
    assert_eq!(
        rule("-i eth0 -p udp -m udp --dport 8000:9000 -j DROP"),
        [
            "chain PREROUTING of iptables -t raw drops what other hosts send to UDP port 8472; to let it pass: iptables -t \
          raw -I PREROUTING -p udp --dport 8472 -j ACCEPT"
        ]
    );
    assert_eq!(rule("-m rpfilter --invert -j DROP"), [""; 0]);
    assert_eq!(rule("-m conntrack --ctstate INVALID -j DROP"), [""; 0]);
    assert_eq!(rule("-s 10.0.0.0/8 -i eth0 -j DROP"), [""; 0], "ours enter by flannel.1");
}

/// Debian's `/etc/nftables.conf` with a table to which iptables-nft has added Docker's chains.
const SHARED_TABLE: &str = r#"{"nftables":[{"table":{"family":"ip","name":"filter","handle":1}},
    {"chain":{"family":"ip","table":"filter","name":"input","handle":1,"type":"filter","hook":"input","prio":0,"policy":"drop"}},
    {"chain":{"family":"ip","table":"filter","name":"FORWARD","handle":3,"type":"filter","hook":"forward","prio":0,"policy":"drop"}},
    {"chain":{"family":"ip","table":"filter","name":"DOCKER","handle":5}},
    {"rule":{"family":"ip","table":"filter","chain":"input","handle":4,"expr":[
        {"match":{"op":"in","left":{"ct":{"key":"state"}},"right":"established"}},{"accept":null}]}},
    {"rule":{"family":"ip","table":"filter","chain":"FORWARD","handle":6,"expr":[
        {"counter":{"packets":0,"bytes":0}},{"jump":{"target":"DOCKER"}}]}}]}"#;

#[test]
fn chains_beside_those_of_iptables_in_one_table_are_judged_too() {
    // What iptables-nft lists of it, which omits `input`.
    let listing = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER\n-A FORWARD -j DOCKER\n";
    let by_iptables = iptables_listing::parse("iptables", false, "filter", listing);
    let OtherRules(mut tables) = nft(SHARED_TABLE);
    reading::leave_to(&by_iptables, &mut tables[0]);
    tables.push(by_iptables);
    let found = told(&OtherRules(tables));
    assert_eq!(found.len(), 2, "{found:?}");
    let drops_input =
        "nftables chain ip filter input (priority 0) drops what other hosts send to UDP port 8472";
    assert!(found[0].starts_with(drops_input), "{found:?}");
    assert!(found[1].starts_with("chain FORWARD of iptables drops what this host forwards"), "{found:?}");
}

/// Returns a chain on the input hook with one rule about a source, in nft's JSON for its right side.
fn input(policy: &str, source: &str, decision: &str) -> OtherRules {
    nft(&format!(
        r#"{{"nftables":[
            {{"set":{{"family":"inet","table":"mine","name":"cluster","type":"ipv4_addr","handle":3,
                "elem":["192.168.64.12","192.168.64.13"]}}}},
            {{"chain":{{"family":"inet","table":"mine","name":"i","type":"filter","hook":"input","prio":0,"policy":"{policy}"}}}},
            {{"rule":{{"family":"inet","table":"mine","chain":"i","expr":[{{"match":{{"op":"==",
                "left":{{"payload":{{"protocol":"ip","field":"saddr"}}}},"right":{source}}}}},{{"{decision}":null}}]}}}}]}}"#
    ))
}

#[test]
fn a_firewall_that_lets_in_hosts_by_their_addresses_is_no_obstacle() {
    for source in [r#"{"set":["192.168.88.4","192.168.88.5"]}"#, r#""@cluster""#] {
        assert_eq!(told(&input("drop", source, "accept")), [""; 0], "{source}");
    }
    let dropping = |rule: &str| told(&iptables(&format!("-P INPUT DROP\n-N peers\n{rule}\n"))).len();
    assert_eq!(dropping("-A INPUT -s 10.0.0.2/32 -j ACCEPT"), 0);
    assert_eq!(dropping("-A INPUT -m set --match-set cluster src -j ACCEPT"), 0);
    assert_eq!(dropping("-A INPUT -s 10.0.0.2/32 -j peers\n-A peers -p udp -j ACCEPT"), 0);
    // None of these admits a peer's datagrams.
    assert_eq!(dropping("-A INPUT -s 10.0.0.2/32 -p tcp -j ACCEPT"), 1);
    assert_eq!(dropping("-A INPUT -s 127.0.0.0/8 -j ACCEPT"), 1);
    assert_eq!(dropping("-A INPUT -s 10.5.0.0/16 -j ACCEPT"), 1);
    assert_eq!(dropping("-A INPUT -s 192.168.64.11/32 -j ACCEPT"), 1);
}

#[test]
fn the_trusted_overlay_network_opens_no_port() {
    let other_port = FIREWALLD_CURED.replace("8472", "8473");
    let found = told(&nft(&other_port));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("nftables chain inet firewalld filter_INPUT (priority 10) rejects"));
}

#[test]
fn a_drop_of_one_forged_or_banned_address_is_no_drop_of_the_peers() {
    assert_eq!(told(&input("accept", r#""192.168.64.11""#, "drop")), [""; 0]);
    assert_eq!(told(&input("accept", r#""@cluster""#, "drop")), [""; 0]);
    let accepting = |rule: &str| told(&iptables(&format!("-P INPUT ACCEPT\n{rule}\n"))).len();
    assert_eq!(accepting("-A INPUT -s 192.168.64.11/32 -i eth0 -j DROP"), 0);
    assert_eq!(accepting("-A INPUT -m set --match-set banned src -j DROP"), 0);
    assert_eq!(accepting("-A INPUT -s 192.168.64.0/24 -j DROP"), 1);
    assert_eq!(accepting("-A INPUT ! -s 192.168.64.11/32 -j DROP"), 1);
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
    let rules =
        OtherRules(vec![iptables_listing::parse("ip6tables-legacy", true, "filter", "-P FORWARD DROP\n")]);
    let found = rules.obstacles(&both);
    // A table of one family sees only packets of that family.
    assert_eq!(found[0].cure, "ip6tables-legacy -I FORWARD -s fd00:5::/48 -d fd00:5::/48 -j ACCEPT");
    assert_eq!(rules.obstacles(&traffic()), []);
}
