use netlink_packet_core::NLM_F_REQUEST;

use super::*;
use crate::kind::Edit;
use crate::kind::gateway::NextHopId;
use crate::kind::next_hop::{NextHop, NextHops};
use crate::netlink::object::NetlinkObject;

fn next_hop() -> NextHop {
    NextHop { gateway: [10, 0, 0, 1].into(), link: "lo".parse().unwrap(), onlink: false, protocol: 0 }
}

/// Returns a request of 32 bytes.
fn request(id: u32) -> Request {
    let key = NextHopId(id);
    NextHops::request(&Edit::Delete { key, held: next_hop() }, &|_| None).unwrap()
}

fn batch(owners: impl IntoIterator<Item = usize>) -> Batch {
    let mut batch = Batch::default();
    for owner in owners {
        batch.push(owner, request(owner as u32));
    }
    batch
}

/// Returns an answer to the message with this number.
fn answer(sequence: u32, errno: i32) -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[0..4].copy_from_slice(&36u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&wire::ERROR.to_ne_bytes());
    bytes[6..8].copy_from_slice(&0x100u16.to_ne_bytes());
    bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    bytes[16..20].copy_from_slice(&(-errno).to_ne_bytes());
    bytes
}

/// Returns the refusals that a batch numbered from `first` reads from answers, and whether it is complete.
fn noted(batch: &Batch, first: u32, answers: &[Vec<u8>]) -> (Vec<(usize, Option<i32>)>, bool) {
    let (mut refusals, mut complete) = (Vec::new(), false);
    for frame in Frames(&answers.concat()) {
        complete |= batch.note(first, &frame.unwrap(), &mut refusals).unwrap();
    }
    (refusals.into_iter().map(|(owner, reason)| (owner, reason.errno())).collect(), complete)
}

#[test]
fn messages_are_numbered_and_only_the_last_is_acknowledged() {
    let mut batch = batch([5, 6, 9]);
    let frames: Vec<_> = Frames(batch.seal(u32::MAX)).map(|frame| frame.unwrap()).collect();
    assert_eq!(frames.iter().map(|frame| frame.sequence).collect::<Vec<_>>(), [u32::MAX, 0, 1]);
    let acknowledged: Vec<_> = frames.iter().map(|frame| frame.flags & NLM_F_ACK != 0).collect();
    assert_eq!(acknowledged, [false, false, true]);
    assert!(frames.iter().all(|frame| frame.flags & NLM_F_REQUEST != 0));
}

#[test]
fn errors_are_matched_to_their_owners_by_number() {
    let batch = batch([5, 6, 9]);
    let answers = [answer(0, libc::EEXIST), answer(1, 0)];
    assert_eq!(noted(&batch, u32::MAX, &answers), (vec![(6, Some(libc::EEXIST))], true));
    let answers = [answer(7, libc::EPERM), answer(9, libc::ENOENT)];
    let refusals = vec![(5, Some(libc::EPERM)), (9, Some(libc::ENOENT))];
    assert_eq!(noted(&batch, 7, &answers), (refusals, true));
}

#[test]
fn a_batch_is_complete_with_the_answer_to_its_last_message() {
    let batch = batch([0, 1]);
    assert!(!noted(&batch, 7, &[answer(7, libc::EEXIST)]).1);
    assert_eq!(noted(&batch, 7, &[answer(6, libc::EEXIST), answer(9, 0)]), (vec![], false), "not ours");
}

#[test]
fn ten_thousand_changes_are_cut_by_number_or_by_size_and_none_is_lost() {
    for (most, want) in [(100, 100), (usize::MAX, BATCH_BYTES / 52)] {
        let (mut batch, mut batches) = (Batch::default(), Vec::new());
        for owner in 0..10_000 {
            if !batch.fits(&request(owner as u32), most) {
                batches.push(batch.owners.clone());
                assert!(batch.bytes.len() <= BATCH_BYTES);
                batch.clear();
            }
            batch.push(owner, request(owner as u32));
        }
        batches.push(batch.owners);
        assert!(batches[0].len() >= want, "{}", batches[0].len());
        assert!(batches.iter().all(|owners| owners.len() <= most));
        assert!(batches.concat().into_iter().eq(0..10_000));
    }
}

#[test]
fn a_socket_answers_without_privileges() {
    let mut socket = Socket::open().unwrap();
    let name = socket.link_name(1).unwrap();
    assert_eq!(name, Some("lo".parse().unwrap()));
    assert!(socket.link("no-such-device".parse().unwrap()).unwrap().is_none());
}

#[test]
fn a_change_that_is_not_allowed_or_not_there_is_refused_by_itself() {
    let mut socket = Socket::open().unwrap();
    // With or without privileges: the next hop does not exist, or we may not delete it.
    let refusal = socket.change_one(request(u32::MAX)).unwrap_err();
    let expected = [libc::EPERM, libc::ENOENT, libc::EOPNOTSUPP];
    assert!(refusal.errno().is_some_and(|errno| expected.contains(&errno)), "{refusal}");
    assert!(!breaks_socket(&refusal));
}
