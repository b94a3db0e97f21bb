//! Whatever clients of the embedded store send, they are answered or refused. What is then there is what a plain model has,
//! and whoever watches hears of nothing else.
//!
//! The bytes are steps, each a kind of [`METHODS`] or of those below, two bytes of length, and so many bytes more.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbDeleteResponse, PbKeyValue, PbLeaseGrantRequest,
    PbLeaseGrantResponse, PbLeaseRevokeRequest, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbTxnOpRequest, PbTxnRequest,
    PbTxnResponse, PbWatchResponse,
};
use flan_embedded_store::fuzz::{Answered, Store, Watch};
use prost::Message;

/// A step's bytes are a request of the method with its number here.
const METHODS: [&str; 13] = [
    "KV/Range",
    "KV/Put",
    "KV/DeleteRange",
    "KV/Txn",
    "KV/Compact",
    "Lease/LeaseGrant",
    "Lease/LeaseRevoke",
    "Lease/LeaseKeepAlive",
    "Lease/LeaseTimeToLive",
    "Lease/LeaseLeases",
    "Maintenance/Status",
    "Maintenance/Alarm",
    "Cluster/MemberList",
];
/// A request of the watch that the client has open.
const WATCH: u8 = 13;
/// So many seconds pass.
const TIME: u8 = 14;
/// A put of a key and a value of the sizes that two numbers of three bytes say.
const LARGE_PUT: u8 = 15;
/// The disk is full for the next write.
const FULL_DISK: u8 = 16;
/// The number of a method, and all that is sent, whether or not there is a message in it.
const RAW: u8 = 17;
const KINDS: u8 = 18;

/// More is not looked at.
const MOST_STEPS: usize = 100;
/// Bytes of all large keys and values of an input.
const MOST_LARGE: usize = 8 << 20;
/// `WatchRequest` for all keys.
const ALL_KEYS: [u8; 8] = [0x0a, 6, 0x0a, 1, 0, 0x12, 1, 0];
/// Bytes in one piece of an answer: a frame of HTTP/2.
const PIECE: usize = 16 << 10;

/// All keys at one time, in their order.
type Keys = Vec<Arc<PbKeyValue>>;

/// `bytes` are steps.
pub fn check(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("no runtime").block_on(async {
        let mut judge = Judge::new().await;
        for (kind, bytes) in steps(bytes).take(MOST_STEPS) {
            judge.step(kind, bytes).await;
        }
        judge.end().await;
    });
}

fn steps(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[kind, high, low], rest) = bytes.split_first_chunk()?;
        let length = usize::from(high) << 8 | usize::from(low);
        let (step, rest) = rest.split_at(length.min(rest.len()));
        bytes = rest;
        Some((kind % KINDS, step))
    })
}

struct Judge {
    store: Store,
    /// The keys at each revision since the last compaction.
    history: BTreeMap<i64, Keys>,
    revision: i64,
    /// Below 0 before the first, which may be of revision 0, as in etcd.
    compacted: i64,
    /// A watch of all keys, and what it was told is there.
    all: Watch,
    told: Keys,
    told_revision: i64,
    /// The watch of the client.
    watch: Watch,
    /// Bytes that large puts may still have.
    large: usize,
}

impl Judge {
    async fn new() -> Self {
        let store = Store::empty();
        let all = store.watch().await;
        all.send(framed(&ALL_KEYS));
        let (watch, revision) = (store.watch().await, store.revision());
        let history = BTreeMap::from([(revision, Keys::new())]);
        let (told, large) = (Keys::new(), MOST_LARGE);
        let mut judge = Self {
            store,
            history,
            revision,
            compacted: -1,
            all,
            told,
            told_revision: revision,
            watch,
            large,
        };
        judge.hear();
        judge
    }

    fn now(&self) -> &Keys {
        &self.history[&self.revision]
    }

    async fn step(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            WATCH => {
                self.watch.send(framed(bytes));
                check_told(&self.watch.told(), self.revision);
            }
            TIME => {
                let seconds = bytes.iter().take(3).fold(0, |seconds, byte| seconds << 8 | u64::from(*byte));
                tokio::time::advance(Duration::from_secs(seconds)).await;
                self.store.expire().await;
                self.look(|judge, now| {
                    let gone = judge.now().iter().filter(|kv| !now.contains(kv));
                    assert!(gone.cloned().all(|kv| kv.lease != 0), "ended without a lease");
                    assert!(now.iter().all(|kv| judge.now().contains(kv)), "changed by time");
                })
                .await;
            }
            LARGE_PUT => {
                let size = |at| bytes.get(at..at + 3).map_or(0, |size| number(size).min(2 << 20));
                let (key, value) = (size(0), size(3));
                if let Some(left) = self.large.checked_sub(key + value) {
                    self.large = left;
                    let (key, value) = (vec![b'A'; key], vec![b'V'; value]);
                    let put = PbPutRequest { key, value, ..PbPutRequest::default() };
                    self.call(METHODS[1], &put.encode_to_vec()).await;
                }
            }
            FULL_DISK => self.store.let_next_write_fail(),
            RAW => {
                let Some((method, body)) = bytes.split_first() else { return };
                let method = METHODS[usize::from(*method) % METHODS.len()];
                let answered = self.store.call(method, body.to_vec()).await;
                assert!(answered.status.is_some(), "{method} is not answered");
                // Whatever was in it, nothing but a write of that may have happened.
                self.look(|_, _| {}).await;
            }
            method => self.call(METHODS[usize::from(method)], bytes).await,
        }
    }

    /// Calls a method with one request.
    async fn call(&mut self, method: &str, request: &[u8]) {
        let keys = self.now().len();
        let answered = self.store.call(method, framed(request)).await;
        let status = answered.status.unwrap_or_else(|| panic!("{method} is not answered"));
        assert!((0..=16).contains(&status), "{method}: status {status}");
        assert!(answered.largest_piece <= PIECE.max(request.len() + 64), "{method}: {answered:?}");
        // Each operation has four bytes, at least; an answer keeps pointers alone, to each key for each operation.
        let may_keep = (64 << 10) + (request.len() / 4 + 1) * (640 + 32 * keys);
        assert!(answered.kept <= may_keep, "{method}: an answer keeps {} bytes", answered.kept);
        assert_eq!(self.store.kept(), 0, "{method}: an answer that was read is kept");
        if status != 0 {
            self.look(|judge, now| assert_eq!(judge.now(), now, "{method} is refused and has changed keys"))
                .await;
            return;
        }
        match method {
            "KV/Range" => self.check_range(&decoded(request), &message(&answered)),
            "KV/Put" => self.check_put(decoded(request), &message(&answered)).await,
            "KV/DeleteRange" => self.check_delete(&decoded(request), &message(&answered)).await,
            "KV/Txn" => self.check_txn(&decoded(request), &message(&answered)).await,
            "KV/Compact" => {
                let PbCompactionRequest { revision, .. } = decoded(request);
                assert!(self.compacted < revision && revision <= self.revision, "compacted {revision}");
                self.compacted = revision;
                self.history.retain(|of, _| *of >= revision);
                self.look(|judge, now| assert_eq!(judge.now(), now, "compacted away")).await;
            }
            "Lease/LeaseGrant" => {
                let (asked, granted): (PbLeaseGrantRequest, PbLeaseGrantResponse) =
                    (decoded(request), message(&answered));
                assert!(granted.ttl >= asked.ttl && granted.ttl >= 1 && granted.id != 0, "{granted:?}");
                assert!(asked.id == 0 || asked.id == granted.id, "{granted:?}");
            }
            "Lease/LeaseRevoke" => {
                let PbLeaseRevokeRequest { id } = decoded(request);
                self.look(|judge, now| {
                    let left: Keys = judge.now().iter().filter(|kv| kv.lease != id).cloned().collect();
                    assert_eq!(&left, now, "after the end of lease {id}");
                })
                .await;
            }
            "Lease/LeaseTimeToLive" => self.check_lease(&decoded(request), &message(&answered)),
            _ => self.look(|judge, now| assert_eq!(judge.now(), now, "{method} has changed keys")).await,
        }
    }

    /// Reads what is there now, checks that each change has a revision, and hands it to `check`.
    async fn look(&mut self, check: impl FnOnce(&Self, &Keys)) {
        let revision = self.store.revision();
        assert!(revision >= self.revision, "from revision {} to {revision}", self.revision);
        let all = PbRangeRequest { key: vec![0], range_end: vec![0], ..PbRangeRequest::default() };
        let answered = self.store.call(METHODS[0], framed(&all.encode_to_vec())).await;
        assert_eq!(answered.status, Some(0), "not to be read");
        let all: PbRangeResponse = message(&answered);
        assert_eq!(all.header.map(|header| header.revision), Some(revision));
        assert!(all.kvs.is_sorted_by(|one, next| one.key < next.key), "out of order");
        let (now, before) = (self.shared(all.kvs), self.now());
        for kv in &now {
            assert!(0 < kv.version && kv.create_revision <= kv.mod_revision, "{:?}", short(kv));
            let is_new = !before.contains(kv);
            assert!(
                kv.mod_revision <= revision && (!is_new || kv.mod_revision > self.revision),
                "{:?}",
                short(kv)
            );
        }
        assert!(revision > self.revision || now == *before, "changed without a revision");
        check(self, &now);
        self.revision = revision;
        self.history.insert(revision, now);
        self.hear();
        check_told(&self.watch.told(), revision);
    }

    /// Keys that have not changed are held once.
    fn shared(&self, kvs: Vec<PbKeyValue>) -> Keys {
        let share = |kv: PbKeyValue| match find(self.now(), &kv.key) {
            Some(known) if **known == kv => known.clone(),
            _ => Arc::new(kv),
        };
        kvs.into_iter().map(share).collect()
    }

    /// Hears what has happened, which must lead to what is there.
    fn hear(&mut self) {
        for response in messages::<PbWatchResponse>(&self.all.told()) {
            assert!(!response.canceled, "{}", response.cancel_reason);
            for event in response.events {
                let kv = event.kv.expect("an event of no key");
                assert!(kv.mod_revision >= self.told_revision, "told out of order");
                self.told_revision = kv.mod_revision;
                let at = self.told.binary_search_by(|known| known.key.cmp(&kv.key));
                match (event.r#type, at) {
                    (0, Ok(at)) => self.told[at] = Arc::new(kv),
                    (0, Err(at)) => self.told.insert(at, Arc::new(kv)),
                    (_, Ok(at)) => drop(self.told.remove(at)),
                    (_, Err(_)) => panic!("told of the end of what was not there: {:?}", short(&kv)),
                }
            }
        }
        let now = &self.history[&self.revision];
        assert_eq!(&self.told, now, "told of something else than what is there");
        // Held once.
        self.told.clone_from(now);
    }

    fn check_range(&self, asked: &PbRangeRequest, answer: &PbRangeResponse) {
        assert_eq!(answer.header.map(|header| header.revision), Some(self.revision));
        let at = if asked.revision > 0 { asked.revision } else { self.revision };
        assert!(asked.revision <= 0 || at >= self.compacted && at <= self.revision, "read at {at}");
        // Revisions in between two steps were not looked at.
        let Some(keys) = self.history.get(&at) else { return };
        let found: Vec<_> = keys.iter().filter(|kv| within(&asked.key, &asked.range_end, &kv.key)).collect();
        assert_eq!(answer.count, found.len() as i64, "count of {asked:?}");
        if asked.count_only {
            assert!(answer.kvs.is_empty());
            return;
        }
        assert!(asked.limit <= 0 || answer.kvs.len() as i64 <= asked.limit, "more than asked for");
        for kv in &answer.kvs {
            let known = find(keys, &kv.key).unwrap_or_else(|| panic!("not there: {:?}", short(kv)));
            assert!(within(&asked.key, &asked.range_end, &kv.key), "not asked for: {:?}", short(kv));
            let value = if asked.keys_only { &[][..] } else { &known.value };
            assert!(kv.value == value && kv.mod_revision == known.mod_revision, "{:?}", short(kv));
        }
        let bounds = [asked.min_mod_revision, asked.max_mod_revision];
        let births = [asked.min_create_revision, asked.max_create_revision];
        if asked.limit <= 0 && bounds == [0; 2] && births == [0; 2] {
            assert_eq!(answer.kvs.len(), found.len(), "not all of {asked:?}");
        }
    }

    async fn check_put(&mut self, asked: PbPutRequest, answer: &PbPutResponse) {
        self.look(|judge, now| {
            let revision = judge.revision + 1;
            assert_eq!(answer.header.map(|header| header.revision), Some(revision));
            let before = find(judge.now(), &asked.key);
            assert_eq!(answer.prev_kv.as_ref(), before.map(Arc::as_ref).filter(|_| asked.prev_kv));
            let kept = before.map(|kv| PbKeyValue::clone(kv)).unwrap_or_default();
            let kv = PbKeyValue {
                create_revision: if before.is_some() { kept.create_revision } else { revision },
                mod_revision: revision,
                version: kept.version + 1,
                value: if asked.ignore_value { kept.value } else { asked.value },
                lease: if asked.ignore_lease { kept.lease } else { asked.lease },
                key: asked.key,
            };
            let mut expected = judge.now().clone();
            match expected.binary_search_by(|known| known.key.cmp(&kv.key)) {
                Ok(at) => expected[at] = Arc::new(kv),
                Err(at) => expected.insert(at, Arc::new(kv)),
            }
            assert_eq!(&expected, now, "after a put");
        })
        .await;
    }

    async fn check_delete(&mut self, asked: &PbDeleteRequest, answer: &PbDeleteResponse) {
        self.look(|judge, now| {
            let goes = |kv: &&Arc<PbKeyValue>| within(&asked.key, &asked.range_end, &kv.key);
            let gone: Vec<PbKeyValue> =
                judge.now().iter().filter(goes).map(|kv| PbKeyValue::clone(kv)).collect();
            let left: Keys = judge.now().iter().filter(|kv| !goes(kv)).cloned().collect();
            let revision = judge.revision + i64::from(!gone.is_empty());
            assert_eq!(answer.header.map(|header| header.revision), Some(revision));
            assert_eq!(answer.deleted, gone.len() as i64);
            assert_eq!(answer.prev_kvs, if asked.prev_kv { gone } else { Vec::new() });
            assert_eq!(&left, now, "after a deletion");
        })
        .await;
    }

    async fn check_txn(&mut self, asked: &PbTxnRequest, answer: &PbTxnResponse) {
        let branch = if answer.succeeded { &asked.success } else { &asked.failure };
        assert!(answer.succeeded || !asked.compare.is_empty(), "fails without a comparison");
        assert_eq!(answer.responses.len(), branch.len(), "responses to {asked:?}");
        self.look(|judge, now| {
            let revision = answer.header.as_ref().map(|header| header.revision).unwrap_or_default();
            assert!((judge.revision..=judge.revision + 1).contains(&revision), "at revision {revision}");
            assert!(now.iter().all(|kv| kv.mod_revision <= revision));
            let operations = || branch.iter().filter_map(|operation| operation.request.as_ref());
            // etcd lets a put and the deletion of all keys from one on stand side by side.
            let may_delete = |operation: &PbTxnOpRequest| match operation {
                PbTxnOpRequest::RequestDeleteRange(deletion) => deletion.range_end == [0],
                operation => matches!(operation, PbTxnOpRequest::RequestTxn(_)),
            };
            if operations().any(may_delete) {
                return;
            }
            for operation in operations() {
                if let PbTxnOpRequest::RequestPut(put) = operation {
                    let kv = find(now, &put.key).expect("what was put is not there");
                    assert!(put.ignore_value || kv.value == put.value, "{:?}", short(kv));
                    assert_eq!(kv.mod_revision, revision, "{:?}", short(kv));
                }
            }
        })
        .await;
    }

    fn check_lease(&self, asked: &PbLeaseTimeToLiveRequest, answer: &PbLeaseTimeToLiveResponse) {
        assert!(answer.ttl >= -1 && answer.ttl <= answer.granted_ttl.max(-1), "{answer:?}");
        let kept = self.now().iter().filter(|kv| kv.lease == asked.id && kv.lease != 0);
        let kept: Vec<&Vec<u8>> = kept.map(|kv| &kv.key).collect();
        if answer.ttl < 0 {
            assert!(kept.is_empty(), "keys of lease {} have outlived it", asked.id);
        } else if asked.keys {
            assert_eq!(answer.keys.iter().collect::<Vec<_>>(), kept, "keys of lease {}", asked.id);
        }
    }

    async fn end(self) {
        check_told(&self.watch.end().await, self.revision);
        messages::<PbWatchResponse>(&self.all.end().await);
    }
}

/// What a watch is told that the client has made, whatever it is of.
fn check_told(told: &[u8], revision: i64) {
    for response in messages::<PbWatchResponse>(told) {
        assert!(response.header.is_some_and(|header| header.revision <= revision), "told of the future");
        let revisions = response.events.iter().map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision));
        assert!(revisions.clone().is_sorted() && revisions.max() <= Some(revision), "told out of order");
        for event in &response.events {
            let (kv, before) = (event.kv.as_ref(), event.prev_kv.as_ref());
            let is_before = |(kv, before): (&PbKeyValue, &PbKeyValue)| {
                kv.key == before.key && before.mod_revision < kv.mod_revision
            };
            assert!(kv.zip(before).is_none_or(is_before), "before it was something else");
        }
    }
}

/// etcd's way to name keys.
fn within(first: &[u8], end: &[u8], key: &[u8]) -> bool {
    match end {
        [] => key == first,
        [0] => key >= first,
        end => key >= first && key < end,
    }
}

fn find<'a>(keys: &'a Keys, key: &[u8]) -> Option<&'a Arc<PbKeyValue>> {
    keys.binary_search_by(|kv| kv.key[..].cmp(key)).ok().map(|at| &keys[at])
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

/// A message with what gRPC has before it: not compressed, and the length.
fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// The messages in an answer.
fn messages<M: Message + Default>(mut body: &[u8]) -> Vec<M> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (&[0, a, b, c, d], rest) = body.split_first_chunk().expect("half a message") else {
            panic!("compressed, which nobody asked for");
        };
        let (message, rest) =
            rest.split_at_checked(number(&[a, b, c, d])).expect("a message is shorter than it says");
        messages.push(decoded(message));
        body = rest;
    }
    messages
}

/// The only message in an answer.
fn message<M: Message + Default>(answered: &Answered) -> M {
    let mut messages = messages(&answered.body);
    assert_eq!(messages.len(), 1, "{answered:?}");
    messages.remove(0)
}

fn decoded<M: Message + Default>(bytes: &[u8]) -> M {
    M::decode(bytes).expect("taken or sent, and cannot be decoded")
}

/// A key that may have a megabyte, as it is shown.
fn short(kv: &PbKeyValue) -> impl Debug {
    let head = kv.key[..kv.key.len().min(32)].escape_ascii().to_string();
    (head, kv.value.len(), kv.create_revision, kv.mod_revision, kv.version, kv.lease)
}
