//! Names of containers across hosts.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::docker::Container;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::lab::ROUTER;
use flan_integration::process::{Lifetime, Process};
use flan_integration::store::PREFIX;
use flan_integration::{Host, Lab, LabOptions, wait};

use crate::docker_networks::{create, in_network, shown};
use crate::obstacles::wait_for_problem;
use crate::stage::{NETWORK, bare_hosts, wait_until_all_know_each_other};

/// Names come and go this soon. People are promised one second on a machine of their own.
const SOON: Duration = Duration::from_secs(5);
/// The names of a dead host are gone within this time.
const DEATH: Duration = Duration::from_secs(35);

/// Where fland answers the containers of its host.
const RESOLVER: &str = "169.254.53.53";

/// Who answers the site's names.
#[derive(Clone, Copy)]
enum Site {
    /// The agent passes questions on to the site's server.
    ByTheAgent,
    /// The agent refuses, and containers ask the site's server themselves.
    BehindTheAgent,
}

fn start(host: &mut Host, site: Site) -> Result<()> {
    let upstream = match site {
        Site::ByTheAgent => format!("--names-upstream={ROUTER}"),
        Site::BehindTheAgent => "--names-upstream=none".to_owned(),
    };
    host.start_agent_with(&[&STATUS_FLAGS[..], &["--docker", &upstream]].concat())
}

/// A host's dockerd as the drop-in starts it, with its containers asking the agent for names.
fn start_docker(host: &mut Host, site: Site) -> Result<()> {
    let mut options = host.docker_options()?;
    options.push(format!("--dns={RESOLVER}"));
    if let Site::BehindTheAgent = site {
        options.push(format!("--dns={ROUTER}"));
    }
    host.start_docker_with(&options)
}

/// Two hosts whose Dockers both show network blue.
fn hosts_with_blue(lab: &Lab, mut hosts: Vec<Host>, site: Site) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    on_all(&mut hosts, |host| start(host, site))?;
    wait_until_all_know_each_other(&hosts)?;
    on_all(&mut hosts, |host| start_docker(host, site))?;
    create(&hosts[0], &["--subnet", "10.7.0.0/16", "blue"])?;
    wait::until("Docker on the other to show blue", SOON, || {
        ensure!(shown(&hosts[1])?.contains(&"blue".to_owned()));
        Ok(())
    })?;
    Ok(hosts)
}

/// The site's DNS server, which knows one name.
fn site(lab: &Lab) -> Result<Process> {
    let mut dnsmasq = lab.underlay().place().command("dnsmasq");
    dnsmasq.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root"]);
    dnsmasq.args([
        &format!("--listen-address={ROUTER}"),
        "--local=/site.example/",
        "--host-record=printer.site.example,192.0.2.7",
        "--pid-file=",
    ]);
    Process::spawn("dnsmasq", &dnsmasq, &lab.dir().join("dnsmasq.log"), Lifetime::Bound)
}

/// What the container's own resolver says of a name.
fn look_up(from: &Container, name: &str) -> Result<Vec<IpAddr>> {
    let said = from.exec(&["nslookup", name])?;
    let mut found: Vec<IpAddr> = Vec::new();
    // busybox 1.30 writes "Address 1: 10.7.1.2 web"; later ones "Address: 10.7.1.2".
    for line in said.lines().filter(|line| line.starts_with("Address")) {
        let word = line.split(": ").nth(1).and_then(|rest| rest.split_whitespace().next());
        found.extend(word.and_then(|word| word.parse::<IpAddr>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    // That of the server, which it names first.
    found.retain(|address| *address != IpAddr::from([127, 0, 0, 11]));
    ensure!(!found.is_empty(), "{said}");
    Ok(found)
}

fn finds(from: &Container, name: &str, address: IpAddr) -> Result<()> {
    let found = look_up(from, name)?;
    ensure!(found.contains(&address), "{name} is {found:?} for {}, not {address}", from.name());
    Ok(())
}

fn finds_soon(from: &Container, name: &str, address: IpAddr) -> Result<()> {
    wait::until(&format!("{} to find {name}", from.name()), SOON, || finds(from, name, address))
}

fn finds_no_longer(from: &Container, name: &str, limit: Duration) -> Result<()> {
    wait::until(&format!("{} to find {name} no longer", from.name()), limit, || {
        let said = from.exec_outcome(&["nslookup", name])?;
        ensure!(said.code != Some(0), "{said:?}");
        Ok(())
    })
}

#[test]
fn containers_find_each_other_by_name_across_hosts_and_nobody_of_another_network() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let _site = site(lab)?;
        let hosts = hosts_with_blue(lab, bare_hosts(lab, 2)?, Site::ByTheAgent)?;
        the_story_of_names(&hosts)?;
        the_names_of_a_dead_host_end_and_a_store_that_is_away_ends_none(lab, hosts)
    })
}

#[test]
fn containers_of_two_generations_of_docker_find_each_other_by_name() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let _site = site(lab)?;
        let hosts = vec![lab.host("h1")?, lab.host_of_forky("h2")?];
        let hosts = hosts_with_blue(lab, hosts, Site::BehindTheAgent)?;
        the_story_of_names(&hosts)
    })
}

fn the_story_of_names(hosts: &[Host]) -> Result<()> {
    let web = in_network(&hosts[0], "blue", "web", &[])?;
    let begun = Instant::now();
    let db = in_network(&hosts[1], "blue", "db.1", &["--network-alias", "Store"])?;
    let db_address = IpAddr::V4(db.address()?);
    let started = begun.elapsed();
    finds_soon(&web, "db.1", db_address)?;
    println!("found {:?} after docker run, which took {started:?}", begun.elapsed() - started);
    for name in ["store", "STORE.blue", "db.1.blue", "db.1.blue.flan.internal"] {
        finds(&web, name, db_address)?;
    }
    finds_soon(&db, "web", IpAddr::V4(web.address()?))?;
    // By the container's own functions, as programs do it.
    assert_eq!(web.fetch_name("store")?, "db.1");
    assert_eq!(db.fetch_name("web.blue")?, "web");
    compile(hosts)?;
    programs_find(&hosts[0], &web, "store", db_address)?;
    let reverse = web.exec(&["nslookup", &db_address.to_string()])?;
    ensure!(reverse.contains("db.1.blue.flan.internal"), "{reverse}");

    // On docker0, and in a network that only this host's Docker has.
    let plain = [hosts[0].run_container("plain1", &[])?, hosts[1].run_container("plain2", &[])?];
    let plain2 = IpAddr::V4(plain[1].address()?);
    finds_soon(&plain[0], "plain2", plain2)?;
    finds(&plain[0], "plain2.flan.internal", plain2)?;
    hosts[0].docker(&["network", "create", "local"])?;
    let local = in_network(&hosts[0], "local", "local", &[])?;
    for (from, name) in [
        (&plain[0], "db.1"),
        (&plain[0], "web.blue.flan.internal"),
        (&web, "plain2"),
        (&web, "plain2.flan.internal"),
        (&local, "web.blue.flan.internal"),
        (&local, "store"),
    ] {
        let said = from.exec_outcome(&["nslookup", name])?;
        ensure!(said.code != Some(0), "{} finds {name}: {said:?}", from.name());
    }
    // The site's own names.
    let in_host = hosts[0].run_container("in-host", &["--network", "host"])?;
    for (host, from) in [(0, &web), (1, &db), (0, &plain[0]), (0, &local), (0, &in_host)] {
        programs_find(&hosts[host], from, "printer.site.example", "192.0.2.7".parse()?)?;
    }
    // Connected while it runs, it finds those of both.
    hosts[0].docker(&["network", "connect", "blue", "plain1"])?;
    finds_soon(&plain[0], "store", db_address)?;

    networks_are_connected_and_left_as_ever(&hosts[0], &web, &plain[0])?;

    hosts[1].docker(&["rename", "db.1", "db.2"])?;
    finds_soon(&web, "db.2", db_address)?;
    finds_no_longer(&web, "db.1.blue.flan.internal", SOON)?;
    hosts[1].docker(&["rm", "-f", "db.2"])?;
    finds_no_longer(&web, "db.2.blue", SOON)?;
    let again = in_network(&hosts[1], "blue", "db.1", &["--network-alias", "store"])?;
    finds_soon(&web, "store", IpAddr::V4(again.address()?))
}

/// The way to the server of names is in the way of none of Docker's own.
fn networks_are_connected_and_left_as_ever(host: &Host, web: &Container, plain: &Container) -> Result<()> {
    host.docker(&["network", "connect", "bridge", web.name()])?;
    let out = web.exec(&["ip", "route"])?;
    ensure!(out.contains("default "), "no way out:\n{out}");
    finds_soon(web, "plain2.flan.internal", look_up(plain, "plain2")?[0])?;
    host.docker(&["network", "create", "app"])?;
    for network in ["app", "green"] {
        if network == "green" {
            create(host, &["green"])?;
        }
        host.docker(&["network", "connect", network, web.name()])?;
        host.docker(&["network", "disconnect", network, web.name()])?;
    }
    host.docker(&["network", "connect", "app", plain.name()])?;
    for (network, container) in [("bridge", web), ("app", plain)] {
        host.docker(&["network", "disconnect", network, container.name()])?;
        let out = container.exec(&["ip", "route"])?;
        ensure!(out.contains("default "), "no way out:\n{out}");
    }
    finds(web, "store", look_up(web, "db.1")?[0])?;
    host.docker(&["network", "rm", "green", "app"]).map(drop)
}

/// The C libraries differ: glibc's asks one server after another, musl's asks all at once.
const LIBRARIES: [(&str, &str); 2] = [("cc", "look-up-glibc"), ("musl-gcc", "look-up-musl")];

/// Makes a program of each C library that looks up a name.
fn compile(hosts: &[Host]) -> Result<()> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/look_up.c");
    for (host, (compiler, program)) in hosts.iter().flat_map(|host| LIBRARIES.map(|library| (host, library)))
    {
        let mut command = Command::new(compiler);
        let compiled = command.args(["-static", "-o"]).arg(host.dir().join(program)).arg(source).output();
        let compiled = compiled.with_context(|| format!("cannot run {compiler}"))?;
        ensure!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    }
    Ok(())
}

/// A program in the container finds the name, whichever its C library.
fn programs_find(host: &Host, container: &Container, name: &str, address: IpAddr) -> Result<()> {
    for (_, program) in LIBRARIES {
        let target = format!("{}:/bin/{program}", container.name());
        host.docker(&["cp", &host.dir().join(program).to_string_lossy(), &target])?;
        wait::until(&format!("{program} in {} to find {name}", container.name()), SOON, || {
            let said = container.exec(&[&format!("/bin/{program}"), name])?;
            ensure!(said.lines().any(|line| line.parse() == Ok(address)), "{said}");
            Ok(())
        })?;
    }
    Ok(())
}

fn the_names_of_a_dead_host_end_and_a_store_that_is_away_ends_none(
    lab: &mut Lab,
    mut hosts: Vec<Host>,
) -> Result<()> {
    // What anybody writes there hurts nobody.
    let junk = format!("{PREFIX}/blue/endpoints/junk");
    for value in ["{", r#"{"Name":"web","Host":"h9","NodeID":"h9","Addresses":["10.7.9.9"]}"#] {
        lab.store().put(junk.trim_start_matches(PREFIX).trim_start_matches('/'), value)?;
    }
    let web = Container::clone(&in_network(&hosts[0], "blue", "web2", &[])?);
    let db = look_up(&web, "db.1")?;
    ensure!(!look_up(&web, "web.blue")?.contains(&"10.7.9.9".parse()?), "a dead host's name is found");
    lab.store_mut().kill_member(0)?;
    std::thread::sleep(Duration::from_secs(25));
    assert_eq!(look_up(&web, "db.1")?, db);
    lab.store_mut().start_member(0)?;
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(look_up(&web, "db.1")?, db);

    hosts[1].stop_docker()?;
    hosts[1].kill_agent()?;
    finds_no_longer(&web, "db.1.blue.flan.internal", DEATH)
}

#[test]
fn a_site_with_a_resolver_on_port_53_is_told_and_its_names_come_when_it_makes_room() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        lab.set_network(NETWORK)?;
        let mut host = lab.host("h1")?;
        let mut dnsmasq = host.place().command("dnsmasq");
        dnsmasq.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=root", "--pid-file="]);
        let everywhere =
            Process::spawn("dnsmasq", &dnsmasq, &lab.dir().join("dnsmasq.log"), Lifetime::Bound)?;
        wait::until("dnsmasq to listen", SOON, || {
            let sockets = host.run("ss", &["-Hlun", "sport = 53"])?;
            ensure!(!sockets.is_empty(), "nobody listens");
            Ok(())
        })?;
        start(&mut host, Site::ByTheAgent)?;
        wait_for_problem(&host, "names", &["port 53", "--names=false"], SOON)?;
        everywhere.kill()?;
        start_docker(&mut host, Site::ByTheAgent)?;
        wait::until("the problem to go", SOON, || {
            ensure!(!host.status()?["problems"].to_string().contains("\"names\""));
            Ok(())
        })?;
        let one = host.run_container("one", &[])?;
        let address = IpAddr::V4(one.address()?);
        finds_soon(&one, "one.flan.internal", address)?;
        let log = fs::read_to_string(host.dir().join("fland.log")).context("the agent's log")?;
        let warnings =
            log.lines().filter(|line| line.contains(" WARN ") && line.contains("cannot serve names"));
        ensure!(warnings.count() == 1, "{log}");
        host.stop_docker()?;
        host.stop_agent()?;
        host.flanctl(&["leave", "--yes"])?.succeeded("flanctl leave")?;
        let links = host.ip("-br link")?;
        ensure!(!links.contains("flan-"), "{links}");
        Ok(())
    })
}
