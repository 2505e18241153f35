//! `diloco-store`: an S3 store in one process, for one machine and for tests.
//!
//! The crate `s3s` does the S3 protocol, signatures and expiry. The storage below it is ours,
//! because bytes must be verified before they can be seen. An upload goes to a temporary file on
//! the same file system, is hashed on the way, and gets its name only if length and sha256 agree.
//! See [`Store`].
//!
//! ```text
//! <root>/lock        held while a process serves the root; two would delete each other's temporary files
//! <root>/checked     the boot of the machine in which `incoming` was last checked for torn uploads
//! <root>/tmp/        uploads in progress; emptied at start
//! <root>/incoming/   bucket `incoming`: created once by holders of PUT URLs, swept after some days;
//!                    a file each, named by its key with commas for slashes
//! <root>/blobs/      bucket `blobs`: verified objects, and small named files that the admin key writes:
//!                    `stopped/RUN` for each run whose URLs are refused, `stopped/RUN.TAG` for each
//!                    worker of a run
//! <root>/log/        bucket `log`: the log of all events, each file of which is written once
//! ```
//! Architecture invariants: there is no multipart upload, no form, no body without a length or a
//! bound in time, no other bucket, no anonymous request, no plaintext beyond loopback; the put key
//! cannot write to `blobs` and the get key cannot write at all.

mod backend;
mod body;
mod budget;
pub mod config;
mod disk;
mod gate;
mod guard;
mod landing;
mod listing;
mod log_rules;
mod nested;
mod peer;
mod peers;
mod place;
mod power;
pub mod program;
mod refused;
mod rights;
mod root;
mod server;
pub mod settings;
mod stopped;
mod sweep;
mod upload;

pub use config::{Durability, StoreConfig, StoreLimits, Tls};
pub use server::{Store, StoreError};
