//! What the embedded store does not do, it says by name.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flan_integration::StoreKind;
use flan_integration::store::StoreData;
use tonic::Code;

use crate::pair::Pair;

/// The rest of etcd's API, or the most known of it. An empty message is a request of each.
const UNSERVED: &[&str] = &[
    "/etcdserverpb.Auth/AuthEnable",
    "/etcdserverpb.Auth/Authenticate",
    "/etcdserverpb.Auth/UserAdd",
    "/etcdserverpb.Auth/RoleAdd",
    "/etcdserverpb.Cluster/MemberAdd",
    "/etcdserverpb.Cluster/MemberRemove",
    "/etcdserverpb.Cluster/MemberUpdate",
    "/etcdserverpb.Cluster/MemberPromote",
    "/etcdserverpb.Maintenance/Hash",
    "/etcdserverpb.Maintenance/HashKV",
    "/etcdserverpb.Maintenance/MoveLeader",
    "/etcdserverpb.Maintenance/Snapshot",
    "/v3electionpb.Election/Campaign",
    "/v3lockpb.Lock/Lock",
];

#[test]
fn what_the_embedded_store_does_not_serve_it_refuses_by_name() -> Result<()> {
    Pair::run(StoreData::InMemory, |pair| {
        for side in pair.sides().iter().filter(|side| side.kind == Some(StoreKind::Embedded)) {
            for method in UNSERVED {
                let wire = side.wire.clone();
                let answer = pair
                    .inside()
                    .run(Duration::from_secs(5), async move { Ok(wire.unary::<(), ()>(method, ()).await) })?;
                let status = answer.err().with_context(|| format!("{method} is served"))?;
                ensure!(status.code() == Code::Unimplemented, "{method}: {status:?}");
                let name = method.rsplit('/').next().unwrap_or(method);
                ensure!(status.message().contains(name), "{method} is not named: {:?}", status.message());
            }
        }
        Ok(())
    })
}
