//! Taking connections, as far as there are places for them.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::{ConnectionLimit, Slot};

/// When no connection can be taken, as there are too many files open, for one, it is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);

/// A socket that listens, and the places behind it.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    limit: Arc<ConnectionLimit>,
    at: String,
    /// Whether it was told that no connection can be taken.
    is_known: bool,
}

impl Door {
    /// `at` says in the log which socket it is.
    pub fn new(listener: TcpListener, limit: Arc<ConnectionLimit>, at: impl Display) -> Self {
        Self { listener, limit, at: at.to_string(), is_known: false }
    }

    /// The next connection and its place. Why there is none is logged once, and tried again and again.
    pub async fn next(&mut self) -> (TcpStream, Slot) {
        loop {
            match self.listener.accept().await {
                Ok((connection, _)) => match self.limit.admit().await {
                    Some(slot) => {
                        self.is_known = false;
                        return (connection, slot);
                    }
                    None => self.warn_once(&format!("there are {} already", self.limit.most())),
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
            warn!(at = self.at, %reason, "cannot take connections; trying again and again");
        }
    }
}
