//! The stage before the play: a lab works without flan, and goes without a trace.

use std::fs;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::netns::names_with_prefix;
use flan_integration::overlay::Overlay;
use flan_integration::wait;
use flan_integration::{Lab, LabOptions};

use crate::stage::{NETWORK, two_flannel_hosts};

/// What of a lab is still on the machine: namespaces, files, cgroups, mounts, processes.
fn traces(dir: &Path) -> Result<Vec<PathBuf>> {
    let name = dir.file_name().and_then(|name| name.to_str()).context("the lab has no name")?;
    let namespaces = names_with_prefix(&format!("{name}-"))?;
    let mut traces: Vec<PathBuf> =
        namespaces.iter().map(|netns| Path::new("/run/netns").join(netns)).collect();
    traces.extend(dir.exists().then(|| dir.to_owned()));
    let groups = fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path().join(name));
    traces.extend(groups.chain([Path::new("/sys/fs/cgroup").join(name)]).filter(|group| group.exists()));
    let mounted = fs::read_to_string("/proc/self/mounts")?.contains(name);
    traces.extend(mounted.then(|| "/proc/self/mounts".into()));
    for process in fs::read_dir("/proc")?.flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(name) {
            traces.push(process.path());
        }
    }
    Ok(traces)
}

// Without this the stories of flan prove little: the network carries containers' packets, and loss and deletion are seen.
#[test]
fn containers_talk_over_a_vxlan_made_by_hand_and_the_witnesses_see() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (mut hosts, ..) = two_flannel_hosts(lab)?;
        let web1 = hosts[0].run_container("web1", &[])?;
        let web2 = hosts[1].run_container("web2", &[])?;
        let mut monitor = hosts[0].monitor()?;

        assert_eq!(web1.fetch_name(web2.address()?)?, "web2");
        assert_eq!(web2.fetch_name(web1.address()?)?, "web1");
        web1.ping(web2.address()?)?;
        let mut ping = hosts[0].ping_from(&web1, web2.address()?)?;
        ping.wait_for_answers(50)?;
        ping.stop()?.nothing_lost(50)?;

        // The witnesses are not blind.
        assert_eq!(hosts[0].overlay()?.complete_peers(), ["10.5.4.0/24".to_owned()].into());
        hosts[0].ip("route del 10.5.4.0/24")?;
        ensure!(monitor.deletions("10.5.4.0/24")?.len() == 1);
        ensure!(!hosts[0].overlay()?.has_no_remains());
        let mut ping = hosts[1].ping(hosts[0].address())?;
        hosts[0].ip("link set eth0 down")?;
        let address = hosts[0].address().to_string();
        ensure!(
            hosts[1].run("ping", &["-c", "1", "-W", "1", &address]).is_err(),
            "a dead link carries packets"
        );
        hosts[0].ip("link set eth0 up")?;
        ping.wait_for_answers(5)?;
        ensure!(ping.stop()?.lost() > 0, "no loss seen on a dead link");
        Ok(())
    })
}

#[test]
fn etcd_of_three_members_survives_the_loss_of_one() -> Result<()> {
    Lab::run(LabOptions { store_members: 3, ..LabOptions::default() }, |lab| {
        lab.store().put("config", r#"{"Network":"10.4.0.0/16","Backend":{"Type":"vxlan"}}"#)?;
        lab.store_mut().kill_member(0)?;
        wait::until("the two others to agree on a leader", Duration::from_secs(10), || {
            lab.store().put("config", NETWORK)
        })?;
        lab.store_mut().start_member(0)?;
        assert_eq!(lab.store().value("config")?.as_deref(), Some(NETWORK));
        lab.store().compact()
    })
}

#[test]
fn hosts_on_two_segments_reach_each_other_and_the_store_through_the_router_alone() -> Result<()> {
    Lab::run(LabOptions::default(), |lab| {
        let (near, far) = (lab.host("near")?, lab.host_behind_router("far")?);
        let store: Ipv4Addr = "192.168.64.2".parse()?;
        for (from, to) in [(&near, far.address()), (&far, near.address()), (&far, store)] {
            from.ping_once(to)?;
        }
        // On the link of one, the other is not to be found.
        far.ip("route del default")?;
        ensure!(far.ping_once(near.address()).is_err(), "reached without a router");
        Ok(())
    })
}

#[test]
fn a_panic_leaves_nothing_behind() -> Result<()> {
    let mut dir = PathBuf::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        Lab::run(LabOptions::default(), |lab| {
            dir = lab.dir().to_owned();
            let (hosts, ..) = two_flannel_hosts(lab)?;
            hosts[0].run_container("web1", &[])?;
            assert!(!traces(&dir)?.is_empty());
            assert_eq!(
                Overlay::of(hosts[1].netns())?,
                Overlay::default(),
                "this is the panic that is wanted"
            );
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(traces(&dir)?, Vec::<PathBuf>::new());
    Ok(())
}
