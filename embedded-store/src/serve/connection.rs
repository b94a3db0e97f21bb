//! The connections of clients. [`AuthorityFix`] corrects the requests of old etcdctl.
//!
//! A connection is closed if the client does not answer our first bytes, or is silent later.

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flan_connections::Slot;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tonic::transport::server::Connected;

use super::etcdctl_authority::AuthorityFix;
use crate::in_flight::Client;

/// Bytes of one read.
const READ: usize = 16 << 10;

/// How long a client may take to answer our first bytes. Answering them takes a real client.
pub(super) const FIRST_WORDS: Duration = Duration::from_secs(10);
/// How long a client may be silent later. A living client answers the server's pings, which come more often.
const SILENCE: Duration = Duration::from_secs(90);

pub(crate) struct Connection {
    tcp: TcpStream,
    fix: AuthorityFix,
    slot: Slot,
    client: Client,
    /// Whether the server has sent something. Bytes that a client sends before that prove nothing.
    has_answered: bool,
    has_spoken: bool,
    /// When the last bytes arrived.
    heard: Instant,
    /// The client may be silent at least until then.
    patience: Pin<Box<Sleep>>,
}

impl Connection {
    pub(crate) fn new(tcp: TcpStream, slot: Slot) -> Self {
        let fix = AuthorityFix::new();
        let heard = Instant::now();
        let patience = Box::pin(tokio::time::sleep_until(heard + FIRST_WORDS));
        let client = Client::default();
        Self { tcp, fix, slot, client, has_answered: false, has_spoken: false, heard, patience }
    }

    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.tcp.peer_addr().ok().map(|address| address.ip().to_canonical())
    }

    fn poll_fixed(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, fix, .. } = self;
        while !fix.hand_on(buffer) && buffer.remaining() > 0 {
            if fix.is_over() {
                return Pin::new(tcp).poll_read(context, buffer);
            }
            let mut room = [MaybeUninit::uninit(); READ];
            let mut came = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut *tcp).poll_read(context, &mut came))?;
            match came.filled() {
                [] => fix.end(),
                bytes => fix.take(bytes),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Becomes ready when the client has been silent for too long.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.patience.as_mut().poll(context).is_ready() {
            let until = self.heard + if self.has_spoken { SILENCE } else { FIRST_WORDS };
            if until <= Instant::now() {
                return Poll::Ready(());
            }
            self.patience.as_mut().reset(until);
        }
        Poll::Pending
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_spoken && self.slot.poll_must_go(context).is_ready() {
            return Poll::Ready(Err(io::Error::other("closed to make room for another client")));
        }
        match self.poll_fixed(context, buffer) {
            Poll::Ready(read) => {
                if self.has_answered && !self.has_spoken {
                    self.has_spoken = true;
                    self.slot.has_spoken();
                }
                if self.has_spoken {
                    self.heard = Instant::now();
                }
                Poll::Ready(read)
            }
            Poll::Pending => self.poll_silence(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_answered = true;
        Pin::new(&mut self.tcp).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flan_connections::ConnectionLimit;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What a client of HTTP/2 says first, and a frame of SETTINGS.
    const FIRST: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    /// A frame that answers a PING.
    const PONG: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0\0\0\0\0\0\0\0\0";

    /// A client and the connection to it.
    async fn connected() -> (std::net::TcpStream, Connection) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let slot = ConnectionLimit::new(1).admit().await.unwrap();
        (client, Connection::new(TcpStream::from_std(accepted).unwrap(), slot))
    }

    /// How long the client is silent until its connection is closed.
    async fn silence(connection: &mut Connection) -> Duration {
        let started = Instant::now();
        let closed = connection.read_u8().await.unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::TimedOut);
        Duration::from_secs(started.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_answer_is_closed_after_ten_seconds_whatever_it_said_before() {
        let (mut client, mut connection) = connected().await;
        client.write_all(FIRST).unwrap();
        connection.read_exact(&mut [0; FIRST.len()]).await.unwrap();
        assert_eq!(silence(&mut connection).await, FIRST_WORDS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_answered_is_closed_ninety_seconds_after_its_last_words() {
        let (mut client, mut connection) = connected().await;
        connection.write_all(b"settings").await.unwrap();
        client.write_all(FIRST).unwrap();
        connection.read_exact(&mut [0; FIRST.len()]).await.unwrap();
        for _ in 0..3 {
            let next = tokio::time::timeout(SILENCE - Duration::from_secs(1), connection.read_u8()).await;
            assert!(next.is_err(), "closed too early");
            client.write_all(PONG).unwrap();
            connection.read_exact(&mut [0; PONG.len()]).await.unwrap();
        }
        assert_eq!(silence(&mut connection).await, Duration::from_secs(90));
    }
}
