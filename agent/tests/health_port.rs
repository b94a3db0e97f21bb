//! The health port, and many clients that send nothing or half a request.

// A failing helper fails its test.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flan_agent::status::{self, SharedStatus};
use flan_connections::ConnectionLimit;

/// Number of clients that send half a request, and of those that send nothing.
const UNFINISHED: usize = 400;
const IDLE: usize = 100;
/// Time within which enough of them are disconnected.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_crowd_at_the_health_port_is_small_and_keeps_no_monitor_waiting() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(status::serve(address, SharedStatus::default())).unwrap();
    let mut crowd = Vec::new();
    for number in 0..UNFINISHED + IDLE {
        let mut stream = TcpStream::connect(address).unwrap();
        if number < UNFINISHED {
            // The connection may be closed already.
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ");
        }
        crowd.push(stream);
        if number % 50 == 0 {
            ask(address);
        }
    }
    ask(address);
    let most = ConnectionLimit::of_monitors().most();
    assert!(most < IDLE, "{most} is no crowd");
    let is_open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        stream.read(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let open = || crowd.iter().filter(|stream| is_open(stream)).count();
    let asked = Instant::now();
    while open() > most {
        assert!(asked.elapsed() < LIMIT, "{} are still there", open());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask(address: SocketAddr) {
    let asked = Instant::now();
    let mut monitor = TcpStream::connect(address).unwrap();
    monitor.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = String::new();
    monitor.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("starting\n"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(1), "after {:?}", asked.elapsed());
}
