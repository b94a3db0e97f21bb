//! What a store says when it is asked how it is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::Place;
use crate::traffic;

/// An error unless the server at this client URL answers `GET /health` with good news. An etcd does so only after a read
/// that its cluster agreed on, and while no alarm is raised.
pub fn ensure_healthy(place: &Place, url: &str) -> Result<()> {
    let text = traffic::fetch(place, &format!("{url}/health"))?;
    let told: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text:?}"))?;
    ensure!(told["health"] == "true", "{url} says {told}");
    Ok(())
}
