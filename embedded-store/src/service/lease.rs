//! `service Lease`. A renewal changes only memory, unless the file has a shorter time.

use std::pin::Pin;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService,
    PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use super::kv::unexpected;
use crate::message::Message;
use crate::request::{WriteAnswer, WriteRequest as Write};

impl Service {
    /// Renews a lease to its full time. A time of 0 means that there is no such lease.
    async fn keep_alive(&self, id: i64) -> PbLeaseKeepAliveResponse {
        let renew = || self.store.contents_mut().leases.renew(id, Instant::now());
        let mut renewed = renew();
        if renewed.is_none() {
            // The end of the lease may not be on disk yet, and may be undone.
            let _ = self.store.write(Write::Checkpoint(Vec::new())).await;
            renewed = renew();
        }
        if let Some((_, true)) = renewed {
            // A full disk prevents no renewal: only a restart would give less time.
            let _ = self.store.write(Write::Checkpoint(vec![id])).await;
        }
        let ttl = renewed.map_or(0, |(seconds, _)| seconds);
        PbLeaseKeepAliveResponse { header: self.header(), id, ttl }
    }
}

#[tonic::async_trait]
impl PbLeaseService for Service {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { ttl, id } = request.into_inner();
        match self.store.write(Write::Grant { id, seconds: ttl }).await? {
            WriteAnswer::Granted { id, seconds, revision } => Ok(Response::new(PbLeaseGrantResponse {
                header: self.header_at(revision),
                id,
                ttl: seconds,
                error: String::new(),
            })),
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        match self.store.write(Write::Revoke(request.into_inner().id)).await? {
            WriteAnswer::Done(revision) => {
                Ok(Response::new(PbLeaseRevokeResponse { header: self.header_at(revision) }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let service = self.clone();
        let answers = request.into_inner().then(move |asked| {
            let service = service.clone();
            async move { Ok(service.keep_alive(asked?.id).await) }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let turn = self.turn(&request, usize::from(request.get_ref().keys)).await?;
        let PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let header = self.header();
        let response = match self.store.contents().leases.look(id, Instant::now()) {
            Some((ttl, granted_ttl, kept)) => PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl,
                granted_ttl,
                keys: if keys { kept.cloned().collect() } else { Vec::new() },
            },
            None => PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..PbLeaseTimeToLiveResponse::default() },
        };
        self.answer(turn, Message::default().fields(&response)).await
    }

    async fn lease_leases(
        &self,
        request: Request<PbLeaseLeasesRequest>,
    ) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let turn = self.turn(&request, 1).await?;
        let ids = self.store.contents().leases.ids();
        let leases = ids.into_iter().map(|id| PbLeaseStatus { id }).collect();
        let response = PbLeaseLeasesResponse { header: self.header(), leases };
        self.answer(turn, Message::default().fields(&response)).await
    }
}
