//! `flanctl store copy`: copies one store into another that agents can use from then on.

mod job;
mod plan;
mod report;

use std::cell::Cell;

use flan_agent_api::{StoreArgs, UserSettings};
use flan_subnet_lease::{Endpoint, Store, StoreConfig, StoreError};

use crate::access;
use crate::args::CopyArgs;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;
use job::Job;
use plan::Occupied;
use report::CopyReport;

/// The settings for the user of --to.
const USER_SETTINGS: UserSettings = ["--to-username", "FLAND_TO_PASSWORD"];

/// Copies the network config and all leases.
pub(crate) async fn copy(shared: &StoreArgs, args: &CopyArgs) -> Result<(), Failure> {
    let (from, to) = stores(shared, args)?;
    refuse_the_same(&from, &to)?;
    let (from, to) = (access::open(from)?, access::open(to)?);
    let reading = || format!("reading the stores at {} and {}", from.endpoints(), to.endpoints());
    let (source, target) =
        told(reading, async { futures::try_join!(from.snapshot(), to.snapshot()) }).await?;
    if source.config.is_none() && source.leases.items.is_empty() {
        return Err(nothing_there(&from));
    }
    tell_of_networks(&from).await?;
    let (revision, seen) = (source.leases.revision, target.config.clone());
    let plan = plan::plan(source, &target, args.force).map_err(|occupied| in_use(&to, &occupied))?;
    // Find missing rights on the target before the first write, and in a dry run too.
    to.may_write().await.map_err(|error| no_right(&to, error))?;
    if plan.config.as_ref().is_some_and(|config| !config.stands) {
        to.may_write_config().await.map_err(|error| no_right(&to, error))?;
    }
    let job = Job { from: &from, to: &to, seen, dry_run: args.dry_run, done: Cell::new(0) };
    let leases = output::count(plan.leases(), "lease");
    let verb = if args.dry_run { "looked at" } else { "copied" };
    let so_far = || format!("{verb} {} of {leases}", job.done.get());
    let outcome = told(so_far, job.carry(plan)).await.map_err(|error| {
        let reason = format!("{}, then: {error}; what was written stays; continue with --force", so_far());
        Failure::new(Failure::from(error).kind, reason)
    })?;
    if !args.dry_run {
        copy_reservations(&from, &to).await?;
    }
    let report = CopyReport::new(&from, &to, revision, args.dry_run, outcome);
    super::print(args.output, &report, || report.text())?;
    match report.changed_meanwhile() {
        0 => Ok(()),
        number => Err(outrun(&to, number)),
    }
}

/// Says how to copy the networks beside the default one.
async fn tell_of_networks(from: &Store) -> Result<(), Failure> {
    for network in from.networks().await?.all {
        let prefix = from.network(&network.name).prefix().to_owned();
        eprintln!(
            "flanctl: warning: this does not copy network {}; copy it in the same way, with --etcd-prefix {prefix}",
            network.name
        );
    }
    Ok(())
}

/// Copies the records of reservations, as far as the credentials for both stores permit.
async fn copy_reservations(from: &Store, to: &Store) -> Result<(), Failure> {
    let copied = async {
        for reservation in from.reservations().await? {
            to.remember(&reservation).await?;
        }
        Ok(())
    };
    match copied.await {
        Err(error @ StoreError::Unauthorised { .. }) => {
            eprintln!("flanctl: warning: the records of reservations were not copied: {error}");
            Ok(())
        }
        outcome => outcome.map_err(Failure::from),
    }
}

/// Returns the settings of both stores. The shared credentials are for the source: no store gets another's unasked.
fn stores(shared: &StoreArgs, args: &CopyArgs) -> Result<(StoreConfig, StoreConfig), StoreError> {
    let mut from = StoreArgs { etcd_endpoints: args.from.clone(), ..shared.clone() }.config()?;
    // The environment may hold these for the agent's etcd, which may be another store.
    if !from.endpoints.iter().any(Endpoint::is_tls) {
        let credentials = &mut from.credentials;
        (credentials.ca_file, credentials.cert_file, credentials.key_file) = (None, None, None);
    }
    let to = StoreArgs {
        etcd_endpoints: args.to.clone(),
        etcd_prefix: shared.etcd_prefix.clone(),
        etcd_cafile: args.to_cafile.clone(),
        etcd_certfile: args.to_certfile.clone(),
        etcd_keyfile: args.to_keyfile.clone(),
        etcd_username: args.to_username.clone(),
        etcd_password: args.to_password.clone(),
    };
    Ok((from, to.config_with(USER_SETTINGS)?))
}

fn refuse_the_same(from: &StoreConfig, to: &StoreConfig) -> Result<(), Failure> {
    match from.endpoints.iter().find(|endpoint| to.endpoints.contains(endpoint)) {
        Some(both) => {
            let message = format!("--from and --to both name {both}; they are to be two stores");
            Err(Failure::new(Kind::Usage, message))
        }
        None => Ok(()),
    }
}

fn nothing_there(from: &Store) -> Failure {
    let message = format!(
        "there is nothing to copy below {} in the store at {}; is that the --etcd-prefix of the agents?",
        from.prefix(),
        from.endpoints()
    );
    Failure::new(Kind::NoConfig, message)
}

fn in_use(to: &Store, occupied: &Occupied) -> Failure {
    let message = format!(
        "the store at {} holds {} below {} already; nothing was written. --force overwrites what both have and \
         leaves the rest",
        to.endpoints(),
        occupied.describe(),
        to.prefix()
    );
    Failure::new(Kind::Refused, message)
}

fn no_right(to: &Store, error: StoreError) -> Failure {
    match error {
        StoreError::Unauthorised { .. } => {
            let message = format!("{error}; a copy reads and writes all below {}", to.prefix());
            Failure::new(Kind::Unauthorised, message)
        }
        other => other.into(),
    }
}

fn outrun(to: &Store, number: usize) -> Failure {
    let message = format!(
        "somebody else wrote {} at {} at the same moment; look, and copy again with --force",
        output::count(number, "key"),
        to.endpoints()
    );
    Failure::new(Kind::Refused, message)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command, StoreCommand};

    fn read(arguments: &[&str]) -> (StoreConfig, StoreConfig) {
        let args = Args::try_parse_from([&["flanctl", "store", "copy"], arguments].concat()).unwrap();
        match args.command {
            Command::Store(StoreCommand::Copy(copy)) => stores(&args.store, &copy).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_store_is_shown_its_own_credentials_only() {
        let (from, to) = read(&[
            "--from=https://a:2379,https://b:2379/",
            "--to=http://c:2379",
            "--etcd-prefix=/net/",
            "--etcd-cafile=ca.pem",
            "--etcd-username=u",
            "--etcd-password=p",
        ]);
        assert_eq!(from.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!((from.prefix.as_str(), to.prefix.as_str()), ("/net", "/net"));
        assert_eq!(from.credentials.ca_file, Some("ca.pem".into()));
        assert_eq!(from.credentials.user, Some(("u".to_owned(), "p".to_owned().into())));
        assert_eq!(to.endpoints, ["http://c:2379"]);
        assert_eq!((to.credentials.ca_file, to.credentials.user), (None, None));
    }

    #[test]
    fn tls_files_of_the_environment_do_not_keep_from_copying_out_of_a_plain_store() {
        let (from, to) = read(&[
            "--from=http://127.0.0.1:2379",
            "--to=https://c:2379",
            "--etcd-cafile=ca.pem",
            "--to-cafile=to.pem",
        ]);
        assert_eq!(from.credentials.ca_file, None);
        assert_eq!(to.credentials.ca_file, Some("to.pem".into()));
    }

    #[test]
    fn a_store_is_not_copied_onto_itself() {
        let (from, to) = read(&["--from=http://a:2379", "--to=http://b:2379,http://a:2379/"]);
        let refusal = refuse_the_same(&from, &to).unwrap_err().to_string();
        assert_eq!(refusal, "--from and --to both name http://a:2379; they are to be two stores");
    }
}
