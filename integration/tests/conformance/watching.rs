//! The same watches on both servers, and what they tell.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::proto::{PbEvent, PbWatchRequest, PbWatchResponse};
use flan_integration::inside::Inside;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

use crate::answer::anonymous;
use crate::told::told;
use crate::wire::Wire;

/// How long a word of a server may take. The shortest lease lives 2 s, and etcd looks at them twice a second.
const WORD_LIMIT: Duration = Duration::from_secs(15);

/// A stream of watches to each server.
#[derive(Debug)]
pub(crate) struct Watching {
    halves: [Half; 2],
}

/// The stream to one of them. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Half {
    name: String,
    requests: UnboundedSender<PbWatchRequest>,
    responses: Receiver<Result<PbWatchResponse, Status>>,
}

/// What the watches of one stream have told, each in its order.
#[derive(Debug, PartialEq)]
pub(crate) struct Told {
    events: BTreeMap<i64, Vec<PbEvent>>,
    /// Whether a revision came in pieces.
    pub(crate) in_pieces: bool,
}

impl Told {
    /// The events of a watch.
    pub(crate) fn of(&self, watch_id: i64) -> &[PbEvent] {
        self.events.get(&watch_id).map_or(&[], Vec::as_slice)
    }
}

impl Watching {
    pub(crate) fn of(halves: [Half; 2]) -> Watching {
        Watching { halves }
    }

    /// Sends a request on both streams.
    pub(crate) fn send(&self, request: &PbWatchRequest) -> Result<()> {
        for half in &self.halves {
            half.requests
                .send(request.clone())
                .ok()
                .with_context(|| format!("the stream to {} has ended", half.name))?;
        }
        Ok(())
    }

    /// The next response on both, which must be the same and bring no events: that a watch was made or cancelled, or
    /// how far the server is.
    pub(crate) fn notice(&mut self) -> Result<PbWatchResponse> {
        let [one, other] = self.each(|half| {
            let mut response = half.next()?;
            ensure!(response.events.is_empty(), "{} sends events: {}", half.name, told(&response));
            anonymous(&mut response.header);
            Ok(response)
        })?;
        self.ensure_same(&one, &other)?;
        Ok(one)
    }

    /// Sends a request for a watch, which must be granted, and returns its id.
    pub(crate) fn create(&mut self, request: &PbWatchRequest) -> Result<i64> {
        self.send(request)?;
        let made = self.notice()?;
        ensure!(made.created && !made.canceled, "both refuse {}: {}", told(request), told(&made));
        Ok(made.watch_id)
    }

    /// All events until each of the watches has told of this revision or a later one: they must be the same on both.
    pub(crate) fn events(&mut self, watches: &[i64], until: i64) -> Result<Told> {
        let [one, other] = self.each(|half| half.events(watches, until))?;
        self.ensure_same(&one, &other)?;
        Ok(one)
    }

    fn each<T>(&mut self, listen: impl Fn(&mut Half) -> Result<T>) -> Result<[T; 2]> {
        let [one, other] = &mut self.halves;
        Ok([listen(one)?, listen(other)?])
    }

    fn ensure_same<T: Debug + PartialEq>(&self, one: &T, other: &T) -> Result<()> {
        let [first, second] = &self.halves;
        ensure!(
            one == other,
            "a watch\n    {}: {}\n    {}: {}",
            first.name,
            told(one),
            second.name,
            told(other)
        );
        Ok(())
    }
}

impl Half {
    pub(crate) fn start(name: &str, wire: &Wire, inside: &Inside) -> Half {
        let (requests, to_send) = unbounded_channel();
        let (heard, responses) = channel();
        let wire = wire.clone();
        inside.spawn(async move {
            let requests = UnboundedReceiverStream::new(to_send);
            let stream = wire.streaming("/etcdserverpb.Watch/Watch", requests).await;
            let mut stream: Streaming<PbWatchResponse> = match stream {
                Ok(stream) => stream,
                Err(status) => {
                    // Where nobody listens any more, nobody wants to know.
                    let _ = heard.send(Err(status));
                    return;
                }
            };
            while let Some(response) = stream.message().await.transpose() {
                let failed = response.is_err();
                if heard.send(response).is_err() || failed {
                    return;
                }
            }
        });
        Half { name: name.to_owned(), requests, responses }
    }

    fn next(&self) -> Result<PbWatchResponse> {
        self.next_within(WORD_LIMIT)
    }

    fn next_within(&self, limit: Duration) -> Result<PbWatchResponse> {
        match self.responses.recv_timeout(limit) {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => {
                bail!("{} ends the stream: {:?}, {}", self.name, status.code(), status.message())
            }
            Err(RecvTimeoutError::Timeout) => bail!("{} does not say a word in {WORD_LIMIT:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => bail!("{} has ended the stream", self.name),
        }
    }

    fn events(&self, watches: &[i64], until: i64) -> Result<Told> {
        let started = Instant::now();
        let mut all = Told { events: BTreeMap::new(), in_pieces: false };
        let mut pieces_to_come = false;
        while pieces_to_come || !watches.iter().all(|watch| reaches(all.of(*watch), until)) {
            let limit = WORD_LIMIT.saturating_sub(started.elapsed());
            let response = self.next_within(limit).with_context(|| {
                format!("waiting for revision {until} on {watches:?}, after {}", told(&all))
            })?;
            ensure!(!response.events.is_empty(), "{} says between events {}", self.name, told(&response));
            let header = response.header.map_or(0, |header| header.revision);
            let newest =
                response.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
            let newest = newest.max().unwrap_or(0);
            // How much further it is depends on when it was sent.
            ensure!(header >= newest, "{} is at {header} when it tells of {newest}", self.name);
            pieces_to_come = response.fragment;
            all.in_pieces |= response.fragment;
            all.events.entry(response.watch_id).or_default().extend(response.events);
        }
        Ok(all)
    }
}

fn reaches(events: &[PbEvent], revision: i64) -> bool {
    events.iter().filter_map(|event| event.kv.as_ref()).any(|kv| kv.mod_revision >= revision)
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbKeyValue;

    use super::*;

    fn half(name: &str, responses: &[PbWatchResponse]) -> Half {
        let (heard, received) = channel();
        for response in responses {
            heard.send(Ok(response.clone())).unwrap();
        }
        let (requests, _) = unbounded_channel();
        Half { name: name.to_owned(), requests, responses: received }
    }

    fn response(revisions: &[i64]) -> PbWatchResponse {
        let header = etcd_client::proto::PbResponseHeader { revision: 9, ..Default::default() };
        let events = revisions.iter().map(|&mod_revision| PbEvent {
            kv: Some(PbKeyValue { mod_revision, ..PbKeyValue::default() }),
            ..PbEvent::default()
        });
        PbWatchResponse { header: Some(header), events: events.collect(), ..PbWatchResponse::default() }
    }

    #[test]
    fn events_are_the_same_in_however_many_responses_they_come() {
        let together = half("one", &[response(&[2, 3, 3])]);
        let apart = half("other", &[response(&[2]), response(&[3, 3])]);
        let told = Watching::of([together, apart]).events(&[0], 3).unwrap();
        assert_eq!(told.of(0).len(), 3);
    }

    #[test]
    fn events_in_another_order_are_a_difference() {
        let halves = [half("one", &[response(&[2, 3])]), half("other", &[response(&[3, 2])])];
        assert!(Watching::of(halves).events(&[0], 3).is_err());
    }

    #[test]
    fn an_event_that_is_missing_is_a_difference() {
        let halves = [half("one", &[response(&[2, 3])]), half("other", &[response(&[3])])];
        assert!(Watching::of(halves).events(&[0], 3).is_err());
    }

    #[test]
    fn another_notice_is_a_difference() {
        let cancelled = PbWatchResponse { canceled: true, ..response(&[]) };
        let answers = [cancelled.clone()];
        let same = [half("one", &answers), half("other", &answers)];
        assert!(Watching::of(same).notice().unwrap().canceled);
        let other = PbWatchResponse { compact_revision: 3, ..cancelled.clone() };
        assert!(Watching::of([half("one", &[cancelled]), half("other", &[other])]).notice().is_err());
    }
}
