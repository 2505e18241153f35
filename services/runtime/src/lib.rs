//! The parts that every process shares: configuration in layers, the one check of `require_auth`,
//! logging, shutdown, the clock, the connections to the bus, the accounts at the brokers, the
//! allocator's settings, and the end of a process.

pub mod accounts;
pub mod auth;
pub mod bus;
pub mod clock;
pub mod config;
mod denial;
pub mod evidence;
pub mod exit;
pub mod expiry;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod handles;
pub mod handshake;
mod listen;
pub mod log;
pub mod materials;
pub mod memory;
pub mod metrics;
mod origin;
mod probe;
pub mod quantity;
pub mod ready;
pub mod refusals;
mod renewal;
pub mod service;
pub mod shutdown;
pub mod stranger;
mod stream;
mod successor;
mod switches;
pub mod throttle;

pub use auth::{AuthConfig, validate};
pub use bus::{Bus, BusConfig, BusError, Subscription};
pub use config::{ConfigArgs, Loaded, Origins};
pub use exit::Failure;
pub use listen::{Delivery, Gap, Listener, Silence};
pub use log::LogArgs;
pub use materials::{Material, Materials};
pub use quantity::{ConfigBytes, ConfigDuration};
pub use refusals::Refusals;
pub use stream::{Ahead, ApiError, Batch, StoredMessage, StreamError, StreamReader, StreamSpan};
pub use switches::switches_reference;
