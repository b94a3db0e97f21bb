//! The writer: takes requests, and answers them when the result is on disk.
//!
//! It carries out all waiting requests together and writes them at once, so that many clients share the wait for the
//! disk. If a write fails, the writer undoes the changes. No client has seen the keys. A client that asked for a
//! lease's remaining time may have seen that.
//!
//! On a full disk, deletions and other requests that free space use the space of the [`Reserve`]. The writer refuses
//! all others until it holds the reserve again.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info};

use crate::contents::Contents;
use crate::figures::Counted;
use crate::file::{Batch, File, MemberIdentity};
use crate::handle::{self, Held, Outcome, Reply, Worker};
use crate::place::Place;
use crate::refusal::Refusal;
use crate::request::{WriteAnswer, WriteRequest, WriteResult};
use crate::reserve::Reserve;

pub(crate) struct Writer {
    held: Arc<Held>,
    file: File,
    queue: mpsc::Receiver<(WriteRequest, Reply)>,
    workers: Vec<mpsc::UnboundedSender<Outcome>>,
    /// The last revision on disk that the serving threads know of.
    told: i64,
    /// Records to remove from the file.
    superfluous: Vec<(i64, u32)>,
    /// The last compaction in the file.
    compacted: i64,
    /// The error of the last write.
    failed: Option<Failed>,
    reserve: Reserve,
    counted: Counted,
}

#[derive(Debug)]
struct Failed {
    refusal: Refusal,
    /// Until then, requests are refused without a try.
    until: Instant,
}

/// Requests that wait for the writer. Others wait at their source.
const MOST_WAITING: usize = 4096;
/// Requests that are carried out together.
const MOST_AT_ONCE: usize = 1024;
/// Superfluous records that are removed at once. Waiting requests wait for that, too.
const MOST_REMOVED: usize = 4096;
/// After a failed write, requests are refused for this long without a try.
const TRY_AGAIN: Duration = Duration::from_millis(200);

impl Writer {
    /// Creates the writer of a file, with this many serving threads.
    pub(crate) fn new(
        file: File,
        contents: Contents,
        superfluous: Vec<(i64, u32)>,
        workers: usize,
    ) -> (Self, Vec<Worker>) {
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        let (compacted, told) = (contents.keys.compacted(), contents.stored);
        let held = Arc::new(Held::new(contents));
        let reserve = Reserve::beside(file.path());
        let is_full = !reserve.is_held();
        let (workers, senders) = (0..workers).map(|number| handle::worker(&held, &sender, number)).unzip();
        let mut writer = Self {
            held,
            file,
            queue,
            workers: senders,
            told,
            superfluous,
            compacted,
            failed: None,
            reserve,
            counted: Counted::default(),
        };
        if is_full {
            writer.note(Some(Refusal::NoSpace), Duration::ZERO);
        }
        (writer, workers)
    }

    /// Returns what is counted of its writes.
    pub(crate) fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Writes until no handle is left or the file is gone. Returns the reason.
    pub(crate) fn run(mut self) -> String {
        while let Some(first) = self.queue.blocking_recv() {
            let mut together = Vec::new();
            let mut next = Some(first);
            while let Some((request, reply)) = next {
                if let WriteRequest::Compact(revision) = request {
                    // A compaction cannot be undone. Everything up to it must be on disk.
                    self.carry_out(std::mem::take(&mut together));
                    self.compact(revision, reply);
                } else {
                    together.push((request, reply));
                }
                next = if together.len() < MOST_AT_ONCE { self.queue.try_recv().ok() } else { None };
            }
            self.carry_out(together);
            while !self.superfluous.is_empty() && self.queue.is_empty() && self.failed.is_none() {
                self.carry_out(Vec::new());
            }
            if let Some(Failed { refusal: Refusal::Gone(reason), .. }) = &self.failed {
                return reason.clone();
            }
        }
        "the store's writer has ended".to_owned()
    }

    /// Compacts in memory at once. The next write updates the file.
    fn compact(&mut self, revision: i64, reply: Reply) {
        let compacted = {
            let mut contents = self.held.contents_mut();
            let forgotten = contents.compact(revision);
            forgotten.map(|forgotten| {
                self.superfluous.extend(forgotten);
                WriteAnswer::Done(contents.stored)
            })
        };
        self.tell([(compacted, reply)]);
    }

    /// Sends each thread the outcomes of its requests, and the last revision on disk.
    fn tell(&mut self, answers: impl IntoIterator<Item = (WriteResult, Reply)>) {
        let mut of_workers: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (answer, reply) in answers {
            of_workers[reply.worker].push((answer, reply.sender));
        }
        let stored = self.held.contents().stored;
        let is_news = std::mem::replace(&mut self.told, stored) != stored;
        for (worker, answers) in self.workers.iter().zip(of_workers) {
            if is_news || !answers.is_empty() {
                // After a stop, nobody waits.
                let _ = worker.send(Outcome { stored, answers });
            }
        }
    }

    fn carry_out(&mut self, requests: Vec<(WriteRequest, Reply)>) {
        let now = Instant::now();
        let mut answers = Vec::with_capacity(requests.len());
        let batch = {
            let held = self.held.clone();
            let mut contents = held.contents_mut();
            for (request, reply) in requests {
                if !self.reserve.is_held() && !request.makes_room() && !request.reads_only() {
                    answers.push((Err(Refusal::NoSpace), None, reply));
                    continue;
                }
                let again = (request.makes_room() || request.reads_only()).then(|| request.clone());
                let answer = request.carry_out(&mut contents, now);
                answers.push((answer, again, reply));
            }
            self.batch(&contents)
        };
        let is_empty = batch.records.is_empty()
            && batch.leases.is_empty()
            && batch.superfluous.is_empty()
            && batch.compacted == self.compacted;
        let is_well = self.failed.is_none() && self.reserve.is_held();
        // After a failure, a batch without changes is also written, to find out whether writing works again. Not if all
        // its requests were refused already.
        let all_refused = !answers.is_empty() && answers.iter().all(|(_, again, _)| again.is_none());
        let written = if is_empty && (is_well || all_refused) { Ok(()) } else { self.write(&batch) };
        match written {
            Ok(()) => {
                self.compacted = batch.compacted;
                let mut contents = self.held.contents_mut();
                contents.stored = batch.revision;
                contents.leases.stored();
                drop(contents);
                self.tell(answers.into_iter().map(|(answer, _, reply)| (answer, reply)));
            }
            Err(refusal) => {
                self.superfluous.splice(0..0, batch.superfluous);
                self.held.contents_mut().take_back();
                self.settle_refused(answers, &refusal);
            }
        }
    }

    /// Handles the requests of a failed write. Reads are repeated, without the undone changes. Requests that free space
    /// are repeated alone, in the space of the reserve.
    fn settle_refused(
        &mut self,
        answers: Vec<(WriteResult, Option<WriteRequest>, Reply)>,
        refusal: &Refusal,
    ) {
        let has_reserve = *refusal == Refusal::NoSpace && self.reserve.is_held();
        let mut make_room = Vec::new();
        let mut refused = Vec::new();
        for (_, again, reply) in answers {
            match again {
                Some(request) if request.reads_only() => {
                    let answer = request.carry_out(&mut self.held.contents_mut(), Instant::now());
                    refused.push((answer, reply));
                }
                // A check for space is not worth the reserve.
                Some(WriteRequest::Checkpoint(_)) => refused.push((Err(refusal.clone()), reply)),
                Some(request) if has_reserve => make_room.push((request, reply)),
                // A refusal may have depended on a change that is undone now.
                _ => refused.push((Err(refusal.clone()), reply)),
            }
        }
        self.tell(refused);
        let must_forget = !self.superfluous.is_empty();
        if has_reserve && (must_forget || !make_room.is_empty()) {
            self.reserve.release();
            if let Some(failed) = &mut self.failed {
                failed.until = Instant::now();
            }
            self.carry_out(make_room);
        }
    }

    /// Returns everything that is not on disk.
    fn batch(&mut self, contents: &Contents) -> Batch {
        let changes = contents.keys.changes_since(contents.stored);
        // In order: if a deletion were removed before the record that it ended, a restart in between would restore that
        // record.
        let removed = self.superfluous.len().min(MOST_REMOVED);
        Batch {
            after: contents.stored,
            revision: contents.keys.revision(),
            compacted: contents.keys.compacted(),
            records: changes.flat_map(|(_, changes)| changes).cloned().collect(),
            superfluous: self.superfluous.drain(..removed).collect(),
            leases: contents.leases.unstored(),
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), Refusal> {
        if let Some(failed) = &self.failed
            && Instant::now() < failed.until
        {
            return Err(failed.refusal.clone());
        }
        let started = Instant::now();
        let mut written = self.file.write(batch);
        if written.is_err() && !batch.records.is_empty() && self.file.revision() == Some(batch.revision) {
            // The batch is in the file, but perhaps not on the disk.
            written = self.file.write(batch);
        }
        self.counted.wrote(started.elapsed(), written.is_ok());
        let (refusal, wait) = match &written {
            // The reserve was used, and there is no space for a new one.
            Ok(()) if !self.regain_reserve(batch) => (Some(Refusal::NoSpace), Duration::ZERO),
            Ok(()) => (None, Duration::ZERO),
            Err(refusal) => (Some(refusal.clone()), TRY_AGAIN),
        };
        self.note(refusal, wait);
        written
    }

    /// Takes the reserve again, if there is space. Removed records leave space in the file. The file shrinks when the
    /// last of them is removed.
    fn regain_reserve(&mut self, batch: &Batch) -> bool {
        if self.reserve.hold() {
            return true;
        }
        let is_smaller = !batch.superfluous.is_empty() && self.superfluous.is_empty();
        is_smaller && self.file.shrink() && self.reserve.hold()
    }

    /// Records and logs once why writing fails and how long it is not tried, or that it works again.
    fn note(&mut self, refusal: Option<Refusal>, wait: Duration) {
        let is_known = self.failed.as_ref().map(|failed| &failed.refusal) == refusal.as_ref();
        match &refusal {
            _ if is_known => {}
            // The store ends for this reason and reports it.
            Some(Refusal::Gone(_)) => {}
            Some(Refusal::NoSpace) => error!(
                file = %self.file.path().display(),
                "no disk space is left for the store and its reserve: writes are refused; reads, keepalives and deletions \
                 continue"
            ),
            Some(refusal) => error!(
                reason = refusal.reason(),
                "writes are refused until the store can be written again; reads and keepalives continue"
            ),
            None => info!("the store can be written again"),
        }
        self.held.note_failure(refusal.clone());
        self.failed = refusal.map(|refusal| Failed { refusal, until: Instant::now() + wait });
    }
}

pub(crate) struct Opened {
    pub(crate) writer: Writer,
    pub(crate) workers: Vec<Worker>,
    pub(crate) identity: MemberIdentity,
    pub(crate) place: Place,
}

/// Opens the file at `path`, and creates everything that this many threads need to serve it.
pub(crate) fn open(path: &Path, workers: usize) -> Result<Opened, redb::Error> {
    let (file, content) = File::open(path)?;
    let place = file.place().clone();
    let now = Instant::now();
    let (keys, superfluous) = crate::keys::Keys::load(content.records, content.revision, content.compacted);
    let leases = crate::leases::Leases::load(content.leases, now);
    let (writer, workers) = Writer::new(file, Contents::new(keys, leases), superfluous, workers);
    Ok(Opened { writer, workers, identity: content.identity, place })
}
