//! A worker's decisions: join, claim, verify, fetch, train, upload, submit, again; when to renew,
//! when to give up, when to leave. No I/O, no clock, no randomness, no tensor.
//!
//! [`Worker::handle`] takes the time and an [`Input`] and pushes [`Effect`]s. The async shell
//! around it lives in `services/worker`. The shell gives the time, which must not go backwards (a
//! monotonic clock that starts at the wall clock's reading). The coordinator's clock is compared
//! only through the offset that a join or a renewal measured.
//!
//! ```text
//! joining → claiming → verifying → fetching → training → uploading → submitting → claiming …
//!               └─────────────── any of them → releasing → claiming … or leaving → ended
//! ```

mod answer_wait;
mod claiming;
mod effect;
mod held;
mod input;
mod joining;
mod lease;
mod leaving;
mod pauses;
mod result;
mod settings;
mod stage;
mod unit;
mod verdict;
mod worker;

pub use answer_wait::AnswerWait;
pub use effect::{Effect, Exit, HandIn, Pulse, Request, RequestId, WorkId};
pub use input::{Agreed, Answer, Input, NotVerified, Trained};
pub use result::ResultEnd;
pub use settings::Settings;
pub use worker::Worker;
