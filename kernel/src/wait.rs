//! Waits for several descriptors at once; another thread can end the wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Permanently ends a [`wait_readable`] from another thread: an `eventfd(2)`. Clones are the same waker.
#[derive(Debug, Clone)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// Creates a waker that is not raised.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Raises it: every thread that waits with it, now or later, continues.
    pub fn wake(&self) {
        // Fails only after 2^64 - 2 calls, and is raised then.
        let _ = self.0.write(1);
    }
}

/// The state of a descriptor after a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// A read will return something, if only an error.
    pub readable: bool,
    /// The descriptor reports an error or its end (`POLLERR`, `POLLHUP`): a TUN device was deleted, or the socket has a
    /// pending error. A read says which; while the kernel is still deleting, it may say `WouldBlock`.
    pub hung_up: bool,
}

/// Waits without a limit until one of `descriptors` is readable or `waker` is raised, and returns the state of each
/// descriptor, in order. Signals do not end the wait.
pub fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    waker: &Waker,
) -> io::Result<[Readiness; N]> {
    let mut all: Vec<PollFd<'_>> = Vec::with_capacity(N + 1);
    all.extend(descriptors.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    all.push(PollFd::new(waker.0.as_fd(), PollFlags::POLLIN));
    loop {
        match poll(&mut all, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let bad = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    let mut answer = [Readiness::default(); N];
    for (readiness, fd) in answer.iter_mut().zip(&all) {
        let events = fd.revents().unwrap_or(PollFlags::POLLERR);
        *readiness =
            Readiness { readable: events.contains(PollFlags::POLLIN), hung_up: events.intersects(bad) };
    }
    Ok(answer)
}

/// Waits until `waker` is raised, but no longer than `limit`. Returns whether it is raised.
pub fn wait_woken(waker: &Waker, limit: Duration) -> io::Result<bool> {
    let mut raised = [PollFd::new(waker.0.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(&mut raised, limit) {
        // A signal: the caller waits again.
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
        Ok(count) => Ok(count > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_wait_tells_which_one_is_readable() {
        let quiet = UdpSocket::bind("127.0.0.1:0").unwrap();
        let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
        busy.send_to(b"x", busy.local_addr().unwrap()).unwrap();
        let waker = Waker::new().unwrap();
        let ready = wait_readable([quiet.as_fd(), busy.as_fd()], &waker).unwrap();
        let readable = Readiness { readable: true, hung_up: false };
        assert_eq!(ready, [Readiness::default(), readable]);
    }

    #[test]
    fn a_waiting_thread_is_woken_from_another() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let waker = Waker::new().unwrap();
        let thread = std::thread::spawn({
            let waker = waker.clone();
            move || wait_readable([socket.as_fd()], &waker).unwrap()
        });
        waker.wake();
        assert_eq!(thread.join().unwrap(), [Readiness::default()]);
    }

    #[test]
    fn a_wait_with_a_limit_tells_whether_it_was_woken() {
        let waker = Waker::new().unwrap();
        assert!(!wait_woken(&waker, Duration::from_millis(1)).unwrap());
        waker.wake();
        assert!(wait_woken(&waker, Duration::from_secs(60)).unwrap());
    }

    #[test]
    fn the_end_of_the_other_side_is_a_hang_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let [ready] = wait_readable([ours.as_fd()], &Waker::new().unwrap()).unwrap();
        assert!(ready.hung_up);
    }
}
