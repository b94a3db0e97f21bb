//! Answers that contain keys. They hold pointers to the store's records.

use std::sync::Arc;

use etcd_client::proto::{PbDeleteResponse, PbPutResponse, PbRangeResponse, PbResponseHeader, PbTxnResponse};

use crate::keys::Record;
use crate::message::Message;

/// Field numbers of the keys in etcd's `RangeResponse`, `PutResponse` and `DeleteRangeResponse`.
const KVS: u32 = 2;
const PREV_KV: u32 = 2;
const PREV_KVS: u32 = 3;
/// Field number of the operations' answers in `TxnResponse`, and one field number for each kind of operation.
const RESPONSES: u32 = 3;
const RESPONSE_RANGE: u32 = 1;
const RESPONSE_PUT: u32 = 2;
const RESPONSE_DELETE: u32 = 3;
const RESPONSE_TXN: u32 = 4;

#[derive(Debug, Default)]
pub(crate) struct Range {
    pub(crate) header: Option<PbResponseHeader>,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) keys_only: bool,
    pub(crate) more: bool,
    pub(crate) count: i64,
}

#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) header: Option<PbResponseHeader>,
    /// The key before the put, if the client asked for it.
    pub(crate) before: Option<Arc<Record>>,
}

#[derive(Debug)]
pub(crate) struct Delete {
    pub(crate) header: Option<PbResponseHeader>,
    pub(crate) deleted: i64,
    /// The keys before the deletion, if the client asked for them.
    pub(crate) before: Vec<Arc<Record>>,
}

#[derive(Debug)]
pub(crate) struct Txn {
    pub(crate) header: Option<PbResponseHeader>,
    pub(crate) succeeded: bool,
    pub(crate) responses: Vec<Operation>,
}

/// The result of one operation of a transaction.
#[derive(Debug)]
pub(crate) enum Operation {
    Range(Range),
    Put(Put),
    Delete(Delete),
    Txn(Txn),
}

impl From<Range> for Message {
    fn from(Range { header, records, keys_only, more, count }: Range) -> Self {
        Self::default()
            .fields(&PbRangeResponse { header, ..PbRangeResponse::default() })
            .keys(KVS, records, keys_only)
            .fields(&PbRangeResponse { more, count, ..PbRangeResponse::default() })
    }
}

impl From<Put> for Message {
    fn from(Put { header, before }: Put) -> Self {
        Self::default().fields(&PbPutResponse { header, prev_kv: None }).keys(
            PREV_KV,
            before.into_iter().collect(),
            false,
        )
    }
}

impl From<Delete> for Message {
    fn from(Delete { header, deleted, before }: Delete) -> Self {
        let fields = PbDeleteResponse { header, deleted, prev_kvs: Vec::new() };
        Self::default().fields(&fields).keys(PREV_KVS, before, false)
    }
}

impl From<Txn> for Message {
    fn from(Txn { header, succeeded, responses }: Txn) -> Self {
        let fields = PbTxnResponse { header, succeeded, responses: Vec::new() };
        responses.into_iter().fold(Self::default().fields(&fields), |message, operation| {
            message.field(RESPONSES, operation.into())
        })
    }
}

impl From<Operation> for Message {
    fn from(operation: Operation) -> Self {
        let (kind, message) = match operation {
            Operation::Range(range) => (RESPONSE_RANGE, range.into()),
            Operation::Put(put) => (RESPONSE_PUT, put.into()),
            Operation::Delete(delete) => (RESPONSE_DELETE, delete.into()),
            Operation::Txn(txn) => (RESPONSE_TXN, txn.into()),
        };
        Self::default().field(kind, message)
    }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbKeyValue, PbResponseOp, PbTxnOpResponse};
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_transaction_answers_with_what_each_operation_does_also_of_those_in_it() {
        let header = |revision| Some(PbResponseHeader { revision, ..PbResponseHeader::default() });
        let kv = PbKeyValue { key: b"k".to_vec(), value: b"v".to_vec(), version: 1, ..PbKeyValue::default() };
        let record = Arc::new(Record { kv: kv.clone(), number: 0 });
        let put = |before| Put { header: header(5), before };
        let delete = Delete { header: header(6), deleted: 2, before: vec![record.clone(); 2] };
        let range = Range { header: header(0), records: vec![record.clone()], count: 1, ..Range::default() };
        let inner = Txn {
            header: header(0),
            succeeded: false,
            responses: vec![Operation::Put(put(Some(record))), Operation::Put(put(None))],
        };
        let responses = vec![Operation::Range(range), Operation::Txn(inner), Operation::Delete(delete)];
        let mut message = Message::from(Txn { header: header(7), succeeded: true, responses });

        let operation = |response| PbResponseOp { response: Some(response) };
        let put =
            |prev_kv| operation(PbTxnOpResponse::ResponsePut(PbPutResponse { header: header(5), prev_kv }));
        let inner = PbTxnResponse {
            header: header(0),
            succeeded: false,
            responses: vec![put(Some(kv.clone())), put(None)],
        };
        let range = PbRangeResponse { header: header(0), kvs: vec![kv.clone()], more: false, count: 1 };
        let delete = PbDeleteResponse { header: header(6), deleted: 2, prev_kvs: vec![kv; 2] };
        let responses = vec![
            operation(PbTxnOpResponse::ResponseRange(range)),
            operation(PbTxnOpResponse::ResponseTxn(inner)),
            operation(PbTxnOpResponse::ResponseDeleteRange(delete)),
        ];
        let expected = PbTxnResponse { header: header(7), succeeded: true, responses };
        assert_eq!(message.length(), expected.encoded_len());
        assert_eq!(message.next().unwrap(), expected.encode_to_vec());
    }
}
