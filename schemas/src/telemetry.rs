//! Telemetry: lossy and unsigned, so no decision about a round depends on it. A heartbeat also
//! shows that a worker lives.

use serde::{Deserialize, Serialize};

use crate::lease::LeaseRef;
use crate::limits::WORKER_MESSAGE_BYTES_MAX;
use crate::member::Session;
use crate::message::{V, message};
use crate::{Bytes, Millis, Steps, Tokens};

/// `heartbeat`: a worker's report of its present work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Version.
    pub v: V<4>,
    /// The session of the worker; its counts begin with its process.
    pub session: Session,
    /// The phase it is in.
    pub phase: Phase,
    /// The lease it holds.
    pub lease: Option<LeaseRef>,
    /// Inner steps done on it.
    pub steps_done: Steps,
    /// Tokens trained since the process started.
    pub tokens: Tokens,
    /// Recent speed.
    pub tokens_per_second: f64,
    /// Loss of the last step, nats a token.
    pub loss: Option<f64>,
    /// Uploaded since the process started.
    pub bytes_up: Bytes,
    /// Downloaded since the process started.
    pub bytes_down: Bytes,
    /// Its other metrics.
    pub metrics: WorkerMetrics,
}

/// The metrics of a worker's process besides tokens and bytes. Each except the memory only grows
/// while the process lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerMetrics {
    /// Time in which data and weights of units were fetched.
    pub fetch: Millis,
    /// Time of inner steps.
    pub train: Millis,
    /// Time in which contributions were encoded.
    pub encode: Millis,
    /// Time in which contributions were uploaded; later chunks are encoded meanwhile.
    pub upload: Millis,
    /// Failed attempts at a transfer; most of them were repeated.
    pub transfer_failures: u64,
    /// Memory of the CUDA device that the trainer holds, where it computes on one.
    pub device_memory: Option<Bytes>,
}

impl WorkerMetrics {
    /// The time in each lane, by the lane's name.
    pub const fn lanes(&self) -> [(&'static str, Millis); 4] {
        [
            ("fetch", self.fetch),
            ("train", self.train),
            ("encode", self.encode),
            ("upload", self.upload),
        ]
    }
}

/// The phase that a worker is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It asks to join.
    Joining,
    /// It waits for work.
    Claiming,
    /// It downloads weights or data.
    Fetching,
    /// It trains or evaluates.
    Training,
    /// It encodes and uploads.
    Uploading,
    /// It waits for the answer to its result.
    Submitting,
    /// It is stopping.
    Leaving,
}

message!(Heartbeat, "heartbeat", WORKER_MESSAGE_BYTES_MAX);
