//! Settings of this process's allocator for memory that is freed.

/// Keeps freed memory for the next buffers instead of giving it back to the system. Transfers and
/// merges free and ask for buffers of megabytes all the time, and each fresh one costs a page fault
/// for every 4 KiB: a tenth of a round's processor time. The process keeps its peak of memory,
/// which must be available anyway.
///
/// To be called first, before other threads exist. Does nothing where the allocator is not glibc's.
pub fn keep_freed() {
    #[cfg(target_env = "gnu")]
    {
        /// glibc maps and unmaps larger buffers one by one; this is the most it accepts.
        const MMAP_THRESHOLD_BYTES: libc::c_int = 32 << 20;
        /// Number of arenas that threads share: each arena keeps its own peak.
        const ARENAS_MAX: libc::c_int = 2;
        // SAFETY: `mallopt` sets numbers inside the allocator and takes its lock for it.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        }
    }
}
