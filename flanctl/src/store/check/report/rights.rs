//! Whether the store permits what the agent does.

use flan_subnet_lease::{NetworkConfig, StoreConfig, StoreError};

use super::advice::{ADMINISTRATOR, brief, remedy};
use super::line::Line;
use crate::config::describe;
use crate::output::count;
use crate::store::check::Needs;

/// Returns a line for each right; `needs` is `None` if no endpoint could be asked.
pub(crate) fn rights(config: &StoreConfig, needs: Option<&Needs>) -> Vec<Line> {
    let names = ["read the config", "list leases", "watch leases", "store leases", "write leases"];
    let Some(needs) = needs else {
        return names.map(|name| Line::not_told(name, "no endpoint could be asked")).into();
    };
    let prefix = &config.prefix;
    let grant = |right: String| format!("etcdctl role grant-permission ROLE {right}");
    let read_config = grant(format!("read {prefix}/config"));
    let read_leases = grant(format!("--prefix=true read {prefix}/subnets/"));
    let write_leases = grant(format!("--prefix=true readwrite {prefix}/subnets/"));
    let judged = |name: &str, outcome: Result<String, &StoreError>, right: &str| match outcome {
        Ok(detail) => Line::ok(name, detail),
        Err(error @ StoreError::NotOffered { .. }) => Line::not_told(name, brief(error)),
        Err(error) => Line::failed(name, brief(error), remedy(error, right)),
    };
    vec![
        match &needs.config {
            Ok(stored) => config_line(names[0], stored.as_ref().map(|stored| stored.json.as_slice())),
            Err(error) => judged(names[0], Err(error), &read_config),
        },
        judged(names[1], needs.list.as_ref().map(|number| leases(*number)), &read_leases),
        judged(names[2], needs.watch.as_ref().map(|()| "opened one".to_owned()), &read_leases),
        judged(
            names[3],
            needs.etcd_lease.as_ref().map(|()| "granted, renewed and revoked one".to_owned()),
            ADMINISTRATOR,
        ),
        judged(
            names[4],
            needs.write.as_ref().map(|()| "allowed; nothing was written".to_owned()),
            &write_leases,
        ),
    ]
}

fn config_line(name: &str, json: Option<&[u8]>) -> Line {
    let read = |json| NetworkConfig::parse(json).and_then(|config| config.supported().map(|()| config));
    match json.map(read) {
        Some(Ok(config)) => Line::ok(name, describe(&config)),
        Some(Err(error)) => Line::failed(
            name,
            format!("it cannot be used: {error}"),
            "write another: flanctl config set FILE",
        ),
        None => Line::failed(name, "there is none", "write one: flanctl config set FILE"),
    }
}

fn leases(number: u64) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), "lease")
}
