//! A store with few descriptors, and many silent clients.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

mod stores;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flan_subnet_lease::{Credentials, Store, StoreConfig};

/// The store's limit.
const DESCRIPTORS: usize = 64;
/// Number of silent clients.
const CROWD: usize = 200;

#[tokio::test]
async fn a_crowd_that_says_nothing_keeps_nobody_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (_running, url) = stores::store(&dir.path().join("data"), DESCRIPTORS);
    let address = url.trim_start_matches("http://");
    let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| TcpStream::connect(address).unwrap()).collect();
    // One byte is no request either.
    crowd.iter_mut().step_by(2).for_each(|stream| stream.write_all(b"G").unwrap_or_default());

    let config = StoreConfig {
        endpoints: vec![url.parse().unwrap()],
        prefix: "/coreos.com/network".to_owned(),
        credentials: Credentials::default(),
    };
    let client = Store::new(config).unwrap();
    assert!(client.put_config(b"{}", None).await.unwrap());
    // The client was served while they were connected, not after them.
    let is_open = |stream: &&TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let kind = (&**stream).read(&mut [0; 64]).map_err(|error| error.kind());
        stream.set_nonblocking(false).unwrap();
        kind == Err(std::io::ErrorKind::WouldBlock)
    };
    assert!(crowd.iter().filter(is_open).count() > 0, "all of the crowd were sent away first");

    // All of them are disconnected in the end.
    for stream in &mut crowd {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let closed = match stream.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => stream.read(&mut [0; 64]).is_ok_and(|count| count == 0),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        assert!(closed, "a connection is still open");
    }
    assert_eq!(client.config().await.unwrap().unwrap().json, b"{}");
}
