//! Routes deleted by hand: how soon they are back.

use std::time::Instant;

use anyhow::{Context, Result};
use flan_integration::Lab;
use flan_integration::witness::{KernelChange, Object};

use crate::control;
use crate::kernel;
use crate::measure::{Measure, Values};
use crate::peers::{Peer, Programmed, base_of_route};
use crate::subject::Subject;

/// Routes deleted one at a time.
const SINGLE: u32 = 9;

/// One at a time, counted from the kernel's word that it is gone to the one that it is back.
pub(crate) fn one_by_one(subject: &Subject, values: &mut Values) -> Result<()> {
    for peer in subject.some_peers(SINGLE) {
        let mark = subject.witness.mark();
        subject.host.ip(&format!("route del {}", peer.subnet()))?;
        let mut deleted: Option<Instant> = None;
        let back = subject.witness.wait_for("a deleted route", mark, subject.limit(), |change| {
            if is_route_of(change, peer) && change.gone {
                deleted = Some(change.at);
            }
            deleted.is_some() && is_route_of(change, peer) && !change.gone
        })?;
        let taken = back.duration_since(deleted.context("a route came back that had not gone")?);
        values.entry(Measure::RouteRepaired).or_default().push(1000.0 * taken.as_secs_f64());
    }
    Ok(())
}

/// All at once, in one batch of which each line deletes one route, once.
pub(crate) fn all_at_once(lab: &Lab, subject: &Subject, values: &mut Values) -> Result<()> {
    let mark = subject.witness.mark();
    control::delete_routes(lab, &subject.host, subject.peers)?;
    let mut programmed = Programmed::of(Peer::residents(subject.peers));
    let (mut first, mut deleted) = (None, 0);
    let back = subject.witness.wait_for("all deleted routes", mark, subject.limit(), |change| {
        programmed.follow(change);
        if change.gone && is_route(change) {
            first.get_or_insert(change.at);
            deleted += 1;
        }
        // Those that are back already while others are still being deleted do not end it.
        deleted >= subject.peers && programmed.are(subject.peers)
    })?;
    subject.wait_until_quiet()?;
    kernel::ensure_holds(&subject.host, subject.peers).context("after all routes were deleted")?;
    let taken = back.duration_since(first.context("no route was deleted")?);
    values.entry(Measure::AllRepaired).or_default().push(taken.as_secs_f64());
    Ok(())
}

fn is_route(change: &KernelChange) -> bool {
    matches!(&change.object, Object::Route { destination, .. } if base_of_route(destination).is_some())
}

fn is_route_of(change: &KernelChange, peer: Peer) -> bool {
    matches!(&change.object, Object::Route { destination, .. } if base_of_route(destination) == Some(peer.base()))
}
