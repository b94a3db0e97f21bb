//! A disk without room.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{AlarmAction, AlarmType, DeleteOptions, Error, PutOptions};
use flan_integration::store::{StoreClient, StoreData};
use flan_integration::{Lab, LabOptions, wait};
use tonic::Code;

use super::embedded;

/// The size of the disk, in MiB.
const DISK: u32 = 24;

/// Writes that are tried until one is refused, and the bytes of each: more than there is room for.
const MOST_WRITES: usize = 1024;
const WRITE_BYTES: usize = 64 * 1024;

/// Keys that are deleted one after the other, without a pause.
const SPARE: [&str; 3] = ["spare/1", "spare/2", "spare/3"];

/// Seconds of a lease that ends on the full disk, and its keys. To delete so many takes room.
const SHORT: u32 = 5;
const ENDING: usize = 200;

/// For so long no write may succeed on a full disk. A store tries again sooner.
const FULL: Duration = Duration::from_secs(1);

/// How etcd says it.
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a store may take to find that there is room again.
const ROOM_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn a_full_disk_refuses_writes_and_nothing_else_until_there_is_room_again() -> Result<()> {
    let options = LabOptions { store_data: StoreData::InMemoryOf { mib: DISK }, ..embedded() };
    Lab::run(options, |lab| {
        let client = Subject::connect(lab)?;
        let lease = client.grant(600)?;
        let (ending, revoked) = (client.grant(SHORT)?, client.grant(600)?);
        for number in 0..ENDING {
            client.put_leased(&format!("ending/{number}"), ending)?;
        }
        client.put_leased("revoked", revoked)?;
        for number in 0..10 {
            client.put(&format!("before/{number}"), b"kept".to_vec())??;
        }
        for key in SPARE {
            client.put(key, b"not needed".to_vec())??;
        }
        let ballast = lab.store().data_dir(0)?.join("ballast");
        fill(&ballast)?;

        let mut kept = 0;
        let refused = loop {
            match client.put(&format!("filling/{kept}"), vec![b'x'; WRITE_BYTES])? {
                Ok(()) => kept += 1,
                Err(error) => break error,
            }
            ensure!(kept < MOST_WRITES, "{kept} writes of {WRITE_BYTES} bytes on a full disk");
        };
        ensure_no_space(&refused)?;
        client.fill_up(ending)?;
        ensure!(client.has_alarm()?, "no alarm is raised");
        ensure!(client.keep_alive(lease)? > 0, "the lease is lost");
        client.ensure_all_there(kept)?;

        // What makes room goes on.
        ensure!(client.keep_alive(ending)? > 0, "a lease that was kept alive has ended");
        wait::until("the end of a lease that nobody keeps", Duration::from_secs(30), || {
            ensure!(!client.is_there("ending/0")?, "its keys are there");
            Ok(())
        })?;
        // What was kept free for that is taken as well.
        let more = lab.store().data_dir(0)?.join("more");
        fill(&more)?;
        client.fill_up(lease)?;
        client.revoke(revoked).context("on the full disk")?;
        ensure!(!client.is_there("revoked")?, "the key of a revoked lease is there");
        for key in SPARE {
            ensure!(client.delete_below(key).context("on the full disk")? == 1, "{key} is not deleted");
        }
        let deleted = client.delete_below("filling/").context("on the full disk")?;
        ensure!(deleted == kept as i64, "{deleted} of {kept} deleted");
        client.compact().context("on the full disk")?;
        client.ensure_all_there(0)?;

        for file in [ballast, more] {
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        wait::until("a write, and the end of the alarm", ROOM_LIMIT, || {
            client.put("after", b"1".to_vec())??;
            ensure!(!client.has_alarm()?, "the alarm is still raised");
            Ok(())
        })?;
        ensure!(client.keep_alive(lease)? > 0, "the lease is lost");
        client.ensure_all_there(0)
    })
}

/// Writes zeros until there is no room left.
fn fill(path: &std::path::Path) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let zeros = vec![0; 4096];
    for _ in 0..=u64::from(DISK) * 1024 * 1024 / zeros.len() as u64 {
        if file.write_all(&zeros).is_err() {
            return Ok(());
        }
    }
    bail!("{} is larger than its disk", path.display())
}

fn ensure_no_space(error: &Error) -> Result<()> {
    let Error::GRpcStatus(status) = error else { bail!("no refusal: {error}") };
    ensure!(
        status.code() == Code::ResourceExhausted && status.message() == NO_SPACE,
        "refused with {:?}, {:?}",
        status.code(),
        status.message()
    );
    Ok(())
}

/// The store as one client sees it.
struct Subject(StoreClient);

impl Subject {
    fn connect(lab: &Lab) -> Result<Subject> {
        StoreClient::connect(lab.underlay(), &lab.store().endpoints(), LIMIT).map(Subject)
    }

    /// The inner error is the store's.
    fn put(&self, key: &str, value: Vec<u8>) -> Result<Result<(), Error>> {
        let key = key.to_owned();
        self.0.run(|mut client| async move { Ok(client.put(key, value, None).await.map(drop)) })
    }

    /// Writes little until not even that succeeds, and keeps a lease alive meanwhile.
    fn fill_up(&self, lease: i64) -> Result<()> {
        for number in 0..MOST_WRITES {
            let refused = wait::while_holds("small writes are refused", FULL, || {
                self.keep_alive(lease)?;
                match self.put(&format!("small/{number}"), vec![b'x'; 64])? {
                    Ok(()) => bail!("one goes through"),
                    Err(error) => ensure_no_space(&error),
                }
            });
            if refused.is_ok() {
                return Ok(());
            }
        }
        bail!("{MOST_WRITES} small writes on a full disk")
    }

    /// How many keys it deleted.
    fn delete_below(&self, prefix: &'static str) -> Result<i64> {
        self.0.run(|mut client| async move {
            let options = DeleteOptions::new().with_prefix();
            Ok(client.delete(prefix, Some(options)).await?.deleted())
        })
    }

    /// Forgets the history up to now.
    fn compact(&self) -> Result<()> {
        self.0.run(|mut client| async move {
            let revision = client.status().await?.header().context("a status without header")?.revision();
            client.compact(revision, None).await?;
            Ok(())
        })
    }

    fn put_leased(&self, key: &str, lease: i64) -> Result<()> {
        let key = key.to_owned();
        self.0.run(move |mut client| async move {
            let options = PutOptions::new().with_lease(lease);
            Ok(client.put(key, "1", Some(options)).await.map(drop)?)
        })
    }

    fn is_there(&self, key: &'static str) -> Result<bool> {
        self.0.run(|mut client| async move { Ok(!client.get(key, None).await?.kvs().is_empty()) })
    }

    fn grant(&self, seconds: u32) -> Result<i64> {
        self.0.run(move |mut client| async move { Ok(client.lease_grant(seconds.into(), None).await?.id()) })
    }

    fn revoke(&self, lease: i64) -> Result<()> {
        self.0.run(move |mut client| async move { Ok(client.lease_revoke(lease).await.map(drop)?) })
    }

    /// The time that the lease has then, in seconds.
    fn keep_alive(&self, lease: i64) -> Result<i64> {
        self.0.run(|mut client| async move {
            let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
            keeper.keep_alive().await?;
            Ok(answers.message().await?.context("no answer to a keepalive")?.ttl())
        })
    }

    fn has_alarm(&self) -> Result<bool> {
        self.0.run(|mut client| async move {
            let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
            Ok(alarms.alarms().iter().any(|alarm| alarm.alarm() == AlarmType::Nospace))
        })
    }

    /// An error unless everything that was acknowledged is there.
    fn ensure_all_there(&self, filling: usize) -> Result<()> {
        let before = (0..10).map(|number| (format!("before/{number}"), b"kept".to_vec()));
        let filling = (0..filling).map(|number| (format!("filling/{number}"), vec![b'x'; WRITE_BYTES]));
        for (key, value) in before.chain(filling) {
            let wanted = key.clone();
            let held = self.0.run(|mut client| async move {
                Ok(client.get(wanted, None).await?.kvs().first().map(|kv| kv.value().to_vec()))
            })?;
            ensure!(held == Some(value), "{key} is lost");
        }
        Ok(())
    }
}
