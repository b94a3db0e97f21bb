//! What is measured, and every value of it.

use std::collections::BTreeMap;

use flan_integration::bench::target::Bound;
use flan_integration::statistics::median;
use serde::Serialize;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Measure {
    Put,
    PutTime,
    Txn,
    TxnTime,
    RangeOfOne,
    RangeOfOneTime,
    RangeOfMany,
    RangeOfManyTime,
    KeepAlive,
    KeepAliveTime,
    FanOut,
    FanOutTime,
    Memory,
}

impl Measure {
    pub(crate) const ALL: [Measure; 13] = [
        Measure::Put,
        Measure::PutTime,
        Measure::Txn,
        Measure::TxnTime,
        Measure::RangeOfOne,
        Measure::RangeOfOneTime,
        Measure::RangeOfMany,
        Measure::RangeOfManyTime,
        Measure::KeepAlive,
        Measure::KeepAliveTime,
        Measure::FanOut,
        Measure::FanOutTime,
        Measure::Memory,
    ];

    /// Its name and unit.
    pub(crate) fn name(self) -> (&'static str, &'static str) {
        match self {
            Measure::Put => ("put", "1/s"),
            Measure::Txn => ("txn: compare and put", "1/s"),
            Measure::RangeOfOne => ("range of one key", "1/s"),
            Measure::RangeOfMany => ("range of 10,000 keys", "1/s"),
            Measure::KeepAlive => ("lease keepalive", "1/s"),
            Measure::FanOut => ("events to 500 watchers", "1/s"),
            Measure::Memory => ("memory, 10,000 leases and 500 watchers", "MB"),
            Measure::FanOutTime => ("  until the last of them knows, p99", "ms"),
            Measure::PutTime
            | Measure::TxnTime
            | Measure::RangeOfOneTime
            | Measure::RangeOfManyTime
            | Measure::KeepAliveTime => ("  p99", "ms"),
        }
    }

    /// What is wanted of the embedded store's value divided by etcd's.
    pub(crate) fn wanted(self) -> Option<Bound> {
        match self {
            Measure::Put
            | Measure::Txn
            | Measure::RangeOfOne
            | Measure::RangeOfMany
            | Measure::KeepAlive
            | Measure::FanOut => Some(Bound::AtLeast(1.0)),
            Measure::Memory => Some(Bound::AtMost(0.5)),
            _ => None,
        }
    }
}

/// All values, in the order in which they were found.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Values(BTreeMap<Measure, Vec<f64>>);

impl Values {
    pub(crate) fn note(&mut self, measure: Measure, value: f64) {
        self.0.entry(measure).or_default().push(value);
    }

    pub(crate) fn median(&self, measure: Measure) -> Option<f64> {
        median(self.0.get(&measure)?)
    }
}
