//! An agent with few descriptors that carries the store, and crowds at both of its ports: what is damaged in the kernel
//! meanwhile is put right, and who has something to say is served.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::holdings::{Holdings, rules};
use flan_integration::host::{STATUS_FLAGS, STATUS_PORT};
use flan_integration::inside::Inside;
use flan_integration::overlay::DEVICE;
use flan_integration::{Lab, LabOptions, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{NETWORK, text_of, wait_until_all_know_each_other};

/// As many as the agent may have open: `ulimit -n`.
const DESCRIPTORS: &str = "--nofile=64";
/// At each port, those who send half of a request and those who send nothing.
const UNFINISHED: usize = 1000;
const IDLE: usize = 100;
/// Who was sent away comes again after this.
const AGAIN: Duration = Duration::from_millis(500);

const STORE_PORT: u16 = 2379;
/// Within this a monitor is answered, which asks again when it was sent away: 1,100 others come twice a second, and who
/// is slow to say something makes room for them. Beside other scenarios, whether a try succeeds is luck, so it has many.
const ANSWER: Duration = Duration::from_secs(10);
/// Within these, with a second for a machine that does other things, damage is put right.
const OBJECT: Duration = Duration::from_secs(2);
const RULES: Duration = Duration::from_secs(6);
const ROUNDS: usize = 3;

#[test]
fn an_agent_with_few_descriptors_repairs_and_serves_while_crowds_come_to_both_of_its_ports() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let mut hosts = [lab.host("h1")?, lab.host("h2")?];
        let url = hosts[0].keep_store();
        hosts[1].use_store(&url);
        hosts[0].spawn_agent_under(&["prlimit", DESCRIPTORS], &STATUS_FLAGS)?;
        wait::until("the store in the agent to take a network config", Duration::from_secs(15), || {
            hosts[0].flanctl_with_input(&["config", "set", "-"], NETWORK)?.succeeded("flanctl config set -")
        })?;
        hosts[0].wait_for_agent()?;
        hosts[1].start_agent()?;
        wait_until_all_know_each_other(&hosts)?;
        let peer = hosts[1].subnet_env()?.base();
        let (held, filtered) = (Holdings::of(hosts[0].netns())?, rules(hosts[0].place())?);

        let crowd = Inside::of(hosts[0].netns())?;
        let status_port = STATUS_PORT.parse().context("a port")?;
        for port in [status_port, STORE_PORT] {
            for number in 0..UNFINISHED + IDLE {
                let half: &[u8] = if number < UNFINISHED { b"GET /healthz HTTP/1.1\r\nX: " } else { b"" };
                crowd.spawn(come_again(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), half));
            }
        }
        for round in 0..ROUNDS {
            std::thread::sleep(AGAIN);
            let status = wait::until("a monitor to be answered", ANSWER, || {
                hosts[0].status().with_context(|| format!("round {round}"))
            })?;
            ensure!(text_of(&status, "kernel").is_none(), "round {round}: {status}");

            hosts[0].run("sh", &["-c", &format!("ip route del {peer} dev {DEVICE}; nft flush ruleset")])?;
            wait::until("the route to be back", OBJECT, || {
                Holdings::of(hosts[0].netns())?.ensure_as(&held).with_context(|| format!("round {round}"))
            })?;
            wait::until("the rules to be back", RULES, || {
                let now = rules(hosts[0].place())?;
                ensure!(now == filtered, "round {round}: there is\n{}", now.join("\n"));
                Ok(())
            })?;
        }
        let lacked = hosts[0].log_lines(&["Too many open files"])?;
        ensure!(lacked.is_empty(), "{}", lacked.join("\n"));

        // A host that is new finds the store, and is heard of.
        let mut third = lab.host("h3")?;
        third.use_store(&url);
        third.start_agent()?;
        let [first, second] = hosts;
        wait_until_all_know_each_other(&[first, second, third])
    })
}

/// Connects, says this and waits until it is sent away; again and again.
async fn come_again(address: SocketAddr, half: &'static [u8]) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await
            && stream.write_all(half).await.is_ok()
        {
            let _ = stream.read(&mut [0; 64]).await;
            // Some servers speak first.
            let _ = stream.read(&mut [0; 64]).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
