//! The redb file with everything that must survive a restart. Only the writer writes it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::proto::PbKeyValue;
use prost::Message;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use crate::keys::{NEVER, Record};
use crate::leases::Stored;
use crate::place::Place;
use crate::refusal::Refusal;

/// Changes of keys, by revision and number in the revision: a `KeyValue` of etcd's `kv.proto`.
const CHANGES: TableDefinition<'static, (i64, u32), &[u8]> = TableDefinition::new("changes");
/// Leases by id: seconds granted, seconds that remain after a start.
const LEASES: TableDefinition<'static, i64, (i64, i64)> = TableDefinition::new("leases");
/// Numbers by name.
const NUMBERS: TableDefinition<'static, &str, i64> = TableDefinition::new("numbers");

const REVISION: &str = "revision";
const COMPACTED: &str = "compacted";
const CLUSTER: &str = "cluster";
const MEMBER: &str = "member";
const STARTS: &str = "starts";
const FORMAT: &str = "format";

/// Version of the tables' format.
const THIS_FORMAT: i64 = 1;
/// Bytes of redb's page cache. Our own memory holds everything that is read often.
const CACHE_BYTES: usize = 4 << 20;

/// The open file.
pub(crate) struct File {
    path: PathBuf,
    place: Place,
    /// `None` after a failed write: redb then has to read everything again.
    database: Option<Database>,
}

/// What a file held when it was opened.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) records: Vec<Record>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    pub(crate) leases: Vec<(i64, Stored)>,
    pub(crate) identity: MemberIdentity,
}

/// The store's identity for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemberIdentity {
    pub(crate) cluster: u64,
    pub(crate) member: u64,
    /// How often the file was opened for serving. Stands in for raft's term.
    pub(crate) starts: u64,
}

/// One write.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The last revision that is certainly on disk.
    pub(crate) after: i64,
    /// The last revision of this batch.
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    pub(crate) records: Vec<Arc<Record>>,
    /// Records that no client can see any more.
    pub(crate) superfluous: Vec<(i64, u32)>,
    /// Leases with their values; `None` for a deleted one.
    pub(crate) leases: Vec<(i64, Option<Stored>)>,
}

impl File {
    /// Opens the file, or creates it, and counts the start.
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), redb::Error> {
        let place = Place::prepare(path, make)?;
        let database = database(path)?;
        let identity = count_start(&database)?;
        let content = read(&database, identity)?;
        Ok((Self { path: path.to_owned(), place, database: Some(database) }, content))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns where the file is, for checks.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Writes the whole batch or nothing. The result survives a power loss.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<(), Refusal> {
        let written = self.try_write(batch);
        if written.is_err() {
            self.database = None;
        }
        // A write to a file that was moved or deleted must not be acknowledged.
        self.place.check().map_err(Refusal::Gone)?;
        written.map_err(|reason| match &reason {
            redb::Error::Io(error) if is_for_want_of_space(error) => Refusal::NoSpace,
            reason => Refusal::Broken(format!("cannot write {}: {reason}", self.path.display())),
        })
    }

    /// Returns unused space in the file to the disk. Returns whether that worked.
    pub(crate) fn shrink(&mut self) -> bool {
        let shrunk = self.opened().is_ok()
            && self.database.as_mut().is_some_and(|database| database.compact().is_ok());
        if !shrunk {
            self.database = None;
        }
        shrunk
    }

    /// Returns the last revision on disk, if it can be read.
    pub(crate) fn revision(&mut self) -> Option<i64> {
        let transaction = self.opened().ok()?.begin_read().ok()?;
        Some(transaction.open_table(NUMBERS).ok()?.get(REVISION).ok()??.value())
    }

    /// Returns the size in bytes.
    pub(crate) fn size(path: &Path) -> u64 {
        std::fs::metadata(path).map_or(0, |metadata| metadata.len())
    }

    fn opened(&mut self) -> Result<&Database, redb::Error> {
        if self.database.is_none() {
            self.place.check().map_err(io::Error::other)?;
            self.database = Some(database(&self.path)?);
        }
        self.database.as_ref().ok_or(redb::Error::DatabaseClosed)
    }

    fn try_write(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        let transaction = self.opened()?.begin_write()?;
        {
            let mut changes = transaction.open_table(CHANGES)?;
            // Removes what an earlier write left although it reported a failure.
            changes.retain_in((batch.after + 1, 0).., |_, _| false)?;
            for record in &batch.records {
                let place = (record.kv.mod_revision, record.number);
                changes.insert(place, record.kv.encode_to_vec().as_slice())?;
            }
            for place in &batch.superfluous {
                changes.remove(place)?;
            }
            let mut leases = transaction.open_table(LEASES)?;
            for (id, lease) in &batch.leases {
                match lease {
                    Some(lease) => drop(leases.insert(id, (lease.granted, lease.remaining))?),
                    None => drop(leases.remove(id)?),
                }
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(REVISION, batch.revision)?;
            numbers.insert(COMPACTED, batch.compacted)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

fn database(path: &Path) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).open(path)?)
}

/// Initialises an empty store in a new file.
fn make(file: std::fs::File) -> Result<(), redb::Error> {
    let database = Database::builder().create_with_backend(FileBackend::new(file)?)?;
    let transaction = database.begin_write()?;
    {
        transaction.open_table(CHANGES)?;
        transaction.open_table(LEASES)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert(FORMAT, THIS_FORMAT)?;
        numbers.insert(REVISION, 1)?;
        numbers.insert(CLUSTER, rand::random_range(1..i64::MAX))?;
        numbers.insert(MEMBER, rand::random_range(1..i64::MAX))?;
    }
    transaction.commit()?;
    Ok(())
}

/// Counts a start of a store whose format this version reads.
fn count_start(database: &Database) -> Result<MemberIdentity, redb::Error> {
    let transaction = database.begin_write()?;
    let identity = {
        let mut numbers = transaction.open_table(NUMBERS)?;
        let number = |numbers: &redb::Table<'_, &str, i64>, name| {
            numbers.get(name).map(|found| found.map(|found| found.value()))
        };
        match number(&numbers, FORMAT)? {
            Some(THIS_FORMAT) => {}
            None => {
                return Err(redb::Error::Corrupted(
                    "it is not one of flan's stores: name another directory".into(),
                ));
            }
            Some(other) => {
                return Err(redb::Error::Corrupted(format!(
                    "its format is {other}, and this version reads {THIS_FORMAT}: use the version that wrote it"
                )));
            }
        }
        let starts = number(&numbers, STARTS)?.unwrap_or(0) + 1;
        numbers.insert(STARTS, starts)?;
        let id = |name| number(&numbers, name).map(|found| found.unwrap_or(1).unsigned_abs());
        MemberIdentity { cluster: id(CLUSTER)?, member: id(MEMBER)?, starts: starts.unsigned_abs() }
    };
    transaction.commit()?;
    Ok(identity)
}

fn read(database: &Database, identity: MemberIdentity) -> Result<Loaded, redb::Error> {
    let transaction = database.begin_read()?;
    let mut records = Vec::new();
    for entry in transaction.open_table(CHANGES)?.iter()? {
        let (place, bytes) = entry?;
        let kv = PbKeyValue::decode(bytes.value()).map_err(|reason| {
            redb::Error::Corrupted(format!("the change {:?} cannot be read: {reason}", place.value()))
        })?;
        records.push(Record { kv, number: place.value().1 });
    }
    let last = records.last().map_or(1, |record: &Record| record.kv.mod_revision);
    let mut leases = Vec::new();
    for entry in transaction.open_table(LEASES)?.iter()? {
        let (id, lease) = entry?;
        let (granted, remaining) = lease.value();
        leases.push((id.value(), Stored { granted, remaining }));
    }
    let numbers = transaction.open_table(NUMBERS)?;
    let number =
        |name| -> Result<Option<i64>, redb::Error> { Ok(numbers.get(name)?.map(|found| found.value())) };
    let revision = number(REVISION)?.unwrap_or(1);
    if last > revision {
        return Err(redb::Error::Corrupted(format!(
            "it has a change of revision {last} and ends with {revision}"
        )));
    }
    Ok(Loaded { records, revision, compacted: number(COMPACTED)?.unwrap_or(NEVER), leases, identity })
}

/// Returns whether the disk, or this user's quota, is full.
pub(crate) fn is_for_want_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let (mut file, content) = File::open(&path).unwrap();
        assert_eq!((content.revision, content.compacted, content.identity.starts), (1, NEVER, 1));
        let record = |key: &str, revision| {
            let kv = PbKeyValue {
                key: key.into(),
                value: b"v".to_vec(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: 7,
            };
            Arc::new(Record { kv, number: 0 })
        };
        let lease = Stored { granted: 10, remaining: 4 };
        let (a, b) = (record("a", 2), record("b", 3));
        let batch = Batch {
            after: 1,
            revision: 3,
            records: vec![a, b.clone()],
            leases: vec![(7, Some(lease)), (8, Some(lease))],
            ..Batch::default()
        };
        file.write(&batch).unwrap();
        let batch = Batch {
            after: 3,
            revision: 3,
            compacted: 3,
            superfluous: vec![(2, 0)],
            leases: vec![(8, None)],
            ..Batch::default()
        };
        file.write(&batch).unwrap();
        assert_eq!(file.revision(), Some(3));
        drop(file);
        let (_, again) = File::open(&path).unwrap();
        assert_eq!(again.records, [(*b).clone()]);
        assert_eq!((again.revision, again.compacted), (3, 3));
        assert_eq!(again.leases, [(7, lease)]);
        assert_eq!(again.identity, MemberIdentity { starts: 2, ..content.identity });
    }
}
