//! The kernel, as `integration/debian-kernel.sh` keeps it, and the files of its modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::forky;

/// Of the one architecture that the machines have.
pub(super) const QEMU: &str = "qemu-system-x86_64";

/// A kernel with its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// The directory of the directories of modules, as `/lib/modules` is.
    pub(super) modules: PathBuf,
    pub(super) version: String,
}

impl Kernel {
    /// The kernel that `FLAN_VM_KERNEL` names. Where it is missing, it is fetched.
    pub(super) fn find() -> Result<Kernel> {
        let dir = forky::ask(&mut Command::new(script())).context("no kernel")?;
        let modules = dir.join("lib/modules");
        let version = fs::read_dir(&modules)
            .with_context(|| format!("cannot list {}", modules.display()))?
            .next()
            .with_context(|| format!("no modules in {}", modules.display()))??;
        let version = version.file_name().to_string_lossy().into_owned();
        Ok(Kernel { image: dir.join("vmlinuz"), modules, version })
    }

    /// The files of these modules and all that they depend on, in the order in which they can be loaded. Leaves out
    /// what the kernel has built in.
    pub(super) fn files_of(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let dir = self.modules.join(&self.version);
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let files = load_order(&read("modules.dep")?, &read("modules.builtin")?, wanted)?;
        Ok(files.into_iter().map(|file| dir.join(file)).collect())
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("debian-kernel.sh")
}

/// `dependencies` is a `modules.dep`: `FILE: FILE FILE`, where the last must be loaded first. `built_in` has a file a
/// line. See depmod(8).
fn load_order(dependencies: &str, built_in: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
    for &module in wanted {
        let line =
            dependencies.lines().find(|line| name_of(line.split(':').next().unwrap_or_default()) == module);
        let Some((file, before)) = line.and_then(|line| line.split_once(':')) else {
            let there = built_in.lines().any(|file| name_of(file) == module);
            ensure!(there, "the kernel has no module {module}");
            continue;
        };
        for file in before.split_whitespace().rev().chain([file]) {
            if seen.insert(file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// `virtio_pci` of `kernel/drivers/virtio/virtio_pci.ko.xz`.
fn name_of(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
        kernel/net/9p/9pnet.ko.xz:\nkernel/fs/netfs/netfs.ko.xz:\n";

    #[test]
    fn modules_are_loaded_after_what_they_depend_on_and_once() {
        let order = load_order(DEPENDENCIES, "", &["9p", "9pnet"]).unwrap();
        assert_eq!(
            order,
            ["kernel/fs/netfs/netfs.ko.xz", "kernel/net/9p/9pnet.ko.xz", "kernel/fs/9p/9p.ko.xz"]
        );
    }

    #[test]
    fn a_release_that_has_no_kernel_here_is_refused_with_those_that_have() {
        let output = Command::new(script()).env("FLAN_VM_KERNEL", "sarge").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(said.ends_with("FLAN_VM_KERNEL is sarge; expected bookworm, trixie or forky\n"), "{said}");
    }

    #[test]
    fn what_is_built_in_is_not_loaded_and_what_is_missing_is_an_error() {
        let built_in = "kernel/fs/ext4/ext4.ko\n";
        assert!(load_order(DEPENDENCIES, built_in, &["ext4"]).unwrap().is_empty());
        let error = load_order(DEPENDENCIES, built_in, &["ext3"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module ext3");
    }
}
