//! Tests of the `fland` process: its environment, exit codes, and notifications to systemd.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

fn fland(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fland"));
    command.args(arguments).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Returns the exit code and the whole output.
fn ended(output: Output) -> (Option<i32>, String) {
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// Kills the process even if the test fails.
struct Running(Option<Child>);

impl Running {
    fn stopped_by(mut self, signal: Signal) -> (Option<i32>, String) {
        let child = self.0.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        ended(child.wait_with_output().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts a store and waits until it reports that it is ready.
fn store(directory: &Path, environment: &[(&str, &str)]) -> Running {
    let path = directory.join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = fland(&["store", "--listen-client-urls=http://127.0.0.1:0"]);
    command.envs(environment.iter().copied());
    command.env("NOTIFY_SOCKET", &path).env("FLAND_DATA_DIR", directory.join("data"));
    let running = Running(Some(command.spawn().unwrap()));
    let mut message = [0; 256];
    let length = systemd.recv(&mut message).unwrap();
    assert_eq!(std::str::from_utf8(&message[..length]), Ok("READY=1\n"));
    running
}

#[test]
fn a_store_says_when_it_serves_and_stops_on_a_signal() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let (code, said) = store(directory.path(), &[]).stopped_by(signal);
        assert_eq!(code, Some(0), "{said}");
        let data = directory.path().join("data");
        for part in ["serving the store", "http://127.0.0.1:", &data.display().to_string(), "stopping"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn a_directory_that_others_can_read_is_told_with_what_closes_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let warning =
        format!("other users can read {0}, which holds the store; run: chmod 700 {0}", data.display());
    for (mode, is_told) in [(0o755, true), (0o750, true), (0o700, false)] {
        std::fs::set_permissions(&data, Permissions::from_mode(mode)).unwrap();
        let (_, said) = store(directory.path(), &[]).stopped_by(Signal::TERM);
        assert_eq!(said.contains(&warning), is_told, "{mode:o}: {said}");
        std::fs::remove_file(directory.path().join("notify")).unwrap();
    }
}

#[test]
fn the_environment_of_an_agent_does_not_keep_a_store_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let environment = [
        ("FLAND_ETCD_ENDPOINTS", "http://10.0.0.2:2379"),
        ("FLAND_STORE_LISTEN", "http://127.0.0.1:2379"),
        ("FLAND_STORE_KEY_FILE", "key.pem"),
    ];
    let (code, said) = store(directory.path(), &environment).stopped_by(Signal::TERM);
    assert_eq!(code, Some(0), "{said}");
}

#[test]
fn a_setting_that_is_refused_ends_with_2() {
    let open = fland(&["store"]).env("FLAND_LISTEN_CLIENT_URLS", "http://192.0.2.1:2379").output().unwrap();
    let (code, said) = ended(open);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("http://192.0.2.1:2379") && said.contains("--store-insecure"), "{said}");

    for variable in ["FLAND_ETCD_ENDPOINTS", "FLANNELD_ETCD_ENDPOINTS"] {
        let both =
            fland(&["--embedded-store=/no/such"]).env(variable, "http://10.0.0.2:2379").output().unwrap();
        let (code, said) = ended(both);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("http://10.0.0.2:2379") && said.contains(variable), "{said}");
    }
}

#[test]
fn a_flag_of_flannels_that_fland_lacks_is_refused_by_name() {
    for flag in [
        "--iptables-resync=5",
        "--net-config-path=/etc/kube-flannel/net-conf.json",
        "--kube-subnet-mgr",
        "--kube-api-url=https://10.0.0.1:6443",
        "--kubeconfig-file=/etc/kube",
        "--set-node-network-unavailable",
    ] {
        let (code, said) = ended(fland(&[flag]).output().unwrap());
        assert_eq!(code, Some(2), "{said}");
        let name = flag.split('=').next().unwrap();
        assert!(said.contains(&format!("unexpected argument '{name}'")), "{said}");
    }
}

#[test]
fn the_help_of_the_store_tells_of_the_store_alone() {
    let (code, help) = ended(fland(&["store", "--help"]).output().unwrap());
    assert_eq!(code, Some(0), "{help}");
    assert!(help.contains("--data-dir") && help.contains("--listen-client-urls"), "{help}");
    assert!(!help.contains("--etcd-prefix") && !help.contains("--iface"), "{help}");
}

#[test]
fn a_certificate_that_cannot_work_ends_a_store_at_its_start_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = directory.path().join("store.pem");
    std::fs::write(&certificate, "").unwrap();
    let file = certificate.display().to_string();
    let data = directory.path().join("data").display().to_string();
    let tls = ["--listen-client-urls=https://127.0.0.1:0", "--cert-file", &file, "--key-file", &file];
    let mut command = fland(&[&["store", "--data-dir", &data][..], &tls[..]].concat());
    let (code, said) = ended(command.output().unwrap());
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("the store's certificate {file} is empty")), "{said}");
}
