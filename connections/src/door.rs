//! Accepts connections within the limit.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::limit::{ConnectionLimit, Slot};

/// After a failed accept, such as with too many open files, the next try comes after this time.
const AGAIN: Duration = Duration::from_millis(200);

/// A listening socket with its limit.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    limit: Arc<ConnectionLimit>,
    at: String,
    /// Whether the failure was logged.
    is_known: bool,
}

impl Door {
    /// `at` names the socket in the log.
    pub fn new(listener: TcpListener, limit: Arc<ConnectionLimit>, at: impl Display) -> Self {
        Self { listener, limit, at: at.to_string(), is_known: false }
    }

    /// The next connection and its slot. If there is none, logs the reason once and keeps trying.
    pub async fn next(&mut self) -> (TcpStream, Slot) {
        loop {
            match self.listener.accept().await {
                Ok((connection, _)) => match self.limit.admit().await {
                    Some(slot) => {
                        self.is_known = false;
                        return (connection, slot);
                    }
                    None => self.warn_once(&format!("all {} are in use", self.limit.most())),
                },
                Err(reason) => {
                    self.warn_once(&reason);
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    fn warn_once(&mut self, reason: &dyn Display) {
        if !std::mem::replace(&mut self.is_known, true) {
            warn!(at = self.at, %reason, "cannot accept connections; trying again");
        }
    }
}
