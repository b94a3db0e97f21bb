//! Entry point of the health port for the target in `fuzz/`, which judges the answer: one in-memory connection.
//! Compiled only with `--cfg fuzzing`.

use std::time::Duration;

use flan_connections::ConnectionLimit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{SharedStatus, port, router};

/// Returns the answer to a client that sends these pieces, and how long the connection lasts on a paused clock. With
/// `leaves`, the client closes its sending side.
pub async fn answered(pieces: &[&[u8]], leaves: bool) -> (Vec<u8>, Duration) {
    let started = Instant::now();
    let (client, server) = tokio::io::duplex(4 << 10);
    let limit = ConnectionLimit::new(1);
    let Some(slot) = limit.admit().await else { return (Vec::new(), Duration::ZERO) };
    let serving = tokio::spawn(port::serve_one(server, router(SharedStatus::default()), slot));
    let (mut listen, mut say) = tokio::io::split(client);
    let mut answer = Vec::new();
    let said = async {
        for piece in pieces {
            // The server may have closed the connection.
            let _ = say.write_all(piece).await;
            tokio::task::yield_now().await;
        }
        if leaves {
            let _ = say.shutdown().await;
        }
    };
    let (_, listened) = tokio::join!(said, listen.read_to_end(&mut answer));
    listened.expect("in memory nothing breaks");
    serving.await.expect("the connection has panicked");
    (answer, started.elapsed())
}
