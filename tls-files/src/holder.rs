//! Whose certificate and key they are.

/// The holder of a certificate and its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The client, which connects.
    Client,
    /// The store, which clients connect to.
    Store,
}
