//! The body of an answer that is encoded as the client takes it. The traits of the services return only whole messages.
//! So a service returns an empty message and attaches the real body to it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::http::{HeaderMap, HeaderValue};
use futures::stream;
use http_body::Frame;
use prost::bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Response, Status};

use crate::in_flight::Flight;
use crate::refusal::Refusal;

/// The real body, attached to an empty message.
#[derive(Debug, Clone)]
struct Beside(Arc<Mutex<Option<axum::body::Body>>>);

/// Pieces of messages in sequence, then a success status.
struct Body<S> {
    flights: S,
    flight: Option<Flight>,
    has_ended: bool,
}

/// Returns a response that stands for this one message.
pub(super) fn response<T: Default>(flight: Flight) -> Response<T> {
    responses(T::default(), stream::iter([Ok(flight)]))
}

/// Returns a response that stands for these messages.
pub(super) fn responses<T>(
    empty: T,
    flights: impl Stream<Item = Result<Flight, Refusal>> + Send + Unpin + 'static,
) -> Response<T> {
    let body = axum::body::Body::new(Body { flights, flight: None, has_ended: false });
    let mut response = Response::new(empty);
    response.extensions_mut().insert(Beside(Arc::new(Mutex::new(Some(body)))));
    response
}

/// Replaces the empty message by the attached body.
pub(super) async fn put_in(
    mut response: axum::http::Response<axum::body::Body>,
) -> axum::http::Response<axum::body::Body> {
    let beside = response.extensions_mut().remove::<Beside>();
    match beside.and_then(|Beside(body)| body.lock().unwrap_or_else(PoisonError::into_inner).take()) {
        Some(body) => response.map(|_| body),
        None => response,
    }
}

impl<S: Stream<Item = Result<Flight, Refusal>> + Unpin> Body<S> {
    /// Returns the next piece; `None` at the end.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Refusal>> {
        loop {
            match &self.flight {
                Some(flight) => match flight.next() {
                    Ok(None) => self.flight = None,
                    piece => return Poll::Ready(piece),
                },
                None => match ready!(Pin::new(&mut self.flights).poll_next(context)) {
                    Some(flight) => self.flight = Some(flight?),
                    None => return Poll::Ready(Ok(None)),
                },
            }
        }
    }
}

impl<S: Stream<Item = Result<Flight, Refusal>> + Unpin> http_body::Body for Body<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let trailers = match ready!(self.poll_piece(context)) {
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
        (self.has_ended, self.flight) = (true, None);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
