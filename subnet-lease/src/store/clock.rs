//! What a member's clock says. etcd's own protocol does not tell, but each answer by HTTP has the date.

use std::io;
use std::time::{Duration, SystemTime};

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, DATE, HOST};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::probe;
use crate::endpoint::Endpoint;
use crate::store_config::Credentials;

/// How long the member may take.
const LIMIT: Duration = Duration::from_secs(5);
/// A path that etcd and `fland store` answer to everybody.
const PATH: &str = "/health";

/// How far this host's clock is from a member's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSkew {
    /// The difference, at least. It is known to about a second.
    pub by: Duration,
    /// Whether this host's clock is ahead.
    pub is_ahead: bool,
}

/// Asks a member for its time, and returns how far this host's is from it. `None` if it does not say, or cannot be asked:
/// with TLS that needs a CA file.
pub async fn clock_skew(endpoint: &Endpoint, credentials: &Credentials) -> Option<ClockSkew> {
    let asked = SystemTime::now();
    let date = timeout(LIMIT, date(endpoint, credentials)).await.ok()?.ok()??;
    Some(between(asked, date, SystemTime::now()))
}

/// The date was written between the two moments, and is cut to a second.
fn between(asked: SystemTime, date: SystemTime, answered: SystemTime) -> ClockSkew {
    let latest = date + Duration::from_secs(1);
    match (asked.duration_since(latest), date.duration_since(answered)) {
        (Ok(by), _) => ClockSkew { by, is_ahead: true },
        (_, Ok(by)) => ClockSkew { by, is_ahead: false },
        _ => ClockSkew { by: Duration::ZERO, is_ahead: false },
    }
}

async fn date(endpoint: &Endpoint, credentials: &Credentials) -> io::Result<Option<SystemTime>> {
    match endpoint.strip_prefix("https://") {
        Some(place) => ask(probe::connect(place, credentials, "http/1.1").await?, place).await,
        None => {
            let place = endpoint.trim_start_matches("http://");
            let (host, port) = probe::host_and_port(place);
            let port = if place.ends_with(&format!(":{port}")) { port } else { 80 };
            ask(TcpStream::connect((host, port)).await?, place).await
        }
    }
}

async fn ask(
    connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    host: &str,
) -> io::Result<Option<SystemTime>> {
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(io::Error::other)?;
    tokio::spawn(driver);
    let request = Request::get(PATH).header(HOST, host).header(CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
    Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_within_the_second_of_the_question_is_the_same_time() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let skew = |asked, date, answered| {
            let ClockSkew { by, is_ahead } = between(at(asked), at(date), at(answered));
            (by.as_millis(), is_ahead)
        };
        assert_eq!(skew(10_900, 10_000, 11_100), (0, false));
        assert_eq!(skew(10_900, 11_000, 11_100), (0, false));
        assert_eq!(skew(100_000, 10_000, 100_050), (89_000, true));
        assert_eq!(skew(10_000, 100_000, 10_050), (89_950, false));
    }
}
