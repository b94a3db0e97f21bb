//! A worse way to a store: a proxy that answers late, or breaks connections in the middle of requests.
//!
//! It knows the frames of HTTP/2 (RFC 9113, section 4.1) and nothing of what is in them. Late are answers and events
//! alone: to a ping the other side answers at once, as a store does whose disk is slow.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::chance::Chance;
use crate::netns::Netns;

/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: usize = 24;

/// What every frame begins with: three bytes of length, one of type, one of flags, four of the stream.
const HEAD: usize = 9;

/// A frame of a request or an answer that names its method or its status.
const HEADERS: u8 = 1;

/// SETTINGS, PING, GOAWAY and WINDOW_UPDATE: what is about the connection, which no delay holds up.
const OF_CONNECTION: [u8; 4] = [4, 6, 7, 8];

/// How often is looked for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// The proxy. Dropping it ends its connections.
#[derive(Debug)]
pub struct Detour {
    address: SocketAddr,
    faults: Arc<Faults>,
    acceptor: Option<JoinHandle<()>>,
}

/// What is wrong with the way at this moment.
#[derive(Debug)]
struct Faults {
    delay_millis: AtomicU64,
    /// One of so many requests breaks its connection; 0 for none.
    one_in: AtomicU64,
    chance: Mutex<Chance>,
    requests: AtomicU64,
    broken: AtomicU64,
    ended: AtomicBool,
}

impl Detour {
    /// A way without faults to the store at the client URL `to`, in a namespace that reaches it. It listens at `at`.
    pub fn start(netns: &Netns, at: IpAddr, to: &str, seed: u64) -> Result<Detour> {
        let to: SocketAddr = to
            .strip_prefix("http://")
            .and_then(|place| place.parse().ok())
            .with_context(|| format!("{to} is not http://ADDRESS:PORT"))?;
        let faults = Arc::new(Faults {
            delay_millis: AtomicU64::new(0),
            one_in: AtomicU64::new(0),
            chance: Mutex::new(Chance::of_seed(seed)),
            requests: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let (netns, of_acceptor) = (netns.clone(), faults.clone());
        let (sender, listens) = channel();
        // Sockets belong to the namespace of the thread that opens them.
        let acceptor = thread::spawn(move || {
            let listener =
                netns.enter().and_then(|()| Ok(TcpListener::bind((at, 0))?)).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok((listener.local_addr()?, listener))
                });
            match listener {
                Ok((address, listener)) => {
                    if sender.send(Ok(address)).is_ok() {
                        accept(&listener, to, &of_acceptor);
                    }
                }
                Err(error) => drop(sender.send(Err(error))),
            }
        });
        let address = listens.recv().map_err(|_| anyhow!("the proxy's thread has ended"))??;
        Ok(Detour { address, faults, acceptor: Some(acceptor) })
    }

    /// The client URL of the store by this way.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on each answer and each event of a watch comes so much later.
    pub fn delay_answers(&self, by: Duration) {
        self.faults.delay_millis.store(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// From now on one of so many requests ends with its connection: half of them before the store gets to know, and half
    /// when it has answered. 0 for none.
    pub fn break_one_in(&self, requests: u64) {
        self.faults.one_in.store(requests, Ordering::Relaxed);
    }

    /// How many requests there were, and how many of them were broken.
    pub fn requests_and_broken(&self) -> (u64, u64) {
        (self.faults.requests.load(Ordering::Relaxed), self.faults.broken.load(Ordering::Relaxed))
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.faults.ended.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A connection of a client and the one to the store that belongs to it.
#[derive(Debug)]
struct Pair {
    client: TcpStream,
    store: TcpStream,
    /// Held while a frame is written to the client.
    writing: Mutex<()>,
    /// The streams whose answers are lost with the connection.
    doomed: Mutex<Vec<u32>>,
}

/// What becomes of a request.
enum Fate {
    Passes,
    BreaksBefore,
    BreaksAfter,
}

struct Frame {
    bytes: Vec<u8>,
}

fn accept(listener: &TcpListener, to: SocketAddr, faults: &Arc<Faults>) {
    let mut pairs: Vec<Weak<Pair>> = Vec::new();
    while !faults.ended.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                // A store that is not there is told by the end of the connection.
                let Ok(pair) = Pair::new(client, to) else { continue };
                pairs.retain(|pair| pair.strong_count() > 0);
                pairs.push(Arc::downgrade(&pair));
                carry(pair, faults);
            }
            Err(_) => thread::sleep(ACCEPT_PAUSE),
        }
    }
    pairs.iter().filter_map(Weak::upgrade).for_each(|pair| pair.end());
}

/// Starts the threads that carry what both sides say.
fn carry(pair: Arc<Pair>, faults: &Arc<Faults>) {
    let (late, due) = channel();
    let (requests, answers, writes) = (pair.clone(), pair.clone(), pair);
    let (of_requests, of_answers) = (faults.clone(), faults.clone());
    thread::spawn(move || {
        let _ = requests.carry_requests(&of_requests);
        requests.end();
    });
    thread::spawn(move || {
        let _ = answers.carry_answers(&of_answers, &late);
        // What is late is still delivered, then the connection ends.
        drop(late);
    });
    thread::spawn(move || {
        let _ = writes.write_late(&due);
        writes.end();
    });
}

impl Pair {
    fn new(client: TcpStream, to: SocketAddr) -> io::Result<Arc<Pair>> {
        client.set_nonblocking(false)?;
        let store = TcpStream::connect(to)?;
        client.set_nodelay(true)?;
        store.set_nodelay(true)?;
        Ok(Arc::new(Pair { client, store, writing: Mutex::default(), doomed: Mutex::default() }))
    }

    fn carry_requests(&self, faults: &Faults) -> io::Result<()> {
        let mut preface = [0; PREFACE];
        (&self.client).read_exact(&mut preface)?;
        (&self.store).write_all(&preface)?;
        loop {
            let frame = Frame::read(&self.client)?;
            if frame.kind() == HEADERS {
                match faults.fate() {
                    Fate::Passes => {}
                    Fate::BreaksBefore => return Ok(()),
                    Fate::BreaksAfter => lock(&self.doomed).push(frame.stream()),
                }
            }
            (&self.store).write_all(&frame.bytes)?;
        }
    }

    fn carry_answers(&self, faults: &Faults, late: &Sender<(Instant, Frame)>) -> io::Result<()> {
        loop {
            let frame = Frame::read(&self.store)?;
            if lock(&self.doomed).contains(&frame.stream()) {
                self.end();
                return Ok(());
            }
            if OF_CONNECTION.contains(&frame.kind()) {
                self.write_to_client(&frame)?;
            } else {
                let delay = Duration::from_millis(faults.delay_millis.load(Ordering::Relaxed));
                late.send((Instant::now() + delay, frame)).map_err(io::Error::other)?;
            }
        }
    }

    fn write_late(&self, due: &Receiver<(Instant, Frame)>) -> io::Result<()> {
        for (at, frame) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            self.write_to_client(&frame)?;
        }
        Ok(())
    }

    fn write_to_client(&self, frame: &Frame) -> io::Result<()> {
        let _writing = lock(&self.writing);
        (&self.client).write_all(&frame.bytes)
    }

    fn end(&self) {
        // One that has ended already needs nothing.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.store.shutdown(Shutdown::Both);
    }
}

impl Faults {
    fn fate(&self) -> Fate {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let one_in = self.one_in.load(Ordering::Relaxed);
        if one_in == 0 {
            return Fate::Passes;
        }
        let mut chance = lock(&self.chance);
        if chance.below(one_in) != 0 {
            return Fate::Passes;
        }
        self.broken.fetch_add(1, Ordering::Relaxed);
        if chance.below(2) == 0 { Fate::BreaksBefore } else { Fate::BreaksAfter }
    }
}

impl Frame {
    fn read(mut from: &TcpStream) -> io::Result<Frame> {
        let mut bytes = vec![0; HEAD];
        from.read_exact(&mut bytes)?;
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        bytes.resize(HEAD + length, 0);
        from.read_exact(&mut bytes[HEAD..])?;
        Ok(Frame { bytes })
    }

    fn kind(&self) -> u8 {
        self.bytes[3]
    }

    fn stream(&self) -> u32 {
        u32::from_be_bytes([self.bytes[5] & 0x7f, self.bytes[6], self.bytes[7], self.bytes[8]])
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
