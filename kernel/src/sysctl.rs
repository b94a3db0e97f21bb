//! Kernel settings under `/proc/sys`.

use std::io;
use std::path::Path;

use crate::LinkName;

/// Writes a setting if it has another value, and says whether it had.
///
/// `path` is below `/proc/sys`, with slashes: `net/ipv4/ip_forward` (`proc_sys(5)`). An error names the setting; it
/// is the answer too where the kernel has no such setting.
pub fn write(path: &str, value: &str) -> io::Result<bool> {
    write_below(Path::new("/proc/sys"), path, value)
}

/// Lets the kernel route packets from one interface to another, for each family that is asked for.
///
/// With `net/ipv6/conf/all/forwarding` the kernel stops taking router advertisements on interfaces whose `accept_ra`
/// is 1 (kernel `Documentation/networking/ip-sysctl.rst`): a host that has its own default route from one must have
/// set 2 there.
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
    // Writing what is there already is not for free: it makes the kernel flush its route cache, and fails in a
    // container that has the right setting but may not write it.
    if std::fs::read_to_string(&file).map_err(named)?.trim_end() == value {
        return Ok(false);
    }
    std::fs::write(&file, value).map_err(named)?;
    Ok(true)
}

/// Lets packets in by `link` whose source is an address of this host, which the kernel takes for forged otherwise
/// (`accept_local` in `Documentation/networking/ip-sysctl.rst`). Answers whether anything had to be changed.
///
/// # Errors
/// As [`write()`].
pub fn accept_local(link: LinkName) -> io::Result<bool> {
    write(&format!("net/ipv4/conf/{link}/accept_local"), "1")
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
}
