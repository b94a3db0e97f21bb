//! The one who writes: requests in, answers out once they are on disk.
//!
//! Whatever waits is carried out together and written at once, so that many clients share the wait for the disk. What
//! cannot be written is undone. Of the keys nobody has seen it; of a lease, who asks how long it lasts may have.
//!
//! On a full disk, what makes room is carried out in the room of the [`Reserve`]. Until that is held again, everything else
//! is refused.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbDeleteRequest, PbPutRequest, PbTxnOpRequest, PbTxnRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info};

use crate::answer;
use crate::file::{Batch, File, Identity};
use crate::place::Place;
use crate::refusal::Refusal;
use crate::reserve::Reserve;
use crate::shared::{self, Answered, Held, Outcome, Reply, Worker};
use crate::state::State;

/// What only the writer may do.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Grant {
        id: i64,
        seconds: i64,
    },
    Revoke(i64),
    Compact(i64),
    /// Ends those of these leases whose time is over.
    Expire(Vec<i64>),
    /// Notes how long these leases last.
    Checkpoint(Vec<i64>),
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Put(answer::Put),
    Delete(answer::Delete),
    Txn(answer::Txn),
    /// Id and seconds of the lease, and the revision.
    Granted {
        id: i64,
        seconds: i64,
        revision: i64,
    },
    /// It is done; the revision.
    Done(i64),
}

/// The thread that writes.
pub(crate) struct Writer {
    held: Arc<Held>,
    file: File,
    queue: mpsc::Receiver<(Request, Reply)>,
    workers: Vec<mpsc::UnboundedSender<Outcome>>,
    /// The last revision on disk that they were told of.
    told: i64,
    /// Records that are to be removed from the file.
    superfluous: Vec<(i64, u32)>,
    /// The compaction that the file knows of.
    compacted: i64,
    /// Why the last write failed.
    failed: Option<Failed>,
    reserve: Reserve,
}

/// A write that has failed.
#[derive(Debug)]
struct Failed {
    refusal: Refusal,
    /// Until then others are refused without a try.
    until: Instant,
}

/// Requests that wait for the writer; others wait where they come from.
const MOST_WAITING: usize = 4096;
/// Requests that are carried out together.
const MOST_AT_ONCE: usize = 1024;
/// Superfluous records that are removed at once: whoever waits for the disk waits for that too.
const MOST_REMOVED: usize = 4096;
/// After a write has failed, others are refused for so long without a try.
const TRY_AGAIN: Duration = Duration::from_millis(200);

impl Writer {
    /// The writer of a file, and so many who serve.
    pub(crate) fn new(
        file: File,
        state: State,
        superfluous: Vec<(i64, u32)>,
        workers: usize,
    ) -> (Self, Vec<Worker>) {
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        let (compacted, told) = (state.keys.compacted(), state.stored);
        let held = Arc::new(Held::new(state));
        let reserve = Reserve::beside(file.path());
        let is_full = !reserve.is_held();
        let (workers, senders) = (0..workers).map(|number| shared::worker(&held, &sender, number)).unzip();
        let mut writer =
            Self { held, file, queue, workers: senders, told, superfluous, compacted, failed: None, reserve };
        if is_full {
            writer.note(Some(Refusal::NoSpace), Duration::ZERO);
        }
        (writer, workers)
    }

    /// Writes until nobody is left who could ask, or the file is gone; answers which.
    pub(crate) fn run(mut self) -> String {
        while let Some(first) = self.queue.blocking_recv() {
            let mut together = Vec::new();
            let mut next = Some(first);
            while let Some((request, reply)) = next {
                if let Request::Compact(revision) = request {
                    // What it forgets cannot be brought back: everything up to it must be on disk.
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

    /// Forgets in memory at once; the file follows with what is written next.
    fn compact(&mut self, revision: i64, reply: Reply) {
        let compacted = {
            let mut state = self.held.state_mut();
            let forgotten = state.compact(revision);
            forgotten.map(|forgotten| {
                self.superfluous.extend(forgotten);
                Answer::Done(state.stored)
            })
        };
        self.tell([(compacted, reply)]);
    }

    /// Tells each thread what came of its requests, and how far the file is.
    fn tell(&mut self, answers: impl IntoIterator<Item = (Answered, Reply)>) {
        let mut of_workers: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for (answer, reply) in answers {
            of_workers[reply.worker].push((answer, reply.sender));
        }
        let stored = self.held.state().stored;
        let is_news = std::mem::replace(&mut self.told, stored) != stored;
        for (worker, answers) in self.workers.iter().zip(of_workers) {
            if is_news || !answers.is_empty() {
                // When the store is stopped nobody is left who waits.
                let _ = worker.send(Outcome { stored, answers });
            }
        }
    }

    fn carry_out(&mut self, requests: Vec<(Request, Reply)>) {
        let now = Instant::now();
        let mut answers = Vec::with_capacity(requests.len());
        let batch = {
            let held = self.held.clone();
            let mut state = held.state_mut();
            for (request, reply) in requests {
                if !self.reserve.is_held() && !request.makes_room() && !request.reads_only() {
                    answers.push((Err(Refusal::NoSpace), None, reply));
                    continue;
                }
                let again = (request.makes_room() || request.reads_only()).then(|| request.clone());
                let answer = carry_out(&mut state, request, now);
                answers.push((answer, again, reply));
            }
            self.batch(&state)
        };
        let is_empty = batch.records.is_empty()
            && batch.leases.is_empty()
            && batch.superfluous.is_empty()
            && batch.compacted == self.compacted;
        let is_well = self.failed.is_none() && self.reserve.is_held();
        // While all is not well, what changes nothing is written as well, to find out whether it is again; but not for the
        // sake of those who were refused already.
        let all_refused = !answers.is_empty() && answers.iter().all(|(_, again, _)| again.is_none());
        let written = if is_empty && (is_well || all_refused) { Ok(()) } else { self.write(&batch) };
        match written {
            Ok(()) => {
                self.compacted = batch.compacted;
                let mut state = self.held.state_mut();
                state.stored = batch.revision;
                state.leases.stored();
                drop(state);
                self.tell(answers.into_iter().map(|(answer, _, reply)| (answer, reply)));
            }
            Err(refusal) => {
                self.superfluous.splice(0..0, batch.superfluous);
                self.held.state_mut().take_back();
                self.settle_refused(answers, &refusal);
            }
        }
    }

    /// Answers what was carried out in vain. What only reads is read again, without what is undone now; what makes room is
    /// carried out again, by itself and in the room of the reserve.
    fn settle_refused(&mut self, answers: Vec<(Answered, Option<Request>, Reply)>, refusal: &Refusal) {
        let has_reserve = *refusal == Refusal::NoSpace && self.reserve.is_held();
        let mut make_room = Vec::new();
        let mut refused = Vec::new();
        for (_, again, reply) in answers {
            match again {
                Some(Request::Txn(txn)) if reads_only(&txn) => {
                    refused.push((self.held.state_mut().txn(&txn).map(Answer::Txn), reply));
                }
                // A look whether there is room is not worth the room.
                Some(Request::Checkpoint(_)) => refused.push((Err(refusal.clone()), reply)),
                Some(request) if has_reserve => make_room.push((request, reply)),
                // A refusal may have been for what another one did that is undone now.
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

    /// What is not on disk.
    fn batch(&mut self, state: &State) -> Batch {
        let changes = state.keys.changes_since(state.stored);
        // In their order: if the end of a key went before what it ended, a start in between would bring that back.
        let removed = self.superfluous.len().min(MOST_REMOVED);
        Batch {
            after: state.stored,
            revision: state.keys.revision(),
            compacted: state.keys.compacted(),
            records: changes.flat_map(|(_, changes)| changes).cloned().collect(),
            superfluous: self.superfluous.drain(..removed).collect(),
            leases: state.leases.unstored(),
        }
    }

    fn write(&mut self, batch: &Batch) -> Result<(), Refusal> {
        if let Some(failed) = &self.failed
            && Instant::now() < failed.until
        {
            return Err(failed.refusal.clone());
        }
        let mut written = self.file.write(batch);
        if written.is_err() && !batch.records.is_empty() && self.file.revision() == Some(batch.revision) {
            // It has come to the file after all, but perhaps not to the disk.
            written = self.file.write(batch);
        }
        let (refusal, wait) = match &written {
            // The reserve was needed, and there is no room for another one.
            Ok(()) if !self.regain_reserve(batch) => (Some(Refusal::NoSpace), Duration::ZERO),
            Ok(()) => (None, Duration::ZERO),
            Err(refusal) => (Some(refusal.clone()), TRY_AGAIN),
        };
        self.note(refusal, wait);
        written
    }

    /// Holds the reserve again, where there is room for it. What was removed from the file leaves room in it, which is given
    /// back to the disk when no more is to be removed.
    fn regain_reserve(&mut self, batch: &Batch) -> bool {
        if self.reserve.hold() {
            return true;
        }
        let is_smaller = !batch.superfluous.is_empty() && self.superfluous.is_empty();
        is_smaller && self.file.shrink() && self.reserve.hold()
    }

    /// Notes why nothing more can be written, and for how long it is not tried, or that all is well; says so once.
    fn note(&mut self, refusal: Option<Refusal>, wait: Duration) {
        let is_known = self.failed.as_ref().map(|failed| &failed.refusal) == refusal.as_ref();
        match &refusal {
            _ if is_known => {}
            // The store ends with it, and says so.
            Some(Refusal::Gone(_)) => {}
            Some(Refusal::NoSpace) => error!(
                file = %self.file.path().display(),
                "no space is left for the store and its reserve beside it: writes are refused; reads, keepalives and what \
                 makes room go on"
            ),
            Some(refusal) => error!(
                reason = refusal.reason(),
                "writes are refused until the store can be written again; reads and keepalives go on"
            ),
            None => info!("the store can be written again"),
        }
        self.held.note_failure(refusal.clone());
        self.failed = refusal.map(|refusal| Failed { refusal, until: Instant::now() + wait });
    }
}

/// What opening a file gives.
pub(crate) struct Opened {
    pub(crate) writer: Writer,
    pub(crate) workers: Vec<Worker>,
    pub(crate) identity: Identity,
    pub(crate) place: Place,
}

/// Opens the file in `path` and makes all that is needed to serve it by so many threads.
pub(crate) fn open(path: &Path, workers: usize) -> Result<Opened, redb::Error> {
    let (file, content) = File::open(path)?;
    let place = file.place().clone();
    let now = Instant::now();
    let (keys, superfluous) = crate::keys::Keys::load(content.records, content.revision, content.compacted);
    let leases = crate::leases::Leases::load(content.leases, now);
    let (writer, workers) = Writer::new(file, State::new(keys, leases), superfluous, workers);
    Ok(Opened { writer, workers, identity: content.identity, place })
}

/// What a request makes of the store, in memory.
pub(crate) fn carry_out(state: &mut State, request: Request, now: Instant) -> Answered {
    match request {
        Request::Put(put) => return state.put(put).map(Answer::Put),
        Request::Delete(deletion) => return Ok(Answer::Delete(state.delete(&deletion))),
        Request::Txn(txn) => return state.txn(&txn).map(Answer::Txn),
        Request::Grant { id, seconds } => {
            let (id, seconds) = state.leases.grant(id, seconds, now)?;
            return Ok(Answer::Granted { id, seconds, revision: state.keys.revision() });
        }
        Request::Revoke(id) => state.revoke(id)?,
        // Is carried out by itself.
        Request::Compact(_) => {}
        Request::Expire(ids) => {
            for id in ids {
                state.expire(id, now);
            }
        }
        Request::Checkpoint(ids) => state.leases.checkpoint(&ids, now),
    }
    Ok(Answer::Done(state.keys.revision()))
}

impl Request {
    /// Whether it only reads.
    fn reads_only(&self) -> bool {
        matches!(self, Self::Txn(txn) if reads_only(txn))
    }

    /// Whether there is more room once it is carried out, at the latest after the next compaction.
    fn makes_room(&self) -> bool {
        match self {
            Self::Put(_) | Self::Grant { .. } => false,
            Self::Txn(txn) => {
                !reads_only(txn)
                    && all_operations(txn, &|operation| !matches!(operation, PbTxnOpRequest::RequestPut(_)))
            }
            Self::Delete(_) | Self::Revoke(_) | Self::Compact(_) | Self::Expire(_) | Self::Checkpoint(_) => {
                true
            }
        }
    }
}

fn reads_only(txn: &PbTxnRequest) -> bool {
    all_operations(txn, &|operation| matches!(operation, PbTxnOpRequest::RequestRange(_)))
}

/// Whether all that a transaction may do is of this kind.
fn all_operations(txn: &PbTxnRequest, is_so: &dyn Fn(&PbTxnOpRequest) -> bool) -> bool {
    txn.success.iter().chain(&txn.failure).filter_map(|operation| operation.request.as_ref()).all(
        |operation| match operation {
            PbTxnOpRequest::RequestTxn(inner) => all_operations(inner, is_so),
            operation => is_so(operation),
        },
    )
}
