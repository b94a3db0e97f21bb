//! TUN queues with virtio-net headers and offloads, read and written from plain threads.
//!
//! Source of what the kernel does: `drivers/net/tun.c` and `Documentation/networking/tuntap.rst`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::LinkName;

/// Bytes of a `struct virtio_net_hdr` (`linux/virtio_net.h`), which stands before every packet of a queue with
/// [`TunMode::vnet_header`]. Its fields are in host order.
pub const VNET_HEADER_BYTES: usize = 10;

/// Most queues that [`TunQueue::open`] attaches. The kernel's own limit is 256 a device (`MAX_TAP_QUEUES`).
pub const MAX_QUEUES: usize = 64;

/// What stands before a packet of a TUN queue, and how large packets from the kernel may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunMode {
    /// Every packet, read or written, follows a `virtio_net_hdr` of [`VNET_HEADER_BYTES`]; the kernel leaves
    /// transport checksums to us. Without it the other two cannot be.
    pub vnet_header: bool,
    /// The kernel hands over TCP packets of up to 64 KiB, both families, to be segmented by the reader.
    pub tso: bool,
    /// The same for UDP (kernel 6.2 and later).
    pub uso: bool,
}

impl TunMode {
    /// One packet a call, as it goes over the wire: what every kernel has.
    pub const PLAIN: Self = Self { vnet_header: false, tso: false, uso: false };
    /// All there is.
    pub const FULL: Self = Self { vnet_header: true, tso: true, uso: true };

    /// The argument of `TUNSETOFFLOAD`.
    fn offloads(self) -> libc::c_uint {
        let when = |wanted, flags| if wanted { flags } else { 0 };
        when(self.vnet_header, libc::TUN_F_CSUM)
            | when(self.vnet_header && self.tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN)
            | when(self.vnet_header && self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }

    /// This mode and what to try in its place, best first.
    fn plainer(self) -> [Self; 3] {
        let no_uso = Self { uso: false, ..self };
        [self, no_uso, Self { tso: false, ..no_uso }]
    }

    fn device_flags(self) -> libc::c_int {
        let header = if self.vnet_header { libc::IFF_VNET_HDR } else { 0 };
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | header
    }
}

impl fmt::Display for TunMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.vnet_header {
            return f.write_str("plain");
        }
        f.write_str("virtio headers")?;
        if self.tso {
            f.write_str(", TSO")?;
        }
        if self.uso {
            f.write_str(", USO")?;
        }
        Ok(())
    }
}

/// Why a TUN device could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing or may not be opened.
    #[error("opening /dev/net/tun ({advice}): {source}", advice = advice(.source))]
    ControlDevice {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to make the device, or to add a queue to it. `EINVAL` and `EBUSY`: a device of that name
    /// exists, and is no TUN device or has one queue only.
    #[error(
        "attaching to device {name} (a device of that name must be a TUN device made with multi_queue): {source}"
    )]
    Attach {
        /// The device.
        name: LinkName,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The device to attach to does not exist, or vanished meanwhile.
    #[error("TUN device {0} does not exist")]
    Missing(LinkName),
    /// tokio-tun could not open its queues.
    #[error("opening {queues} queues of device {name}: {source}")]
    Queues {
        /// The device.
        name: LinkName,
        /// How many were asked for.
        queues: usize,
        /// What tokio-tun says.
        #[source]
        source: tokio_tun::Error,
    },
    /// A number of queues out of bounds.
    #[error("{0} queues asked for; 1 to {MAX_QUEUES} are possible")]
    QueueCount(usize),
    /// Called outside of a tokio runtime, which tokio-tun needs.
    #[error("TUN queues are opened inside a tokio runtime only: {0}")]
    NoRuntime(#[source] tokio::runtime::TryCurrentError),
    /// A setting of the device could not be read or changed.
    #[error("{setting} of device {name}: {source}")]
    Setting {
        /// The device.
        name: LinkName,
        /// The `ioctl`.
        setting: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What makes `/dev/net/tun` usable.
fn advice(reason: &io::Error) -> &'static str {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => {
            "this process may not read and write it: run as root, or allow the device, as DeviceAllow=/dev/net/tun in a \
             unit or --device /dev/net/tun for a container"
        }
        io::ErrorKind::NotFound => "it is missing: modprobe tun",
        _ => "is the module tun loaded?",
    }
}

/// Makes a persistent TUN device with many queues: without packet information, with virtio-net headers if `mode` has
/// them. It stays when the process ends, and is deleted over netlink. It has no address yet and is down.
///
/// Idempotent: a multi-queue TUN device of that name is kept, and made persistent.
///
/// The kernel takes from `mode` only what the first queue to attach says anew ([`TunQueue::open`] does); offloads are
/// set there.
pub fn create(name: LinkName, mode: TunMode) -> Result<(), TunError> {
    let device = attach(name, mode)?;
    set_number(device.as_fd(), libc::TUNSETPERSIST, 1).map_err(setting(name, "TUNSETPERSIST"))
}

/// One queue of a TUN device. Reads and writes move one packet, and never block.
///
/// Closing it detaches the queue; packets that wait in it are lost, and the kernel spreads flows over the others.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
}

impl TunQueue {
    /// Attaches `queues` queues (1 to [`MAX_QUEUES`]) to the existing device `name`, and says which mode is in force:
    /// `wanted`, or the next plainer one that the kernel takes. Offloads belong to the device, so all its queues
    /// have the same mode.
    ///
    /// If another process has queues of the device open, the presence of headers is as it chose, and it gets a share
    /// of the packets.
    ///
    /// Must be called inside a tokio runtime; the queues themselves do not need it.
    pub fn open(name: LinkName, queues: usize, wanted: TunMode) -> Result<(Vec<Self>, TunMode), TunError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TunError::QueueCount(queues));
        }
        tokio::runtime::Handle::try_current().map_err(TunError::NoRuntime)?;
        // Attaching to a name that no device has would make one.
        nix::net::if_::if_nametoindex(name.as_str()).map_err(|_| TunError::Missing(name))?;

        // tokio-tun cannot ask for virtio headers. The first queue of a device chooses for all later ones, so that
        // is one of ours. It is disabled at once, for the kernel would send packets to it that nobody reads. It also
        // finds out most reasons to refuse before tokio-tun does, which leaks descriptors when it fails.
        let first = attach(name, wanted)?;
        disable(name, &first)?;

        // Below two, tokio-tun opens a device of one queue, which is another kind of device.
        let mut opened = tokio_tun::Tun::builder()
            .name(name.as_str())
            .queues(queues.max(2))
            .build()
            .map_err(|source| TunError::Queues { name, queues, source })?;
        drop(first);
        opened.truncate(queues);
        let files = opened
            .iter()
            .map(duplicate)
            .collect::<io::Result<Vec<_>>>()
            .map_err(setting(name, "duplicating a descriptor"))?;
        drop(opened);

        let in_force = set_mode(name, files[0].as_fd(), wanted)?;
        Ok((files.into_iter().map(|file| Self { file }).collect(), in_force))
    }

    /// Reads one packet with what stands before it; longer ones than `buffer` are cut. [`io::ErrorKind::WouldBlock`]
    /// where none waits. A packet with offloads has up to 65,535 bytes after its header.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet with what stands before it, gathered from at most 1,024 `slices` (`IOV_MAX`).
    ///
    /// `EIO`: the device is down, and packets are lost until it is up again. `EINVAL`: the kernel does not take the header. What it takes in part
    /// only is an error of kind [`io::ErrorKind::WriteZero`].
    pub fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<()> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = (&self.file).write_vectored(slices)?;
        if written == length {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            format!("{written} of {length} bytes of a packet written"),
        ))
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether an error of a read or write means that the device was deleted: the queue is of no use any more. The kernel
/// says `EBADFD` (seen on 6.18, reading and writing; `tun_ring_recv` has `EFAULT` for a read that is under way).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EFAULT | libc::ENODEV))
}

/// Opens a descriptor of its own and attaches it to device `name`, or makes the device.
fn attach(name: LinkName, mode: TunMode) -> Result<File, TunError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .map_err(|source| TunError::ControlDevice { source })?;
    let mut request = interface_request(name, mode.device_flags());
    interface_ioctl(file.as_fd(), libc::TUNSETIFF, &mut request)
        .map_err(|source| TunError::Attach { name, source })?;
    Ok(file)
}

/// Keeps a queue attached to its device, with no packets sent to it.
fn disable(name: LinkName, queue: &File) -> Result<(), TunError> {
    let mut request = interface_request(name, libc::IFF_DETACH_QUEUE);
    interface_ioctl(queue.as_fd(), libc::TUNSETQUEUE, &mut request).map_err(setting(name, "TUNSETQUEUE"))
}

/// The queue behind a descriptor of tokio-tun, for use outside of tokio.
///
/// tokio registers its own descriptor with the runtime's epoll: each packet would wake a thread of the runtime as well
/// as ours. Dropping the [`tokio_tun::Tun`] ends that; the queue stays attached as long as this duplicate is open.
fn duplicate(tun: &tokio_tun::Tun) -> io::Result<File> {
    // SAFETY: `tun` owns the descriptor and is borrowed for as long as the borrowed descriptor lives.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(tun.as_raw_fd()) };
    Ok(File::from(fd.try_clone_to_owned()?))
}

/// Sets offloads and header size, which belong to the device, through one of its queues.
fn set_mode(name: LinkName, queue: BorrowedFd<'_>, wanted: TunMode) -> Result<TunMode, TunError> {
    let mut request = interface_request(name, 0);
    interface_ioctl(queue, libc::TUNGETIFF, &mut request).map_err(setting(name, "TUNGETIFF"))?;
    // SAFETY: TUNGETIFF fills in ifru_flags; every bit pattern is a c_short.
    #[allow(unsafe_code)]
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_PERSIST == 0 {
        // Deleted after we looked for it, and made anew by our own attaching: it goes with our descriptors.
        return Err(TunError::Missing(name));
    }
    let vnet_header = flags & libc::IFF_VNET_HDR != 0;
    if vnet_header {
        set_header_size(queue).map_err(setting(name, "TUNSETVNETHDRSZ"))?;
    }
    let offloads = TunMode {
        vnet_header,
        tso: wanted.tso && wanted.vnet_header && vnet_header,
        uso: wanted.uso && wanted.vnet_header && vnet_header,
    };
    // In plain mode too: a persistent device keeps the offloads of whoever had it before.
    for mode in offloads.plainer() {
        match set_number(queue, libc::TUNSETOFFLOAD, mode.offloads().into()) {
            Ok(()) => return Ok(mode),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => return Err(TunError::Setting { name, setting: "TUNSETOFFLOAD", source }),
        }
    }
    // Not even checksums, which every kernel since 2.6.27 leaves to us on request.
    let mode = TunMode { vnet_header, ..TunMode::PLAIN };
    set_number(queue, libc::TUNSETOFFLOAD, 0).map_err(setting(name, "TUNSETOFFLOAD"))?;
    Ok(mode)
}

fn setting(name: LinkName, setting: &'static str) -> impl FnOnce(io::Error) -> TunError {
    move |source| TunError::Setting { name, setting, source }
}

fn interface_request(name: LinkName, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: ifreq consists of bytes, integers and a pointer, for which zero is a value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// One of `TUNSETIFF`, `TUNGETIFF` and `TUNSETQUEUE`.
fn interface_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the three requests read and write one `struct ifreq`, which `argument` is, and keep no pointer to it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop).map_err(Into::into)
}

/// One of `TUNSETPERSIST` and `TUNSETOFFLOAD`.
fn set_number(fd: BorrowedFd<'_>, request: libc::Ioctl, number: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the two requests take their argument as a number and touch no memory of ours.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, number) };
    Errno::result(result).map(drop).map_err(Into::into)
}

fn set_header_size(fd: BorrowedFd<'_>) -> io::Result<()> {
    let size = VNET_HEADER_BYTES as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which outlives the call.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, std::ptr::from_ref(&size)) };
    Errno::result(result).map(drop).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_reads_as_what_it_is() {
        assert_eq!(TunMode::PLAIN.to_string(), "plain");
        assert_eq!(TunMode::FULL.to_string(), "virtio headers, TSO, USO");
        assert_eq!(TunMode { uso: false, ..TunMode::FULL }.to_string(), "virtio headers, TSO");
    }

    #[test]
    fn offloads_fall_back_from_uso_to_tso_to_checksums() {
        let offloads = TunMode::FULL.plainer().map(TunMode::offloads);
        assert_eq!(offloads, [0x6f, 0x0f, 0x01]);
    }

    #[test]
    fn an_error_says_what_the_kernel_answered() {
        let error = TunError::ControlDevice { source: io::Error::from_raw_os_error(libc::EPERM) };
        assert!(error.to_string().ends_with(": Operation not permitted (os error 1)"), "{error}");
        assert!(error.to_string().contains("run as root"), "{error}");
    }

    #[test]
    fn offloads_need_headers() {
        assert_eq!(TunMode { vnet_header: false, ..TunMode::FULL }.offloads(), 0);
    }

    #[test]
    fn a_deleted_device_is_told_from_one_that_is_down() {
        let errno = io::Error::from_raw_os_error;
        assert!(is_gone(&errno(libc::EBADFD)));
        assert!(!is_gone(&errno(libc::EIO)));
        assert!(!is_gone(&errno(libc::EAGAIN)));
    }
}
