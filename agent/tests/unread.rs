//! A store, and clients that request much and read nothing, or misbehave otherwise. The store shares its process with
//! the data path, so they must cost little memory and must not delay other clients' writes.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

mod stores;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use etcd_client::{Client, GetOptions, PutOptions, Txn, TxnOp};

/// Number of keys in the store, and bytes of each.
const KEYS: usize = 20_000;
const VALUE: usize = 1000;
/// How long each attack is observed.
const WHILE: Duration = Duration::from_secs(1);
/// Limits: MiB of memory beyond the store's content, and the 99th percentile of other clients' write times, on a busy
/// machine. Without limits in the store, answers and watches took from 240 MiB to 2 GiB.
const MOST_MIB: usize = 120;
const MOST_WAIT: Duration = Duration::from_secs(2);

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
/// The lease of all keys.
const LEASE: i64 = 7;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 client that writes and never reads.
struct Deaf {
    stream: TcpStream,
    next: u32,
}

impl Deaf {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut deaf = Self { stream, next: 1 };
        deaf.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        deaf.say(&frame(4, 0, 0, &[]));
        deaf
    }

    /// Errors are ignored: the connection may be closed or stuck.
    fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a request with these messages. Returns its stream number.
    fn ask(&mut self, path: &str, messages: &[Vec<u8>], flags: u8) -> u32 {
        let number = self.next;
        self.next += 2;
        let mut bytes = frame(HEADERS, END_HEADERS, number, &headers(path));
        let framed = |message: &Vec<u8>| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0], &length[..], message].concat()
        };
        let body: Vec<u8> = messages.iter().flat_map(framed).collect();
        bytes.extend(frame(DATA, flags, number, &body));
        self.say(&bytes);
        number
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// POST, http, the path, an authority, `content-type` and `te`: RFC 7541, without compression.
fn headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [
        &[0x83, 0x86, 0x04][..],
        &text(path),
        &[0x01],
        &text("a"),
        &[0x0f, 0x10],
        &text("application/grpc"),
        &[0x00],
        &text("te"),
        &text("trailers"),
    ]
    .concat()
}

/// Encodes a Protobuf field of bytes.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let varint =
        if length < 128 { vec![length as u8] } else { vec![length as u8 | 0x80, (length >> 7) as u8] };
    [&[tag << 3 | 2], &varint[..], bytes].concat()
}

fn range() -> Vec<u8> {
    [field(1, b"k"), field(2, b"l")].concat()
}

fn one_connection_asks_for_all_keys_a_hundred_times(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    for _ in 0..100 {
        deaf.ask(RANGE, &[range()], END_STREAM);
    }
    vec![deaf]
}

fn a_hundred_connections_ask_for_all_keys(address: &str) -> Vec<Deaf> {
    let ask = |_| {
        let mut deaf = Deaf::new(address);
        deaf.ask(RANGE, &[range()], END_STREAM);
        deaf
    };
    (0..100).map(ask).collect()
}

fn transactions_ask_for_all_keys_many_times(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    let operation = field(2, &field(1, &range()));
    for _ in 0..10 {
        deaf.ask(TXN, &[operation.repeat(10)], END_STREAM);
    }
    vec![deaf]
}

fn a_lease_is_asked_for_its_keys(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    for _ in 0..1000 {
        deaf.ask(TIME_TO_LIVE, &[vec![1 << 3, LEASE as u8, 2 << 3, 1]], END_STREAM);
    }
    vec![deaf]
}

/// `write` causes many events.
fn one_connection_has_thousands_of_watches(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    let create = field(1, &field(1, b"watched"));
    for _ in 0..4 {
        let creations = vec![create.clone(); 500];
        deaf.ask(WATCH, &creations, 0);
    }
    vec![deaf]
}

/// `write` causes many events.
fn a_thousand_streams_of_watches_in_one_connection(address: &str) -> Vec<Deaf> {
    vec![streams_of_watches(address, 1000)]
}

/// `write` causes many events.
fn a_thousand_streams_of_watches_in_many_connections(address: &str) -> Vec<Deaf> {
    (0..64).map(|_| streams_of_watches(address, 16)).collect()
}

fn streams_of_watches(address: &str, streams: usize) -> Deaf {
    let mut deaf = Deaf::new(address);
    for _ in 0..streams {
        deaf.ask(WATCH, &[field(1, &field(1, b"watched"))], 0);
    }
    deaf
}

fn streams_are_reset_as_soon_as_they_are_there(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    for _ in 0..20_000 {
        let number = deaf.ask(RANGE, &[range()], END_STREAM);
        deaf.say(&frame(RESET, 0, number, &8_u32.to_be_bytes()));
    }
    vec![deaf]
}

fn thousands_of_streams_keep_leases_alive(address: &str) -> Vec<Deaf> {
    let mut deaf = Deaf::new(address);
    for _ in 0..10_000 {
        deaf.ask(KEEP_ALIVE, &vec![vec![1 << 3, LEASE as u8]; 20], 0);
    }
    vec![deaf]
}

fn headers_have_no_end(address: &str) -> Vec<Deaf> {
    let begin = |_| {
        let mut deaf = Deaf::new(address);
        deaf.say(&frame(HEADERS, 0, 1, &headers(RANGE)));
        let more = [&[0x00][..], &[1, b'x', 100], &[b'v'; 100]].concat().repeat(150);
        for _ in 0..500 {
            deaf.say(&frame(CONTINUATION, 0, 1, &more));
        }
        deaf
    };
    (0..10).map(begin).collect()
}

type Attack = (&'static str, fn(&str) -> Vec<Deaf>);

const ATTACKS: [Attack; 10] = [
    ("one connection asks for all keys a hundred times", one_connection_asks_for_all_keys_a_hundred_times),
    ("a hundred connections ask for all keys", a_hundred_connections_ask_for_all_keys),
    ("transactions ask for all keys many times", transactions_ask_for_all_keys_many_times),
    ("a lease is asked for its keys", a_lease_is_asked_for_its_keys),
    ("one connection has thousands of watches", one_connection_has_thousands_of_watches),
    ("a thousand streams of watches in one connection", a_thousand_streams_of_watches_in_one_connection),
    ("a thousand streams of watches in many connections", a_thousand_streams_of_watches_in_many_connections),
    ("streams are reset as soon as they are there", streams_are_reset_as_soon_as_they_are_there),
    ("thousands of streams keep leases alive", thousands_of_streams_keep_leases_alive),
    ("headers have no end", headers_have_no_end),
];

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_nothing_cost_little_and_hold_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (running, url) = stores::store(&dir.path().join("data"), 1024);
    let address = url.trim_start_matches("http://");
    let mut client = Client::connect([&url], None).await.unwrap();
    client.lease_grant(3600, Some(etcd_client::LeaseGrantOptions::new().with_id(LEASE))).await.unwrap();
    let kept = || Some(PutOptions::new().with_lease(LEASE));
    for first in (0..KEYS).step_by(125) {
        let put = |number: usize| TxnOp::put(format!("k{number:08}"), vec![b'v'; VALUE], kept());
        client.txn(Txn::new().and_then((first..first + 125).map(put).collect::<Vec<_>>())).await.unwrap();
    }

    let process = format!("/proc/{}", running.0.id());
    let mut failed = Vec::new();
    let (_, quiet) = write(&mut client, false).await;
    println!("{:50} {quiet:?}", "nobody attacks");
    for (name, attack) in ATTACKS {
        std::fs::write(format!("{process}/clear_refs"), "5").unwrap();
        let before = mib(&process, "VmRSS:");
        let attackers = tokio::task::spawn_blocking({
            let address = address.to_owned();
            move || attack(&address)
        });
        let (worst, told) = write(&mut client, name.contains("watches")).await;
        let attackers = attackers.await.unwrap();
        let grown = mib(&process, "VmHWM:").saturating_sub(before);
        println!("{name:50} {told:?}, {grown} MiB more");
        if grown > MOST_MIB || worst > MOST_WAIT {
            failed.push(name);
        }
        // A client that reads is served meanwhile.
        let all = GetOptions::new().with_range("l").with_limit(1000);
        let found = client.get("k", Some(all)).await.unwrap();
        assert_eq!((found.kvs().len(), found.count()), (1000, KEYS as i64), "{name}");
        drop(attackers);
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Writes for a while. Returns the 99th percentile of the write times, and a text with others.
async fn write(client: &mut Client, much: bool) -> (Duration, String) {
    let (started, mut took) = (Instant::now(), Vec::new());
    while started.elapsed() < WHILE {
        let asked = Instant::now();
        let value = if much && took.len() % 20 == 0 { vec![b'w'; 1 << 20] } else { Vec::new() };
        client.put("watched", value, None).await.unwrap();
        took.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort();
    let of = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    (of(0.99), format!("p50 {:?}, p99 {:?}, worst {:?}", of(0.5), of(0.99), of(1.0)))
}

/// A line of the process's status, in MiB.
fn mib(process: &str, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
    let value = status.lines().find_map(|other| other.strip_prefix(line)).unwrap();
    value.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}
