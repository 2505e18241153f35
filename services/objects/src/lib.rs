//! The bulk plane: immutable objects in an S3 store, named by the sha256 of their bytes.
//!
//! * [`key`]: where an object lies; keys are built and parsed there only.
//! * [`endpoint`]: the address of the store, and the authority that its certificate needs.
//! * [`presign`]: short URLs for one object and one method, signed by the store's clock.
//! * [`buckets`]: the coordinator's own access; [`transfer`]: a worker's, through granted URLs
//!   only.
//! * [`cache`]: objects on local disk; [`check`]: checks that a store enforces what this design
//!   depends on.
//!
//! Nobody gets a byte that was not hashed: every read compares digest and length before it returns.
//!
//! Architecture invariant: no URL that leaves this crate can write to the bucket `blobs`, and
//! nothing here follows redirects, uses proxies or system trust roots, or decodes content.

pub mod buckets;
pub mod cache;
pub mod check;
mod client;
pub mod endpoint;
pub mod error;
pub mod key;
mod lanes;
mod limits;
mod line;
mod link;
mod log;
mod pace;
pub mod presign;
mod reader;
mod refusal;
mod sink;
mod stall;
#[cfg(test)]
mod stub;
pub mod transfer;

pub use buckets::{Buckets, Recorded, Taken, local_now};
pub use cache::{Cache, CacheError};
pub use endpoint::{Endpoint, EndpointError, Trust};
pub use error::ObjectError;
pub use key::{BlobKey, BucketName, IncomingKey, KeyError};
pub use limits::TransferLimits;
pub use line::unacknowledged;
pub use log::{LogBucket, Replaced, Tagged};
pub use pace::random_fraction;
pub use presign::{Signer, StoreClock};
pub use reader::BlobReader;
pub use transfer::{Moved, Regrant, Stored, Transfer};
