//! What `docs/tls.md` tells an operator to type, typed: certificates by openssl, a store that demands them, agents and
//! `flanctl` that have them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::clock::Clock;
use flan_integration::command::{self, Outcome};
use flan_integration::process::{Lifetime, Process};
use flan_integration::{Host, Lab, LabOptions, tools, wait};

use crate::stage::NETWORK;

const START_LIMIT: Duration = Duration::from_secs(20);
const UNREACHABLE: i32 = 3;

/// The manual, with the addresses and directories of this lab in place of those that it names.
struct Manual {
    text: String,
    dir: PathBuf,
    store: String,
}

impl Manual {
    /// `store` is the host that carries the store. Its files come into a directory of the lab.
    fn open(lab: &Lab, store: &Host) -> Result<Self> {
        tools::check_for_openssl()?;
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/tls.md");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { text, dir: lab.dir().join("flan"), store: store.address().to_string() })
    }

    /// The blocks of one language, as they stand.
    fn blocks(&self, language: &str) -> Vec<&str> {
        let start = format!("```{language}\n");
        let rest = self.text.split(start.as_str()).skip(1);
        rest.filter_map(|block| Some(block.split_once("```")?.0)).collect()
    }

    /// Runs the recipe on `host`, as a person pastes it.
    fn make_certificates(&self, host: &Host) -> Result<()> {
        let [recipe] = self.blocks("sh")[..] else { anyhow::bail!("the manual has not one recipe") };
        let mut shell = host.place().command("sh");
        shell.env("NAMES", format!("IP:{}", self.store)).env("DIR", &self.dir);
        let made = command::run_with_input(&shell, recipe)?;
        made.succeeded("the recipe of docs/tls.md")?;
        for checked in ["store.pem: OK", "client.pem: OK", &format!("IP Address:{}", self.store), "notAfter="]
        {
            ensure!(made.stdout.contains(checked), "{checked} is not what its check shows: {made:?}");
        }
        Ok(())
    }

    /// The block of settings that begins with this variable, written to a file of the lab.
    fn settings(&self, first: &str) -> Result<PathBuf> {
        let blocks = self.blocks("env");
        let block =
            blocks.iter().find(|block| block.starts_with(first)).with_context(|| format!("no {first}"))?;
        let dir = self.dir.display().to_string();
        let text = block.replace("10.0.0.2", &self.store).replace("/etc/flan", &dir);
        let file = self.dir.join(first);
        fs::write(&file, text.replace("/var/lib/flan", &dir))?;
        Ok(file)
    }
}

/// Starts a program on a host with the settings of a file, as its unit does.
fn start(lab: &Lab, host: &Host, mut program: Command, settings: &Path) -> Result<Process> {
    for line in fs::read_to_string(settings)?.lines() {
        let (name, value) = line.split_once('=').with_context(|| format!("{line:?} is no setting"))?;
        program.env(name, value);
    }
    let name = format!("{} on {}", program.get_program().to_string_lossy(), host.name());
    Process::spawn(&name, &program, &lab.dir().join(format!("{}-tls.log", host.name())), Lifetime::Bound)
}

fn start_agent(lab: &Lab, host: &Host, settings: &Path) -> Result<Process> {
    let mut fland = host.place().command(tools::flan_binary("fland")?);
    fland.args(["--iface", "eth0", "--log-format", "text"]);
    start(lab, host, fland, settings)
}

/// `flanctl` on a host whose `/etc/default/fland` this is.
fn flanctl(host: &Host, settings: &Path, args: &[&str], input: &str) -> Result<Outcome> {
    let mut flanctl = host.place().command(tools::flan_binary("flanctl")?);
    flanctl.env("FLAND_ENV_FILE", settings).args(args);
    command::run_with_input(&flanctl, input)
}

fn write_network(host: &Host, settings: &Path, store: &mut Process) -> Result<()> {
    wait::until("the store to take a network config", START_LIMIT, || {
        store.ensure_running()?;
        let written = flanctl(host, settings, &["config", "set", "-"], NETWORK)?;
        written.succeeded("flanctl config set -").with_context(|| store.last_lines())
    })
}

fn ensure_all_is_well(host: &Host, settings: &Path) -> Result<()> {
    let checked = flanctl(host, settings, &["store", "check"], "")?;
    checked.succeeded("flanctl store check")?;
    ensure!(checked.stdout.lines().all(|line| line.starts_with("ok ")), "{checked:?}");
    Ok(())
}

fn wait_for_subnet(host: &Host, agent: &mut Process) -> Result<()> {
    wait::until(&format!("{} to have a subnet", host.name()), START_LIMIT, || {
        agent.ensure_running()?;
        host.subnet_env().map(drop).with_context(|| agent.last_lines())
    })
}

#[test]
fn the_certificates_of_the_manual_let_hosts_reach_an_embedded_store_and_nobody_else() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        let (keeper, other) = (lab.host("h1")?, lab.host("h2")?);
        let manual = Manual::open(lab, &keeper)?;
        manual.make_certificates(&keeper)?;
        let carried = manual.settings("FLAND_EMBEDDED_STORE")?;
        let joined = manual.settings("FLAND_ETCD_ENDPOINTS")?;

        let mut first = start_agent(lab, &keeper, &carried)?;
        write_network(&keeper, &carried, &mut first)?;
        let mut second = start_agent(lab, &other, &joined)?;
        wait_for_subnet(&keeper, &mut first)?;
        wait_for_subnet(&other, &mut second)?;
        ensure_all_is_well(&keeper, &carried)?;
        ensure_all_is_well(&other, &joined)?;

        let (url, ca) = (format!("https://{}:2379", keeper.address()), manual.dir.join("ca.pem"));
        let ca = ca.display().to_string();
        let args = ["--etcd-endpoints", &url, "--etcd-cafile", &ca, "config", "get"];
        let stranger = flanctl(&other, Path::new("/dev/null"), &args, "")?;
        ensure!(stranger.code == Some(UNREACHABLE), "{stranger:?}");
        ensure!(stranger.stderr.contains("it demands a client certificate"), "{stranger:?}");

        // To a host whose clock is wrong no certificate is valid, and it says what it takes the time for.
        let clock = Clock::new(&lab.dir().join("clock"))?;
        clock.set("@1970-01-01 00:00:10")?;
        let place = other.place().then(["env".to_owned()].into_iter().chain(clock.environment()));
        let mut dated = place.command(tools::flan_binary("flanctl")?);
        dated.env("FLAND_ENV_FILE", &joined).args(["config", "get"]);
        let dated = command::run(&dated)?;
        ensure!(dated.code == Some(UNREACHABLE), "{dated:?}");
        let told =
            ["its certificate is not valid before", "it is 1970-01-01 00:00 UTC here", "check the clocks"];
        ensure!(told.iter().all(|part| dated.stderr.contains(part)), "{dated:?}");
        Ok(())
    })
}

#[test]
fn the_certificates_of_the_manual_let_hosts_reach_an_etcd() -> Result<()> {
    Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
        tools::check_for_store(flan_integration::StoreKind::Etcd)?;
        let host = lab.host("h1")?;
        let manual = Manual::open(lab, &host)?;
        manual.make_certificates(&host)?;
        let mut etcd = host.place().command("etcd");
        etcd.arg("--data-dir").arg(lab.dir().join("etcd-data"));
        etcd.env("ETCD_UNSUPPORTED_ARCH", if cfg!(target_arch = "aarch64") { "arm64" } else { "" });
        let mut etcd = start(lab, &host, etcd, &manual.settings("ETCD_LISTEN_CLIENT_URLS")?)?;
        let joined = manual.settings("FLAND_ETCD_ENDPOINTS")?;
        write_network(&host, &joined, &mut etcd)?;
        let mut agent = start_agent(lab, &host, &joined)?;
        wait_for_subnet(&host, &mut agent)?;
        ensure_all_is_well(&host, &joined)?;

        // What a person sees of an etcd that wants TLS, without it and without a certificate.
        let (url, ca) = (format!("{}:2379", host.address()), manual.dir.join("ca.pem"));
        let (ca, nothing) = (ca.display().to_string(), Path::new("/dev/null"));
        let plain = ["--etcd-endpoints", &format!("http://{url}"), "config", "get"];
        let plain = flanctl(&host, nothing, &plain, "")?;
        ensure!(plain.stderr.contains(&format!("does it speak TLS? Then give https://{url}")), "{plain:?}");
        let url = format!("https://{url}");
        let stranger = ["--etcd-endpoints", &url, "--etcd-cafile", &ca, "config", "get"];
        let stranger = flanctl(&host, nothing, &stranger, "")?;
        ensure!(stranger.stderr.contains("it demands a client certificate"), "{stranger:?}");
        Ok(())
    })
}
