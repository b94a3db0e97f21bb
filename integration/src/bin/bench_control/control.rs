//! The control: the same state, programmed by `ip -batch` and `bridge -batch` as fast as they can.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use flan_integration::overlay::DEVICE;
use flan_integration::witness::Witness;
use flan_integration::{Host, Lab};

use crate::kernel;
use crate::peers::{Peer, text};

/// In what form peers are programmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Neighbour, FDB entry, and a route with its gateway in it.
    Inline,
    /// Nexthop object, neighbour, FDB entry, and a route by way of the nexthop object.
    NextHops,
}

/// A file for one of the programs.
struct Batch {
    program: &'static str,
    name: &'static str,
    line: fn(Peer) -> String,
}

const NEXT_HOPS: Batch = Batch {
    program: "ip",
    name: "nexthops",
    line: |peer| {
        let (id, via) = (u32::from(peer.base()), peer.base());
        format!("nexthop add id {id} via {via} dev {DEVICE} onlink proto 102")
    },
};

const NEIGHBOURS: Batch = Batch {
    program: "ip",
    name: "neighbours",
    line: |peer| {
        format!("neighbour replace {} lladdr {} dev {DEVICE} nud permanent", peer.base(), text(peer.mac()))
    },
};

const FDB: Batch = Batch {
    program: "bridge",
    name: "fdb",
    line: |peer| {
        format!("fdb replace {} dev {DEVICE} dst {} self permanent", text(peer.mac()), peer.public_ip())
    },
};

const INLINE_ROUTES: Batch = Batch {
    program: "ip",
    name: "inline-routes",
    line: |peer| format!("route add {} via {} dev {DEVICE} onlink", peer.subnet(), peer.base()),
};

const ROUTES: Batch = Batch {
    program: "ip",
    name: "routes",
    line: |peer| format!("route add {} nhid {} proto 102", peer.subnet(), u32::from(peer.base())),
};

impl Form {
    fn batches(self) -> &'static [Batch] {
        match self {
            Form::Inline => &[NEIGHBOURS, FDB, INLINE_ROUTES],
            Form::NextHops => &[NEXT_HOPS, NEIGHBOURS, FDB, ROUTES],
        }
    }
}

/// Programs so many peers into a new namespace, which is watched as fland's is, and returns the seconds that it took.
pub(crate) fn seconds(lab: &Lab, name: &str, form: Form, peers: u32) -> Result<f64> {
    let host = lab.host(name)?;
    make_device(&host)?;
    let files: Vec<_> = form
        .batches()
        .iter()
        .map(|batch| {
            let path = lab.dir().join(format!("{}.batch", batch.name));
            write_lines(&path, Peer::residents(peers).map(batch.line))?;
            Ok((batch.program, path.display().to_string()))
        })
        .collect::<Result<_>>()?;
    let _witness = Witness::start(host.netns())?;
    let place = host.netns().place();
    let started = Instant::now();
    for (program, path) in &files {
        place.run(program, ["-batch", path])?;
    }
    let seconds = started.elapsed().as_secs_f64();
    kernel::ensure_holds(&host, peers).context("the control")?;
    kernel::clear(&host)?;
    Ok(seconds)
}

/// Deletes the routes of so many peers at once.
pub(crate) fn delete_routes(lab: &Lab, host: &Host, peers: u32) -> Result<()> {
    let path = lab.dir().join("deletions.batch");
    write_lines(&path, Peer::residents(peers).map(|peer| format!("route del {}", peer.subnet())))?;
    host.netns().place().run("ip", ["-batch", &path.display().to_string()]).map(drop)
}

fn make_device(host: &Host) -> Result<()> {
    let local = host.address();
    host.ip(&format!("link add {DEVICE} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"))?;
    host.ip(&format!("address add 10.254.0.0/32 dev {DEVICE}"))?;
    host.ip(&format!("link set {DEVICE} up")).map(drop)
}

fn write_lines(path: &Path, lines: impl Iterator<Item = String>) -> Result<()> {
    let text = lines.fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    });
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
