//! Progress messages of long operations.

use std::time::Duration;

/// Delay before the first line.
const PATIENCE: Duration = Duration::from_secs(2);
/// Interval between further lines.
const AGAIN: Duration = Duration::from_secs(5);

/// Runs `work`, and prints `about` on standard error while that takes long.
pub(crate) async fn told<T>(about: impl Fn() -> String, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut patience = PATIENCE;
    loop {
        match tokio::time::timeout(patience, &mut work).await {
            Ok(outcome) => return outcome,
            Err(_) => eprintln!("flanctl: {}", about()),
        }
        patience = AGAIN;
    }
}
