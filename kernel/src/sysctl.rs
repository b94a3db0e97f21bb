//! Kernel settings under `/proc/sys`.

use std::io;
use std::path::{Path, PathBuf};

use crate::LinkName;

/// Writes a setting unless it already has the value, and returns whether it wrote.
///
/// `path` is below `/proc/sys`, with slashes: `net/ipv4/ip_forward` (`proc_sys(5)`). An error names the setting; a
/// kernel without the setting gives an error too.
pub fn write(path: &str, value: &str) -> io::Result<bool> {
    write_below(Path::new("/proc/sys"), path, value)
}

/// Enables routing between interfaces for each requested family.
///
/// With `net/ipv6/conf/all/forwarding` the kernel ignores router advertisements on interfaces whose `accept_ra` is 1
/// (kernel `Documentation/networking/ip-sysctl.rst`). A host that has its default route from one needs 2 there.
pub fn forwarding(ipv4: bool, ipv6: bool) -> io::Result<()> {
    if ipv4 {
        write("net/ipv4/ip_forward", "1")?;
    }
    if ipv6 {
        write("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn write_below(root: &Path, path: &str, value: &str) -> io::Result<bool> {
    let file = root.join(path);
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("setting {} to {value}: {error}", file.display()))
    };
    // Writing an unchanged value has a price: the kernel flushes its route cache, and a container that has the right
    // value may be unable to write it.
    if std::fs::read_to_string(&file).map_err(named)?.trim_end() == value {
        return Ok(false);
    }
    std::fs::write(&file, value).map_err(named)?;
    Ok(true)
}

/// Accepts packets on `link` whose source is an address of this host; by default the kernel drops them as forged
/// (`accept_local` in `Documentation/networking/ip-sysctl.rst`). Returns whether anything changed.
///
/// # Errors
/// As [`write()`].
pub fn accept_local(link: LinkName) -> io::Result<bool> {
    write(&format!("net/ipv4/conf/{link}/accept_local"), "1")
}

/// Ignores router advertisements that arrive on `bridge` (`accept_ra` in `Documentation/networking/ip-sysctl.rst`). Returns
/// whether anything changed.
///
/// # Errors
/// As [`write()`].
pub fn ignore_routers(bridge: LinkName) -> io::Result<bool> {
    write(&format!("net/ipv6/conf/{bridge}/accept_ra"), "0")
}

/// Bytes of freed routing table after which the kernel waits until they are no longer used: the maximum (`fib_sync_mem`
/// in `Documentation/networking/ip-sysctl.rst`). The default of 512 KiB slows large batches of route changes.
const MOST_FIB_SYNC_MEM: u64 = 64 * 1024 * 1024;

/// Raises `net.ipv4.fib_sync_mem` for the lifetime of this value. The setting is kernel-wide and visible only in the
/// initial network namespace; elsewhere this does nothing.
#[derive(Debug)]
pub(crate) struct FibSyncMem {
    /// The file and its previous contents; `None` if nothing was changed.
    before: Option<(PathBuf, String)>,
}

impl FibSyncMem {
    /// Raises it to the maximum.
    pub(crate) fn raise() -> Self {
        Self::raise_below(Path::new("/proc/sys"))
    }

    fn raise_below(root: &Path) -> Self {
        let file = root.join("net/ipv4/fib_sync_mem");
        let before = std::fs::read_to_string(&file).ok().map(|before| before.trim_end().to_owned());
        let is_lower = |before: &String| before.parse().is_ok_and(|bytes: u64| bytes < MOST_FIB_SYNC_MEM);
        let before = before.filter(is_lower).filter(|_| {
            std::fs::write(&file, MOST_FIB_SYNC_MEM.to_string())
                .inspect_err(|error| tracing::debug!(%error, "leaving {} unchanged", file.display()))
                .is_ok()
        });
        Self { before: before.map(|before| (file, before)) }
    }
}

impl Drop for FibSyncMem {
    fn drop(&mut self) {
        let Some((file, before)) = &self.before else { return };
        // Keep a value that somebody else has set meanwhile.
        let ours =
            std::fs::read_to_string(file).is_ok_and(|now| now.trim_end().parse() == Ok(MOST_FIB_SYNC_MEM));
        if ours && let Err(error) = std::fs::write(file, before) {
            tracing::warn!(%error, "cannot restore {} to {before}", file.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_once() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("forward");
        std::fs::write(&file, "0\n").unwrap();
        assert!(write_below(root.path(), "forward", "1").unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
        assert!(!write_below(root.path(), "forward", "1").unwrap());
    }

    #[test]
    fn an_error_names_the_setting() {
        let root = tempfile::tempdir().unwrap();
        let error = write_below(root.path(), "net/ipv4/ip_forward", "1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("net/ipv4/ip_forward"), "{error}");
    }

    fn with_fib_sync_mem(value: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("net/ipv4/fib_sync_mem");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, value).unwrap();
        (root, file)
    }

    #[test]
    fn the_memory_for_routes_is_raised_for_a_while() {
        let (root, file) = with_fib_sync_mem("524288\n");
        let raised = FibSyncMem::raise_below(root.path());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "67108864");
        drop(raised);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "524288");
    }

    #[test]
    fn the_memory_for_routes_that_somebody_else_has_set_stays() {
        let (root, file) = with_fib_sync_mem("524288\n");
        let raised = FibSyncMem::raise_below(root.path());
        std::fs::write(&file, "1048576\n").unwrap();
        drop(raised);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "1048576\n");
        let (root, file) = with_fib_sync_mem("67108864\n");
        drop(FibSyncMem::raise_below(root.path()));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "67108864\n");
    }

    #[test]
    fn without_the_setting_nothing_happens() {
        let root = tempfile::tempdir().unwrap();
        drop(FibSyncMem::raise_below(root.path()));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
