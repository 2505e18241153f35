//! Keys, tokens, certificates and trust domains: on disk, in handshakes, and in front of a real
//! broker.

mod bus;
mod domain;
mod invitations;
mod jwt;
mod jwt_bounds;
mod kept;
mod mutual;
mod older;
mod refresh;
mod revocation;
mod rotation;
mod tenants;
mod tls;
mod vault;
