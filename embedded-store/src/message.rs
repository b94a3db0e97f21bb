//! An answer, encoded piece by piece as the client takes it. Keys stay in the store's records: an answer of many
//! megabytes that no client reads is a list of pointers.

use std::collections::VecDeque;
use std::sync::Arc;

use etcd_client::proto::{PbEvent, PbKeyValue};
use prost::Message as _;
use prost::bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::keys::Record;

/// Bytes of a piece: one HTTP/2 frame.
pub(crate) const PIECE: usize = 16 << 10;
/// A value of this size or more is not copied.
const LARGE: usize = 4 << 10;
/// Field number of the value in `mvccpb.KeyValue`.
const VALUE: u32 = 5;
/// Field numbers of the key and the previous key in `mvccpb.Event`.
const EVENT_KV: u32 = 2;
const EVENT_PREV_KV: u32 = 3;
/// `mvccpb.Event.EventType`.
const DELETE: i32 = 1;

/// A Protobuf message that is encoded as the client takes it.
#[derive(Debug, Default)]
pub(crate) struct Message {
    /// Encoded length in bytes.
    length: usize,
    parts: VecDeque<Part>,
}

#[derive(Debug)]
enum Part {
    Bytes(Bytes),
    Keys(Records),
    Events { tag: u32, events: std::vec::IntoIter<Event> },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) record: Arc<Record>,
    /// The key before, if the watch asked for it.
    pub(crate) before: Option<Arc<Record>>,
}

/// A repeated field of keys.
#[derive(Debug)]
struct Records {
    tag: u32,
    without_values: bool,
    records: Vec<Arc<Record>>,
    taken: usize,
}

impl Message {
    pub(crate) fn fields(mut self, fields: &impl prost::Message) -> Self {
        self.push(fields.encode_to_vec().into());
        self
    }

    /// Appends a field that is itself a message.
    pub(crate) fn field(mut self, tag: u32, message: Message) -> Self {
        self.push(begin(tag, message.length));
        self.length += message.length;
        self.parts.extend(message.parts);
        self
    }

    /// Appends a repeated field of keys.
    pub(crate) fn keys(mut self, tag: u32, records: Vec<Arc<Record>>, without_values: bool) -> Self {
        let length = |record: &Arc<Record>| field_len(tag, length_of(&record.kv, without_values));
        self.length += records.iter().map(length).sum::<usize>();
        if !records.is_empty() {
            self.parts.push_back(Part::Keys(Records { tag, without_values, records, taken: 0 }));
        }
        self
    }

    /// Appends a repeated field of events.
    pub(crate) fn events(mut self, tag: u32, events: Vec<Event>) -> Self {
        self.length += events.iter().map(|event| field_len(tag, event.length())).sum::<usize>();
        if !events.is_empty() {
            self.parts.push_back(Part::Events { tag, events: events.into_iter() });
        }
        self
    }

    /// Adds gRPC's prefix of five bytes: no compression, and the length.
    pub(crate) fn framed(mut self) -> Self {
        let length = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        self.parts.push_front(Part::Bytes([&[0], &length[..]].concat().into()));
        self.length += 1 + length.len();
        self
    }

    /// Encoded length in bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Bytes of memory that the message takes, including one piece in transit, without the store's records.
    pub(crate) fn cost(&self) -> usize {
        let of_part = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len(),
            Part::Keys(keys) => keys.records.capacity() * size_of::<Arc<Record>>(),
            Part::Events { events, .. } => events.len() * size_of::<Event>(),
        };
        let parts: usize = self.parts.iter().map(of_part).sum();
        PIECE + self.parts.capacity() * size_of::<Part>() + parts
    }

    /// Returns the next bytes, at most [`PIECE`]; `None` at the end.
    pub(crate) fn next(&mut self) -> Option<Bytes> {
        let mut piece = BytesMut::new();
        while piece.len() < PIECE
            && let Some(part) = self.parts.front_mut()
        {
            match part {
                Part::Bytes(bytes) if bytes.is_empty() => drop(self.parts.pop_front()),
                // Not copied.
                Part::Bytes(bytes) if piece.is_empty() && bytes.len() >= PIECE => {
                    return Some(bytes.split_to(PIECE));
                }
                Part::Bytes(bytes) => {
                    let count = bytes.len().min(PIECE - piece.len());
                    piece.put((&mut *bytes).take(count));
                }
                Part::Keys(keys) => match keys.next() {
                    Some(encoded) => encoded.into_iter().rev().for_each(|bytes| {
                        self.parts.push_front(Part::Bytes(bytes));
                    }),
                    None => drop(self.parts.pop_front()),
                },
                Part::Events { tag, events } => match events.next() {
                    Some(change) => {
                        let event = Message::default().field(*tag, change.into());
                        event.parts.into_iter().rev().for_each(|part| self.parts.push_front(part));
                    }
                    None => drop(self.parts.pop_front()),
                },
            }
        }
        (!piece.is_empty()).then(|| piece.freeze())
    }

    fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        self.parts.push_back(Part::Bytes(bytes));
    }
}

impl Event {
    /// Returns the encoded length as an event.
    pub(crate) fn length(&self) -> usize {
        let of = |tag, record: &Arc<Record>| field_len(tag, record.kv.encoded_len());
        let before = self.before.as_ref().map_or(0, |record| of(EVENT_PREV_KV, record));
        self.kind().encoded_len() + of(EVENT_KV, &self.record) + before
    }

    fn kind(&self) -> PbEvent {
        PbEvent { r#type: if self.record.is_deletion() { DELETE } else { 0 }, ..PbEvent::default() }
    }
}

impl From<Event> for Message {
    fn from(change: Event) -> Self {
        let kind = change.kind();
        Self::default().fields(&kind).keys(EVENT_KV, vec![change.record], false).keys(
            EVENT_PREV_KV,
            change.before.into_iter().collect(),
            false,
        )
    }
}

impl Records {
    /// Returns the next key. Encoding the fields one after the other equals encoding the message at once.
    fn next(&mut self) -> Option<[Bytes; 3]> {
        let record = self.records.get(self.taken)?;
        self.taken += 1;
        let kv = &record.kv;
        let mut head = BytesMut::from(&begin(self.tag, length_of(kv, self.without_values))[..]);
        let put = |buffer: &mut BytesMut, kv: &PbKeyValue| buffer.put_slice(&kv.encode_to_vec());
        if self.without_values || kv.value.len() < LARGE {
            let value = if self.without_values { Vec::new() } else { kv.value.clone() };
            put(&mut head, &PbKeyValue { key: kv.key.clone(), value, ..*kv });
            return Some([head.freeze(), Bytes::new(), Bytes::new()]);
        }
        put(&mut head, &PbKeyValue { key: kv.key.clone(), value: Vec::new(), lease: 0, ..*kv });
        head.put_slice(&begin(VALUE, kv.value.len()));
        let tail = PbKeyValue { lease: kv.lease, ..PbKeyValue::default() }.encode_to_vec();
        Some([head.freeze(), Bytes::from_owner(Value(record.clone())), tail.into()])
    }
}

/// The value of a record, without a copy.
struct Value(Arc<Record>);

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0.kv.value
    }
}

/// Returns tag and length before a field of this many bytes.
fn begin(tag: u32, length: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    bytes.freeze()
}

/// Bytes of a field of this many bytes, with tag and length.
fn field_len(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

fn length_of(kv: &PbKeyValue, without_value: bool) -> usize {
    let value = match kv.value.len() {
        length if without_value && length > 0 => field_len(VALUE, length),
        _ => 0,
    };
    kv.encoded_len() - value
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbRangeResponse, PbResponseHeader, PbWatchResponse};
    use proptest::prelude::*;

    use super::*;

    fn all_of(mut message: Message) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = message.next() {
            assert!(piece.len() <= PIECE);
            all.extend_from_slice(&piece);
        }
        all
    }

    proptest! {
        #[test]
        fn pieces_are_what_the_whole_would_be(
            lengths in proptest::collection::vec(prop_oneof![0..200_usize, LARGE - 2..LARGE + 2, 15_000..50_000_usize], 0..12),
            without_values: bool,
            lease in 0..300_i64,
        ) {
            let kv = |(number, length): (usize, &usize)| PbKeyValue {
                key: format!("key/{number}").into(),
                value: vec![b'v'; *length],
                create_revision: 3,
                mod_revision: 1 << number,
                version: 1,
                lease,
            };
            let header = Some(PbResponseHeader { revision: 300, ..PbResponseHeader::default() });
            let kvs: Vec<PbKeyValue> = lengths.iter().enumerate().map(kv).collect();
            let records = kvs.iter().map(|kv| Arc::new(Record { kv: kv.clone(), number: 0 })).collect();
            let message = Message::default()
                .fields(&PbRangeResponse { header, ..PbRangeResponse::default() })
                .keys(2, records, without_values)
                .fields(&PbRangeResponse { more: true, count: 300, ..PbRangeResponse::default() });
            let mut whole = PbRangeResponse { header, kvs, more: true, count: 300 };
            if without_values {
                whole.kvs.iter_mut().for_each(|kv| kv.value.clear());
            }
            prop_assert_eq!(message.length(), whole.encoded_len());
            prop_assert_eq!(all_of(message), whole.encode_to_vec());
        }
    }

    #[test]
    fn events_are_encoded_as_their_records_say() {
        let record = |length: usize, version| {
            let (key, value) = (b"k".to_vec(), vec![b'v'; length]);
            let kv = PbKeyValue { key, value, version, mod_revision: 9, ..PbKeyValue::default() };
            Arc::new(Record { kv, number: 0 })
        };
        let change = |record, before| Event { record, before };
        let changes = vec![
            change(record(3, 1), None),
            change(record(50_000, 2), Some(record(3, 1))),
            change(record(0, 0), Some(record(LARGE, 2))),
        ];
        let event = |change: &Event| PbEvent {
            r#type: i32::from(change.record.kv.version == 0),
            kv: Some(change.record.kv.clone()),
            prev_kv: change.before.as_ref().map(|record| record.kv.clone()),
        };
        let fields = PbWatchResponse { watch_id: 7, fragment: true, ..PbWatchResponse::default() };
        let whole = PbWatchResponse { events: changes.iter().map(event).collect(), ..fields.clone() };
        let lengths: Vec<usize> = changes.iter().map(Event::length).collect();
        assert_eq!(lengths, whole.events.iter().map(prost::Message::encoded_len).collect::<Vec<_>>());
        let message = Message::default().fields(&fields).events(11, changes);
        assert_eq!(message.length(), whole.encoded_len());
        assert_eq!(all_of(message), whole.encode_to_vec());
    }

    #[test]
    fn a_value_is_not_held_twice() {
        let kv = PbKeyValue { value: vec![0; 1 << 20], ..PbKeyValue::default() };
        let record = Arc::new(Record { kv, number: 0 });
        let mut message = Message::default().keys(2, vec![record.clone(); 1000], false);
        assert!(message.length() > 1000 << 20);
        assert!(message.cost() < 64 << 10, "{}", message.cost());
        let place = record.kv.value.as_ptr_range();
        let is_copied = |piece: &Bytes| !place.contains(&piece.as_ptr());
        let copied: usize =
            std::iter::from_fn(|| message.next()).filter(is_copied).map(|piece| piece.len()).sum();
        assert!(copied < 17 << 20, "{copied}");
    }
}
