//! `service KV`: reads from memory, everything else by way of the writer.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{LARGEST_REQUEST, Service};
use crate::check;
use crate::refusal::{Refusal, not_served};
use crate::writer::{Answer, Request as Write};

#[tonic::async_trait]
impl PbKvService for Service {
    type RangeStreamStream = tokio_stream::Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        let mut response = self.shared.state().range(&request)?;
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(not_served("KV/RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        fits(&request)?;
        check::put(&request)?;
        match self.shared.write(Write::Put(request)).await? {
            Answer::Put(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        match self.shared.write(Write::Delete(request)).await? {
            Answer::Delete(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        fits(&request)?;
        check::txn(&request)?;
        match self.shared.write(Write::Txn(request)).await? {
            Answer::Txn(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        match self.shared.write(Write::Compact(request.into_inner().revision)).await? {
            Answer::Done(revision) => {
                Ok(Response::new(PbCompactionResponse { header: self.header_at(revision) }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn fits(request: &impl Message) -> Result<(), Refusal> {
    if request.encoded_len() > LARGEST_REQUEST { Err(Refusal::RequestTooLarge) } else { Ok(()) }
}

pub(super) fn unexpected(answer: &Answer) -> Status {
    Status::internal(format!("the writer answered something else: {answer:?}"))
}
