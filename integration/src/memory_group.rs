//! A control group that limits the memory of what runs in it. See cgroups(7), and in the kernel's documentation
//! `admin-guide/cgroup-v1/memory.rst` and `admin-guide/cgroup-v2.rst`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;

/// Where version 1 has the controller, and version 2 everything.
const VERSION_1: &str = "/sys/fs/cgroup/memory";
const VERSION_2: &str = "/sys/fs/cgroup";

/// The group. The lab removes it.
#[derive(Debug)]
pub struct MemoryGroup {
    dir: PathBuf,
    is_version_1: bool,
}

impl MemoryGroup {
    /// A group without a limit.
    pub fn new(lab: &Lab) -> Result<MemoryGroup> {
        let name = lab.dir().file_name().context("the lab's directory has no name")?;
        let is_version_1 = Path::new(VERSION_1).is_dir();
        let parent = Path::new(if is_version_1 { VERSION_1 } else { VERSION_2 }).join(name);
        let dir = parent.join("memory");
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let group = MemoryGroup { dir, is_version_1 };
        if is_version_1 {
            group.write("memory.swappiness", "0")?;
        } else {
            for dir in [Path::new(VERSION_2), &parent] {
                let file = dir.join("cgroup.subtree_control");
                fs::write(&file, "+memory").with_context(|| format!("cannot write {}", file.display()))?;
            }
            group.write("memory.swap.max", "0")?;
        }
        Ok(group)
    }

    /// What starts a program in the group: it gets the program's command line.
    pub fn starter(&self) -> Vec<String> {
        let enter = format!(r#"echo $$ > {}/cgroup.procs && exec "$@""#, self.dir.display());
        ["sh", "-c", &enter, "sh"].map(str::to_owned).to_vec()
    }

    /// Bytes that are in use.
    pub fn usage(&self) -> Result<u64> {
        let file = if self.is_version_1 { "memory.usage_in_bytes" } else { "memory.current" };
        self.read(file)?.trim().parse().with_context(|| format!("{file} has no number"))
    }

    /// Limits it to so many bytes; more than are in use.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        let file = if self.is_version_1 { "memory.limit_in_bytes" } else { "memory.max" };
        self.write(file, &bytes.to_string())
    }

    /// How many processes the kernel has killed for want of memory.
    pub fn killed(&self) -> Result<u64> {
        let file = if self.is_version_1 { "memory.oom_control" } else { "memory.events" };
        let text = self.read(file)?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).with_context(|| format!("no oom_kill in {text:?}"))
    }

    fn read(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }
}
