//! Answers, and what of two of them must be the same: everything but what says which server it is, and what etcd itself
//! leaves to chance or to the clock.

use etcd_client::proto::{
    PbAlarmResponse, PbCompactionResponse, PbDeleteResponse, PbLeaseGrantResponse, PbLeaseKeepAliveResponse,
    PbLeaseLeasesResponse, PbLeaseRevokeResponse, PbLeaseTimeToLiveResponse, PbMember, PbMemberListResponse,
    PbPutResponse, PbRangeResponse, PbResponseHeader, PbStatusResponse, PbTxnOpResponse, PbTxnResponse,
};
use tonic::{Code, Status};

/// Seconds that the remaining time of a lease may differ: the two calls are not made at the same moment.
const TTL_SLACK: i64 = 1;

/// What a store has answered to a [`Call`](crate::call::Call).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Range(PbRangeResponse),
    Put(PbPutResponse),
    Delete(PbDeleteResponse),
    Txn(PbTxnResponse),
    Compact(PbCompactionResponse),
    Grant(PbLeaseGrantResponse),
    Revoke(PbLeaseRevokeResponse),
    KeptAlive(Vec<PbLeaseKeepAliveResponse>),
    TimeToLive(PbLeaseTimeToLiveResponse),
    Leases(PbLeaseLeasesResponse),
    Status(PbStatusResponse),
    Members(PbMemberListResponse),
    Alarms(PbAlarmResponse),
    Refused { code: Code, message: String },
}

impl Answer {
    pub(crate) fn refused(status: &Status) -> Answer {
        Answer::Refused { code: status.code(), message: status.message().to_owned() }
    }

    /// The revision of its header; 0 if it has none.
    pub(crate) fn revision(&self) -> i64 {
        let mut copy = self.clone();
        copy.headers().into_iter().flatten().next().map_or(0, |header| header.revision)
    }

    /// True if both say the same.
    pub(crate) fn says_as(&self, other: &Answer) -> bool {
        let (mut one, mut other) = (self.clone().comparable(), other.clone().comparable());
        if let (Answer::TimeToLive(one), Answer::TimeToLive(other)) = (&mut one, &mut other)
            && one.ttl.abs_diff(other.ttl) <= TTL_SLACK.unsigned_abs()
        {
            other.ttl = one.ttl;
        }
        one == other
    }

    /// Without what may differ.
    pub(crate) fn comparable(mut self) -> Answer {
        for header in self.headers() {
            anonymous(header);
        }
        match &mut self {
            // Go walks its maps in an order of its own.
            Answer::TimeToLive(answer) => answer.keys.sort(),
            Answer::Leases(answer) => answer.leases.sort_by_key(|lease| lease.id),
            Answer::Members(answer) => {
                answer.members.fill(PbMember::default());
            }
            Answer::Alarms(answer) => {
                answer.alarms.iter_mut().for_each(|alarm| alarm.member_id = 0);
            }
            Answer::Status(answer) => {
                let PbStatusResponse { header, errors, is_learner, .. } = std::mem::take(answer);
                *answer = PbStatusResponse { header, errors, is_learner, ..PbStatusResponse::default() };
            }
            _ => {}
        }
        self
    }

    /// Of an answer that tells of alarms; any other stays as it is.
    pub(crate) fn remove_header_of_alarms(&mut self) {
        if let Answer::Alarms(answer) = self {
            answer.header = None;
        }
    }

    /// All headers, the outermost first.
    fn headers(&mut self) -> Vec<&mut Option<PbResponseHeader>> {
        match self {
            Answer::Range(answer) => vec![&mut answer.header],
            Answer::Put(answer) => vec![&mut answer.header],
            Answer::Delete(answer) => vec![&mut answer.header],
            Answer::Txn(answer) => headers_of_txn(answer),
            Answer::Compact(answer) => vec![&mut answer.header],
            Answer::Grant(answer) => vec![&mut answer.header],
            Answer::Revoke(answer) => vec![&mut answer.header],
            Answer::KeptAlive(answers) => answers.iter_mut().map(|answer| &mut answer.header).collect(),
            Answer::TimeToLive(answer) => vec![&mut answer.header],
            Answer::Leases(answer) => vec![&mut answer.header],
            Answer::Status(answer) => vec![&mut answer.header],
            Answer::Members(answer) => vec![&mut answer.header],
            Answer::Alarms(answer) => vec![&mut answer.header],
            Answer::Refused { .. } => Vec::new(),
        }
    }
}

/// Takes from a header what says which server it is.
pub(crate) fn anonymous(header: &mut Option<PbResponseHeader>) {
    if let Some(header) = header {
        *header = PbResponseHeader { revision: header.revision, ..PbResponseHeader::default() };
    }
}

fn headers_of_txn(answer: &mut PbTxnResponse) -> Vec<&mut Option<PbResponseHeader>> {
    let mut headers = vec![&mut answer.header];
    for response in answer.responses.iter_mut().filter_map(|operation| operation.response.as_mut()) {
        match response {
            PbTxnOpResponse::ResponseRange(answer) => headers.push(&mut answer.header),
            PbTxnOpResponse::ResponsePut(answer) => headers.push(&mut answer.header),
            PbTxnOpResponse::ResponseDeleteRange(answer) => headers.push(&mut answer.header),
            PbTxnOpResponse::ResponseTxn(answer) => headers.extend(headers_of_txn(answer)),
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::{PbKeyValue, PbLeaseStatus, PbResponseOp};

    use super::*;

    fn header(member_id: u64, revision: i64) -> Option<PbResponseHeader> {
        Some(PbResponseHeader { cluster_id: 7 * member_id, member_id, revision, raft_term: member_id })
    }

    fn range(member_id: u64, revision: i64, kv: PbKeyValue) -> PbRangeResponse {
        PbRangeResponse { header: header(member_id, revision), kvs: vec![kv], more: false, count: 1 }
    }

    fn txn(member_id: u64, revision: i64, inner: i64) -> Answer {
        let range = range(member_id, inner, PbKeyValue::default());
        let responses = vec![PbResponseOp { response: Some(PbTxnOpResponse::ResponseRange(range)) }];
        Answer::Txn(PbTxnResponse { header: header(member_id, revision), succeeded: true, responses })
    }

    #[test]
    fn another_server_says_the_same_by_another_name() {
        let kv = PbKeyValue { key: b"a".to_vec(), version: 2, ..PbKeyValue::default() };
        assert!(Answer::Range(range(1, 5, kv.clone())).says_as(&Answer::Range(range(2, 5, kv))));
        assert!(txn(1, 5, 4).says_as(&txn(2, 5, 4)));
    }

    #[test]
    fn another_revision_is_a_difference_also_deep_in_a_transaction() {
        let kv = PbKeyValue::default();
        assert!(!Answer::Range(range(1, 5, kv.clone())).says_as(&Answer::Range(range(1, 6, kv))));
        assert!(!txn(1, 5, 4).says_as(&txn(1, 5, 5)));
        assert!(!txn(1, 5, 4).says_as(&txn(1, 6, 4)));
    }

    #[test]
    fn every_field_of_a_key_counts() {
        let kv = PbKeyValue {
            key: b"a".to_vec(),
            value: b"1".to_vec(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 9,
        };
        let others = [
            PbKeyValue { key: b"b".to_vec(), ..kv.clone() },
            PbKeyValue { value: Vec::new(), ..kv.clone() },
            PbKeyValue { create_revision: 1, ..kv.clone() },
            PbKeyValue { mod_revision: 4, ..kv.clone() },
            PbKeyValue { version: 1, ..kv.clone() },
            PbKeyValue { lease: 0, ..kv.clone() },
        ];
        let answer = Answer::Range(range(1, 5, kv));
        for other in others {
            assert!(!answer.says_as(&Answer::Range(range(1, 5, other.clone()))), "{other:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_by_its_code_and_its_words() {
        let refused = |code, message: &str| Answer::Refused { code, message: message.to_owned() };
        let answer = refused(Code::OutOfRange, "compacted");
        assert!(answer.says_as(&refused(Code::OutOfRange, "compacted")));
        assert!(!answer.says_as(&refused(Code::InvalidArgument, "compacted")));
        assert!(!answer.says_as(&refused(Code::OutOfRange, "future")));
        assert!(!answer.says_as(&txn(1, 1, 1)));
    }

    #[test]
    fn the_time_that_a_lease_has_left_may_differ_by_a_second_and_the_rest_of_it_not_at_all() {
        let lease = PbLeaseTimeToLiveResponse {
            header: header(1, 5),
            id: 7,
            ttl: 60,
            granted_ttl: 100,
            keys: vec![b"a".to_vec(), b"b".to_vec()],
        };
        let same = |other: PbLeaseTimeToLiveResponse| {
            Answer::TimeToLive(lease.clone()).says_as(&Answer::TimeToLive(other))
        };
        assert!(same(PbLeaseTimeToLiveResponse { ttl: 59, ..lease.clone() }));
        assert!(same(PbLeaseTimeToLiveResponse {
            keys: vec![b"b".to_vec(), b"a".to_vec()],
            ..lease.clone()
        }));
        assert!(!same(PbLeaseTimeToLiveResponse { ttl: 58, ..lease.clone() }));
        assert!(!same(PbLeaseTimeToLiveResponse { granted_ttl: 99, ..lease.clone() }));
        assert!(!same(PbLeaseTimeToLiveResponse { keys: vec![b"a".to_vec()], ..lease.clone() }));
    }

    #[test]
    fn leases_are_told_in_any_order() {
        let leases = |ids: &[i64]| {
            let leases = ids.iter().map(|&id| PbLeaseStatus { id }).collect();
            Answer::Leases(PbLeaseLeasesResponse { header: header(1, 1), leases })
        };
        assert!(leases(&[1, 2]).says_as(&leases(&[2, 1])));
        assert!(!leases(&[1, 2]).says_as(&leases(&[1])));
    }
}
