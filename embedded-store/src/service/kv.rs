//! `service KV`: reads from memory. All changes go to the writer.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnOpRequest, PbTxnRequest,
    PbTxnRequestOp, PbTxnResponse,
};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{LARGEST_REQUEST, Service};
use crate::check;
use crate::in_flight::Turn;
use crate::refusal::{Refusal, not_served};
use crate::request::{WriteAnswer, WriteRequest as Write};

#[tonic::async_trait]
impl PbKvService for Service {
    type RangeStreamStream = tokio_stream::Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        check::range(request.get_ref())?;
        let turn = self.turn(&request, usize::from(tells_of_many(request.get_ref()))).await?;
        let mut range = self.store.contents().range(request.get_ref())?;
        self.sign(&mut range.header);
        self.answer(turn, range).await
    }

    async fn range_stream(
        &self,
        _: Request<PbRangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(not_served("KV/RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        fits(request.get_ref())?;
        check::put(request.get_ref())?;
        match self.store.write(Write::Put(request.into_inner())).await? {
            WriteAnswer::Put(mut put) => {
                self.sign(&mut put.header);
                self.answer(Turn::default(), put).await
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<PbDeleteRequest>,
    ) -> Result<Response<PbDeleteResponse>, Status> {
        check::delete(request.get_ref())?;
        let turn = self.turn(&request, usize::from(request.get_ref().prev_kv)).await?;
        match self.store.write(Write::Delete(request.into_inner())).await? {
            WriteAnswer::Delete(mut delete) => {
                self.sign(&mut delete.header);
                self.answer(turn, delete).await
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        fits(request.get_ref())?;
        check::txn(request.get_ref())?;
        let turn = self.turn(&request, ranges(request.get_ref())).await?;
        match self.store.write(Write::Txn(request.into_inner())).await? {
            WriteAnswer::Txn(mut txn) => {
                self.sign(&mut txn.header);
                self.answer(turn, txn).await
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(
        &self,
        request: Request<PbCompactionRequest>,
    ) -> Result<Response<PbCompactionResponse>, Status> {
        match self.store.write(Write::Compact(request.into_inner().revision)).await? {
            WriteAnswer::Done(revision) => {
                Ok(Response::new(PbCompactionResponse { header: self.header_at(revision) }))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// Returns whether a range can return many keys.
fn tells_of_many(request: &PbRangeRequest) -> bool {
    !request.range_end.is_empty() && !request.count_only
}

/// Returns how many operations of a transaction can return many keys.
fn ranges(request: &PbTxnRequest) -> usize {
    let of = |operation: &PbTxnRequestOp| match &operation.request {
        Some(PbTxnOpRequest::RequestRange(range)) => usize::from(tells_of_many(range)),
        Some(PbTxnOpRequest::RequestDeleteRange(deletion)) => usize::from(deletion.prev_kv),
        Some(PbTxnOpRequest::RequestTxn(inner)) => ranges(inner),
        Some(PbTxnOpRequest::RequestPut(_)) | None => 0,
    };
    request.success.iter().chain(&request.failure).map(of).sum()
}

fn fits(request: &impl Message) -> Result<(), Refusal> {
    if request.encoded_len() > LARGEST_REQUEST { Err(Refusal::RequestTooLarge) } else { Ok(()) }
}

pub(super) fn unexpected(answer: &WriteAnswer) -> Status {
    Status::internal(format!("unexpected answer of the writer: {answer:?}"))
}
