//! `flanctl attach --labelled`: attaches containers whenever they start, because a label of theirs asks for it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::time::{sleep, timeout};

use super::docker::{Container, Docker};
use super::record::Origin;
use super::{attach_one, label, open};
use crate::args::AttachArgs;
use crate::failure::Failure;
use crate::output::printable_lines;

/// Interval between comparisons without a reason: what could not be attached may be possible now.
const EVERY: Duration = Duration::from_secs(20);
/// Delay before Docker is asked again after it did not answer.
const AGAIN: Duration = Duration::from_secs(2);

/// Follows Docker until the process ends.
pub(crate) async fn follow(args: &AttachArgs) -> Result<(), Failure> {
    // Whoever may change nothing is told so, and does not wait for Docker first.
    drop(open(&args.place.attachments).await?);
    let mut follower = Follower { args, told: BTreeSet::new() };
    loop {
        let Err(failure) = follower.with_docker().await;
        follower.tell([failure.to_string()].into());
        sleep(AGAIN).await;
    }
}

struct Follower<'a> {
    args: &'a AttachArgs,
    /// What was wrong last.
    told: BTreeSet<String>,
}

impl Follower<'_> {
    /// Works until Docker no longer answers.
    async fn with_docker(&mut self) -> Result<Infallible, Failure> {
        let docker = Docker::connect(&self.args.docker_api).await?;
        let mut events = std::pin::pin!(docker.events());
        let stopped = || Failure::new(crate::failure::Kind::Other, "Docker has stopped; waiting for it");
        // What happens from now on is told.
        if let Some(event) = events.next().now_or_never() {
            event.and_then(Result::ok).ok_or_else(stopped)?;
        }
        loop {
            self.compare(&docker).await?;
            if let Ok(event) = timeout(EVERY, events.next()).await {
                event.and_then(Result::ok).ok_or_else(stopped)?;
            }
            while let Some(event) = events.next().now_or_never() {
                event.and_then(Result::ok).ok_or_else(stopped)?;
            }
        }
    }

    /// Attaches who wants it and is not, and forgets who ended.
    async fn compare(&mut self, docker: &Docker) -> Result<(), Failure> {
        let records = open(&self.args.place.attachments).await?;
        let known = records.known()?;
        let mut wrong = BTreeSet::new();
        for id in docker.labelled().await? {
            // One that has ended meanwhile is no longer of interest.
            let Ok(container) = docker.find(&id).await else { continue };
            for (label, text) in &container.labels {
                if known.iter().any(|record| record.is_by_label(&container.id, label)) {
                    continue;
                }
                let Container { name, .. } = &container;
                let wanted = match label::parse(text) {
                    Ok(wanted) => wanted,
                    Err(reason) => {
                        wrong.insert(format!("container {name}: label {label}={text}: {reason}"));
                        continue;
                    }
                };
                let origin = Origin::Label(label.clone());
                match attach_one(&records, &container, origin, wanted, &self.args.kept()).await {
                    Ok(record) => println!("{}", printable_lines(&record.sentence())),
                    Err(failure) => {
                        wrong.insert(format!("container {name}: label {label}={text}: {failure}"));
                    }
                }
            }
        }
        self.tell(wrong);
        Ok(())
    }

    /// Says what is wrong, unless it was said before and is so still.
    fn tell(&mut self, wrong: BTreeSet<String>) {
        for line in wrong.difference(&self.told) {
            eprintln!("flanctl: {}", printable_lines(line));
        }
        self.told = wrong;
    }
}
