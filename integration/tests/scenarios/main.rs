//! What whole hosts do when things go well and when they break: each test tells one story.
//!
//! They need root and the programs that `integration/install-tools.sh` installs, and fail without them.
//! `make scenarios` builds what they need and runs them.

mod agent_restarts;
mod bad_leases;
mod checks;
mod clones;
mod command_line;
mod compose;
mod config_changes;
mod conflicts;
mod crowds;
mod debian_kernel;
mod docker_at_random;
mod docker_hosts;
mod docker_networks;
mod docker_of_forky;
mod dual_stack;
mod embedded_store;
mod fake_kernel;
mod flannel_hosts;
mod forged_senders;
mod junk;
mod kernel_repairs;
mod lab_itself;
mod lan;
mod leaving;
mod membership;
mod names;
mod networks;
mod obstacles;
mod own_networks;
mod paper_peer;
mod podman;
mod probes;
mod prometheus;
mod reports;
mod reservations;
mod routed_hosts;
mod slow_store;
mod soak;
mod stage;
mod store_outages;
mod store_users;
mod systemd_units;
mod tls_manual;
mod udp_backend;
mod underlay_changes;
mod unreliable_store;
mod want_of_memory;
mod wireguard;
mod wrong_clocks;
