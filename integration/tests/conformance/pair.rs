//! Two servers that are sent the same.

use std::env;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
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

/// The variable that names the two servers, the one to go by first, with a comma between them.
const PAIR_VARIABLE: &str = "FLAN_CONFORMANCE_PAIR";

/// The servers if it names none.
const USUAL_PAIR: &str = "etcd,embedded";

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
    pub(crate) wire: Wire,
    /// `None` where it is somebody else's.
    store: Option<Store>,
}

impl Pair {
    /// Tells a story with two new servers.
    pub(crate) fn run(data: StoreData, story: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
        // The lab's own store would be a third one.
        Lab::run(LabOptions { store_members: 0, ..LabOptions::default() }, |lab| {
            story(&mut Pair::start(lab, data)?)
        })
    }

    fn start(lab: &Lab, data: StoreData) -> Result<Pair> {
        let named = env::var(PAIR_VARIABLE).unwrap_or_default();
        let named = if named.is_empty() { USUAL_PAIR.to_owned() } else { named };
        let Some((one, other)) = named.split_once(',') else {
            bail!("{PAIR_VARIABLE} is {named:?}; expected two servers, such as {USUAL_PAIR}");
        };
        let inside = Inside::of(lab.underlay())?;
        let sides = [
            Side::start(lab, &inside, "the first", one, data)?,
            Side::start(lab, &inside, "the second", other, data)?,
        ];
        Ok(Pair { inside, place: lab.underlay().place(), sides })
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
        let [one, other] = self.each(&call)?;
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
            "embedded" => Some(StoreKind::Embedded),
            url => {
                ensure!(url.starts_with("http://"), "{url:?} is no server; expected etcd, embedded or a URL");
                None
            }
        };
        let store = kind.map(|kind| lab.another_store(kind, data)).transpose()?;
        let url = store.as_ref().map_or_else(|| named.to_owned(), Store::endpoints);
        let name = kind.map_or_else(|| named.to_owned(), |kind| format!("{which}, {kind}"));
        Ok(Side { name, wire: connect(inside, &url)?, url, kind, store })
    }
}

fn connect(inside: &Inside, url: &str) -> Result<Wire> {
    let url = url.to_owned();
    inside.run(ANSWER_LIMIT, async move { Wire::to(&url) })
}
