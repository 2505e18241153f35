//! A whole cluster for tests and benches: a trust domain of its own in a scratch folder, the real
//! nats-server started from `nats-config/dev.conf` as `auth init` copies it, and the project's
//! programs as child processes. Everything ends with the [`Cluster`].
//!
//! This is a library for tests: every failure panics with the thing and the value in the message,
//! and a test that panics prints the last lines of every log.

mod binary;
mod broker;
mod cluster;
mod evidence;
mod line;
mod operator;
mod process;
mod raw;
pub mod scripted;
mod server;
mod tenant;

pub use binary::{nats_server, program};
pub use cluster::{Cluster, Options};
pub use evidence::{Evidence, Recorded};
pub use line::{Line, Quality};
pub use operator::Operator;
pub use process::{Output, Process, Signal};
pub use raw::{RawConnection, publication};
pub use scripted::{Scripted, refused_raw};
pub use server::NatsServer;
pub use tenant::Tenant;

use std::time::Duration;

/// Time for any single step, more than a busy machine needs; a step that takes longer is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at a file or a process.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Calls `seen` until it returns a value; none if `within` is over first.
pub async fn look<T>(within: Duration, mut seen: impl FnMut() -> Option<T>) -> Option<T> {
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            ticks.tick().await;
            if let Some(value) = seen() {
                return value;
            }
        }
    };
    tokio::time::timeout(within, looking).await.ok()
}
