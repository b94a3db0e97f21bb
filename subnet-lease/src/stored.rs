//! Values of one kind, each under its own key: how they are read, and what a list and a watch return.

use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;

use crate::entry::Entry;

/// The type of a collection's values.
pub trait Stored: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// The plural, for the log.
    const PLURAL: &'static str;
    /// Why an entry is not a value of this type.
    type Invalid: Clone + Debug + PartialEq + Send;

    /// Reads one entry.
    ///
    /// # Errors
    /// [`Stored::Invalid`].
    fn read(entry: &Entry) -> Result<Self, Self::Invalid>;
}

/// Any entry, unparsed.
impl Stored for Entry {
    const PLURAL: &'static str = "keys";
    type Invalid = Infallible;

    fn read(entry: &Entry) -> Result<Self, Infallible> {
        Ok(entry.clone())
    }
}

/// The result of reading an entry. The value is shared with those who keep it.
pub type Read<T> = Result<Arc<T>, Box<Unreadable<T>>>;

/// An unreadable entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable<T: Stored> {
    /// The entry, unparsed.
    pub entry: Entry,
    /// Why.
    pub reason: T::Invalid,
}

/// A whole collection at one revision, each entry read once.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T: Stored> {
    /// In key order.
    pub items: Vec<Read<T>>,
    /// Store revision of the list.
    pub revision: i64,
    /// The id of the etcd cluster that answered.
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
    /// Creates a list of these entries.
    pub fn of(entries: Vec<Entry>, revision: i64, cluster_id: u64) -> Self {
        Self { items: entries.into_iter().map(read).collect(), revision, cluster_id }
    }

    /// Returns all readable values.
    pub fn readable(&self) -> impl Iterator<Item = &T> {
        self.items.iter().flatten().map(|item| &**item)
    }
}

impl<T: Stored> KeyChange<T> {
    /// Creates the change for a created or written entry.
    pub fn put(entry: Entry) -> Self {
        Self::Put(read(entry))
    }
}

pub(crate) fn read<T: Stored>(entry: Entry) -> Read<T> {
    match T::read(&entry) {
        Ok(value) => Ok(Arc::new(value)),
        Err(reason) => Err(Box::new(Unreadable { entry, reason })),
    }
}
