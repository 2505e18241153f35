//! Bounds of transfers.

use std::time::Duration;

/// Limits of a [`Transfer`](crate::Transfer). The caller's deadline limits the time of a whole
/// transfer.
#[derive(Clone, Debug)]
pub struct TransferLimits {
    /// Longest silence while bytes are expected, and longest wait for an answer.
    pub idle: Duration,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// The first pause after a failure; doubled each time.
    pub pause_first: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Idle connections kept for reuse.
    pub connections_max: usize,
    /// Most transfers of one direction at the same time, on a good line.
    pub parallel_max: usize,
}

impl Default for TransferLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(20),
            connect: Duration::from_secs(10),
            pause_first: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
            connections_max: 16,
            parallel_max: 16,
        }
    }
}
