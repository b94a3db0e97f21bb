//! The gRPC services of etcd, as far as they are served.

mod kv;
mod lease;
mod maintenance;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchServer,
};
use tonic::service::Routes;

use crate::file::Identity;
use crate::shared::Shared;

/// What every service works with. Clones are the same store.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) identity: Identity,
    pub(crate) client_urls: Arc<Vec<String>>,
    pub(crate) file: Arc<PathBuf>,
}

/// The largest request that is served (`--max-request-bytes`).
const LARGEST_REQUEST: usize = 3 << 19;
/// What is read of a larger one, to refuse it in words.
const LARGEST_READ: usize = LARGEST_REQUEST + (512 << 10);

impl Service {
    /// Everything that is answered, by its path.
    pub(crate) fn routes(self) -> Routes {
        Routes::new(PbKvServer::new(self.clone()).max_decoding_message_size(LARGEST_READ))
            .add_service(PbWatchServer::new(self.clone()))
            .add_service(PbLeaseServer::new(self.clone()))
            .add_service(PbClusterServer::new(self.clone()))
            .add_service(PbMaintenanceServer::new(self))
    }

    fn header(&self) -> Option<PbResponseHeader> {
        self.header_at(self.shared.revision())
    }

    fn header_at(&self, revision: i64) -> Option<PbResponseHeader> {
        let Identity { cluster, member, starts } = self.identity;
        Some(PbResponseHeader { cluster_id: cluster, member_id: member, revision, raft_term: starts })
    }

    /// Says who answers.
    fn sign(&self, header: &mut Option<PbResponseHeader>) {
        *header = self.header_at(header.as_ref().map_or(0, |header| header.revision));
    }
}
