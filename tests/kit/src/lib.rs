//! Values that the tests of many crates need, each built in one place: settings of a run, names,
//! members, units and their results, data sets. A new field of a message gets its value for all
//! tests here.
//!
//! Nothing here talks to anything; `harness` starts the programs that do.

mod data;
mod member;
mod name;
mod run;
#[cfg(feature = "signed")]
mod signed;
#[cfg(feature = "signed")]
mod signed_log;
mod work;

pub use data::{DataBuilder, data};
pub use member::{join_request, joined, session};
pub use name::{account, audit_key, object, operator, public_key, run_id, sized, worker};
pub use run::{BF16, FP32, RunSpecBuilder, masked_run_spec, privacy, run_spec};
#[cfg(feature = "signed")]
pub use signed::trust;
#[cfg(feature = "signed")]
pub use signed_log::SignedLog;
pub use work::{contribution, evaluate, evaluation, lease, statement, train, weights};
