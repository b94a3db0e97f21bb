//! The receiving end of `sd_notify`, as systemd would be: it reads whatever a service says, at once.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A socket for `$NOTIFY_SOCKET`. Read to its end of life by a thread: a full queue would block the service.
#[derive(Debug)]
pub(crate) struct Notifications {
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    ended: Arc<AtomicBool>,
}

impl Notifications {
    /// Makes the socket.
    pub(crate) fn listen(path: &Path) -> Result<Notifications> {
        let socket =
            UnixDatagram::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
        // How long the thread may outlive its owner.
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let notifications = Notifications { heard: Arc::clone(&heard), ended: Arc::clone(&ended) };
        thread::spawn(move || {
            let mut message = [0; 4096];
            while !ended.load(Ordering::Relaxed) {
                // An error is the time-out; whatever else it were, the next read would tell the same.
                let Ok(length) = socket.recv(&mut message) else { continue };
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                let lines = text.lines().map(|line| (Instant::now(), line.to_owned()));
                heard.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
            }
        });
        Ok(notifications)
    }

    /// When a service has first said this line since [`Notifications::forget`].
    pub(crate) fn heard_at(&self, line: &str) -> Option<Instant> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().find(|(_, heard)| heard == line).map(|(at, _)| *at)
    }

    /// Starts afresh: what an earlier service said tells nothing about the next.
    pub(crate) fn forget(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Notifications {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}
