//! Why a request is refused, in etcd's words and codes: clients compare them (`api/v3rpc/rpctypes/error.go`).

use tonic::{Code, Status};

/// Why a request is refused.
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
    /// Answers that nobody takes have all the room.
    TooManyRequests,
    /// An answer is larger than gRPC lets clients take.
    AnswerTooLarge,
    /// The file cannot be written for another reason.
    Broken(String),
    /// The file is no longer where it was.
    Gone(String),
    /// The store ends.
    Stopped,
}

impl Refusal {
    /// What a client is told.
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

/// A part of etcd that is not served.
pub(crate) fn not_served(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not served by flan's embedded store; use an etcd for it"))
}
