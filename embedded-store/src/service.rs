//! The gRPC services of etcd that the store serves.

mod body;
mod kv;
mod lease;
mod maintenance;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use axum::middleware::map_response;
use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchServer,
};
use tonic::service::Routes;
use tonic::transport::server::TlsConnectInfo;
use tonic::{Request, Response, Status};

use crate::file::MemberIdentity;
use crate::handle::StoreHandle;
use crate::in_flight::{Client, InFlight, Turn};
use crate::message::Message;
use crate::refusal::Refusal;

/// Shared by all services. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) store: Arc<StoreHandle>,
    pub(crate) identity: MemberIdentity,
    pub(crate) client_urls: Arc<Vec<String>>,
    pub(crate) file: Arc<PathBuf>,
    pub(crate) in_flight: Arc<InFlight>,
}

/// Largest request in bytes (`--max-request-bytes`).
const LARGEST_REQUEST: usize = 3 << 19;
/// Largest request on a watch stream in bytes. It names a key or a range.
const LARGEST_WATCH_REQUEST: usize = 64 << 10;
/// Largest answer that clients accept (gRPC's `math.MaxInt32`).
const LARGEST_ANSWER: usize = i32::MAX as usize;
/// Largest request that is read at all, so that the refusal can say why.
const LARGEST_READ: usize = LARGEST_REQUEST + (512 << 10);

impl Service {
    pub(crate) fn routes(self) -> Routes {
        let services = Routes::new(PbKvServer::new(self.clone()).max_decoding_message_size(LARGEST_READ))
            .add_service(PbWatchServer::new(self.clone()).max_decoding_message_size(LARGEST_WATCH_REQUEST))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbClusterServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self));
        services.into_axum_router().layer(map_response(body::put_in)).into()
    }

    /// Waits until the client of a request may read this many ranges. Requests without ranges do not wait.
    async fn turn<T>(&self, request: &Request<T>, ranges: usize) -> Result<Turn, Refusal> {
        match ranges {
            0 => Ok(Turn::default()),
            ranges => self.in_flight.turn(client(request), ranges).await,
        }
    }

    /// Returns an answer that is encoded as the client takes it.
    async fn answer<T: Default>(
        &self,
        turn: Turn,
        message: impl Into<Message>,
    ) -> Result<Response<T>, Status> {
        let message = message.into();
        if message.length() > LARGEST_ANSWER {
            return Err(Refusal::AnswerTooLarge.into());
        }
        Ok(body::response(self.in_flight.admit(turn, message.framed()).await?))
    }

    fn header(&self) -> Option<PbResponseHeader> {
        self.header_at(self.store.revision())
    }

    fn header_at(&self, revision: i64) -> Option<PbResponseHeader> {
        let MemberIdentity { cluster, member, starts } = self.identity;
        Some(PbResponseHeader { cluster_id: cluster, member_id: member, revision, raft_term: starts })
    }

    /// Adds the store's identity to a header.
    fn sign(&self, header: &mut Option<PbResponseHeader>) {
        *header = self.header_at(header.as_ref().map_or(0, |header| header.revision));
    }
}

/// Returns the connection of a request, with TLS or without.
fn client<T>(request: &Request<T>) -> Option<Client> {
    let extensions = request.extensions();
    let by_tls = || Some(extensions.get::<TlsConnectInfo<Client>>()?.get_ref());
    extensions.get::<Client>().or_else(by_tls).cloned()
}
