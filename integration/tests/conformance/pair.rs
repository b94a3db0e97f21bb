//! Two servers that are sent the same.

use std::env;
use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use etcd_client::proto::PbStatusRequest;
use flan_integration::command::Place;
use flan_integration::inside::Inside;
use flan_integration::store::StoreData;
use flan_integration::{Lab, LabOptions, Store, StoreKind};

use crate::answer::Answer;
use crate::call::Call;
use crate::requests::range;
use crate::told::told;
use crate::watching::{Half, Watching};
use crate::wire::Wire;

/// The variable that names one pair of servers, the one to go by first, with a comma between them.
const PAIR_VARIABLE: &str = "FLAN_CONFORMANCE_PAIR";

/// The pairs if it names none: etcd 3.4, if the machine is a Debian 12, and 3.5.
const USUAL_PAIRS: [&str; 2] = ["etcd,embedded", "etcd-forky,embedded"];

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// The two servers and the way to them.
#[derive(Debug)]
pub(crate) struct Pair {
    inside: Inside,
    place: Place,
    sides: [Side; 2],
}

/// One of the two.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) kind: Option<StoreKind>,
    /// As it tells it itself.
    version: String,
    pub(crate) wire: Wire,
    /// `None` where it is somebody else's.
    store: Option<Store>,
}

impl Pair {
    /// Tells a story with the two new servers of each pair, beside each other.
    pub(crate) fn run(data: StoreData, story: impl Fn(&mut Pair) -> Result<()> + Sync) -> Result<()> {
        let named = env::var(PAIR_VARIABLE).unwrap_or_default();
        let pairs = if named.is_empty() { &USUAL_PAIRS[..] } else { &[named.as_str()] };
        let story = &story;
        let told = thread::scope(|scope| {
            let threads: Vec<_> =
                pairs.iter().map(|pair| scope.spawn(move || Pair::run_one(pair, data, story))).collect();
            threads.into_iter().map(ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        let mut differences = Vec::new();
        for (pair, told) in pairs.iter().zip(told) {
            match told {
                Ok(Ok(())) => {}
                Ok(Err(difference)) => differences.push(format!("{pair}: {difference:#}")),
                Err(panic) => resume_unwind(panic),
            }
        }
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    }

    fn run_one(pair: &str, data: StoreData, story: impl Fn(&mut Pair) -> Result<()>) -> Result<()> {
        let Some((one, other)) = pair.split_once(',') else {
            bail!("{PAIR_VARIABLE} is {pair:?}; expected two servers, such as {}", USUAL_PAIRS[0]);
        };
        // The lab's own store would be a third one.
        Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
            let inside = Inside::of(lab.underlay())?;
            let sides = [
                Side::start(lab, &inside, "the first", one, data)?,
                Side::start(lab, &inside, "the second", other, data)?,
            ];
            story(&mut Pair { inside, place: lab.underlay().place(), sides })
        })
    }

    /// Where programs reach both.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Both, the one to go by first.
    pub(crate) fn sides(&self) -> &[Side; 2] {
        &self.sides
    }

    /// Does something asynchronous on the way to the servers.
    pub(crate) fn inside(&self) -> &Inside {
        &self.inside
    }

    /// Sends a call to both, which must answer the same: returns the answer of the one to go by.
    pub(crate) fn same(&mut self, call: impl Into<Call>) -> Result<Answer> {
        let call = call.into();
        let [one, other] = self.comparable(self.each(&call)?);
        if !one.says_as(&other) {
            let [first, second] = &self.sides;
            bail!(
                "{}\n    {}: {}\n    {}: {}",
                told(&call),
                first.name,
                told(&one.comparable()),
                second.name,
                told(&other.comparable())
            );
        }
        Ok(one)
    }

    /// Without what is known to differ between versions of etcd.
    fn comparable(&self, mut answers: [Answer; 2]) -> [Answer; 2] {
        if self.sides.iter().any(Side::sends_alarms_without_header) {
            answers.iter_mut().for_each(Answer::remove_header_of_alarms);
        }
        answers
    }

    /// As [`Pair::same`], for a call that is not refused.
    pub(crate) fn done(&mut self, call: impl Into<Call>) -> Result<Answer> {
        let call = call.into();
        let answer = self.same(call.clone())?;
        if let Answer::Refused { code, message } = &answer {
            bail!("both refuse {}: {code:?}, {message}", told(&call));
        }
        Ok(answer)
    }

    /// As [`Pair::same`], for a call that is refused in words with these in them.
    pub(crate) fn refused(&mut self, call: impl Into<Call>, words: &str) -> Result<()> {
        let call = call.into();
        match self.same(call.clone())? {
            Answer::Refused { message, .. } if message.contains(words) => Ok(()),
            answer => bail!("{} is not refused with {words:?} but answered {}", told(&call), told(&answer)),
        }
    }

    /// As [`Pair::done`], one call after the other.
    pub(crate) fn all_done<C: Into<Call>>(&mut self, calls: impl IntoIterator<Item = C>) -> Result<()> {
        calls.into_iter().try_for_each(|call| self.done(call).map(drop))
    }

    /// What each answers, which may differ.
    pub(crate) fn each(&self, call: &Call) -> Result<[Answer; 2]> {
        let [one, other] = &self.sides;
        let (one, other) = (one.wire.clone(), other.wire.clone());
        let call = call.clone();
        let answers = self.inside.run(ANSWER_LIMIT, async move {
            let (one, other) = tokio::join!(call.clone().send(&one), call.send(&other));
            Ok([one, other])
        })?;
        for (side, answer) in self.sides.iter().zip(&answers) {
            if let Answer::Refused { code: tonic::Code::Unavailable, message } = answer {
                bail!("{} cannot be reached: {message}", side.name);
            }
        }
        Ok(answers)
    }

    /// The revision of both stores.
    pub(crate) fn revision(&mut self) -> Result<i64> {
        Ok(self.done(range("nothing is here"))?.revision())
    }

    /// A stream for watches to each.
    pub(crate) fn watch(&self) -> Watching {
        Watching::of(self.sides.each_ref().map(|side| Half::start(&side.name, &side.wire, &self.inside)))
    }

    /// Kills both (`kill -9`) and starts them again on their data.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.kill_and_start(|_| Ok(()))
    }

    /// Starts both anew without any data.
    pub(crate) fn start_afresh(&mut self) -> Result<()> {
        self.kill_and_start(|store| store.wipe_member(0))
    }

    fn kill_and_start(&mut self, between: impl Fn(&mut Store) -> Result<()>) -> Result<()> {
        for side in &mut self.sides {
            let name = &side.name;
            let store = side.store.as_mut().with_context(|| format!("{name} is not ours to restart"))?;
            store.kill_member(0)?;
            between(store)?;
            store.start_member(0)?;
            side.wire = connect(&self.inside, &side.url)?;
        }
        Ok(())
    }
}

impl Side {
    fn start(lab: &Lab, inside: &Inside, which: &str, named: &str, data: StoreData) -> Result<Side> {
        let kind = match named {
            "etcd" => Some(StoreKind::Etcd),
            "etcd-forky" => Some(StoreKind::EtcdOfForky),
            "embedded" => Some(StoreKind::Embedded),
            url => {
                ensure!(
                    url.starts_with("http://"),
                    "{url:?} is no server; expected etcd, etcd-forky, embedded or a URL"
                );
                None
            }
        };
        let store = kind.map(|kind| lab.another_store(kind, data)).transpose()?;
        let url = store.as_ref().map_or_else(|| named.to_owned(), Store::endpoints);
        let wire = connect(inside, &url)?;
        let version = version_of(inside, wire.clone())?;
        let kind_or_url = kind.map_or_else(|| named.to_owned(), |kind| kind.to_string());
        let name = format!("{which}, {kind_or_url} {version}");
        Ok(Side { name, url, kind, version, wire, store })
    }

    /// True for etcd 3.4: its answer to a question for alarms has no header, and that of 3.5 and of `fland store` has.
    pub(crate) fn sends_alarms_without_header(&self) -> bool {
        // `fland store` calls itself 3.4.0+flan and its own version.
        self.version.starts_with("3.4.") && !self.version.contains("flan")
    }
}

fn connect(inside: &Inside, url: &str) -> Result<Wire> {
    let url = url.to_owned();
    inside.run(ANSWER_LIMIT, async move { Wire::to(&url) })
}

fn version_of(inside: &Inside, wire: Wire) -> Result<String> {
    let call = Call::Status(PbStatusRequest {});
    match inside.run(ANSWER_LIMIT, async move { Ok(call.send(&wire).await) })? {
        Answer::Status(status) => Ok(status.version),
        answer => bail!("no status: {answer:?}"),
    }
}
