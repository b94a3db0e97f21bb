//! `flanctl`: the command line to show and change which host holds which subnet.

mod access;
mod agent;
mod args;
mod attach;
mod bug_report;
mod check;
mod config;
mod confirm;
mod docker;
mod env_file;
mod failure;
mod hand_over;
mod host;
mod leave;
mod network;
mod output;
mod peers;
mod ping;
mod progress;
mod status;
mod store;
mod subnets;
mod table;
mod wireguard;

use std::path::Path;
use std::process::ExitCode;

use args::{Command, ConfigCommand, NetworkCommand, StoreCommand, SubnetsCommand, WireguardCommand};

use flan_agent_api::shipped;

use crate::failure::{Failure, Kind};
use crate::progress::told;

/// Runs the command. Exits if the command line is invalid.
pub fn run() -> ExitCode {
    let (args, access) = match access::read() {
        Ok(read) => read,
        Err(failure) => return failed(&failure, ""),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(carry_out(args, &access)),
        Err(error) => Err(Failure::new(Kind::Other, error)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure, &access.comment(failure.kind)),
    }
}

/// Returns the definition of the command line.
pub fn command() -> clap::Command {
    <args::Args as clap::CommandFactory>::command()
}

fn failed(failure: &Failure, comment: &str) -> ExitCode {
    eprintln!("flanctl: {}{comment}", output::printable_lines(&failure.to_string()));
    ExitCode::from(failure.kind.code())
}

async fn carry_out(args: args::Args, access: &access::Access) -> Result<(), Failure> {
    let whole_store = || access::open(args.store.config()?);
    let store = || {
        let store = whole_store()?;
        Ok::<_, Failure>(args.network.as_ref().map_or_else(|| store.clone(), |name| store.network(name)))
    };
    let endpoints = args.store.config().map(|config| config.shown_endpoints()).unwrap_or_default();
    let waiting = || format!("waiting for the store at {endpoints}");
    if let (Some(name), false) = (&args.network, args.command.is_about_a_network()) {
        let message =
            format!("--network {name} has no effect here: it is for the commands config and subnets");
        return Err(Failure::new(Kind::Usage, message));
    }
    match args.command {
        Command::Config(command) => match command {
            ConfigCommand::Get => told(waiting, config::get(&store()?, args.network.as_ref())).await,
            ConfigCommand::Set { file, backend, force } => {
                told(
                    waiting,
                    config::set(&whole_store()?, args.network.as_ref(), &file, backend.as_deref(), force),
                )
                .await
            }
            ConfigCommand::Validate { file } => config::validate(&file),
        },
        Command::Network(command) => match command {
            NetworkCommand::Create(args) => told(waiting, network::create(&whole_store()?, &args)).await,
            NetworkCommand::Ls { output } => told(waiting, network::list(&whole_store()?, output)).await,
            NetworkCommand::Inspect { name, output } => {
                told(waiting, network::inspect(&whole_store()?, &name, output)).await
            }
            NetworkCommand::Join { name, socket } => {
                told(waiting, network::join(&whole_store()?, &name, &socket.path)).await
            }
            NetworkCommand::Leave { name, socket } => network::leave(&name, &socket.path).await,
            NetworkCommand::Rm { name } => told(waiting, network::remove(&whole_store()?, &name)).await,
        },
        Command::Store(command) => match command {
            StoreCommand::Check { output } => store::check(args.store.config()?, output).await,
            StoreCommand::Copy(copy) => store::copy(&args.store, &copy).await,
        },
        Command::Subnets(command) => match command {
            SubnetsCommand::Ls { socket, output, watch: false } => {
                told(waiting, subnets::list(&store()?, &socket.path, output)).await
            }
            SubnetsCommand::Ls { socket, output, watch: true } => {
                subnets::watch(&store()?, &socket.path, output).await
            }
            SubnetsCommand::Show { subnet, output } => {
                told(waiting, subnets::show(&store()?, &subnet, output)).await
            }
            SubnetsCommand::Reserve { subnet, public_ip, now } => {
                told(waiting, subnets::reserve(&store()?, &subnet, &public_ip, now)).await
            }
            SubnetsCommand::Release { subnet, yes } => subnets::release(&store()?, &subnet, yes).await,
        },
        Command::Status { socket, all: false, output, watch } => {
            status::print(&socket.path, output, watch).await
        }
        Command::Status { all: true, output, watch, .. } => {
            status::print_all(&whole_store()?, output, watch, waiting).await
        }
        Command::Peers { socket, output, watch } => peers::list(&socket.path, output, watch).await,
        Command::Check(check) => {
            check::check(&check, args.store.config()?, &access.comment(Kind::Unreachable)).await
        }
        Command::Report(report) => {
            let settings = args.env_file.as_deref().unwrap_or(Path::new(access::UNIT_FILE));
            let comment = access.comment(Kind::Unreachable);
            bug_report::report(&report, settings, args.store.config(), &comment).await
        }
        Command::Ping(args) => ping::ping(&args, whole_store).await,
        Command::Attach(args) => attach::attach(&args).await,
        Command::Detach(args) => attach::detach(&args).await,
        Command::Attachments(args) => attach::list(&args),
        Command::Completions { shell } => {
            output::print_verbatim(&String::from_utf8_lossy(&shipped::completions(command(), shell)))
        }
        Command::Man { directory } => {
            let failed = |error| Failure::new(Kind::Other, format!("{}: {error}", directory.display()));
            shipped::man_pages(command(), &directory).map_err(failed)
        }
        Command::HandOver(args) => hand_over::run(&args).await,
        Command::Leave(args) => {
            let store = if args.keep_lease { None } else { Some(whole_store()?) };
            leave::run(store, &args).await
        }
        Command::Wireguard(WireguardCommand::RotateKey { key_file }) => {
            wireguard::rotate_key(&key_file.file())
        }
        Command::Wait { subnet_file, timeout, docker_opts, docker_opts_key, docker_dns } => {
            let env = docker::wait(&subnet_file.path, timeout).await?;
            match docker_opts {
                Some(file) => docker::write_options(&env, &file, &docker_opts_key, docker_dns).await,
                None => Ok(()),
            }
        }
    }
}
