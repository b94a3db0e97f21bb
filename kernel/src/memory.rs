//! The memory of this process.

use std::ptr::null_mut;

/// Makes jemalloc return freed memory to the kernel at once instead of after some seconds; does nothing with another
/// allocator. Takes some milliseconds after a start with 50,000 peers.
pub fn give_back() {
    /// All arenas: `MALLCTL_ARENAS_ALL` in `jemalloc(3)` is 4096.
    const PURGE: &std::ffi::CStr = c"arena.4096.purge";
    #[expect(unsafe_code)]
    // SAFETY: the name ends in a zero byte, and this control reads and writes no value: all other pointers are null.
    let outcome =
        unsafe { tikv_jemalloc_sys::mallctl(PURGE.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    if outcome != 0 {
        let reason = std::io::Error::from_raw_os_error(outcome);
        tracing::debug!(%reason, "cannot return freed memory to the kernel");
    }
}
