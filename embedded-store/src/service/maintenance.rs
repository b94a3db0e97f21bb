//! `service Maintenance` and `service Cluster`: the store's status, and its single member.

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest,
    PbDefragmentResponse, PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse,
    PbHashRequest, PbHashResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse, PbStatusRequest,
    PbStatusResponse,
};
use tonic::{Request, Response, Status};

use super::Service;
use crate::file::File;
use crate::refusal::{Refusal, not_served};

/// The oldest etcd version that we compare our answers with, and a mark that this is not etcd.
const VERSION: &str = concat!("3.4.0+flan.", env!("CARGO_PKG_VERSION"));
/// `AlarmAction` and `AlarmType` in etcd's `rpc.proto`.
const ASK: i32 = 0;
const NO_SPACE: i32 = 1;
/// Name in the list of members.
const NAME: &str = "flan";

#[tonic::async_trait]
impl PbMaintenanceService for Service {
    type SnapshotStream = tokio_stream::Empty<Result<PbSnapshotResponse, Status>>;

    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Result<Response<PbAlarmResponse>, Status> {
        let request = request.into_inner();
        if request.action != ASK {
            // An alarm ends when its cause ends.
            return Err(not_served("Maintenance/Alarm with another action than GET"));
        }
        let is_asked_for = request.alarm == 0 || request.alarm == NO_SPACE;
        let alarm = PbAlarmMember { member_id: self.identity.member, alarm: NO_SPACE };
        let alarms = if self.store.is_full() && is_asked_for { vec![alarm] } else { Vec::new() };
        // etcd 3.5 sends this header, 3.4 does not.
        Ok(Response::new(PbAlarmResponse { header: self.header(), alarms }))
    }

    async fn status(&self, _: Request<PbStatusRequest>) -> Result<Response<PbStatusResponse>, Status> {
        let size = i64::try_from(File::size(&self.file)).unwrap_or(i64::MAX);
        let index = u64::try_from(self.store.revision()).unwrap_or(0);
        let failure = |refusal| match refusal {
            Refusal::NoSpace => format!("memberID:{} alarm:NOSPACE ", self.identity.member),
            refusal => Status::from(refusal).message().to_owned(),
        };
        Ok(Response::new(PbStatusResponse {
            header: self.header(),
            version: VERSION.to_owned(),
            db_size: size,
            db_size_in_use: size,
            leader: self.identity.member,
            raft_term: self.identity.starts,
            raft_index: index,
            raft_applied_index: index,
            errors: self.store.failure().map(failure).into_iter().collect(),
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(
        &self,
        _: Request<PbDefragmentRequest>,
    ) -> Result<Response<PbDefragmentResponse>, Status> {
        Err(not_served("Maintenance/Defragment"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Result<Response<PbHashResponse>, Status> {
        Err(not_served("Maintenance/Hash"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Result<Response<PbHashKvResponse>, Status> {
        Err(not_served("Maintenance/HashKV"))
    }

    async fn snapshot(
        &self,
        _: Request<PbSnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(not_served("Maintenance/Snapshot"))
    }

    async fn move_leader(
        &self,
        _: Request<PbMoveLeaderRequest>,
    ) -> Result<Response<PbMoveLeaderResponse>, Status> {
        Err(not_served("Maintenance/MoveLeader"))
    }

    async fn downgrade(
        &self,
        _: Request<PbDowngradeRequest>,
    ) -> Result<Response<PbDowngradeResponse>, Status> {
        Err(not_served("Maintenance/Downgrade"))
    }
}

#[tonic::async_trait]
impl PbClusterService for Service {
    async fn member_list(
        &self,
        _: Request<PbMemberListRequest>,
    ) -> Result<Response<PbMemberListResponse>, Status> {
        let member = PbMember {
            id: self.identity.member,
            name: NAME.to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: self.client_urls.to_vec(),
            is_learner: false,
        };
        Ok(Response::new(PbMemberListResponse { header: self.header_at(0), members: vec![member] }))
    }

    async fn member_add(
        &self,
        _: Request<PbMemberAddRequest>,
    ) -> Result<Response<PbMemberAddResponse>, Status> {
        Err(not_served("Cluster/MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Result<Response<PbMemberRemoveResponse>, Status> {
        Err(not_served("Cluster/MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Result<Response<PbMemberUpdateResponse>, Status> {
        Err(not_served("Cluster/MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Result<Response<PbMemberPromoteResponse>, Status> {
        Err(not_served("Cluster/MemberPromote"))
    }
}
