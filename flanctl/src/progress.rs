//! Telling that something takes its time.

use std::time::Duration;

/// When the first line of progress is due.
const PATIENCE: Duration = Duration::from_secs(2);
/// When the lines after it are.
const AGAIN: Duration = Duration::from_secs(5);

/// Does the work, and says on standard error what it is about while that takes long.
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
