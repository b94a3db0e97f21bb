//! Networks of IPv6 alone, and of both families.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::end::End;
use flan_integration::host::{STATUS_FLAGS, on_all};
use flan_integration::lab::{OUTSIDE, OUTSIDE6};
use flan_integration::overlay::DEVICE;
use flan_integration::subnet_env::SubnetValues;
use flan_integration::{Host, Lab, LabOptions, wait};
use serde_json::Value;

const DEVICE6: &str = "flannel-v6.1";

const LIMIT: Duration = Duration::from_secs(10);

fn with_ipv6() -> LabOptions {
    LabOptions { ipv6: true, ..LabOptions::default() }
}

fn both(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.5.0.0/16","SubnetMax":"10.5.99.0","EnableIPv6":true,"IPv6Network":"fd00:5::/48",
            "Backend":{{"Type":"{backend}"}}}}"#
    )
}

fn ipv6_only(backend: &str) -> String {
    format!(
        r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/48","Backend":{{"Type":"{backend}"}}}}"#
    )
}

/// Two hosts with agents that are ready, and what their subnet.env says.
fn two_hosts(lab: &Lab, network: &str) -> Result<(Vec<Host>, Vec<SubnetValues>)> {
    lab.set_network(network)?;
    let mut hosts = vec![lab.host("h1")?, lab.host("h2")?];
    on_all(&mut hosts, |host| host.start_agent_with(&STATUS_FLAGS))?;
    let values = hosts.iter().map(Host::subnet_values).collect::<Result<_>>()?;
    Ok((hosts, values))
}

/// The host's lease, which must stand under the key that flannel would write.
fn lease_of(lab: &Lab, values: &SubnetValues) -> Result<Value> {
    let keys = lab.store().subnet_keys()?;
    let text = lab.store().value(&format!("subnets/{}", values.key()))?;
    let text = text.with_context(|| format!("no lease {}; there are {keys:?}", values.key()))?;
    Ok(serde_json::from_str(&text)?)
}

fn has_device(host: &Host, device: &str) -> bool {
    host.ip(&format!("link show dev {device}")).is_ok()
}

fn wait_until_answered(host: &Host, target: impl Into<IpAddr>) -> Result<()> {
    let target = target.into();
    wait::until(&format!("{target} to answer {}", host.name()), LIMIT, || host.ping_once(target))
}

/// A namespace behind `docker0` with addresses of the families in use, as Docker makes one with `--ipv6`; where it can
/// be reached by IPv6.
fn end_of(host: &Host, values: &SubnetValues) -> Result<(End, Ipv6Addr)> {
    let end = match values.subnet {
        Some(_) => End::behind_bridge(host.netns(), &host.subnet_env()?)?,
        None => End::behind_bare_bridge(host.netns(), values.mtu)?,
    };
    let subnet6 = values.subnet6.context("no IPv6 subnet")?;
    let (bridge, length) = (subnet6.ip(), subnet6.prefix());
    let address = Ipv6Addr::from(u128::from(bridge) + 1);
    host.ip(&format!("address add {bridge}/{length} dev docker0 nodad"))?;
    host.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"])?;
    end.place.run("ip", ["address", "add", &format!("{address}/{length}"), "dev", "eth0", "nodad"])?;
    end.place.run("ip", ["-6", "route", "add", "default", "via", &bridge.to_string()])?;
    Ok((end, address))
}

fn wait_until_end_is_answered(end: &End, target: impl Into<IpAddr>) -> Result<()> {
    let target = target.into().to_string();
    wait::until(&format!("{target} to answer a container"), LIMIT, || {
        end.place.run("ping", ["-n", "-c", "1", "-W", "1", &target]).map(drop)
    })
}

#[test]
pub(crate) fn hosts_on_vxlan_reach_each_other_by_both_families() -> Result<()> {
    Lab::run(with_ipv6(), |lab| {
        let (hosts, values) = two_hosts(lab, &both("vxlan"))?;
        for (host, values) in hosts.iter().zip(&values) {
            assert_eq!(values.network6, Some("fd00:5::/48".parse()?));
            ensure!(values.subnet.is_some() && values.subnet6.is_some(), "subnet.env: {values:?}");
            // What fits into both devices: IPv6 outside takes 20 bytes more.
            assert_eq!(values.mtu, 1430, "{}", host.name());
            let lease = lease_of(lab, values)?;
            ensure!(lease["PublicIP"] == host.address().to_string(), "{lease}");
            ensure!(lease["PublicIPv6"] == host.address6()?.to_string(), "{lease}");
            for data in ["BackendData", "BackendV6Data"] {
                ensure!(lease[data]["VNI"] == 1 && lease[data]["VtepMAC"].is_string(), "no {data}: {lease}");
            }
            ensure!(
                has_device(host, DEVICE) && has_device(host, DEVICE6),
                "{}: a device is missing",
                host.name()
            );
        }
        for (from, to) in [(0, 1), (1, 0)] {
            wait_until_answered(&hosts[from], values[to].base()?)?;
            wait_until_answered(&hosts[from], values[to].base6()?)?;
        }

        let ends = [end_of(&hosts[0], &values[0])?, end_of(&hosts[1], &values[1])?];
        wait_until_end_is_answered(&ends[0].0, ends[1].0.address)?;
        wait_until_end_is_answered(&ends[0].0, ends[1].1)?;
        // The world outside knows no way back to the overlay: without masquerading it answers nobody.
        wait_until_end_is_answered(&ends[0].0, OUTSIDE)?;
        wait_until_end_is_answered(&ends[0].0, OUTSIDE6)
    })
}

#[test]
fn hosts_on_vxlan_reach_each_other_by_ipv6_alone() -> Result<()> {
    Lab::run(with_ipv6(), |lab| {
        let (hosts, values) = two_hosts(lab, &ipv6_only("vxlan"))?;
        for (host, values) in hosts.iter().zip(&values) {
            ensure!(values.subnet.is_none() && values.subnet6.is_some(), "subnet.env: {values:?}");
            assert_eq!(values.mtu, 1430, "{}", host.name());
            let lease = lease_of(lab, values)?;
            ensure!(lease["PublicIPv6"] == host.address6()?.to_string(), "{lease}");
            ensure!(lease["BackendV6Data"]["VtepMAC"].is_string(), "{lease}");
            ensure!(
                !has_device(host, DEVICE) && has_device(host, DEVICE6),
                "{}: not its device",
                host.name()
            );
        }
        for (from, to) in [(0, 1), (1, 0)] {
            wait_until_answered(&hosts[from], values[to].base6()?)?;
        }
        let ends = [end_of(&hosts[0], &values[0])?, end_of(&hosts[1], &values[1])?];
        wait_until_end_is_answered(&ends[0].0, ends[1].1)?;
        wait_until_end_is_answered(&ends[0].0, OUTSIDE6)
    })
}

#[test]
fn hosts_on_host_gw_reach_each_other_by_both_families() -> Result<()> {
    Lab::run(with_ipv6(), |lab| {
        let (hosts, values) = two_hosts(lab, &both("host-gw"))?;
        for (from, to) in [(0, 1), (1, 0)] {
            let (host, peer) = (&hosts[from], &hosts[to]);
            let (subnet, subnet6) = (values[to].base()?, values[to].base6()?);
            let lease = lease_of(lab, &values[from])?;
            ensure!(lease["PublicIPv6"] == host.address6()?.to_string(), "{lease}");
            wait::until(&format!("the routes of {}", host.name()), LIMIT, || {
                let v4 = host.ip(&format!("-4 route show {subnet}/24"))?;
                ensure!(v4.contains(&format!("via {} dev eth0", peer.address())), "IPv4: {v4:?}");
                let v6 = host.ip(&format!("-6 route show {subnet6}/64"))?;
                ensure!(v6.contains(&format!("via {} dev eth0", peer.address6()?)), "IPv6: {v6:?}");
                Ok(())
            })?;
        }
        let ends = [end_of(&hosts[0], &values[0])?, end_of(&hosts[1], &values[1])?];
        wait_until_end_is_answered(&ends[0].0, ends[1].0.address)?;
        wait_until_end_is_answered(&ends[0].0, ends[1].1)
    })
}
