//! The fold alone, event by event, without a coordinator.

mod checkpoints;
mod contradictions;
mod directions;
mod emitters;
mod ending;
mod figures;
mod given_up;
mod groups;
mod holds;
mod kit;
mod makers;
mod masked;
mod naming;
mod places;
mod pointers;
mod privacy;
mod quarantine;
mod restore;
mod revocation;
mod rounds;
mod screening;
mod successor;
mod tenants;
