//! The embedded store against a real etcd: the same calls to both, and the same answers. There are two etcds, that of the
//! machine, which is 3.4 on Debian 12, and 3.5 of Debian forky, and each story is told with both.
//!
//! Compared is every field of every answer, with the revisions, and of a refusal the code and the words. Left out is what
//! says which server it is: see [`answer`]. First come the cases that a person thought of, each in a table with those of
//! its kind, then calls by chance. A case that finds a difference does not end the table: both servers start afresh for
//! the next.
//!
//! `make conformance` runs it. `FLAN_CONFORMANCE_PAIR` names two other servers, the one to go by first:
//! `FLAN_CONFORMANCE_PAIR=etcd,etcd` tells whether a case compares what etcd decides, or chance does, and
//! `etcd,etcd-forky` what has changed since 3.4.
//! `FLAN_CONFORMANCE_SEED` sends random calls again that found something.

mod answer;
mod call;
mod compactions;
mod deletes;
mod leases;
mod limits;
mod maintenance;
mod pair;
mod puts;
mod random;
mod ranges;
mod requests;
mod restarts;
mod table;
mod told;
mod txns;
mod unserved;
mod watches;
mod watching;
mod wire;
