//! Fuzz targets: everything that reads bytes of others, fed with bytes that nobody would send.
//!
//! A target is a function on bytes. It fails by a panic, by an endless loop, or by a property of
//! its own that does not hold (say, that what was read and written again reads as the same). The
//! same functions run in three ways:
//!
//! * `cargo test -p fuzz` replays the corpus and the seeds, and then some thousand changes of each,
//!   drawn from fixed numbers. This is part of `cargo xtask test`.
//! * `cargo xtask fuzz TARGET` lets libFuzzer search for inputs that reach new code.
//! * `cargo xtask fuzz TARGET FILE` runs one input, for a debugger.
//!
//! | file | reads |
//! | --- | --- |
//! | `target/wire` | messages, answers, subjects, names, the broker's words |
//! | `target/signed` | tokens, manifests, certificates, envelopes, events, heads, proofs |
//! | `target/tensors` | encoded weights, tensor files, shards, models, lists of chunks |
//! | `target/files` | what people carry: trust bundles, invitations, releases, policies, sealed shares |
//! | `target/cores` | the handlers of coordinator, registrar, audit service, and a checkpoint |
//! | `target/worker` | the handler of a worker |
//! | `target/asked` | questions about the log: the audit service's handler, and the folder that answers |
//! | `target/store` | the S3 store, by its socket |
//! | `change` | the changes that tests try |

pub mod change;
mod target;

pub use target::{TARGETS, Target};
