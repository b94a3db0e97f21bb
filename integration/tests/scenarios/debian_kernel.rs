//! What hosts do on the kernel of a Debian, in a virtual machine: `make vm-scenarios`.
//!
//! The other scenarios run on the kernel of whoever runs them; these need modules that it may lack, or a machine that may
//! be restarted. Outside the virtual machine they fail.

mod bare;
mod kernel_path;
mod lan;
mod lossy_underlay;
mod reboot;
mod wireguard;

use anyhow::Result;
use flan_integration::vm;

use crate::{agent_restarts, dual_stack};

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn an_agent_killed_and_restarted_loses_no_packet_and_deletes_nothing() -> Result<()> {
    vm::ensure_inside()?;
    agent_restarts::an_agent_killed_and_restarted_loses_no_packet_and_deletes_nothing()
}

#[test]
#[ignore = "needs Debian's kernel: make vm"]
fn hosts_on_vxlan_reach_each_other_by_both_families() -> Result<()> {
    vm::ensure_inside()?;
    dual_stack::hosts_on_vxlan_reach_each_other_by_both_families()
}
