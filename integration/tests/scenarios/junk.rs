//! Junk in the store, from somebody who may write there and means no good: large keys and values, names that steer a
//! terminal, bad leases in masses and in a hurry.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use flan_integration::flannel::lease_value;
use flan_integration::host::STATUS_FLAGS;
use flan_integration::inside::Inside;
use flan_integration::store::{PREFIX, StoreKind};
use flan_integration::{Host, Lab, LabOptions, vitals, wait};
use futures::{StreamExt, TryStreamExt, future, stream};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::stage::{hosts_with_status, text_of, wait_until_all_know_each_other};

/// How soon a lease is followed, whatever else happens in the store. Alone on two cores it takes 1.0 s at most, while large
/// keys go; beside four other scenarios and three writers that sync each block, 3.2 s were seen. Blind, it was 18 s.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(8);
/// How long a start may take with all the junk in the store: 1.8 s alone, 6.7 s beside all that, and once 20 s alone.
const STARTED_WITHIN: Duration = Duration::from_secs(15);
/// What the log of all that may have, in bytes; the whole status; a line of `flanctl subnets ls`.
const LOG_BYTES: u64 = 256 << 10;
const STATUS_BYTES: usize = 64 << 10;
const LINE_BYTES: usize = 2 << 10;
/// Memory that an agent may hold more than before, in KiB: some 300 bytes for each of the bad leases, and what the
/// allocator has not given back.
const GROWTH_KIB: u64 = 24 << 10;

/// How long an agent hears nothing from its store before it asks whether the store is there.
const PATIENCE: Duration = Duration::from_secs(10);

const MEGABYTE: usize = 1 << 20;
const LARGE: usize = 60;
const BAD: usize = 20_000;
/// Names that clear a screen, set a title, begin a line of their own, are no text, or a colour in one byte.
const STEERING: [&[u8]; 3] =
    [b"junk-\x1b[2J\x1b]0;owned\x07\nERROR all is lost\r", b"junk-\xff\xfe", b"junk-\xc2\x9b31m"];
/// A good lease of a host with such a name.
const STEERING_LEASE: &str = "subnets/10.5.240.0-24";

/// How often a bad lease is rewritten, by so many at once: as fast as the store takes it, which its disk decides.
const REWRITES: usize = 4_000;
const REWRITERS: usize = 16;

#[test]
fn junk_in_etcd_blinds_nobody_and_fills_nothing() -> Result<()> {
    story(StoreKind::Etcd)
}

#[test]
fn junk_in_the_embedded_store_blinds_nobody_and_fills_nothing() -> Result<()> {
    story(StoreKind::Embedded)
}

fn story(kind: StoreKind) -> Result<()> {
    Lab::run(LabOptions { store: Some(kind), ..LabOptions::default() }, |lab| {
        let mut hosts = hosts_with_status(lab, 2)?;
        let writer = Writer::of(lab)?;
        let before = resident(&hosts)?;
        let mut findings = Findings { begun: Instant::now(), wrong: Vec::new(), sight_may_be_lost: 0 };

        large_junk_comes_and_goes(lab, &hosts, &writer, &mut findings)?;
        findings.grown("after the large junk", &hosts, &before)?;
        bad_leases_come_in_masses(&hosts, &writer, &mut findings)?;
        findings.grown("with all bad leases", &hosts, &before)?;
        a_host_starts_with_all_of_it(&mut hosts, &writer, &mut findings)?;
        findings.grown("with all of it, after a start", &hosts[..1], &before)?;

        for host in &hosts {
            findings.log(host)?;
            findings.status(host)?;
        }
        findings.command_line(lab, &writer)?;
        findings.config(lab, &writer)?;

        writer.delete_everything()?;
        wait_until_all_know_each_other(&hosts)?;
        for host in &mut hosts {
            host.ensure_agent_runs()?;
            let left = host.status()?["quarantinedCount"].clone();
            findings.check(left == 0, format!("bad leases that {} still counts: {left}", host.name()));
        }
        findings.verdict()
    })
}

fn large_junk_comes_and_goes(
    lab: &Lab,
    hosts: &[Host],
    writer: &Writer,
    findings: &mut Findings,
) -> Result<()> {
    // Keys of a megabyte, and values; a lease while they come, and one while they go.
    for (what, by_key) in [("keys", true), ("values", false)] {
        let took = writer.while_junk_comes(by_key, || writer.followed(hosts))?;
        findings.at_most(&format!("a lease while large {what} come"), took, FOLLOWED_WITHIN);
        writer.delete("subnets/junk")?;
        let took = writer.followed(hosts)?;
        findings.at_most(&format!("a lease while large {what} go"), took, FOLLOWED_WITHIN);
    }
    // A host that stands still meanwhile gets all of it at once, as one behind a slow line does.
    signal(&hosts[0], "-STOP")?;
    let stood = Instant::now();
    writer.while_junk_comes(false, || Ok(()))?;
    writer.delete("subnets/junk")?;
    signal(&hosts[0], "-CONT")?;
    // Whoever hears nothing for that long connects anew; a slow disk makes it so long.
    let stood = stood.elapsed();
    println!("h1 stood still for {:.1} s", stood.as_secs_f64());
    findings.sight_may_be_lost = usize::from(stood >= PATIENCE);
    findings.at_most("a lease after standing still", writer.followed(hosts)?, FOLLOWED_WITHIN);
    // One's own lease turns to junk.
    let own = format!("subnets/{}", hosts[0].subnet_env()?.key());
    writer.put(own.as_bytes(), vec![b'A'; MEGABYTE])?;
    wait::until("h1 to write its lease again", FOLLOWED_WITHIN, || {
        let value = lab.store().value(&own)?.unwrap_or_default();
        ensure!(value.contains(&hosts[0].address().to_string()), "it has {} bytes", value.len());
        Ok(())
    })
}

fn bad_leases_come_in_masses(hosts: &[Host], writer: &Writer, findings: &mut Findings) -> Result<()> {
    // Names that steer a terminal, beside many plain ones.
    for name in STEERING {
        writer.put(&[b"subnets/", name].concat(), b"{".to_vec())?;
    }
    let lease = lease_value("192.168.64.240", "02:00:00:00:02:40");
    let lease = lease.replacen('{', r#"{"HostName":"\u001b[2J\u009b31m\nERROR","NodeID":"\u0007","#, 1);
    writer.put(STEERING_LEASE.as_bytes(), lease.into_bytes())?;
    writer.put_bad()?;
    findings.at_most("a lease after bad ones in masses", writer.followed(hosts)?, FOLLOWED_WITHIN);

    let used = cpu(&hosts[0])?;
    let took = writer.in_a_hurry(|| writer.followed(hosts))?;
    findings.at_most("a lease while a bad one is rewritten in a hurry", took, FOLLOWED_WITHIN);
    println!("CPU while it is: {:.1} s for {REWRITES} writes", cpu(&hosts[0])? - used);
    Ok(())
}

/// The bad leases, and large keys beside; junk also where nobody looks for leases.
fn a_host_starts_with_all_of_it(hosts: &mut [Host], writer: &Writer, findings: &mut Findings) -> Result<()> {
    writer.while_junk_comes(true, || Ok(()))?;
    writer.put(b"reservations/junk", vec![b'A'; MEGABYTE])?;
    writer.put(b"reservations/10.5.7.0-24", vec![b'A'; MEGABYTE])?;
    hosts[0].kill_agent()?;
    let start = Instant::now();
    hosts[0].start_agent_with(&STATUS_FLAGS)?;
    findings.at_most("a start with all of it", start.elapsed(), STARTED_WITHIN);
    findings.at_most("a lease after that", writer.followed(hosts)?, FOLLOWED_WITHIN);
    Ok(())
}

/// Who writes the junk, and a lease beside it.
struct Writer {
    inside: Inside,
    client: Client,
    leases: std::cell::Cell<u8>,
}

const LIMIT: Duration = Duration::from_secs(60);

impl Writer {
    fn of(lab: &Lab) -> Result<Self> {
        let inside = Inside::of(lab.underlay())?;
        let endpoints = lab.store().endpoints();
        let client = inside.run(LIMIT, async move { Ok(Client::connect([endpoints], None).await?) })?;
        Ok(Self { inside, client, leases: 0.into() })
    }

    fn put(&self, key: &[u8], value: Vec<u8>) -> Result<()> {
        let (mut client, key) = (self.client.clone(), below_prefix(key));
        self.inside.run(LIMIT, async move { Ok(client.put(key, value, None).await.map(drop)?) })
    }

    /// Everything whose key begins so.
    fn delete(&self, beginning: &str) -> Result<()> {
        let (mut client, key) = (self.client.clone(), below_prefix(beginning.as_bytes()));
        let all = DeleteOptions::new().with_prefix();
        self.inside.run(LIMIT, async move { Ok(client.delete(key, Some(all)).await.map(drop)?) })
    }

    /// All that this one has put below the leases.
    fn delete_everything(&self) -> Result<()> {
        for beginning in ["subnets/junk", "subnets/bad", STEERING_LEASE] {
            self.delete(beginning)?;
        }
        (0..self.leases.get()).try_for_each(|number| self.delete(&format!("subnets/10.5.2{number:02}.0-24")))
    }

    /// Puts a lease, and says how long it takes until all these hosts have it in their kernels.
    fn followed(&self, hosts: &[Host]) -> Result<Duration> {
        let number = self.leases.get();
        self.leases.set(number + 1);
        let lease = lease_value(format!("192.168.64.2{number:02}"), &format!("02:00:00:00:02:{number:02}"));
        self.put(format!("subnets/10.5.2{number:02}.0-24").as_bytes(), lease.into_bytes())?;
        let put = Instant::now();
        let subnet = format!("10.5.2{number:02}.0/24");
        for host in hosts {
            wait::until(&format!("{} to follow {subnet}", host.name()), LIMIT, || {
                ensure!(host.overlay()?.complete_peers().contains(&subnet), "it does not");
                Ok(())
            })?;
        }
        Ok(put.elapsed())
    }

    /// Puts large junk, as fast as the store takes it; `meanwhile` begins when half of it is there.
    fn while_junk_comes<T>(&self, by_key: bool, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        let client = self.client.clone();
        let half = move |from: usize| {
            let client = client.clone();
            async move {
                let mut puts = JoinSet::new();
                for number in from..from + LARGE / 2 {
                    let mut client = client.clone();
                    let name = format!("subnets/junk-{number:03}");
                    let (key, value) = match by_key {
                        true => ([name.as_bytes(), &vec![b'k'; MEGABYTE]].concat(), b"{}".to_vec()),
                        false => (name.into_bytes(), vec![b'A'; MEGABYTE]),
                    };
                    puts.spawn(async move { client.put(below_prefix(&key), value, None).await });
                }
                while let Some(put) = puts.join_next().await {
                    put??;
                }
                anyhow::Ok(())
            }
        };
        self.beside(half(0), half(LARGE / 2), meanwhile)
    }

    /// Many small bad leases, a hundred at once.
    fn put_bad(&self) -> Result<()> {
        let mut client = self.client.clone();
        self.inside.run(LIMIT, async move {
            for batch in 0..BAD / 100 {
                let put = |number| {
                    TxnOp::put(below_prefix(format!("subnets/bad-{number:05}").as_bytes()), "{", None)
                };
                let puts: Vec<TxnOp> = (batch * 100..batch * 100 + 100).map(put).collect();
                client.txn(Txn::new().and_then(puts)).await?;
            }
            Ok(())
        })
    }

    /// Rewrites one bad lease again and again, bad for another reason each time; `meanwhile` begins when a quarter of it
    /// is done.
    fn in_a_hurry<T>(&self, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
        let share = |quarters: std::ops::Range<usize>| {
            let client = self.client.clone();
            let numbers = quarters.start * REWRITES / 4..quarters.end * REWRITES / 4;
            let rewrites = stream::iter(numbers).map(move |number| {
                let mut client = client.clone();
                let key = below_prefix(b"subnets/bad-00000");
                async move { client.put(key, format!("\"{number}\""), None).await }
            });
            async move {
                rewrites.buffer_unordered(REWRITERS).try_for_each(|_| future::ready(Ok(()))).await?;
                anyhow::Ok(())
            }
        };
        self.beside(share(0..1), share(1..4), meanwhile)
    }

    /// Does the first, and then `meanwhile` beside the second.
    fn beside<T>(
        &self,
        first: impl Future<Output = Result<()>> + Send + 'static,
        second: impl Future<Output = Result<()>> + Send + 'static,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.inside.run(LIMIT, first)?;
        let (done, rest) = std::sync::mpsc::channel();
        self.inside.spawn(async move { drop(done.send(second.await)) });
        let outcome = meanwhile()?;
        rest.recv_timeout(LIMIT).context("the second half of it")??;
        Ok(outcome)
    }
}

/// What was measured, and what of it is wrong.
struct Findings {
    begun: Instant,
    wrong: Vec<String>,
    /// How often h1 may have lost sight of the leases.
    sight_may_be_lost: usize,
}

impl Findings {
    fn check(&mut self, right: bool, text: String) {
        println!("{}{text}", if right { "" } else { "WRONG: " });
        if !right {
            self.wrong.push(text);
        }
    }

    fn at_most(&mut self, what: &str, took: Duration, limit: Duration) {
        self.check(took <= limit, format!("{what}: {:.2} s", took.as_secs_f32()));
    }

    fn grown(&mut self, when: &str, hosts: &[Host], before: &[u64]) -> Result<()> {
        // What was freed goes back to the kernel in a moment.
        let settled = wait::until("memory to be given back", Duration::from_secs(8), || {
            let now = resident(hosts)?;
            ensure!(now.iter().zip(before).all(|(now, before)| *now <= before + GROWTH_KIB), "{now:?} KiB");
            Ok(now)
        });
        let text = format!("memory {when}: {:?} KiB, before {before:?}", resident(hosts)?);
        self.check(settled.is_ok(), text);
        for host in hosts {
            let pid = host.agent_pid().context("no agent")?;
            println!("    {} had {} KiB at its peak", host.name(), vitals::peak_kib(pid)?);
        }
        Ok(())
    }

    fn log(&mut self, host: &Host) -> Result<()> {
        let bytes = fs::metadata(host.agent_log())?.len();
        self.check(bytes <= LOG_BYTES, format!("log of {}: {bytes} bytes", host.name()));
        let log = fs::read(host.agent_log())?;
        self.steers_nothing("the log", &String::from_utf8_lossy(&log));
        let told = host.log_lines(&["bad lease"])?.len();
        // A summary every ten seconds, and beside them 20 lines of bad ones and 20 of good ones a minute; for each of two
        // agents. How long it lasts, the disk decides.
        let seconds = self.begun.elapsed().as_secs() as usize;
        let most = 2 * (2 + seconds / 10);
        let summed_up = host.log_lines(&["more bad leases than get a line each"])?.len();
        self.check((1..=most).contains(&summed_up), format!("    summed up in {summed_up} lines of {most}"));
        let most = 2 * (most + 40 * (1 + seconds / 60));
        self.check((5..=most).contains(&told), format!("    {told} lines of bad leases, of {most}"));
        Ok(())
    }

    fn status(&mut self, host: &Host) -> Result<()> {
        let status = match host.status() {
            Ok(status) => status,
            Err(error) => {
                self.check(false, format!("no status of {}: {:.200}", host.name(), error.to_string()));
                return Ok(());
            }
        };
        let bytes = status.to_string().len();
        self.check(bytes <= STATUS_BYTES, format!("status of {}: {bytes} bytes", host.name()));
        let count = status["quarantinedCount"].as_u64().unwrap_or_default();
        let wanted = (BAD + LARGE + STEERING.len()) as u64;
        self.check(count == wanted, format!("    {count} bad leases are counted, of {wanted}"));
        let bad = text_of(&status, "bad-lease").unwrap_or_default();
        self.check(
            bad.starts_with(&format!("{wanted} leases are bad")),
            format!("    the problem: {bad:.200}"),
        );
        let store = text_of(&status, "store");
        self.check(store.is_none(), format!("    the store: {:.200}", store.unwrap_or_default()));
        let lost_sight = host.log_lines(&["lost sight of the leases"])?.len();
        let allowed = if host.name() == "h1" { self.sight_may_be_lost } else { 0 };
        self.check(lost_sight <= allowed, format!("    lost sight of the leases {lost_sight} times"));
        Ok(())
    }

    fn command_line(&mut self, lab: &Lab, writer: &Writer) -> Result<()> {
        let start = Instant::now();
        let table = lab.flanctl(&["subnets", "ls"])?;
        table.succeeded("flanctl subnets ls")?;
        self.steers_nothing("the table", &table.stdout);
        let lines = table.stdout.lines().count();
        // A header, two hosts, and the one with the name.
        let wanted = 4 + BAD + LARGE + STEERING.len() + usize::from(writer.leases.get());
        self.check(lines == wanted, format!("the table has {lines} lines, of {wanted}"));
        let longest = table.stdout.lines().map(str::len).max().unwrap_or_default();
        self.check(longest <= LINE_BYTES, format!("    of {longest} bytes at most"));
        let json = lab.flanctl(&["subnets", "ls", "-o", "json"])?;
        json.succeeded("flanctl subnets ls -o json")?;
        self.steers_nothing("flanctl's JSON", &json.stdout);
        let list: Value = serde_json::from_str(&json.stdout)?;
        let longest = list["items"].as_array().into_iter().flatten().map(|item| item.to_string().len()).max();
        self.check(
            longest.is_some_and(|longest| longest <= LINE_BYTES),
            format!("    items of {longest:?} bytes at most"),
        );
        println!("flanctl subnets ls, twice: {:.2} s", start.elapsed().as_secs_f32());
        Ok(())
    }

    /// A network config that is none.
    fn config(&mut self, lab: &Lab, writer: &Writer) -> Result<()> {
        let config = lab.store().value("config")?.context("no config")?;
        let text = [br#"{"Network": ""#.as_slice(), &vec![b'A'; MEGABYTE], br#""}"#].concat();
        let steering = b"{\"Network\": \"\\u001b[2J\xc2\x9b31m\", \"Backend\": 7}".to_vec();
        for (what, junk) in [("a megabyte", text), ("what steers", steering)] {
            writer.put(b"config", junk)?;
            for args in [["subnets", "ls"].as_slice(), &["store", "check"]] {
                let outcome = lab.flanctl(args)?;
                let said = format!("{}{}", outcome.stdout, outcome.stderr);
                self.check(
                    said.len() <= LINE_BYTES,
                    format!("{args:?} says {} bytes of {what} for a config", said.len()),
                );
                self.steers_nothing("what it says", &said);
            }
        }
        writer.put(b"config", config.into_bytes())
    }

    fn steers_nothing(&mut self, what: &str, text: &str) {
        let found = text.chars().find(|c| c.is_control() && *c != '\n');
        self.check(found.is_none(), format!("    {what} has the control character {found:?}"));
    }

    fn verdict(self) -> Result<()> {
        ensure!(self.wrong.is_empty(), "{:#?}", self.wrong);
        Ok(())
    }
}

fn below_prefix(key: &[u8]) -> Vec<u8> {
    [PREFIX.as_bytes(), b"/", key].concat()
}

fn resident(hosts: &[Host]) -> Result<Vec<u64>> {
    hosts.iter().map(|host| Ok(host.agent_vitals()?.resident_kib)).collect()
}

fn signal(host: &Host, signal: &str) -> Result<()> {
    let pid = host.agent_pid().context("no agent")?.to_string();
    host.run("kill", &[signal, &pid]).map(drop)
}

fn cpu(host: &Host) -> Result<f64> {
    vitals::cpu_seconds(host.agent_pid().context("no agent")?)
}
