//! A table that the data path reads without locks, and that changes piece by piece.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

/// A table, as seen by its one writer.
///
/// There are two of it. Readers use one; changes go into the other, then the two are swapped. So a change costs the
/// same however large the table is, and readers see all of it or nothing.
pub(crate) struct Twin<T, C> {
    published: Arc<ArcSwap<T>>,
    spare: Arc<T>,
    /// The last changes, which the spare table lacks.
    missed: Vec<C>,
}

/// A table that changes of the type `C` make another one of.
pub(crate) trait Changing<C>: Clone + Default {
    /// Applies one change.
    fn apply(&mut self, change: &C);
}

/// A [`Twin`], as seen by the threads of a data path.
pub(crate) struct Reader<T>(Arc<ArcSwap<T>>);

impl<T: Changing<C>, C> Twin<T, C> {
    /// Publishes changes.
    pub(crate) fn change(&mut self, news: Vec<C>) {
        // Copies only if a reader from before the last change is still active.
        let table = Arc::make_mut(&mut self.spare);
        self.missed.iter().chain(&news).for_each(|change| table.apply(change));
        self.missed = news;
        self.spare = self.published.swap(self.spare.clone());
    }

    /// Publishes another table.
    pub(crate) fn replace(&mut self, table: T) {
        self.published.store(Arc::new(table.clone()));
        (self.spare, self.missed) = (Arc::new(table), Vec::new());
    }

    pub(crate) fn reader(&self) -> Reader<T> {
        Reader(self.published.clone())
    }
}

impl<T: Changing<C>, C> Default for Twin<T, C> {
    fn default() -> Self {
        Self { published: Arc::default(), spare: Arc::default(), missed: Vec::new() }
    }
}

impl<T> Reader<T> {
    /// Returns the current table, for one batch of packets.
    pub(crate) fn read(&self) -> Guard<Arc<T>> {
        self.0.load()
    }
}

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
