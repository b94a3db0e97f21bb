//! An etcd with users, whose authentication is switched off and on again, and whose passwords change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flan_integration::flannel::lease_value;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::store::PREFIX;
use flan_integration::{Host, Lab, LabOptions, StoreKind, wait};

use crate::obstacles::wait_for_problem;
use crate::paper_peer::PaperPeer;
use crate::stage::{NETWORK, bare_hosts, no_problem, problem, wait_until_all_know_each_other};

/// The user of the agents.
const USER: [&str; 4] = ["--etcd-username", "flan", "--etcd-password", "s3cret"];
/// A lease that is renewed every 20 s, and a log of everything.
const FLAGS: [&str; 3] = ["--subnet-lease-ttl", "60s", "-v=5"];
const CODE: &str = "authentication-off";

/// While hosts are connected, a switch keeps nothing from them.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A renewal is due, and was tried again.
const RENEWAL: Duration = Duration::from_secs(40);
/// Each agent asks for the network config every 30 s; what it is refused then tells it of a switch.
const NOTICED: Duration = Duration::from_secs(40);

/// `etcdctl` as the administrator, with words instead of arguments.
fn as_root(lab: &Lab, words: &str) -> Result<String> {
    let args: Vec<&str> = ["--user", "root:secret"].into_iter().chain(words.split(' ')).collect();
    lab.store().ctl(&args)
}

/// Makes the agents' user anew with this password: the tokens of before are void.
fn give_password(lab: &Lab, password: &str) -> Result<()> {
    as_root(lab, "user delete flan")?;
    as_root(lab, &format!("user add flan:{password}"))?;
    as_root(lab, "user grant-role flan flan").map(drop)
}

/// Users and roles, authentication, and two hosts that have a user.
fn two_hosts_with_a_user(lab: &Lab) -> Result<Vec<Host>> {
    lab.set_network(NETWORK)?;
    for words in ["user add root:secret", "role add root", "user grant-role root root"] {
        as_root(lab, words)?;
    }
    as_root(lab, "user add flan:s3cret")?;
    as_root(lab, "role add flan")?;
    as_root(lab, &format!("role grant-permission flan --prefix=true readwrite {PREFIX}/"))?;
    as_root(lab, "user grant-role flan flan")?;
    as_root(lab, "auth enable")?;
    let mut hosts = bare_hosts(lab, 2)?;
    on_all(&mut hosts, start)?;
    wait_until_all_know_each_other(&hosts)?;
    Ok(hosts)
}

fn start(host: &mut Host) -> Result<()> {
    host.start_agent_with(&[&STATUS_FLAGS[..], &USER, &FLAGS].concat())
}

/// Starts one host more, which must reach all others.
fn another_joins(lab: &Lab, hosts: &mut Vec<Host>) -> Result<()> {
    let mut host = lab.host(&format!("h{}", hosts.len() + 1))?;
    start(&mut host)?;
    hosts.push(host);
    wait_until_all_know_each_other(hosts)
}

/// A lease appears: all hosts see it within `limit`. It goes again, so that hosts know each other alone.
fn a_lease_is_seen(lab: &Lab, hosts: &[Host], when: &str, limit: Duration) -> Result<()> {
    const JOINS: PaperPeer = PaperPeer { third: 200, mac: "02:00:00:00:02:00" };
    let key = format!("{PREFIX}/{}", JOINS.key());
    let started = Instant::now();
    as_root(lab, &format!("put {key} {}", lease_value(JOINS.public_ip(), JOINS.mac)))?;
    for host in hosts {
        wait::until(&format!("{} to see a lease, {when}", host.name()), limit, || JOINS.is_known_to(host))?;
        eprintln!("{when}: {} sees it after {:?}", host.name(), started.elapsed());
    }
    as_root(lab, &format!("del {key}"))?;
    for host in hosts {
        wait::until("the lease to be gone", limit, || JOINS.is_unknown_to(host))?;
    }
    Ok(())
}

/// The etcd lease of each host is set back to its full time.
fn all_are_renewed(lab: &Lab, hosts: &[Host]) -> Result<()> {
    let mut lowest = vec![u64::MAX; hosts.len()];
    let mut renewed = vec![false; hosts.len()];
    wait::until("all leases to be renewed", RENEWAL, || {
        for (number, host) in hosts.iter().enumerate() {
            let left = left(lab, host)?;
            renewed[number] |= left > lowest[number].saturating_add(5);
            lowest[number] = lowest[number].min(left);
        }
        ensure!(renewed.iter().all(|renewed| *renewed), "{renewed:?}, at least {lowest:?} s were left");
        Ok(())
    })
}

/// The seconds that the lease of a host lasts, by the store's word.
fn left(lab: &Lab, host: &Host) -> Result<u64> {
    let key = format!("{PREFIX}/subnets/{}", host.subnet_env()?.key());
    let fields = as_root(lab, &format!("get -w fields {key}"))?;
    let lease = fields.lines().find_map(|line| line.strip_prefix("\"Lease\" : ")).context("no lease")?;
    let told = as_root(lab, &format!("lease timetolive {:x}", lease.parse::<i64>()?))?;
    let left = told.split_once("remaining(").and_then(|(_, rest)| rest.split_once("s)"));
    left.with_context(|| told.clone())?.0.parse().with_context(|| told.clone())
}

/// No log has the password.
fn ensure_discreet(hosts: &[Host]) -> Result<()> {
    for host in hosts {
        let lines = host.log_lines(&["s3cret"])?;
        ensure!(lines.is_empty(), "the log of {} has the password: {lines:#?}", host.name());
    }
    Ok(())
}

#[test]
fn authentication_is_switched_off_and_on_again_under_agents_that_have_a_user() -> Result<()> {
    Lab::run(LabOptions { store: Some(StoreKind::Etcd), ..LabOptions::default() }, |lab| {
        let mut hosts = two_hosts_with_a_user(lab)?;

        as_root(lab, "auth disable")?;
        a_lease_is_seen(lab, &hosts, "switched off", AT_ONCE)?;
        another_joins(lab, &mut hosts)?;
        problem(&hosts[2], CODE, &["etcdctl auth enable", "everybody who reaches it"])?;

        // Each agent connects anew, asks for a token, and is told that nobody is asked for a user.
        lab.store_mut().kill_member(0)?;
        for host in &hosts {
            wait::until("the store to be missed", RENEWAL, || {
                let missed = host.log_lines(&["lost sight of the leases", "cannot reach the store"])?;
                ensure!(!missed.is_empty());
                Ok(())
            })?;
        }
        lab.store_mut().start_member(0)?;
        a_lease_is_seen(lab, &hosts, "switched off, and connected anew", Duration::from_secs(10))?;
        all_are_renewed(lab, &hosts)?;
        let missed = hosts
            .iter()
            .map(|host| Ok(host.log_lines(&["cannot renew the lease"])?.len()))
            .collect::<Result<Vec<_>>>()?;
        for host in &hosts {
            problem(host, CODE, &[])?;
        }
        let listed = lab.flanctl(&[&USER[..], &["subnets", "ls"]].concat())?;
        listed.succeeded("flanctl subnets ls")?;
        let warnings =
            listed.stderr.matches("flanctl: warning: authentication is switched off in the").count();
        ensure!(warnings == 1, "{listed:?}");
        let checked = lab.flanctl(&[&USER[..], &["store", "check"]].concat())?;
        checked.succeeded("flanctl store check")?;
        ensure!(checked.stdout.contains("authentication is switched off"), "{checked:?}");

        as_root(lab, "auth enable")?;
        a_lease_is_seen(lab, &hosts, "switched on again", AT_ONCE)?;
        another_joins(lab, &mut hosts)?;
        all_are_renewed(lab, &hosts)?;
        for host in &hosts {
            wait::until("the end of the problem", NOTICED, || no_problem(host, CODE))?;
        }
        // The fourth has never been without a token.
        for host in &hosts[..3] {
            let told = host.log_lines(&["authentication-off"])?;
            ensure!(told.len() == 2 && told[1].contains("solved: "), "{told:#?}");
        }
        ensure!(hosts[3].log_lines(&["authentication-off"])?.is_empty());
        // While etcd was away a renewal may have been due; since then there was none that failed.
        for (host, before) in hosts.iter().zip(missed.into_iter().chain([0])) {
            let told = host.log_lines(&["cannot renew the lease"])?;
            ensure!(told.len() == before, "{}: {told:#?}", host.name());
        }
        a_lease_is_seen(lab, &hosts, "in the end", AT_ONCE)?;
        ensure_discreet(&hosts)?;
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}

#[test]
fn a_password_that_is_changed_back_lets_agents_go_on() -> Result<()> {
    Lab::run(LabOptions { store: Some(StoreKind::Etcd), ..LabOptions::default() }, |lab| {
        let mut hosts = two_hosts_with_a_user(lab)?;
        // Who watches goes on to see.
        give_password(lab, "another")?;
        a_lease_is_seen(lab, &hosts, "with another password", AT_ONCE)?;
        for host in &hosts {
            wait::until("a refusal", RENEWAL, || {
                ensure!(!host.log_lines(&["invalid user ID or password"])?.is_empty());
                Ok(())
            })?;
        }
        wait_for_problem(&hosts[0], "lease", &["invalid user ID or password"], RENEWAL)?;
        give_password(lab, "s3cret")?;
        all_are_renewed(lab, &hosts)?;
        a_lease_is_seen(lab, &hosts, "with the old password again", AT_ONCE)?;

        // Who has to connect anew meanwhile sees nothing, and tries again every 10 s at the latest.
        give_password(lab, "another")?;
        lab.store_mut().kill_member(0)?;
        lab.store_mut().start_member(0)?;
        for host in &hosts {
            wait::until("the watch to be refused", RENEWAL, || {
                let lost = ["lost sight of the leases", "invalid user ID or password"];
                ensure!(!host.log_lines(&lost)?.is_empty());
                Ok(())
            })?;
        }
        give_password(lab, "s3cret")?;
        a_lease_is_seen(lab, &hosts, "connected anew with the old password", Duration::from_secs(20))?;
        all_are_renewed(lab, &hosts)?;
        ensure_discreet(&hosts)?;
        on_all(&mut hosts, Host::ensure_agent_runs)
    })
}
