//! Clients of a running store: many at once, with and without a certificate.

use std::path::Path;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, GetOptions, Identity, TlsOptions, Txn, TxnOp,
    WatchOptions,
};
use flan_embedded_store::{Running, Settings, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Clients that count up at once, each by comparing what it saw.
const WRITERS: usize = 200;
/// Counters, each shared by several writers.
const COUNTERS: usize = 20;
/// How far each writer counts.
const TURNS: usize = 5;
/// Connections with one watch each, more than serving threads.
const WATCHERS: usize = 16;
/// Writes, by as many writers.
const WRITES: i64 = 1600;
/// A connection that is not accepted must fail within this time.
const LIMIT: Duration = Duration::from_secs(10);

async fn store(dir: &Path, url: &str, tls: Option<TlsFiles>) -> Running {
    flan_embedded_store::start(Settings {
        data_dir: dir.join("store"),
        listen: vec![url.parse().expect("a URL")],
        tls,
        insecure: false,
        retention: Duration::from_secs(3600),
    })
    .await
    .expect("a store")
}

async fn client_of(running: &Running) -> Client {
    Client::connect(running.client_urls(), None).await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_who_count_at_once_lose_no_turn() {
    let dir = tempfile::tempdir().unwrap();
    let running = store(dir.path(), "http://127.0.0.1:0", None).await;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = client_of(&running).await;
        writers.push(tokio::spawn(count(client, writer % COUNTERS)));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let mut client = client_of(&running).await;
    for counter in 0..COUNTERS {
        let pair = seen(&mut client, counter).await.unwrap();
        let turns = WRITERS / COUNTERS * TURNS;
        assert_eq!(
            (pair.number, pair.version),
            (turns, i64::try_from(turns).unwrap()),
            "each turn is one write"
        );
    }
}

/// Returns the two keys of a counter, which one transaction writes.
fn keys(counter: usize) -> [String; 2] {
    ["a", "b"].map(|half| format!("counter/{counter}/{half}"))
}

/// The value of both keys of a counter.
struct Pair {
    number: usize,
    version: i64,
    revision: i64,
}

/// Returns `None` before the first turn. One transaction writes both keys, so they always agree.
async fn seen(client: &mut Client, counter: usize) -> Option<Pair> {
    let prefix = GetOptions::new().with_prefix();
    let found = client.get(format!("counter/{counter}/"), Some(prefix)).await.expect("an answer");
    let [a, b] = found.kvs() else {
        assert!(found.kvs().is_empty(), "half of a transaction: {found:?}");
        return None;
    };
    assert_eq!((a.value(), a.mod_revision()), (b.value(), b.mod_revision()), "halves of two transactions");
    let number = a.value_str().expect("text").parse().expect("a number");
    Some(Pair { number, version: a.version(), revision: a.mod_revision() })
}

/// Counts up, and tries again when another writer was faster.
async fn count(mut client: Client, counter: usize) {
    let [a, b] = keys(counter);
    for _ in 0..TURNS {
        loop {
            let (number, revision) =
                seen(&mut client, counter).await.map_or((0, 0), |pair| (pair.number, pair.revision));
            let next = (number + 1).to_string();
            let txn = Txn::new()
                .when([Compare::mod_revision(a.clone(), CompareOp::Equal, revision)])
                .and_then([TxnOp::put(a.clone(), next.clone(), None), TxnOp::put(b.clone(), next, None)]);
            if client.txn(txn).await.expect("an answer").succeeded() {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_watch_while_many_write_and_one_compacts_are_told_of_each_write_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let running = store(dir.path(), "http://127.0.0.1:0", None).await;
    let mut watchers = Vec::new();
    for _ in 0..WATCHERS {
        let mut client = client_of(&running).await;
        let mut watch = client.watch("key", None).await.unwrap();
        watchers.push(tokio::spawn(async move {
            let mut told = 1;
            while told < 1 + WRITES {
                let response = watch.message().await.unwrap().expect("the watch goes on");
                assert!(!response.canceled(), "after revision {told}: {}", response.cancel_reason());
                for event in response.events() {
                    told += 1;
                    assert_eq!(event.kv().expect("a key").mod_revision(), told, "in order, each once");
                }
            }
        }));
    }
    let mut client = client_of(&running).await;
    let compact = tokio::spawn(async move {
        loop {
            let seen = client.get("key", None).await.expect("an answer");
            let revision = seen.header().expect("a header").revision();
            // A guess, so that a new revision is compacted soon after its write. The store refuses a future one.
            let _ = client.compact(revision + WATCHERS as i64 / 2, None).await;
        }
    });
    let mut writers = Vec::new();
    for _ in 0..WATCHERS {
        let mut client = client_of(&running).await;
        writers.push(tokio::spawn(async move {
            for _ in 0..WRITES / WATCHERS as i64 {
                client.put("key", "value", None).await.expect("an answer");
            }
        }));
    }
    for each in writers.into_iter().chain(watchers) {
        tokio::time::timeout(LIMIT, each).await.expect("all is told in time").unwrap();
    }
    compact.abort();
}

/// More watchers than can be served at once. Half of them start at a past revision.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_thousands_of_watches_in_one_stream_is_told_once_before_progress_is() {
    const WATCHES: i64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let running = store(dir.path(), "http://127.0.0.1:0", None).await;
    let mut client = client_of(&running).await;
    client.put("key", "first", None).await.unwrap();
    let (mut ask, mut told) = client.watch("key", None).await.unwrap().split();
    let asking = tokio::spawn(async move {
        for number in 1..WATCHES {
            let past = (number % 2 == 0).then(|| WatchOptions::new().with_start_revision(2));
            ask.watch("key", past).await.unwrap();
        }
        client.put("key", "second", None).await.unwrap();
        ask.request_progress().await.unwrap();
        (client, ask)
    });
    let mut events = std::collections::BTreeMap::<i64, Vec<i64>>::new();
    let everything = async {
        loop {
            let response = told.message().await.unwrap().expect("the watch goes on");
            if response.watch_id() == -1 {
                return response.header().unwrap().revision();
            }
            let revisions = response.events().iter().map(|event| event.kv().unwrap().mod_revision());
            events.entry(response.watch_id()).or_default().extend(revisions);
        }
    };
    let progress = tokio::time::timeout(LIMIT, everything).await.expect("all is told in time");
    let _connected = asking.await.unwrap();
    assert_eq!((progress, events.len() as i64), (3, WATCHES));
    for (number, revisions) in &events {
        let is_of_the_past = number % 2 == 0 && *number > 0;
        assert_eq!(revisions, if is_of_the_past { &[2, 3][..] } else { &[3] }, "watch {number}");
    }
}

/// A CA and the certificates that it issues.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns a certificate for loopback, and its key.
    fn give_out(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

async fn ask(url: &str, tls: TlsOptions) -> Result<(), String> {
    let options = ConnectOptions::new().with_tls(tls);
    let asked = async {
        let mut client = Client::connect([url], Some(options)).await?;
        client.get("key", None).await.map(drop)
    };
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(answer) => answer.map_err(|reason| reason.to_string()),
        Err(_) => panic!("neither an answer nor a refusal in time"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_a_certificate_of_the_authority_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.give_out();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let tls = TlsFiles {
        certificate: file("cert.pem", &certificate),
        key: file("key.pem", &key),
        client_authorities: Some(file("ca.pem", &authority.pem())),
    };
    let running = store(dir.path(), "https://127.0.0.1:0", Some(tls)).await;
    let url = &running.client_urls()[0];

    let trusting = || TlsOptions::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let with =
        |(certificate, key): (String, String)| trusting().identity(Identity::from_pem(certificate, key));
    assert_eq!(ask(url, with(authority.give_out())).await, Ok(()));
    assert!(ask(url, trusting()).await.is_err(), "without a certificate");
    assert!(ask(url, with(stranger.give_out())).await.is_err(), "with another authority's");
    assert!(ask(&url.replacen("https", "http", 1), TlsOptions::new()).await.is_err(), "without TLS");
}

/// Opens watch streams on one connection until the store refuses one. Returns how many there are, and the refusal.
async fn watch_streams(url: &str, options: Option<ConnectOptions>) -> (usize, String) {
    let mut client = Client::connect([url], options).await.expect("a connection");
    let mut open = Vec::new();
    loop {
        match client.watch("key", None).await {
            Ok(stream) if open.len() < 600 => open.push(stream),
            Ok(_) => return (open.len(), "none".to_owned()),
            Err(refusal) => return (open.len(), refusal.to_string()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_watch_streams_and_no_more_with_tls_and_without() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.give_out();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("cert.pem"), certificate).unwrap();
    std::fs::write(path("key.pem"), key).unwrap();
    let files = TlsFiles { certificate: path("cert.pem"), key: path("key.pem"), client_authorities: None };
    let secure = store(&path("secure"), "https://127.0.0.1:0", Some(files)).await;
    let trusting = TlsOptions::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let options = ConnectOptions::new().with_tls(trusting);
    let plain = store(&path("plain"), "http://127.0.0.1:0", None).await;
    for (running, options) in [(&plain, None), (&secure, Some(options))] {
        let (streams, refusal) = watch_streams(&running.client_urls()[0], options).await;
        assert_eq!(streams, 512);
        assert!(refusal.contains("too many requests"), "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_file_is_taken_away_acknowledges_nothing_more_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = store(dir.path(), "http://127.0.0.1:0", None).await;
    let mut client = client_of(&running).await;
    client.put("before", "there", None).await.unwrap();
    std::fs::remove_file(running.file()).unwrap();
    let refusal = client.put("after", "gone", None).await.unwrap_err().to_string();
    assert!(refusal.contains("deleted or moved"), "{refusal}");
    let reason = tokio::time::timeout(LIMIT, running.failed()).await.unwrap();
    assert!(reason.contains("deleted or moved"), "{reason}");
}

#[tokio::test]
async fn a_store_that_nobody_writes_notices_that_its_file_was_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = store(dir.path(), "http://127.0.0.1:0", None).await;
    std::fs::rename(running.file(), dir.path().join("elsewhere")).unwrap();
    let reason = tokio::time::timeout(LIMIT, running.failed()).await.unwrap();
    assert!(reason.contains("deleted or moved"), "{reason}");
}

#[tokio::test]
async fn an_empty_file_is_no_new_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("store")).unwrap();
    std::fs::write(dir.path().join("store/store.redb"), "").unwrap();
    let settings = Settings {
        data_dir: dir.path().join("store"),
        listen: vec!["http://127.0.0.1:0".parse().unwrap()],
        tls: None,
        insecure: false,
        retention: Duration::from_secs(3600),
    };
    let refusal = flan_embedded_store::start(settings).await.unwrap_err().to_string();
    assert!(refusal.contains("it is empty"), "{refusal}");
}

/// A client has ten seconds to say what it speaks.
#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_is_sent_away_and_who_says_something_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let running = store(dir.path(), "http://127.0.0.1:0", None).await;
    let address = running.client_urls()[0].trim_start_matches("http://").to_owned();
    let mut silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    let mut half = tokio::net::TcpStream::connect(&address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut half, b"PRI * HTTP").await.unwrap();
    let mut client = client_of(&running).await;
    client.put("a", "served", None).await.unwrap();
    let started = std::time::Instant::now();
    for stream in [&mut silent, &mut half] {
        let mut bytes = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(stream, &mut bytes);
        // Closed in one way or another.
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("to be closed");
    }
    assert!(started.elapsed() > Duration::from_secs(5), "a slow client has some seconds");
    client.put("a", "still served", None).await.unwrap();
}
