//! A disk without room.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{AlarmAction, AlarmType, DeleteOptions, Error};
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
        let lease = client.grant()?;
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
        // A small one too.
        let Err(refused) = client.put("small", b"1".to_vec())? else { bail!("a small write goes through") };
        ensure_no_space(&refused)?;
        ensure!(client.has_alarm()?, "no alarm is raised");
        ensure!(client.keep_alive(lease)? > 0, "the lease is lost");
        client.ensure_all_there(kept)?;

        // What makes room goes on.
        for key in SPARE {
            ensure!(client.delete_below(key).context("on the full disk")? == 1, "{key} is not deleted");
        }
        let deleted = client.delete_below("filling/").context("on the full disk")?;
        ensure!(deleted == kept as i64, "{deleted} of {kept} deleted");
        client.compact().context("on the full disk")?;
        client.ensure_all_there(0)?;

        std::fs::remove_file(&ballast).with_context(|| format!("cannot remove {}", ballast.display()))?;
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

    fn grant(&self) -> Result<i64> {
        self.0.run(|mut client| async move { Ok(client.lease_grant(600, None).await?.id()) })
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
