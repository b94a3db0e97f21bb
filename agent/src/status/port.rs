//! Connections of the health port. Anybody may open one, so each gets one request and a time limit, and the oldest
//! makes room for the next. An ordinary client has long finished by then.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use flan_connections::{ConnectionLimit, Door, Slot};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// Limit from the connection's first byte to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Limit of a request in bytes, and about the size of the answer buffered for a slow reader.
const BUFFER: usize = 16 << 10;

/// Serves requests until the process ends.
pub(super) async fn serve(listener: TcpListener, router: Router, limit: Arc<ConnectionLimit>) {
    let mut door = Door::new(listener, limit, "the health port");
    loop {
        let (connection, slot) = door.next().await;
        tokio::spawn(serve_one(connection, router.clone(), slot));
    }
}

/// Serves one request, unless it takes too long or must make room.
pub(super) async fn serve_one<S>(connection: S, router: Router, slot: Slot)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut server = Builder::new(TokioExecutor::new()).http1_only();
    server.http1().keep_alive(false).max_buf_size(BUFFER);
    let service = TowerToHyperService::new(router);
    tokio::select! {
        // Answer a request that has arrived even if the connection must make room.
        biased;
        // The server has already answered a bad request.
        _ = server.serve_connection(TokioIo::new(connection), service) => {}
        () = poll_fn(|context| slot.poll_must_go(context)) => {}
        () = tokio::time::sleep(PATIENCE) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::status::{SharedStatus, router};

    /// Returns the answer to a client that sends these bytes and keeps listening, and how long it takes.
    async fn answered(bytes: &[u8]) -> (String, Duration) {
        let started = tokio::time::Instant::now();
        let (mut client, _limit) = connected(4 << 10).await;
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (String::from_utf8(answer).unwrap(), started.elapsed())
    }

    async fn connected(room: usize) -> (DuplexStream, Arc<ConnectionLimit>) {
        let (client, server) = tokio::io::duplex(room);
        let limit = ConnectionLimit::new(1);
        let slot = limit.admit().await.unwrap();
        tokio::spawn(serve_one(server, router(SharedStatus::default()), slot));
        (client, limit)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_answered_and_the_connection_ends() {
        for (request, code) in [
            (&b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"[..], "503"),
            (b"GET /status HTTP/1.1\r\nHost: a\r\n\r\nGET /status HTTP/1.1\r\n", "200"),
            (b"GET /status HTTP/1.0\r\n\r\n", "200"),
            (b"GET /else HTTP/1.1\r\nHost: a\r\n\r\n", "404"),
            (b"POST /status HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\nand then", "405"),
            (b"\x16\x03\x01\r\n\r\n", "400"),
        ] {
            let (answer, took) = answered(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.{} {code} ", &answer[7..8])), "{answer}");
            assert!(took < PATIENCE, "{answer}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_half_of_it_is_sent_away() {
        for request in [&b""[..], b"GET /healthz HTTP/1.1\r\nX-Slow: "] {
            assert_eq!(answered(request).await, (String::new(), PATIENCE));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_end_is_refused() {
        let (mut client, _limit) = connected(4 << 10).await;
        let endless = vec![b'a'; 8 * BUFFER];
        client.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.unwrap();
        assert!(client.write_all(&endless).await.is_err(), "all of it was taken");
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_sent_away() {
        let (mut client, limit) = connected(16).await;
        client.write_all(b"GET /status HTTP/1.1\r\n").await.unwrap();
        client.write_all(b"Host: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(PATIENCE + Duration::from_millis(1)).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), 16, "what was on its way");
        assert!(limit.admit().await.is_some());
    }
}
