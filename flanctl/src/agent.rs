//! Asks the agent on this host, through its socket.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::failure::{Failure, Kind};
use crate::progress::told;

/// Returns what the agent answers to `GET path`.
pub(crate) async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    ask(socket, Method::GET, path).await
}

/// Has the agent do what `POST path` stands for.
pub(crate) async fn post(socket: &Path, path: &str) -> Result<(), Failure> {
    ask(socket, Method::POST, path).await
}

/// How long the agent may take to answer.
const LIMIT: Duration = Duration::from_secs(30);

async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, Failure> {
    let waiting = || format!("waiting for fland at {}", socket.display());
    match told(waiting, timeout(LIMIT, answer(socket, method, path))).await {
        Ok(answered) => answered,
        Err(_) => {
            let message =
                format!("fland at {} did not answer within {} s", socket.display(), LIMIT.as_secs());
            Err(Failure::new(Kind::TimedOut, message))
        }
    }
}

async fn answer<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, Failure> {
    let shown = socket.display();
    let connection = UnixStream::connect(socket).await.map_err(|reason| {
        let message = format!("fland does not answer at {shown}: {reason}; is it running, and are you root or in the group flan?");
        Failure::new(Kind::Other, message)
    })?;
    let failed =
        |reason: &dyn std::fmt::Display| Failure::new(Kind::Other, format!("fland at {shown}: {reason}"));
    let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
        .await
        .map_err(|reason| failed(&reason))?;
    tokio::spawn(driver);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "fland")
        .body(Empty::<Bytes>::new())
        .map_err(|reason| failed(&reason))?;
    let answer = sender.send_request(request).await.map_err(|reason| failed(&reason))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|reason| failed(&reason))?.to_bytes();
    if status == StatusCode::CONFLICT {
        return Err(Failure::new(Kind::Refused, String::from_utf8_lossy(&body).trim().to_owned()));
    }
    if status != StatusCode::OK {
        return Err(failed(&String::from_utf8_lossy(&body).trim()));
    }
    serde_json::from_slice(&body).map_err(|reason| failed(&reason))
}
