//! The body of an answer that is made as the client takes it. The services' traits know whole messages alone: what they
//! answer is an empty one, beside which lies what takes its place.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::http::{HeaderMap, HeaderValue};
use http_body::Frame;
use prost::bytes::Bytes;
use tonic::{Response, Status};

use crate::in_flight::Flight;

/// Lies beside an empty message.
#[derive(Debug, Clone)]
struct Beside(Arc<Mutex<Option<Flight>>>);

/// Pieces of a message, and that all is well.
struct Body(Option<Flight>);

/// An answer in the place of which this one is to be sent.
pub(super) fn response<T: Default>(flight: Flight) -> Response<T> {
    let mut response = Response::new(T::default());
    response.extensions_mut().insert(Beside(Arc::new(Mutex::new(Some(flight)))));
    response
}

/// Puts an answer in its place.
pub(super) async fn put_in(
    mut response: axum::http::Response<axum::body::Body>,
) -> axum::http::Response<axum::body::Body> {
    let beside = response.extensions_mut().remove::<Beside>();
    match beside.and_then(|Beside(flight)| flight.lock().unwrap_or_else(PoisonError::into_inner).take()) {
        Some(flight) => response.map(|_| axum::body::Body::new(Body(Some(flight)))),
        None => response,
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(flight) = &self.0 else { return Poll::Ready(None) };
        let trailers = match flight.next() {
            Ok(Some(piece)) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
            Ok(None) => HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]),
            Err(refusal) => {
                let mut trailers = HeaderMap::new();
                if let Err(status) = Status::from(refusal).add_header(&mut trailers) {
                    return Poll::Ready(Some(Err(status)));
                }
                trailers
            }
        };
        self.0 = None;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
