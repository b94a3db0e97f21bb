//! Reasons for a refusal, with etcd's texts and codes. Clients compare them (`api/v3rpc/rpctypes/error.go`).

use tonic::{Code, Status};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    EmptyKey,
    KeyNotFound,
    ValueProvided,
    LeaseProvided,
    TooManyOperations,
    DuplicateKey,
    Compacted,
    FutureRevision,
    RequestTooLarge,
    LeaseNotFound,
    LeaseExists,
    LeaseTtlTooLarge,
    NoSpace,
    /// Answers that no client takes use all the room.
    TooManyRequests,
    /// The answer is larger than gRPC allows.
    AnswerTooLarge,
    /// The file cannot be written for another reason.
    Broken(String),
    /// The file is no longer at its path.
    Gone(String),
    /// The store is stopping.
    Stopped,
}

impl Refusal {
    /// Returns the text for the client.
    pub(crate) fn reason(&self) -> &str {
        self.parts().1
    }

    fn parts(&self) -> (Code, &str) {
        match self {
            Self::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            Self::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            Self::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            Self::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            Self::TooManyOperations => {
                (Code::InvalidArgument, "etcdserver: too many operations in txn request")
            }
            Self::DuplicateKey => (Code::InvalidArgument, "etcdserver: duplicate key given in txn request"),
            Self::Compacted => (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            Self::FutureRevision => {
                (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
            }
            Self::RequestTooLarge => (Code::InvalidArgument, "etcdserver: request is too large"),
            Self::LeaseNotFound => (Code::NotFound, "etcdserver: requested lease not found"),
            Self::LeaseExists => (Code::FailedPrecondition, "etcdserver: lease already exists"),
            Self::LeaseTtlTooLarge => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            Self::NoSpace => (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Self::TooManyRequests => (Code::ResourceExhausted, "etcdserver: too many requests"),
            Self::AnswerTooLarge => {
                (Code::ResourceExhausted, "grpc: trying to send message larger than max (2147483647)")
            }
            Self::Broken(reason) | Self::Gone(reason) => (Code::Unavailable, reason),
            Self::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let (code, text) = refusal.parts();
        Status::new(code, text)
    }
}

/// Returns the answer to a call of etcd that this store does not serve.
pub(crate) fn not_served(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not served by flan's embedded store; use an etcd for it"))
}
