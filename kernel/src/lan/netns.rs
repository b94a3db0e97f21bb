//! Network namespaces other than one's own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// The type of the file system of namespaces (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// A network namespace. It lives at least as long as this.
#[derive(Debug)]
pub struct Netns {
    file: File,
    inode: u64,
}

impl Netns {
    /// Opens a file that stands for one, such as `/run/docker/netns/2d8b9f5f3b1c` or `/proc/4711/ns/net`
    /// (`namespaces(7)`).
    ///
    /// # Errors
    /// If it cannot be opened, or is an ordinary file, as if it were not there: below `/run/docker/netns` that is so where the mount that Docker
    /// made does not arrive.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if rustix::fs::fstatfs(&file)?.f_type != NSFS_MAGIC {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it stands for no namespace"));
        }
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode })
    }

    /// The number that no other namespace has at the same time.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Returns whether this process is in it.
    ///
    /// # Errors
    /// If `/proc` does not say.
    pub fn is_ours(&self) -> io::Result<bool> {
        Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino() == self.inode)
    }

    /// Runs `work` on a thread inside. Sockets that it opens stay there.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            work()
        };
        // A thread of its own: nobody else must find itself in another namespace.
        std::thread::scope(|scope| {
            scope
                .spawn(inside)
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread inside it panicked")))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
