//! Containers on the physical network, beside flan: given an interface there by flanctl or a label, or by Docker itself.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::command::Outcome;
use flan_integration::docker::{Container, IMAGE};
use flan_integration::host::on_all;
use flan_integration::lab::{OUTSIDE, OUTSIDE6, ROUTER};
use flan_integration::process::Process;
use flan_integration::{Bridge, Host, Lab, LabOptions, wait};
use serde_json::Value;

use crate::docker_networks::{create, in_network, shown, start};
use crate::stage::{NETWORK, bare_hosts, no_problem, talk_both_ways, wait_until_all_know_each_other};

/// How soon a container with a label is attached, or a new state is seen.
const SOON: Duration = Duration::from_secs(10);

/// On the LAN, where no host of the lab is.
const WEB: &str = "192.168.64.177";
const OTHER: &str = "192.168.64.178";

/// What the service flan-attach runs.
pub(crate) const FOLLOW: [&str; 2] = ["attach", "--labelled"];

/// Hosts with agents that serve Docker, and a Docker on each.
pub(crate) fn docker_hosts(lab: &Lab, mut hosts: Vec<Host>) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    on_all(&mut hosts, start)?;
    wait_until_all_know_each_other(&hosts)?;
    on_all(&mut hosts, |host| host.start_docker(Bridge::WholeSubnet))?;
    Ok(hosts)
}

fn lan(address: &str) -> String {
    format!("{address}/24")
}

pub(crate) fn attach(host: &Host, container: &str, options: &[&str]) -> Result<Outcome> {
    host.flanctl_beside_docker(&[&["attach", container], options].concat())
}

/// The reason why nothing was attached.
fn refused(outcome: &Outcome, code: i32, parts: &[&str]) -> Result<()> {
    ensure!(outcome.code == Some(code), "{outcome:?}");
    ensure!(parts.iter().all(|part| outcome.stderr.contains(part)), "{outcome:?}");
    Ok(())
}

fn attachments(host: &Host) -> Result<Vec<Value>> {
    let said = host.flanctl_beside_docker(&["attachments", "-o", "json"])?;
    said.succeeded("flanctl attachments")?;
    let list: Value = serde_json::from_str(&said.stdout)?;
    Ok(list["items"].as_array().context("no items")?.clone())
}

/// The interfaces of a container, without lo.
fn interfaces(container: &Container) -> Result<Vec<String>> {
    let said = container.exec(&["ls", "/sys/class/net"])?;
    Ok(said.split_whitespace().filter(|name| *name != "lo").map(str::to_owned).collect())
}

/// A container's routes, without those to flan's networks, which may also be said twice.
fn routes(container: &Container) -> Result<Vec<String>> {
    let said = container.exec(&["ip", "route"])?;
    let all = said.lines().filter(|line| !line.starts_with("10.5.0.0/16 ") && !line.starts_with("169.254."));
    Ok(all.map(|line| line.trim().to_owned()).collect())
}

#[test]
fn a_container_is_on_the_lan_and_on_flan_until_it_is_detached_or_ends() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = docker_hosts(lab, bare_hosts(lab, 2)?)?;
        let web = hosts[0].run_container("web", &[])?;
        let db = hosts[1].run_container("db", &[])?;
        talk_both_ways(&web, &db)?;
        let before = routes(&web)?;

        // Somebody who had the address before is still remembered on the LAN.
        hosts[1].ip(&format!("neighbour replace {WEB} lladdr 02:00:00:00:00:99 dev eth0 nud stale"))?;
        let options = ["--parent", "eth0", "--address", &lan(WEB), "--gateway", &ROUTER.to_string()];
        let said = attach(&hosts[0], "web", &options)?;
        said.succeeded("flanctl attach")?;
        ensure!(said.stdout.contains("attached web to eth0: lan0 has 192.168.64.177/24"), "{said:?}");
        let remembered = hosts[1].ip(&format!("neighbour show {WEB}"))?;
        ensure!(!remembered.contains("02:00:00:00:00:99"), "nobody was told: {remembered}");

        // From the LAN, and from a container of another host by way of its host.
        hosts[1].ping_once(WEB.parse::<Ipv4Addr>()?)?;
        assert_eq!(db.fetch_name(WEB)?, "web");
        assert_eq!(web.source_seen_by(OUTSIDE)?.to_string(), WEB, "its way out is the LAN's gateway");
        // flan is as it was.
        talk_both_ways(&web, &db)?;
        nobody_else_gets_the_address(&hosts)?;
        let second = ["--parent", "eth0", "--address", &lan(OTHER), "--gateway", &ROUTER.to_string()];
        refused(&attach(&hosts[0], "web", &second)?, 6, &["another gateway already"])?;
        assert_eq!(interfaces(&web)?, ["eth0", "lan0"], "nothing is left of the attempt");

        let items = attachments(&hosts[0])?;
        ensure!(
            items.len() == 1 && items[0]["container"] == "web" && items[0]["interface"] == "lan0",
            "{items:?}"
        );
        let said = hosts[0].flanctl_beside_docker(&["detach", "web"])?;
        said.succeeded("flanctl detach")?;
        assert_eq!(routes(&web)?, before);
        assert_eq!(interfaces(&web)?, ["eth0"]);
        ensure!(hosts[1].ping_once(WEB.parse::<Ipv4Addr>()?).is_err(), "it answers yet");
        talk_both_ways(&web, &db)?;
        refused(&hosts[0].flanctl_beside_docker(&["detach", "web"])?, 7, &["no container web is attached"])?;

        attach(&hosts[0], "web", &options)?.succeeded("flanctl attach")?;
        what_was_left_halfway_is_undone(&hosts[0], &web, &options)?;
        hosts[0].docker(&["rm", "-f", "web"])?;
        ensure!(attachments(&hosts[0])?.is_empty());
        // The kernel clears a network namespace when it gets round to it.
        wait::until("the address to be free", SOON, || {
            ensure!(hosts[1].ping_once(WEB.parse::<Ipv4Addr>()?).is_err());
            Ok(())
        })
    })
}

/// A flanctl that is killed leaves a record of a link that is not made as a whole.
fn what_was_left_halfway_is_undone(host: &Host, web: &Container, options: &[&str]) -> Result<()> {
    let directory = host.dir().join("run/flan/attachments");
    let file = fs::read_dir(&directory)?.next().context("no record")??.path();
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    record["mac"] = Value::Null;
    fs::write(&file, record.to_string())?;
    fs::write(directory.join("other.json"), "of another version")?;
    let said = attach(host, "web", options)?;
    said.succeeded("flanctl attach")?;
    ensure!(said.stderr.contains("leaving /run/flan/attachments/other.json alone"), "{said:?}");
    assert_eq!(interfaces(web)?, ["eth0", "lan0"]);
    fs::remove_file(directory.join("other.json"))?;
    Ok(())
}

/// An address is given once, on whatever host.
fn nobody_else_gets_the_address(hosts: &[Host]) -> Result<()> {
    hosts[0].run_container("web2", &[])?;
    for (host, container) in [(&hosts[0], "web2"), (&hosts[1], "db")] {
        let outcome = attach(host, container, &["--parent", "eth0", "--address", &lan(WEB)])?;
        refused(&outcome, 6, &["somebody on the LAN has the address 192.168.64.177 already", "MAC"])?;
    }
    // Nothing of the attempt is left.
    let second = attach(&hosts[0], "web2", &["--parent", "eth0", "--address", &lan(OTHER)])?;
    second.succeeded("flanctl attach")?;
    hosts[1].ping_once(OTHER.parse::<Ipv4Addr>()?)?;
    hosts[0].flanctl_beside_docker(&["detach", "web2", "--interface", "lan0"])?.succeeded("flanctl detach")
}

#[test]
fn what_cannot_be_attached_is_refused_with_what_would_work() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = docker_hosts(lab, bare_hosts(lab, 1)?)?;
        let host = &hosts[0];
        host.run_container("web", &[])?;
        host.run_container("bare", &["--network", "host"])?;
        host.docker(&["create", "--name", "asleep", IMAGE, "/bin/sleep", "60"])?;
        host.ip("link add dark type bridge")?;
        host.ip("link add lanbr type bridge")?;
        host.ip("link set lanbr up")?;
        let own = lan(&host.address().to_string());
        let eth0 = host.ip("-oneline link show dev eth0")?;
        let mac_of_eth0 =
            eth0.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no MAC")?;
        let address = lan(WEB);
        for (container, options, code, parts) in [
            ("nobody", &["--parent", "eth0", "--address", &address][..], 7, &["no container nobody"][..]),
            ("asleep", &["--parent", "eth0", "--address", &address], 6, &["does not run"]),
            ("bare", &["--parent", "eth0", "--address", &address], 6, &["the host's own network"]),
            ("web", &["--parent", "eth9", "--address", &address], 6, &["no interface eth9", "eth0"]),
            ("web", &["--parent", "lo", "--address", &address], 6, &["no Ethernet interface"]),
            ("web", &["--parent", "flannel.1", "--address", &address], 6, &["flan's own"]),
            ("web", &["--parent", "dark", "--address", &address], 6, &["ip link set dark up"]),
            ("web", &["--parent", "eth0", "--mode", "bridge", "--address", &address], 6, &["no bridge"]),
            ("web", &["--parent", "eth0", "--address", &own], 6, &["this host itself has the address"]),
            ("web", &["--parent", "eth0", "--name", "eth0", "--address", &address], 6, &["already"]),
            ("web", &["--parent", "eth0", "--address", WEB], 2, &["prefix length"]),
            ("web", &["--parent", "eth0", "--address", "192.168.64.0/24"], 2, &["the name of the network"]),
            ("web", &["--parent", "eth0", "--address", &address, "--gateway", "10.0.0.1"], 2, &["10.0.0.1"]),
            ("web", &["--parent", "eth0", "--vlan", "4095", "--address", &address], 2, &["1 to 4094"]),
            ("web", &["--parent", "eth0"], 2, &["--address"]),
            ("web", &["--parent", "eth0", "--name", "lan%d", "--address", &address], 2, &["has a %"]),
            (
                "web",
                &["--parent", "eth0", "--address", &address, "--gateway", &host.address().to_string()],
                6,
                &["an address of this host"],
            ),
            (
                "web",
                &["--parent", "eth0", "--mac", mac_of_eth0, "--address", &address],
                6,
                &["another interface on eth0 has the MAC"],
            ),
            (
                "web",
                &["--parent", "lanbr", "--mode", "bridge", "--vlan", "5", "--address", &address],
                6,
                &["vlan_filtering 1"],
            ),
        ] {
            refused(&attach(host, container, options)?, code, parts)
                .with_context(|| format!("attach {container} {}", options.join(" ")))?;
        }
        ensure!(attachments(host)?.is_empty());
        let nobody = host.flanctl_beside_docker(&[
            "attach",
            "--docker-api",
            "/run/no.sock",
            "web",
            "--parent",
            "eth0",
            "--address",
            &address,
        ])?;
        refused(&nobody, 1, &["/run/no.sock", "--docker-api"])
    })
}

#[test]
fn a_port_of_a_bridge_reaches_its_host_and_a_container_may_have_several_lans_of_both_families() -> Result<()>
{
    Lab::run(LabOptions { ipv6: true, ..LabOptions::default() }, |lab| {
        let hosts = docker_hosts(lab, bare_hosts(lab, 2)?)?;
        let web = hosts[0].run_container("web", &[])?;
        hosts[0].ip("link add lanbr type bridge")?;
        hosts[0].ip("link set lanbr up")?;
        hosts[0].ip("address add 10.44.0.1/24 dev lanbr")?;
        let mac = "02:00:00:00:44:07";
        let options = ["--parent", "lanbr", "--mode", "bridge", "--address", "10.44.0.7/24", "--mac", mac];
        attach(&hosts[0], "web", &options)?.succeeded("flanctl attach")?;
        hosts[0].ping_once(Ipv4Addr::new(10, 44, 0, 7))?;
        let seen = web.exec(&["cat", "/sys/class/net/lan0/address"])?;
        assert_eq!(seen.trim(), mac);

        // One of both families, with the LAN's gateway for IPv6 alone.
        let six = hosts[1].address6()?;
        let (prefix, own) = (format!("{six}"), "177");
        let address = format!("{}:{own}", prefix.rsplit_once(':').context("an IPv6 address")?.0);
        let router = format!("{}:1", prefix.rsplit_once(':').context("an IPv6 address")?.0);
        let six = format!("{address}/64");
        let both = ["--parent", "eth0", "--address", &lan(WEB), "--address", &six, "--gateway", &router];
        attach(&hosts[0], "web", &both)?.succeeded("flanctl attach")?;
        assert_eq!(interfaces(&web)?, ["eth0", "lan0", "lan1"]);
        hosts[1].ping_once(address.parse::<Ipv6Addr>()?)?;
        hosts[1].ping_once(WEB.parse::<Ipv4Addr>()?)?;
        web.ping(OUTSIDE6)?;
        let db = hosts[1].run_container("db", &[])?;
        let taken = attach(&hosts[1], "db", &["--parent", "eth0", "--address", &format!("{address}/64")])?;
        refused(&taken, 6, &["somebody on the LAN has the address", own])?;
        assert_eq!(interfaces(&db)?, ["eth0"], "nothing is left of the attempt");
        hosts[0].flanctl_beside_docker(&["detach", "web"])?.succeeded("flanctl detach")?;
        assert_eq!(interfaces(&web)?, ["eth0"]);
        let ports = hosts[0].ip("link show master lanbr")?;
        ensure!(ports.trim().is_empty(), "a port is left: {ports}");
        Ok(())
    })
}

#[test]
fn a_label_attaches_a_container_whenever_it_starts() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let mut hosts = docker_hosts(lab, vec![lab.host("h1")?, lab.host_of_forky("h2")?])?;
        let addresses = [hosts[1].address(), hosts[0].address()];
        hosts.iter_mut().zip(addresses).try_for_each(|(host, other)| {
            let name = host.name().to_owned();
            a_label_attaches(host, other).with_context(|| format!("on {name}"))
        })
    })
}

fn a_label_attaches(host: &mut Host, other: Ipv4Addr) -> Result<()> {
    let service = host.flanctl_service(&FOLLOW)?;
    let label = format!("flan.attach=parent=eth0,address={},gateway={ROUTER}", lan(WEB));
    let more = format!("flan.attach.more=parent=eth0,address={}", lan(OTHER));
    let web = host.run_container("web", &["--label", &label, "--label", &more])?;
    let started = Instant::now();
    wait_until_attached(&web, &["eth0", "lan0", "lan1"])?;
    println!("on two LANs {:?} after docker run has returned", started.elapsed());
    web.ping(other)?;
    let wrong =
        host.run_container("wrong", &["--label", "flan.attach=parent=eth0,adress=192.168.64.179/24"])?;
    wait_until_said(&service, &["container wrong: label flan.attach=", "\"adress\""])?;
    an_image_attaches_nobody(host, &service)?;

    host.docker(&["restart", "-t", "0", "web"])?;
    wait_until_attached(&web, &["eth0", "lan0", "lan1"])?;
    // Whoever detaches it means it, also when the service begins anew and looks at everybody.
    host.flanctl_beside_docker(&["detach", "web", "--interface", "lan1"])?.succeeded("flanctl detach")?;
    service.terminate()?;
    let service = host.flanctl_service(&FOLLOW)?;
    host.run_container("late", &["--label", "flan.attach=parent=nowhere,address=192.168.64.180/24"])?;
    wait_until_said(&service, &["container late: label flan.attach=", "no interface nowhere"])?;
    assert_eq!(interfaces(&web)?, ["eth0", "lan0"]);
    assert_eq!(interfaces(&wrong)?, ["eth0"]);
    host.docker(&["restart", "-t", "0", "web"])?;
    wait_until_attached(&web, &["eth0", "lan0", "lan1"])?;
    host.docker(&["rm", "-f", "web", "wrong", "late"])?;
    ensure!(attachments(host)?.is_empty());
    service.terminate().map(drop)
}

/// Who built an image is not asked whom its containers are attached to.
fn an_image_attaches_nobody(host: &Host, service: &Process) -> Result<()> {
    let label = "LABEL flan.attach=parent=eth0,address=192.168.64.181/24";
    let archive = host.dir().parent().context("the lab's directory")?.join("image.tar");
    host.docker(&["import", "--change", label, &archive.to_string_lossy(), "labelled"])?;
    host.docker(&["run", "-d", "--name", "cuckoo", "labelled", "/bin/sleep", "60"])?;
    wait_until_said(service, &["container cuckoo: label flan.attach=", "it is the image's"])?;
    host.docker(&["rm", "-f", "cuckoo"]).map(drop)
}

fn wait_until_attached(container: &Container, wanted: &[&str]) -> Result<()> {
    wait::until(&format!("{} to have {wanted:?}", container.name()), SOON, || {
        let names = interfaces(container)?;
        ensure!(names == wanted, "it has {names:?}");
        Ok(())
    })
}

fn wait_until_said(service: &Process, parts: &[&str]) -> Result<()> {
    wait::until(&format!("the service to say {parts:?}"), SOON, || {
        let said = fs::read_to_string(service.log())?;
        ensure!(said.lines().any(|line| parts.iter().all(|part| line.contains(part))), "{said}");
        Ok(())
    })
}

/// Docker's own macvlan, whose addresses Docker gives out of a part of the LAN.
fn macvlan(host: &Host, parent: &str, range: &str) -> Result<()> {
    let (router, parent) = (ROUTER.to_string(), format!("parent={parent}"));
    let subnet = ["--subnet", "192.168.64.0/24", "--gateway", &router, "--ip-range", range];
    let driver = ["network", "create", "-d", "macvlan", "-o", &parent];
    host.docker(&[&driver[..], &subnet, &["lan"]].concat()).map(drop)
}

#[test]
fn dockers_macvlan_and_its_other_modes_work_beside_flans_networks_on_both_generations() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let hosts = docker_hosts(lab, vec![lab.host("h1")?, lab.host_of_forky("h2")?])?;
        create(&hosts[0], &["--subnet", "10.7.0.0/16", "blue"])?;
        wait::until("Docker on h2 to show blue", SOON, || {
            ensure!(shown(&hosts[1])?.contains(&"blue".to_owned()));
            Ok(())
        })?;
        macvlan(&hosts[0], "eth0", "192.168.64.192/28")?;
        macvlan(&hosts[1], "eth0", "192.168.64.208/28")?;

        // Alone on the LAN; on the LAN and in a flan network; in flan alone.
        let alone = in_network(&hosts[0], "lan", "alone", &[])?;
        let both = in_network(&hosts[1], "blue", "both", &[])?;
        let flan = in_network(&hosts[0], "blue", "flan", &[])?;
        let on_blue = both.address()?;
        hosts[1].docker(&["network", "connect", "lan", "both"])?;
        let format = "{{.NetworkSettings.Networks.lan.IPAddress}}";
        let on_lan: Ipv4Addr = hosts[1].docker(&["inspect", "--format", format, "both"])?.trim().parse()?;
        assert_eq!(alone.fetch_name(on_lan)?, "both");
        assert_eq!(flan.fetch_name(on_blue)?, "both");
        both.ping(alone.address()?)?;
        both.ping(flan.address()?)?;
        both.ping(hosts[0].address())?;

        // Networks of a host, of nobody and of another container are what they are without flan.
        let of_host = hosts[0].run_container_at(8080, "ofhost", &["--network", "host"])?;
        ensure!(interfaces(&of_host)?.contains(&"flannel.1".to_owned()));
        assert_eq!(flan.fetch_name(format!("{}:8080", hosts[0].address()))?, "ofhost");
        let of_nobody = hosts[1].run_container("ofnobody", &["--network", "none"])?;
        assert!(interfaces(&of_nobody)?.is_empty());
        let shared = hosts[1].run_container_at(8081, "shared", &["--network", "container:both"])?;
        assert_eq!(flan.fetch_name(format!("{on_blue}:8081"))?, "shared");
        // What flanctl attaches to the one, the other has as well; and who has nothing gets the LAN alone.
        attach(&hosts[1], "shared", &["--parent", "eth0", "--address", &lan(WEB)])?
            .succeeded("attach shared")?;
        ensure!(interfaces(&both)?.contains(&"lan0".to_owned()));
        let gateway = ROUTER.to_string();
        let options = ["--parent", "eth0", "--address", &lan(OTHER), "--gateway", &gateway];
        attach(&hosts[1], "ofnobody", &options)?.succeeded("attach ofnobody")?;
        assert_eq!(of_nobody.source_seen_by(OUTSIDE)?.to_string(), OTHER);
        of_nobody.ping(alone.address()?)?;
        drop(shared);
        no_problem(&hosts[0], "bridge-differs")
    })
}
