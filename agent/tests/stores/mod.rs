//! Stores in separate processes.

// A failing helper fails its test, and each test is a crate.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// Kills the process when dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a store with this limit of descriptors. Returns its URL.
pub fn store(data_dir: &std::path::Path, descriptors: usize) -> (Running, String) {
    let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_fland"), "store"]);
    command.args(["--listen-client-urls=http://127.0.0.1:0", "--log-format=json"]);
    command.env("FLAND_DATA_DIR", data_dir).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = Running(command.spawn().unwrap());
    let said = BufReader::new(running.0.stderr.take().unwrap());
    let mut lines = said.lines();
    let url = lines.by_ref().find_map(|line| url_in(&line.unwrap())).expect("to be told where it serves");
    // Read on, because the store would block on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (running, url)
}

fn url_in(line: &str) -> Option<String> {
    let start = line.contains("serving the store").then(|| line.find("http://127.0.0.1:"))??;
    let url = &line[start..];
    Some(url.split(|c: char| !c.is_ascii_alphanumeric() && !":/.".contains(c)).next()?.to_owned())
}
