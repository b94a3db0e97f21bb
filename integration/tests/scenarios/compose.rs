//! One application of Docker Compose, whose services run on three hosts of two generations of Docker.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::host::on_all;
use flan_integration::{Host, Lab, LabOptions, command, tools, wait};

use crate::docker_networks::{shown, start};
use crate::stage::{NETWORK, wait_until_all_know_each_other};

const SOON: Duration = Duration::from_secs(10);

/// The same file on each host. Its network is made where it is started first.
const APPLICATION: &str = r#"
version: "3.5"
x-service: &service
  image: flan-busybox
  command: /bin/httpd -f -p 80 -h /www
  dns: 169.254.53.53
  stop_grace_period: 0s
  networks: [back]
services:
  front: *service
  shop: *service
  db: *service
networks:
  back:
    driver: flan
    driver_opts: {flan.subnet-len: "26"}
    ipam:
      driver: flan
"#;

/// Docker Compose on a host, by its dockerd's socket.
fn compose(lab: &Lab, host: &Host, args: &[&str]) -> Result<String> {
    let file = lab.dir().join("compose.yaml");
    fs::write(&file, APPLICATION)?;
    let mut compose = Command::new("docker-compose");
    compose.env("DOCKER_HOST", format!("unix://{}", host.docker_socket().display()));
    compose.args(["-p", "app", "-f"]).arg(&file).args(args);
    command::stdout(&compose).with_context(|| format!("on {}", host.name()))
}

/// The containers of a service on a host.
fn containers(host: &Host, service: &str) -> Result<Vec<String>> {
    let filter = format!("label=com.docker.compose.service={service}");
    let said = host.docker(&["ps", "--filter", &filter, "--format", "{{.Names}}"])?;
    Ok(said.split_whitespace().map(str::to_owned).collect())
}

fn found(host: &Host, container: &str, name: &str) -> Result<Vec<Ipv4Addr>> {
    let said = host.docker(&["exec", container, "nslookup", name])?;
    let mut found: Vec<Ipv4Addr> = said
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .filter(|ip: &Ipv4Addr| !ip.is_loopback())
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn wait_until_found(host: &Host, container: &str, name: &str, count: usize) -> Result<Vec<Ipv4Addr>> {
    wait::until(&format!("{container} to find {count} of {name}"), SOON, || {
        let found = found(host, container, name)?;
        ensure!(found.len() == count, "it finds {found:?}");
        Ok(found)
    })
}

#[test]
fn services_of_an_application_find_each_other_across_hosts_and_engines() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        tools::check_for_compose()?;
        lab.set_network(NETWORK)?;
        let mut hosts = vec![lab.host("h1")?, lab.host_of_forky("h2")?, lab.host("h3")?];
        on_all(&mut hosts, start)?;
        wait_until_all_know_each_other(&hosts)?;
        on_all(&mut hosts, |host| {
            let options = host.docker_options()?;
            host.start_docker_with(&options)
        })?;

        compose(lab, &hosts[0], &["up", "-d", "front"])?;
        for host in &hosts[1..] {
            wait::until(&format!("Docker on {} to show its network", host.name()), SOON, || {
                ensure!(shown(host)? == ["app_back"]);
                Ok(())
            })?;
        }
        compose(lab, &hosts[1], &["up", "-d", "--scale", "shop=2", "shop"])?;
        compose(lab, &hosts[2], &["up", "-d", "db"])?;
        let front = containers(&hosts[0], "front")?.remove(0);
        let shops = containers(&hosts[1], "shop")?;
        let db = containers(&hosts[2], "db")?.remove(0);
        ensure!(shops.len() == 2, "{shops:?}");

        // Each by the name of its service, from whatever host and engine.
        wait_until_found(&hosts[0], &front, "shop", 2)?;
        for (host, from) in [(&hosts[0], &front), (&hosts[1], &shops[0]), (&hosts[2], &db)] {
            for service in ["front", "db"] {
                wait_until_found(host, from, service, 1)?;
                let url = format!("http://{service}/index.html");
                let page = host.docker(&["exec", from, "timeout", "5", "wget", "-q", "-O", "-", &url])?;
                assert_eq!(page.trim(), "flan", "{service} for {from}");
            }
        }

        // One fewer, and another one in its place.
        compose(lab, &hosts[1], &["up", "-d", "--scale", "shop=1", "shop"])?;
        wait_until_found(&hosts[0], &front, "shop", 1)?;
        let before = found(&hosts[0], &front, "db")?;
        compose(lab, &hosts[2], &["up", "-d", "--force-recreate", "db"])?;
        let after = wait_until_found(&hosts[0], &front, "db", 1)?;
        println!("db was at {before:?} and is at {after:?}");
        for host in &hosts {
            compose(lab, host, &["down"])?;
        }
        // It stays while a host needs it.
        hosts.iter().try_for_each(|host| {
            wait::until(&format!("{} to show it no longer", host.name()), SOON, || {
                ensure!(shown(host)?.is_empty());
                Ok(())
            })
        })
    })
}
