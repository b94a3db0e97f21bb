//! `flanctl report`: one archive with everything that helps to find a fault, and no secrets.

mod archive;
mod gather;
mod secrets;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flan_subnet_lease::{StoreConfig, StoreError};

use self::secrets::Secrets;
use crate::args::BugReportArgs;
use crate::check;
use crate::failure::{Failure, Kind};
use crate::output;
use crate::progress::told;

/// One file of the archive.
pub(crate) struct Entry {
    /// Its path in the archive.
    name: String,
    text: String,
}

/// Gathers everything, and writes the archive or prints what would be in it.
/// `settings` is the agent's settings file; `comment` says where the store's URLs are from.
pub(crate) async fn report(
    args: &BugReportArgs,
    settings: &Path,
    config: Result<StoreConfig, StoreError>,
    comment: &str,
) -> Result<(), Failure> {
    check::ensure_root()?;
    let password =
        config.as_ref().ok().and_then(|config| config.credentials.user.clone()).map(|(_, password)| password);
    let mut secrets = Secrets::known(settings, password);
    let gathering = || "gathering what belongs into a report".to_owned();
    let gathered = told(gathering, gather::all(args, settings, config, comment)).await;
    gathered
        .iter()
        .filter(|entry| entry.name.ends_with(".json"))
        .for_each(|entry| secrets.add_those_of(&entry.text));
    let entries: Vec<Entry> = gathered
        .into_iter()
        .map(|Entry { name, text }| Entry { name, text: secrets.removed_from(&text) })
        .collect();
    if args.show {
        let parts = entries.iter().map(|Entry { name, text }| format!("=== {name}\n{}\n", text.trim_end()));
        return output::print(&parts.collect::<String>());
    }
    let name = format!("flan-report-{}-{}", host_name(), stamp(SystemTime::now()));
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    archive::write(&file, &name, &entries)
        .map_err(|reason| Failure::new(Kind::Other, format!("cannot write {}: {reason}", file.display())))?;
    output::print(&format!(
        "wrote {} with {}, without the passwords and keys that are known. Look through it before you give it away: \
         tar -xzOf {} | less",
        file.display(),
        output::count(entries.len(), "file"),
        file.display()
    ))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
}

/// `20261129T113000Z`.
fn stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string().replace(['-', ':'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_has_the_time_without_what_file_names_dislike() {
        assert_eq!(stamp(SystemTime::UNIX_EPOCH), "19700101T000000Z");
    }
}
