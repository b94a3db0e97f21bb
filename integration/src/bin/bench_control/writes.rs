//! From a write in etcd to what the kernel tells of it: a new lease, another MAC, a lease that goes; one at a time.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use flan_integration::witness::{KernelChange, Mark, Object};

use crate::leases::{Leases, Written};
use crate::measure::{Measure, Values};
use crate::peers::{Peer, base_of_route};
use crate::subject::Subject;

/// How long one write may take to arrive.
const LIMIT: Duration = Duration::from_secs(60);

/// A line is told each so often.
const TELL: Duration = Duration::from_secs(10);

/// Takes the measure with so many peers that come, change and go.
pub(crate) fn run(subject: &Subject, store: &Leases, count: u32, values: &mut Values) -> Result<()> {
    let mut told = Instant::now();
    for number in 0..count {
        let peer = Peer::visitor(number);
        let other_mac = peer.mac_of_generation(1);
        let is_route = |change: &KernelChange, gone: bool| match &change.object {
            Object::Route { destination, .. } => {
                change.gone == gone && base_of_route(destination) == Some(peer.base())
            }
            _ => false,
        };
        let has_other_mac = |change: &KernelChange| match &change.object {
            Object::Neighbour { address, mac, .. } => {
                !change.gone && *address == Some(IpAddr::V4(peer.base())) && *mac == Some(other_mac)
            }
            _ => false,
        };

        let mark = subject.witness.mark();
        let written = store.put(peer.key(), peer.value())?;
        note(subject, Measure::Added, mark, written, values, |change| is_route(change, false))?;

        let mark = subject.witness.mark();
        let written = store.put(peer.key(), peer.value_with(other_mac))?;
        note(subject, Measure::Changed, mark, written, values, has_other_mac)?;

        let mark = subject.witness.mark();
        let written = store.delete(peer.key())?;
        note(subject, Measure::Deleted, mark, written, values, |change| is_route(change, true))?;

        if told.elapsed() > TELL {
            told = Instant::now();
            eprint!("{} of {count} ... ", number + 1);
        }
    }
    Ok(())
}

fn note(
    subject: &Subject,
    measure: Measure,
    mark: Mark,
    written: Written,
    values: &mut Values,
    is_meant: impl FnMut(&KernelChange) -> bool,
) -> Result<()> {
    let (what, _) = measure.name();
    let arrived = subject.witness.wait_for(what, mark, LIMIT, is_meant)?;
    let taken = arrived.duration_since(written.sent);
    values.entry(measure).or_default().push(1000.0 * taken.as_secs_f64());
    values.entry(Measure::Acknowledged).or_default().push(1000.0 * written.acknowledged.as_secs_f64());
    Ok(())
}
