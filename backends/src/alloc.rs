//! The alloc backend: a subnet is leased, and nothing is done for packets.

use flan_kernel::State;
use flan_subnet_lease::{Lease, Subnets};

use crate::{Backend, Underlay, Unreachable};

/// Plans nothing.
#[derive(Debug, Clone)]
pub struct Alloc {
    mtu: u32,
}

impl Alloc {
    /// For hosts whose packets go as they are.
    pub fn new(underlay: &Underlay) -> Self {
        Self { mtu: underlay.mtu }
    }
}

impl Backend for Alloc {
    fn host(&self, _own: &Subnets) -> State {
        State::default()
    }

    fn peer(&self, _peer: &Lease) -> Result<State, Unreachable> {
        Ok(State::default())
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }
}
