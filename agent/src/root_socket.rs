//! Unix sockets that only root can open, or a group as well.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::Group;
use tokio::net::UnixListener;

/// Makes a socket, and the directory for it. Replaces what an earlier agent left: only one runs on a host.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::remove_file(path) {
        Err(reason) if reason.kind() != io::ErrorKind::NotFound => return Err(reason),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Lets a group open the socket, too, if this host has it.
///
/// # Errors
/// If the socket cannot be given to it.
pub(crate) fn open_to(path: &Path, group: &str) -> io::Result<()> {
    let Some(group) = Group::from_name(group)? else { return Ok(()) };
    chown(path, None, Some(group.gid.as_raw()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
}
