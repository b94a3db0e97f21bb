//! What a lab is to be.

use anyhow::{Result, bail};

use crate::process::Lifetime;
use crate::store::{StoreData, StoreKind};

/// What a lab is to be.
#[derive(Debug, Clone, Copy)]
pub struct LabOptions {
    /// A name of its own, of which there is one at a time on a machine; `None` for one made up.
    pub name: Option<&'static str>,
    /// What keeps the store; `None` for what [`STORE_VARIABLE`](crate::store::STORE_VARIABLE) says, and etcd where that
    /// says nothing, or a store of one member and there are more.
    pub store: Option<StoreKind>,
    /// Members of the store. Without any, some host of the lab keeps it.
    pub store_members: u8,
    /// Where they have their data.
    pub store_data: StoreData,
    /// Hosts have IPv6 addresses as well, the store has not.
    pub ipv6: bool,
    /// The lab outlives the program: see [`Lab::keep`](crate::Lab::keep).
    pub lifetime: Lifetime,
}

impl Default for LabOptions {
    fn default() -> LabOptions {
        LabOptions {
            name: None,
            store: None,
            store_members: 1,
            store_data: StoreData::OnDisk,
            ipv6: false,
            lifetime: Lifetime::Bound,
        }
    }
}

impl LabOptions {
    pub(super) fn store_kind(&self) -> Result<StoreKind> {
        match self.store {
            Some(StoreKind::Embedded) if self.store_members > 1 => {
                bail!("{} members of {}, which has one", self.store_members, StoreKind::Embedded)
            }
            Some(kind) => Ok(kind),
            None => match StoreKind::from_environment()? {
                StoreKind::Embedded if self.store_members > 1 => Ok(StoreKind::Etcd),
                kind => Ok(kind),
            },
        }
    }
}
