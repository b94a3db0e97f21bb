//! `demo`: two Docker hosts in network namespaces whose containers talk to each other, and what it took.

use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use flan_integration::docker::Container;
use flan_integration::host::on_all;
use flan_integration::lab::{self, OUTSIDE};
use flan_integration::process::Lifetime;
use flan_integration::{Host, Lab, LabOptions, StoreKind, interrupt, tools, wait};

/// The demo's lab, of which there is one at a time.
const NAME: &str = "demo";

const NETWORK: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// How long a network may take until the other host shows it.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

/// Two real Docker hosts, in network namespaces of this machine, in one network made by flan.
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave everything up afterwards.
    #[arg(long)]
    keep: bool,
    /// What keeps the leases.
    #[arg(long, value_enum, default_value_t = StoreKind::Embedded)]
    store: StoreKind,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Remove a demo that was left up, and whatever interrupted runs have left.
    Down,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.verb {
        None => demo(arguments.store, arguments.keep),
        Some(Verb::Down) => down(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if wait::ensure_not_interrupted().is_err() => {
            eprintln!("\nInterrupted; everything is removed again.");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nThe demo has failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(store: StoreKind, keep: bool) -> Result<()> {
    tools::check()?;
    tools::check_for_store(store)?;
    tools::check_for_flan()?;
    if lab::is_kept(NAME) {
        bail!("a demo is up already; `make demo-down` removes it");
    }
    interrupt::end_waits_on_signals()?;
    let started = Instant::now();
    let lifetime = if keep { Lifetime::Kept } else { Lifetime::Bound };

    println!(
        "Two Docker hosts, each in network namespaces of its own; this machine's network is not touched.\n"
    );
    let options = LabOptions { name: Some(NAME), store: Some(store), lifetime, ..LabOptions::default() };
    let lab = step(&format!("an underlay network and {store}"), || Lab::start(options))?;
    let mut hosts = match tell(&lab) {
        Ok(hosts) => hosts,
        Err(error) => {
            lab.show_logs_after(&error);
            return Err(error);
        }
    };
    println!();
    if keep {
        print_how_to_enter(&hosts);
        return lab.keep();
    }
    step("everything removed again", || {
        hosts.clear();
        drop(lab);
        Ok(())
    })?;
    println!("\nDone in {}. `make demo KEEP=1` leaves it up to look around.", seconds(started.elapsed()));
    Ok(())
}

/// All that the demo shows, from the network config to the list of subnets.
fn tell(lab: &Lab) -> Result<Vec<Host>> {
    step("flanctl config set: 10.5.0.0/16 over VXLAN", || lab.set_network(NETWORK))?;
    let mut hosts = step("two hosts on the underlay", || Ok(vec![lab.host("host1")?, lab.host("host2")?]))?;
    let agents = Instant::now();
    step("fland on each: leases a subnet, writes subnet.env", || {
        on_all(&mut hosts, |host| host.start_agent_with(&["--ip-masq", "--docker"]))
    })?;
    let agents = agents.elapsed();
    step("dockerd on each: --bip, --mtu and --dns", || {
        on_all(&mut hosts, |host| {
            let mut options = host.docker_options()?;
            options.push("--dns=169.254.53.53".to_owned());
            host.start_docker_with(&options)
        })
    })?;
    let containers = step("a container on each, made of busybox", || {
        Ok([hosts[0].run_container("web1", &[])?, hosts[1].run_container("web2", &[])?])
    })?;
    let [web1, web2] = &containers;
    let envs = [hosts[0].subnet_env()?, hosts[1].subnet_env()?];
    step("each host's kernel knows the other's subnet", || {
        hosts[0].wait_for_peers(&[&envs[1]])?;
        hosts[1].wait_for_peers(&[&envs[0]])
    })?;
    let round_trip = step("ping from web1 to web2 and back", || {
        web2.ping(web1.address()?)?;
        ping_time(web1, web2)
    })?;
    step("a page by HTTP from web1 to web2 and back", || {
        fetch(web1, web2)?;
        fetch(web2, web1)
    })?;
    step("a page from beyond the overlay, by the host's address", || {
        let seen = web1.source_seen_by(OUTSIDE)?;
        ensure!(seen == IpAddr::from(hosts[0].address()), "web1's packets leave as {seen}");
        Ok(())
    })?;

    let networks = Instant::now();
    step("docker network create -d flan --ipam-driver flan blue", || {
        hosts[0].docker(&["network", "create", "-d", "flan", "--ipam-driver", "flan", "blue"])
    })?;
    step("docker network ls on host2 shows blue", || {
        wait::until("host2 to show the network", NETWORK_LIMIT, || {
            let list = hosts[1].docker(&["network", "ls", "--format", "{{.Name}}"])?;
            ensure!(list.lines().any(|name| name == "blue"), "{list}");
            Ok(())
        })
    })?;
    let in_blue = step("a container of blue on each", || {
        let options = ["--network", "blue"];
        Ok([hosts[0].run_container("web", &options)?, hosts[1].run_container("shell", &options)?])
    })?;
    step("a page by HTTP from web to shell and back", || {
        fetch(&in_blue[0], &in_blue[1])?;
        fetch(&in_blue[1], &in_blue[0])
    })?;
    step("the page of web on host1, by its name, from host2", || {
        wait::until("host2 to know the name web", NETWORK_LIMIT, || {
            let answered = in_blue[1].fetch_name("web")?;
            ensure!(answered == "web", "{answered} answers for web");
            Ok(())
        })
    })?;
    let networks = networks.elapsed();

    println!("\nflanctl network inspect blue");
    let blue = lab.flanctl(&["network", "inspect", "blue"])?;
    blue.succeeded("flanctl network inspect")?;
    print!("{}", indented(&blue.stdout));
    println!("\nflanctl subnets ls");
    let list = lab.flanctl(&["subnets", "ls"])?;
    list.succeeded("flanctl subnets ls")?;
    print!("{}", indented(&list.stdout));

    println!("\nWhat happened");
    for ((host, env), container) in hosts.iter().zip(&envs).zip(&containers) {
        println!(
            "  {} ({}) leased {}; its container {} has {}.",
            host.name(),
            host.address(),
            env.base(),
            container.name(),
            container.address()?
        );
    }
    println!("  Both agents were ready {} after their start.", seconds(agents));
    println!("  Ping from container to container across the hosts: {round_trip} ms.");
    println!("  The network blue, made on one host and used by name on both, took {}.", seconds(networks));
    println!("  Each container sees the other under its own address; the world outside sees the host's.");
    Ok(hosts)
}

/// `from` gets the page of `to`, and `to` sees the request come from `from`'s own address.
fn fetch(from: &Container, to: &Container) -> Result<()> {
    let (source, target) = (from.address()?, to.address()?);
    let name = from.fetch_name(target)?;
    ensure!(name == to.name(), "{target} is not {} but {name:?}", to.name());
    let seen = from.source_seen_by(target)?;
    ensure!(seen == source, "{} sees {} come from {seen}, not from {source}", to.name(), from.name());
    Ok(())
}

/// The average round trip in milliseconds.
fn ping_time(from: &Container, to: &Container) -> Result<String> {
    let output = from.exec(&["ping", "-c", "5", "-i", "0.05", &to.address()?.to_string()])?;
    ensure!(output.contains(" 0% packet loss"), "{output}");
    let average = output.lines().last().and_then(|line| line.split('/').nth(3));
    Ok(average.with_context(|| format!("no summary: {output}"))?.to_owned())
}

fn down() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "this needs root: `sudo make demo-down`");
    let removal = lab::remove(NAME)?;
    if removal.in_use.iter().any(|id| id == NAME) {
        bail!("the demo is running at this moment; end it with Ctrl-C");
    }
    match removal.removed.len() {
        0 => println!("There was no demo to remove."),
        1 => println!("Removed one lab: processes, namespaces and files."),
        count => println!("Removed {count} labs: processes, namespaces and files."),
    }
    Ok(())
}

fn print_how_to_enter(hosts: &[Host]) {
    println!("Everything stays up. As root:");
    for host in hosts {
        println!("\n  {}, as if you had logged in there (docker, flanctl, ip ... work):", host.name());
        println!("    nsenter --target {} --net --mount --uts", host.init_pid());
        println!("  its network alone, and its Docker, from here:");
        println!("    ip netns exec {} ip route", host.netns().name());
        println!("    DOCKER_HOST=unix://{} docker ps", host.docker_socket().display());
        println!("  its agent's log:");
        println!("    {}", host.agent_log().display());
    }
    println!("\n`make demo-down` removes it all.");
}

/// Does one step, its name shown before and its time after.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {name:<58}");
    // Shown while it works; if standard output is gone there is nobody to tell.
    let _ = std::io::stdout().flush();
    let started = Instant::now();
    let result = wait::ensure_not_interrupted().and_then(|()| work());
    match &result {
        Ok(_) => println!("{:>8}", seconds(started.elapsed())),
        Err(_) => println!("  failed"),
    }
    result.with_context(|| format!("at the step {name:?}"))
}

fn seconds(time: Duration) -> impl Display {
    format!("{:.1} s", time.as_secs_f64())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
