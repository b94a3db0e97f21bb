//! A store with few descriptors, and a crowd that connects to it and says nothing.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flan_subnet_lease::{Credentials, Store, StoreConfig};

/// What the store may have.
const DESCRIPTORS: usize = 64;
/// Who says nothing.
const CROWD: usize = 200;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A store, and its URL.
fn store(data_dir: &std::path::Path) -> (Running, String) {
    let script = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fland"), "store"]);
    command.args(["--listen-client-urls=http://127.0.0.1:0", "--log-format=json"]);
    command.env("FLAND_DATA_DIR", data_dir).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let said = BufReader::new(running.0.stderr.take().unwrap());
    let mut lines = said.lines();
    let url = lines.by_ref().find_map(|line| url_in(&line.unwrap())).expect("to be told where it serves");
    // Whoever writes into a pipe that nobody reads stops some day.
    std::thread::spawn(move || lines.for_each(drop));
    (running, url)
}

fn url_in(line: &str) -> Option<String> {
    let start = line.contains("serving the store").then(|| line.find("http://127.0.0.1:"))??;
    let url = &line[start..];
    Some(url.split(|c: char| !c.is_ascii_alphanumeric() && !":/.".contains(c)).next()?.to_owned())
}

#[tokio::test]
async fn a_crowd_that_says_nothing_keeps_nobody_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (_running, url) = store(&dir.path().join("data"));
    let address = url.trim_start_matches("http://");
    let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| TcpStream::connect(address).unwrap()).collect();
    // One byte is as little as nothing.
    crowd.iter_mut().step_by(2).for_each(|stream| stream.write_all(b"G").unwrap_or_default());

    let config = StoreConfig {
        endpoints: vec![url.parse().unwrap()],
        prefix: "/coreos.com/network".to_owned(),
        credentials: Credentials::default(),
    };
    let client = Store::new(config).unwrap();
    assert!(client.put_config(b"{}", None).await.unwrap());
    // It was served beside them, not after them.
    let is_open = |stream: &&TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let kind = (&**stream).read(&mut [0; 64]).map_err(|error| error.kind());
        stream.set_nonblocking(false).unwrap();
        kind == Err(std::io::ErrorKind::WouldBlock)
    };
    assert!(crowd.iter().filter(is_open).count() > 0, "all of the crowd were sent away first");

    // All of them are sent away in the end.
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
