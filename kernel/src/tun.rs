//! TUN queues with virtio-net headers and offloads, read and written from plain threads.
//!
//! Source for the kernel's behaviour: `drivers/net/tun.c` and `Documentation/networking/tuntap.rst`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;

use crate::LinkName;

/// Bytes of a `struct virtio_net_hdr` (`linux/virtio_net.h`), which precedes every packet of a queue with
/// [`TunMode::vnet_header`]. Its fields are in host order.
pub const VNET_HEADER_BYTES: usize = 10;

/// Most queues that [`TunQueue::open`] attaches. The kernel's own limit is 256 per device (`MAX_TAP_QUEUES`).
pub const MAX_QUEUES: usize = 64;

/// What precedes a packet of a TUN queue, and how large packets from the kernel may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TunMode {
    /// Every packet, read or written, follows a `virtio_net_hdr` of [`VNET_HEADER_BYTES`]; the kernel leaves transport
    /// checksums to us. The other two modes require it.
    pub vnet_header: bool,
    /// The kernel passes TCP packets of up to 64 KiB, both families, for the reader to segment.
    pub tso: bool,
    /// The same for UDP (kernel 6.2 and later).
    pub uso: bool,
}

impl TunMode {
    /// One packet per call, as on the wire: what every kernel supports.
    pub const PLAIN: Self = Self { vnet_header: false, tso: false, uso: false };
    /// Everything.
    pub const FULL: Self = Self { vnet_header: true, tso: true, uso: true };

    /// Returns the argument of `TUNSETOFFLOAD`.
    fn offloads(self) -> libc::c_uint {
        let when = |wanted, flags| if wanted { flags } else { 0 };
        when(self.vnet_header, libc::TUN_F_CSUM)
            | when(self.vnet_header && self.tso, libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN)
            | when(self.vnet_header && self.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
    }

    /// Returns this mode and its fallbacks, best first.
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

/// Why a TUN device could not be created or opened.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing or cannot be opened.
    #[error("opening /dev/net/tun ({advice}): {source}", advice = advice(.source))]
    ControlDevice {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to create the device or to add a queue. `EINVAL` and `EBUSY`: a device of that name exists,
    /// but is not a TUN device or has a single queue.
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
    /// The device to attach to does not exist, or disappeared meanwhile.
    #[error("TUN device {0} does not exist")]
    Missing(LinkName),
    /// tokio-tun could not open the queues.
    #[error("opening {queues} queues of device {name}: {source}")]
    Queues {
        /// The device.
        name: LinkName,
        /// The requested number.
        queues: usize,
        /// The cause.
        #[source]
        source: tokio_tun::Error,
    },
    /// The number of queues is out of bounds.
    #[error("cannot open {0} queues; 1 to {MAX_QUEUES} are possible")]
    QueueCount(usize),
    /// Called outside of a tokio runtime, which tokio-tun needs.
    #[error("TUN queues can only be opened inside a tokio runtime: {0}")]
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

/// Returns how to make `/dev/net/tun` usable.
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

/// Creates a persistent multi-queue TUN device without packet information, and with virtio-net headers if `mode` has
/// them. It outlives the process, and is deleted over netlink. It has no address yet and is down.
///
/// Idempotent: an existing multi-queue TUN device of that name is kept, and made persistent.
///
/// The kernel keeps of `mode` only what the first attached queue sets again; [`TunQueue::open`] does so, and sets
/// offloads.
pub fn create(name: LinkName, mode: TunMode) -> Result<(), TunError> {
    let device = attach(name, mode)?;
    set_number(device.as_fd(), libc::TUNSETPERSIST, 1).map_err(setting(name, "TUNSETPERSIST"))
}

/// Returns the index of a device, which changes when the device is created again.
pub fn index_of(name: LinkName) -> Option<u32> {
    nix::net::if_::if_nametoindex(name.as_str()).ok()
}

/// One queue of a TUN device. Reads and writes move one packet, and never block.
///
/// Dropping it detaches the queue: packets queued there are lost, and the kernel spreads flows over the other queues.
#[derive(Debug)]
pub struct TunQueue {
    file: File,
}

impl TunQueue {
    /// Attaches `queues` queues (1 to [`MAX_QUEUES`]) to the existing device `name`. Returns the mode in force:
    /// `wanted`, or the next simpler one that the kernel accepts. Offloads belong to the device, so its queues share
    /// the mode.
    ///
    /// If another process has queues of the device open, its choice of headers applies, and it gets some of the
    /// packets.
    ///
    /// Must be called in a tokio runtime; the queues themselves do not need it.
    pub fn open(name: LinkName, queues: usize, wanted: TunMode) -> Result<(Vec<Self>, TunMode), TunError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(TunError::QueueCount(queues));
        }
        let mut opened = open_asynchronous(name, queues, wanted)?;
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

    /// Reads one packet with what precedes it; truncates packets longer than `buffer`. [`io::ErrorKind::WouldBlock`] if
    /// there is none. A packet with offloads has up to 65,535 bytes after its header.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    /// Writes one packet with what precedes it, gathered from at most 1,024 `slices` (`IOV_MAX`).
    ///
    /// `EIO`: the device is down, and packets are lost until it is up again. `EINVAL`: the kernel rejects the header. A
    /// partial write is an error of kind [`io::ErrorKind::WriteZero`].
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

/// Returns whether an error of a read or write means that the device was deleted, which makes the queue useless. The
/// kernel returns `EBADFD` (seen on 6.18, reading and writing; `tun_ring_recv` has `EFAULT` for a read in progress).
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EFAULT | libc::ENODEV))
}

/// Opens a new descriptor and attaches it to device `name`, creating the device if needed.
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

/// Keeps a queue attached to its device, but without packets.
fn disable(name: LinkName, queue: &File) -> Result<(), TunError> {
    let mut request = interface_request(name, libc::IFF_DETACH_QUEUE);
    interface_ioctl(queue.as_fd(), libc::TUNSETQUEUE, &mut request).map_err(setting(name, "TUNSETQUEUE"))
}

/// A queue of a TUN device in plain mode, for one tokio runtime.
///
/// A call that waits for a packet does not end when the device is deleted.
pub struct AsyncTun(tokio_tun::Tun);

impl AsyncTun {
    /// Attaches two queues, the fewest that tokio-tun attaches to a multi-queue device, to the existing device `name`.
    ///
    /// Must be called in the runtime that uses them.
    ///
    /// # Errors
    /// [`TunError`].
    pub fn open(name: LinkName) -> Result<[Self; 2], TunError> {
        let opened = open_asynchronous(name, 2, TunMode::PLAIN)?;
        let queues: [tokio_tun::Tun; 2] = opened.try_into().map_err(|_| TunError::QueueCount(2))?;
        if set_mode(name, descriptor(&queues[0]), TunMode::PLAIN)?.vnet_header {
            let reason = "another process has queues of the device open with virtio-net headers";
            return Err(setting(name, "plain mode")(io::Error::new(io::ErrorKind::ResourceBusy, reason)));
        }
        Ok(queues.map(Self))
    }

    /// Reads one packet; truncates one longer than `buffer`.
    ///
    /// # Errors
    /// When the device is gone.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer).await
    }

    /// Writes one packet.
    ///
    /// # Errors
    /// `EIO`: the device is down. See [`is_gone`] for a device that was deleted.
    pub async fn send(&self, packet: &[u8]) -> io::Result<usize> {
        self.0.send(packet).await
    }
}

/// Opens at least two queues of the existing device `name` by tokio-tun.
fn open_asynchronous(
    name: LinkName,
    queues: usize,
    wanted: TunMode,
) -> Result<Vec<tokio_tun::Tun>, TunError> {
    tokio::runtime::Handle::try_current().map_err(TunError::NoRuntime)?;
    // Attaching to an unused name would create a device.
    nix::net::if_::if_nametoindex(name.as_str()).map_err(|_| TunError::Missing(name))?;

    // tokio-tun cannot request virtio headers. The first queue of a device decides for all later ones, so it is one
    // of ours, disabled at once because nobody reads it. It also detects most errors before tokio-tun does, which
    // leaks descriptors when it fails.
    let first = attach(name, wanted)?;
    disable(name, &first)?;

    // With fewer than two, tokio-tun opens a single-queue device, which is another kind of device.
    let opened = tokio_tun::Tun::builder()
        .name(name.as_str())
        .queues(queues.max(2))
        .build()
        .map_err(|source| TunError::Queues { name, queues, source })?;
    drop(first);
    Ok(opened)
}

/// Borrows the descriptor of a tokio-tun queue.
fn descriptor(tun: &tokio_tun::Tun) -> BorrowedFd<'_> {
    // SAFETY: `tun` owns the descriptor and is borrowed for as long as the borrowed descriptor lives.
    #[allow(unsafe_code)]
    unsafe {
        BorrowedFd::borrow_raw(tun.as_raw_fd())
    }
}

/// Duplicates the descriptor of a tokio-tun queue, for use outside of tokio.
///
/// tokio registers its own descriptor with the runtime's epoll, so that each packet would wake a runtime thread as well
/// as ours. Dropping the [`tokio_tun::Tun`] ends that; the queue stays attached as long as this duplicate is open.
fn duplicate(tun: &tokio_tun::Tun) -> io::Result<File> {
    Ok(File::from(descriptor(tun).try_clone_to_owned()?))
}

/// Sets offloads and header size, which belong to the device, through one of its queues.
fn set_mode(name: LinkName, queue: BorrowedFd<'_>, wanted: TunMode) -> Result<TunMode, TunError> {
    let mut request = interface_request(name, 0);
    interface_ioctl(queue, libc::TUNGETIFF, &mut request).map_err(setting(name, "TUNGETIFF"))?;
    // SAFETY: TUNGETIFF fills in ifru_flags; every bit pattern is a c_short.
    #[allow(unsafe_code)]
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_PERSIST == 0 {
        // Deleted after the lookup, and recreated by attaching: it disappears with our descriptors.
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
    // In plain mode too: a persistent device keeps the offloads of its previous user.
    for mode in offloads.plainer() {
        match set_number(queue, libc::TUNSETOFFLOAD, mode.offloads().into()) {
            Ok(()) => return Ok(mode),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(source) => return Err(TunError::Setting { name, setting: "TUNSETOFFLOAD", source }),
        }
    }
    // Not even checksums, which every kernel since 2.6.27 supports.
    let mode = TunMode { vnet_header, ..TunMode::PLAIN };
    set_number(queue, libc::TUNSETOFFLOAD, 0).map_err(setting(name, "TUNSETOFFLOAD"))?;
    Ok(mode)
}

fn setting(name: LinkName, setting: &'static str) -> impl FnOnce(io::Error) -> TunError {
    move |source| TunError::Setting { name, setting, source }
}

fn interface_request(name: LinkName, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: ifreq consists of bytes, integers and a pointer, for which zero is a valid value.
    #[allow(unsafe_code)]
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// Calls `TUNSETIFF`, `TUNGETIFF` or `TUNSETQUEUE`.
fn interface_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the three requests read and write one `struct ifreq`, which `argument` is, and keep no pointer to it.
    #[allow(unsafe_code)]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(result).map(drop).map_err(Into::into)
}

/// Calls `TUNSETPERSIST` or `TUNSETOFFLOAD`.
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
