//! The alloc backend: leases a subnet, and does nothing for packets.

use flan_kernel::Plan;
use flan_subnet_lease::{Lease, Subnets};

use crate::{Backend, Underlay, Unreachable};

/// Plans nothing.
#[derive(Debug, Clone)]
pub struct Alloc {
    mtu: u32,
}

impl Alloc {
    /// Creates the backend; packets leave without encapsulation.
    pub fn new(underlay: &Underlay) -> Self {
        Self { mtu: underlay.mtu }
    }
}

impl Backend for Alloc {
    fn plan_host(&self, _own: &Subnets, _plan: &mut dyn Plan) {}

    fn plan_peer(&self, _peer: &Lease, _plan: &mut dyn Plan) -> Result<(), Unreachable> {
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.mtu
    }
}
