//! The one who writes: requests in, answers out once they are on disk.
//!
//! Whatever waits is carried out together and written at once, so that many clients share the wait for the disk. What
//! cannot be written is undone. Of the keys nobody has seen it; of a lease, who asks how long it lasts may have.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbDeleteRequest, PbDeleteResponse, PbPutRequest, PbPutResponse, PbTxnOpRequest, PbTxnRequest,
    PbTxnResponse,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info};

use crate::file::{Batch, File, Identity};
use crate::place::Place;
use crate::refusal::Refusal;
use crate::shared::{self, Answered, Held, Outcome, Reply, Worker};
use crate::state::State;

/// What only the writer may do.
#[derive(Debug)]
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
    Put(PbPutResponse),
    Delete(PbDeleteResponse),
    Txn(PbTxnResponse),
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
    /// When the last write failed, and why.
    failed: Option<(Instant, Refusal)>,
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
        let (workers, senders) = (0..workers).map(|number| shared::worker(&held, &sender, number)).unzip();
        (Self { held, file, queue, workers: senders, told, superfluous, compacted, failed: None }, workers)
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
            if let Some((_, Refusal::Gone(reason))) = &self.failed {
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
                let again = reads_only(&request);
                let answer = carry_out(&mut state, request, now);
                answers.push((answer, again, reply));
            }
            self.batch(&state)
        };
        let is_nothing = self.failed.is_none()
            && batch.records.is_empty()
            && batch.leases.is_empty()
            && batch.superfluous.is_empty()
            && batch.compacted == self.compacted;
        let written = if is_nothing { Ok(()) } else { self.write(&batch) };
        if written.is_ok() {
            self.compacted = batch.compacted;
            let mut state = self.held.state_mut();
            state.stored = batch.revision;
            state.leases.stored();
        } else {
            self.superfluous.splice(0..0, batch.superfluous);
            self.held.state_mut().take_back();
        }
        let held = self.held.clone();
        let answers = answers.into_iter().map(|(answer, again, reply)| {
            let answer = match (&written, again) {
                (Ok(()), _) => answer,
                (Err(_), Some(txn)) => held.state_mut().txn(&txn).map(Answer::Txn),
                // A refusal may have been for what another one did that is undone now.
                (Err(refusal), None) => Err(refusal.clone()),
            };
            (answer, reply)
        });
        self.tell(answers);
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
        if let Some((at, refusal)) = &self.failed
            && at.elapsed() < TRY_AGAIN
        {
            return Err(refusal.clone());
        }
        let mut written = self.file.write(batch);
        if written.is_err() && !batch.records.is_empty() && self.file.revision() == Some(batch.revision) {
            // It has come to the file after all, but perhaps not to the disk.
            written = self.file.write(batch);
        }
        match &written {
            Ok(()) => {
                if self.failed.take().is_some() {
                    info!("the store can be written again");
                }
            }
            Err(refusal) => {
                let known = self.failed.as_ref().is_some_and(|(_, before)| before == refusal);
                match refusal {
                    _ if known => {}
                    // The store ends with it, and says so.
                    Refusal::Gone(_) => {}
                    Refusal::NoSpace => error!(
                        "no space is left for the store: writes are refused, reads and keepalives go on"
                    ),
                    refusal => error!(?refusal, "the store cannot be written: reads and keepalives go on"),
                }
                self.failed = Some((Instant::now(), refusal.clone()));
            }
        }
        self.held.note_failure(written.clone().err());
        written
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

fn carry_out(state: &mut State, request: Request, now: Instant) -> Answered {
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

/// A transaction that only reads, to read again if what was seen could not be written.
fn reads_only(request: &Request) -> Option<PbTxnRequest> {
    fn reads(txn: &PbTxnRequest) -> bool {
        txn.success.iter().chain(&txn.failure).all(|operation| match &operation.request {
            Some(PbTxnOpRequest::RequestTxn(inner)) => reads(inner),
            Some(PbTxnOpRequest::RequestRange(_)) | None => true,
            Some(PbTxnOpRequest::RequestPut(_) | PbTxnOpRequest::RequestDeleteRange(_)) => false,
        })
    }
    match request {
        Request::Txn(txn) if reads(txn) => Some(txn.clone()),
        _ => None,
    }
}
