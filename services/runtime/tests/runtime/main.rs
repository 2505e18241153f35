//! What every service does at its start: demands of credentials, and the bus.

mod auth;
mod bus;
mod listen;
mod listen_faults;
