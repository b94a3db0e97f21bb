//! What a store says of itself.

use anyhow::{Result, bail, ensure};
use etcd_client::proto::{PbAlarmRequest, PbMemberListRequest, PbStatusRequest};
use flan_integration::store::ensure_healthy;

use crate::answer::Answer;
use crate::call::Call;
use crate::table::{Case, no_difference_in};

const CASES: &[Case] = &[
    ("the status, which names a version and a leader", |pair| {
        let call = Call::Status(PbStatusRequest {});
        pair.done(call.clone())?;
        for answer in pair.each(&call)? {
            let Answer::Status(status) = answer else { bail!("refused: {answer:?}") };
            let header = status.header.unwrap_or_default();
            ensure!(status.version.starts_with("3."), "version {:?}", status.version);
            ensure!(
                header.member_id != 0 && status.leader == header.member_id,
                "{} leads {header:?}",
                status.leader
            );
            ensure!(header.cluster_id != 0 && status.db_size > 0, "{header:?}, {} bytes", status.db_size);
        }
        Ok(())
    }),
    ("the one member, with a URL for clients", |pair| {
        let call = Call::Members(PbMemberListRequest::default());
        pair.done(call.clone())?;
        let urls = pair.sides().each_ref().map(|side| side.url.clone());
        for (answer, url) in pair.each(&call)?.into_iter().zip(urls) {
            let Answer::Members(answer) = answer else { bail!("refused: {answer:?}") };
            let header = answer.header.unwrap_or_default();
            ensure!(answer.members.len() == 1, "{:?}", answer.members);
            ensure!(answer.members[0].id == header.member_id, "{:?} is not {header:?}", answer.members);
            ensure!(
                answer.members[0].client_ur_ls.contains(&url),
                "{:?} does not name {url}",
                answer.members
            );
        }
        Ok(())
    }),
    ("the alarms, of which there are none", |pair| {
        pair.done(PbAlarmRequest::default())?;
        // Of every kind by itself.
        for alarm in [1, 2] {
            pair.done(PbAlarmRequest { alarm, ..PbAlarmRequest::default() })?;
        }
        // The one thing in which etcd 3.4 and 3.5 differ, and which is left out of the comparison with 3.4.
        for (side, answer) in pair.sides().iter().zip(pair.each(&PbAlarmRequest::default().into())?) {
            let Answer::Alarms(answer) = answer else { bail!("refused: {answer:?}") };
            ensure!(
                answer.header.is_none() == side.sends_alarms_without_header(),
                "{}: {answer:?}",
                side.name
            );
        }
        Ok(())
    }),
    ("its health, by HTTP", |pair| {
        let urls = pair.sides().each_ref().map(|side| side.url.clone());
        for url in urls {
            ensure_healthy(pair.place(), &url)?;
        }
        Ok(())
    }),
];

#[test]
fn a_store_tells_of_itself_as_etcd_does() -> Result<()> {
    no_difference_in(CASES)
}
