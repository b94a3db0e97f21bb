//! `flanctl attach --labelled`: attaches containers whenever they start, because a label of theirs asks for it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use flan_subnet_lease::cut;
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, timeout};

use super::docker::{Docker, Labelled};
use super::record::{self, Origin, Record, Records};
use super::{attach_one, label};
use crate::args::AttachArgs;
use crate::failure::{Failure, Kind};
use crate::output::{self, printable_lines};

/// Interval between comparisons without a reason.
const EVERY: Duration = Duration::from_secs(20);
/// Delay before Docker is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// Delay before a container is attached again after that failed, doubled each time up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Follows Docker until the process ends.
pub(super) async fn follow(args: &AttachArgs) -> Result<(), Failure> {
    let mut follower = Follower { args, failures: HashMap::new() };
    let mut told = String::new();
    loop {
        let Err(failure) = follower.with_docker().await;
        let failure = failure.to_string();
        if failure != told {
            eprintln!("flanctl: {}", printable_lines(&failure));
            told = failure;
        }
        sleep(AGAIN).await;
    }
}

struct Follower<'a> {
    args: &'a AttachArgs,
    /// What could not be attached, by the container's id and the label.
    failures: HashMap<(String, String), Attempt>,
}

/// The last attempt of those that failed.
struct Attempt {
    delay: Duration,
    next: Instant,
    /// What was told.
    reason: String,
}

impl Follower<'_> {
    /// Works until Docker no longer answers.
    async fn with_docker(&mut self) -> Result<Infallible, Failure> {
        let docker = Docker::connect(&self.args.docker_api).await?;
        let mut events = std::pin::pin!(docker.events());
        loop {
            self.compare(&docker).await?;
            let next = self.failures.values().map(|attempt| attempt.next).min();
            let wait = next.map_or(EVERY, |next| next.saturating_duration_since(Instant::now()).min(EVERY));
            let mut event = timeout(wait, events.next()).await.ok();
            while let Some(happened) = event {
                let stopped = || Failure::new(Kind::Other, "Docker has stopped; waiting for it");
                let id = happened.and_then(Result::ok).ok_or_else(stopped)?;
                // It starts, and may fare better.
                let of_it = self.failures.iter_mut().filter(|((container, _), _)| *container == id);
                of_it.for_each(|(_, attempt)| (attempt.next, attempt.delay) = (Instant::now(), RETRY.0));
                event = events.next().now_or_never();
            }
        }
    }

    /// Attaches who wants it and is not, and forgets who ended.
    async fn compare(&mut self, docker: &Docker) -> Result<(), Failure> {
        let directory = &self.args.place.attachments;
        let known = record::read(directory)?;
        if known.iter().any(Record::has_ended) {
            Records::open(directory).await?.sweep().await;
        }
        let labelled = docker.labelled().await?;
        self.failures.retain(|(id, _), _| labelled.iter().any(|container| container.id == *id));
        let now = Instant::now();
        for container in &labelled {
            for (label, text) in &container.labels {
                let key = (container.id.clone(), label.clone());
                let is_known = |record: &Record| record.is_by_label(&key.0, label) && !record.has_ended();
                let waits = self.failures.get(&key).is_some_and(|attempt| attempt.next > now);
                if waits || known.iter().any(is_known) {
                    continue;
                }
                match self.attach(docker, container, label, text).await {
                    Ok(None) => {}
                    Ok(Some(record)) => {
                        self.failures.remove(&key);
                        output::print(&record.sentence())?;
                    }
                    Err(reason) => {
                        let shown = cut(text);
                        self.failed(
                            key,
                            format!("container {}: label {label}={shown}: {reason}", container.name),
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Attaches one; `None` if it has ended.
    async fn attach(
        &self,
        docker: &Docker,
        container: &Labelled,
        label: &str,
        text: &str,
    ) -> Result<Option<Record>, String> {
        let failed = |failure: Failure| failure.to_string();
        let found = match docker.find(&container.id).await {
            Err(failure) if failure.kind == Kind::NotFound => return Ok(None),
            found => found.map_err(failed)?,
        };
        let Some(found) = found else { return Ok(None) };
        if docker.is_of_image(&container.id, label, text).await.map_err(failed)? {
            return Err("it is the image's; only a label that the container was given counts".to_owned());
        }
        let wanted = label::parse(text, self.args.kept())?;
        let origin = Origin::Label(label.to_owned());
        let attached = attach_one(&self.args.place.attachments, &found, origin, wanted).await;
        attached.map(Some).map_err(failed)
    }

    /// Says what is wrong, unless it was said before, and tries again later.
    fn failed(&mut self, key: (String, String), reason: String) {
        let before = self.failures.get(&key);
        if before.is_none_or(|before| before.reason != reason) {
            eprintln!("flanctl: {}", printable_lines(&reason));
        }
        let delay = before.map_or(RETRY.0, |before| (before.delay * 2).min(RETRY.1));
        self.failures.insert(key, Attempt { delay, next: Instant::now() + delay, reason });
    }
}
