//! The health port as the target in `fuzz/` calls it: one connection in memory. What comes out is judged there. Compiled
//! with `--cfg fuzzing` alone.

use std::time::Duration;

use flan_connections::ConnectionLimit;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::{SharedStatus, port, router};

/// What a client is sent that says all of this and then listens, and how long the connection lasts, on a clock that is
/// paused. `leaves` says whether it tells that it will say no more.
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
            // The server may have heard enough.
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
