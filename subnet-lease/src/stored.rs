//! Values of one kind, each under a key of its own: how they are read, and what a list and a watch say of them.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;

use crate::entry::Entry;

/// What stands under each key of a collection.
pub trait Stored: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// What the log calls several of them.
    const PLURAL: &'static str;
    /// Why an entry is none.
    type Invalid: Clone + Debug + PartialEq + Send;

    /// Reads one entry.
    ///
    /// # Errors
    /// [`Stored::Invalid`].
    fn read(entry: &Entry) -> Result<Self, Self::Invalid>;
}

/// Any entry, as it stands.
impl Stored for Entry {
    const PLURAL: &'static str = "keys";
    type Invalid = Infallible;

    fn read(entry: &Entry) -> Result<Self, Infallible> {
        Ok(entry.clone())
    }
}

/// An entry that was read. Whoever keeps the value shares it.
pub type Read<T> = Result<Arc<T>, Box<Unreadable<T>>>;

/// An entry that cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable<T: Stored> {
    /// As it stands.
    pub entry: Entry,
    /// Why.
    pub reason: T::Invalid,
}

/// All that a collection holds at one revision, each entry read once.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T: Stored> {
    /// In the order of the keys.
    pub items: Vec<Read<T>>,
    /// Store revision of the list.
    pub revision: i64,
    /// Which etcd cluster answered.
    pub cluster_id: u64,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq)]
pub enum KeyChange<T: Stored> {
    /// Created or written.
    Put(Read<T>),
    /// Deleted or expired.
    Delete {
        /// The last part of the key.
        key: String,
    },
}

impl<T: Stored> Listing<T> {
    /// A list of these entries.
    pub fn of(entries: Vec<Entry>, revision: i64, cluster_id: u64) -> Self {
        Self { items: entries.into_iter().map(read).collect(), revision, cluster_id }
    }

    /// All that could be read.
    pub fn readable(&self) -> impl Iterator<Item = &T> {
        self.items.iter().flatten().map(|item| &**item)
    }
}

impl<T: Stored> KeyChange<T> {
    /// An entry was created or written.
    pub fn put(entry: Entry) -> Self {
        Self::Put(read(entry))
    }
}

/// Reads one entry.
pub(crate) fn read<T: Stored>(entry: Entry) -> Read<T> {
    match T::read(&entry) {
        Ok(value) => Ok(Arc::new(value)),
        Err(reason) => Err(Box::new(Unreadable { entry, reason })),
    }
}
