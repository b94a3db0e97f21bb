//! Ctrl-C: what runs fails, so that everything is removed as after any other failure.

use std::thread;

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::wait;

/// From now on SIGINT and SIGTERM do not end this program but make its waits fail, now and later.
pub fn end_waits_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                wait::interrupt();
            }
        });
    });
    Ok(())
}
