//! A gRPC client without an opinion: it sends each message as it is, and returns what comes.

use anyhow::{Context, Result};
use tokio_stream::Stream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_prost::prost::Message;

/// A connection to one server, made with the first call. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    grpc: Grpc<Channel>,
}

impl Wire {
    /// To be called inside a runtime.
    pub(crate) fn to(url: &str) -> Result<Wire> {
        let endpoint = Endpoint::from_shared(url.to_owned()).with_context(|| format!("not a URL: {url}"))?;
        // A watch may answer with more than tonic takes by itself.
        let grpc = Grpc::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
        Ok(Wire { grpc })
    }

    /// One request and its answer. The method is a path: `/etcdserverpb.KV/Range`.
    pub(crate) async fn unary<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let answer = grpc.unary(Request::new(request), path(method), ProstCodec::<Q, A>::default()).await;
        answer.map(Response::into_inner)
    }

    /// A stream of requests and one of answers, which begins with the first answer.
    pub(crate) async fn streaming<Q, A>(
        &self,
        method: &'static str,
        requests: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.ready().await?;
        let answers =
            grpc.streaming(Request::new(requests), path(method), ProstCodec::<Q, A>::default()).await;
        answers.map(Response::into_inner)
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = self.grpc.clone();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }
}

fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(method)
}
