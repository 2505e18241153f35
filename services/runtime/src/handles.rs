//! The limit on open files and sockets of this process. Systems set it low for old programs, and
//! let each process raise its own.

use std::io;

/// Raises the limit to the highest that the system allows for this process, and returns the new
/// limit.
///
/// # Errors
/// The system does not say.
pub fn raise() -> io::Result<u64> {
    let mut limit = read()?;
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        // SAFETY: the call reads one `rlimit`, which outlives it.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
            limit = raised;
        } else {
            let error = io::Error::last_os_error();
            tracing::warn!(%error, handles = limit.rlim_cur, "the limit of open files stays as it is");
        }
    }
    Ok(limit.rlim_cur)
}

/// The limit as it is.
///
/// # Errors
/// The system does not say.
pub fn limit() -> io::Result<u64> {
    Ok(read()?.rlim_cur)
}

fn read() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes one `rlimit`, for which `limit` is room.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_highest_afterwards() {
        let raised = raise().expect("the system says");
        assert_eq!(raised, read().expect("the system says").rlim_max);
        assert_eq!(limit().expect("the system says"), raised);
    }
}
