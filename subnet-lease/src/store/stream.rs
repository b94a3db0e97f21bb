//! The watch on a collection as a stream of messages.

use std::marker::PhantomData;

use etcd_client::{Client, EventType, WatchOptions, WatchStream};
use tokio::sync::watch;

use super::collection::{Collection, entry};
use super::error::StoreError;
use super::limits::ANY_SIZE;
use super::reason::innermost;
use crate::stored::{KeyChange, Stored};

/// Why a watch that we gave up ended.
const GIVEN_UP: &str = "this host's own address has changed";

impl<T: Stored> Collection<T> {
    /// Opens a watch on the whole collection, starting at `revision`.
    ///
    /// # Errors
    /// Any [`StoreError`].
    pub(crate) async fn watch(&self, revision: i64) -> Result<Watch<T>, StoreError> {
        let given_up = self.store.given_up.subscribe();
        let (prefix, end) = (self.prefix.clone(), self.end.clone());
        let stream = self
            .store
            .call(|client: Client| {
                // Without this, etcd sends a late watch up to 1000 revisions of 1.5 MB each in one response. A fragment
                // has one event, or not much more than 1.5 MB.
                let options = WatchOptions::new().with_range(end.clone());
                let options = options.with_start_revision(revision).with_fragment();
                let mut client = client.watch_client().max_decoding_message_size(ANY_SIZE);
                let prefix = prefix.clone();
                async move { client.watch(prefix, Some(options)).await }
            })
            .await?;
        Ok(Watch { stream, prefix, given_up, holds: PhantomData })
    }
}

pub(crate) struct Watch<T> {
    stream: WatchStream,
    prefix: String,
    given_up: watch::Receiver<()>,
    holds: PhantomData<fn() -> T>,
}

pub(crate) enum WatchMessage<T: Stored> {
    /// Keys changed; empty for a sign of life.
    Changes(Vec<KeyChange<T>>),
    /// The watch is over, with the reason.
    Ended(String),
}

impl<T: Stored> Watch<T> {
    /// Returns the next message. Cancel-safe.
    pub(crate) async fn message(&mut self) -> WatchMessage<T> {
        let message = tokio::select! {
            message = self.stream.message() => message,
            _ = self.given_up.changed() => return WatchMessage::Ended(GIVEN_UP.to_owned()),
        };
        match message {
            Ok(Some(response)) if response.canceled() => {
                let compacted = response.compact_revision();
                WatchMessage::Ended(match response.cancel_reason() {
                    _ if compacted > 0 => format!("the history before revision {compacted} was compacted"),
                    "" => "the store cancelled the watch".to_owned(),
                    reason => reason.to_owned(),
                })
            }
            Ok(Some(response)) => {
                let change = |event: &etcd_client::Event| {
                    let entry = entry(&self.prefix, event.kv()?.clone())?;
                    Some(match event.event_type() {
                        EventType::Put => KeyChange::put(entry),
                        EventType::Delete => KeyChange::Delete { key: entry.key },
                    })
                };
                WatchMessage::Changes(response.events().iter().filter_map(change).collect())
            }
            Ok(None) => WatchMessage::Ended("the store closed the watch".to_owned()),
            Err(error) => WatchMessage::Ended(innermost(&error)),
        }
    }

    pub(crate) async fn probe(&mut self) {
        // A failure appears as the end of the stream.
        let _ = self.stream.request_progress().await;
    }
}
