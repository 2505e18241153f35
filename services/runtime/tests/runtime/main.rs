//! The start of every service: demands for credentials, and the bus.

mod accounts;
mod auth;
mod bus;
mod listen;
mod listen_faults;
mod mutual;
mod refusals;
mod renewal;
mod together;
