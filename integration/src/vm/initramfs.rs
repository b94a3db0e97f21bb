//! The initramfs: busybox, the modules that reach this machine's `/`, and the job.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::job::Job;
use super::kernel::Kernel;
use crate::command;
use crate::tools;

/// What the way to the root needs: the devices, the file systems, the channels.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay", "ext4"];

/// Makes the archive `file` by way of the new directory `dir`.
pub(super) fn make(kernel: &Kernel, job: &Job, dir: &Path, file: &Path) -> Result<()> {
    for part in ["bin", "modules", "proc", "sys", "dev", "below", "above", "merged"] {
        fs::create_dir_all(dir.join(part))?;
    }
    let busybox = tools::find("busybox").context("no busybox")?;
    fs::copy(busybox, dir.join("bin/busybox"))?;
    symlink("busybox", dir.join("bin/sh"))?;
    let mut order = String::new();
    // Kernels without this module have the sum, which ext4 asks for by another name, built in.
    let sums = kernel.files_of(&["crc32c_generic"]).unwrap_or_default();
    for path in sums.into_iter().chain(kernel.files_of(&MODULES)?) {
        let (name, bytes) = unpacked(&path)?;
        fs::write(dir.join("modules").join(&name), bytes)?;
        order += &format!("{name}\n");
    }
    fs::write(dir.join("modules/order"), order)?;
    for (name, content) in [("init", include_str!("init.sh")), ("job", &job.script(kernel))] {
        fs::write(dir.join(name), content)?;
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755))?;
    }
    pack(dir, file)
}

/// A module's name and content. Newer releases compress them, which busybox does not undo.
fn unpacked(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
    if let Some(name) = name.strip_suffix(".xz") {
        let mut xz = Command::new("busybox");
        let output = xz.args(["xzcat"]).arg(path).output().context("cannot run busybox")?;
        ensure!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        return Ok((name.to_owned(), output.stdout));
    }
    Ok((name.to_owned(), fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
}

fn pack(dir: &Path, file: &Path) -> Result<()> {
    let mut pack = Command::new("sh");
    pack.args(["-c", "cd \"$1\" && busybox find . | busybox cpio -o -H newc", "sh"]).arg(dir);
    let out = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
    let packed = pack.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&packed.stderr);
    ensure!(packed.status.success(), "{}: {said}", command::line(&pack));
    Ok(())
}
