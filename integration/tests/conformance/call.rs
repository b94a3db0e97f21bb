//! Calls: what a client can ask of a store, and sending it.

use etcd_client::proto::{
    PbAlarmRequest, PbCompactionRequest, PbDeleteRequest, PbLeaseGrantRequest, PbLeaseKeepAliveRequest,
    PbLeaseLeasesRequest, PbLeaseRevokeRequest, PbLeaseTimeToLiveRequest, PbMemberListRequest, PbPutRequest,
    PbRangeRequest, PbStatusRequest, PbTxnRequest,
};
use tonic::Status;

use crate::answer::Answer;
use crate::wire::Wire;

/// One call.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    /// All of these leases on one stream, in this order.
    KeepAlive(Vec<i64>),
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases(PbLeaseLeasesRequest),
    Status(PbStatusRequest),
    Members(PbMemberListRequest),
    Alarms(PbAlarmRequest),
}

impl Call {
    /// Sends it, and returns the answer or the refusal.
    pub(crate) async fn send(self, wire: &Wire) -> Answer {
        self.answered(wire).await.unwrap_or_else(|status| Answer::refused(&status))
    }

    async fn answered(self, wire: &Wire) -> Result<Answer, Status> {
        Ok(match self {
            Call::Range(request) => Answer::Range(wire.unary("/etcdserverpb.KV/Range", request).await?),
            Call::Put(request) => Answer::Put(wire.unary("/etcdserverpb.KV/Put", request).await?),
            Call::Delete(request) => {
                Answer::Delete(wire.unary("/etcdserverpb.KV/DeleteRange", request).await?)
            }
            Call::Txn(request) => Answer::Txn(wire.unary("/etcdserverpb.KV/Txn", request).await?),
            Call::Compact(request) => Answer::Compact(wire.unary("/etcdserverpb.KV/Compact", request).await?),
            Call::Grant(request) => {
                Answer::Grant(wire.unary("/etcdserverpb.Lease/LeaseGrant", request).await?)
            }
            Call::Revoke(request) => {
                Answer::Revoke(wire.unary("/etcdserverpb.Lease/LeaseRevoke", request).await?)
            }
            Call::KeepAlive(ids) => keep_alive(wire, ids).await?,
            Call::TimeToLive(request) => {
                Answer::TimeToLive(wire.unary("/etcdserverpb.Lease/LeaseTimeToLive", request).await?)
            }
            Call::Leases(request) => {
                Answer::Leases(wire.unary("/etcdserverpb.Lease/LeaseLeases", request).await?)
            }
            Call::Status(request) => {
                Answer::Status(wire.unary("/etcdserverpb.Maintenance/Status", request).await?)
            }
            Call::Members(request) => {
                Answer::Members(wire.unary("/etcdserverpb.Cluster/MemberList", request).await?)
            }
            Call::Alarms(request) => {
                Answer::Alarms(wire.unary("/etcdserverpb.Maintenance/Alarm", request).await?)
            }
        })
    }
}

async fn keep_alive(wire: &Wire, ids: Vec<i64>) -> Result<Answer, Status> {
    let requests: Vec<_> = ids.into_iter().map(|id| PbLeaseKeepAliveRequest { id }).collect();
    let mut stream =
        wire.streaming("/etcdserverpb.Lease/LeaseKeepAlive", tokio_stream::iter(requests)).await?;
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await? {
        answers.push(answer);
    }
    Ok(Answer::KeptAlive(answers))
}

macro_rules! calls {
    ($($variant:ident($request:ty)),* $(,)?) => {
        $(impl From<$request> for Call {
            fn from(request: $request) -> Call {
                Call::$variant(request)
            }
        })*
    };
}

calls! {
    Range(PbRangeRequest),
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
    TimeToLive(PbLeaseTimeToLiveRequest),
    Leases(PbLeaseLeasesRequest),
    Status(PbStatusRequest),
    Members(PbMemberListRequest),
    Alarms(PbAlarmRequest),
}
