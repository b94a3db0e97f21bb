//! What this process holds of the host's memory.

/// Gives back to the kernel what was allocated and freed again. glibc keeps it for the next time, and after a start with
/// 50,000 peers that is as much as everything in use; it costs some milliseconds then.
///
/// Elsewhere the allocator gives back by itself, and this does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(unsafe_code)]
        // SAFETY: `malloc_trim` takes no pointer, touches free memory alone, and may run beside any other use of the
        // allocator (`malloc_trim(3)`: MT-Safe).
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
