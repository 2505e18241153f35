//! Tests by topic; each drives the coordinator through its inputs only. After every input they also
//! check the state's invariants, that a replay of the ledger gives the same state, and that no
//! request is answered twice (`fixture::World`).

mod checkpoint;
mod collection;
mod control;
mod denial;
mod ending;
mod group;
mod guards;
mod heartbeat;
mod hold;
mod lease;
mod lists;
mod masked;
mod membership;
mod object;
mod order;
mod over;
mod pace;
mod privacy;
mod promotion;
mod property;
mod provenance;
mod quarantine;
mod quota;
mod repeat;
mod restore;
mod revocation;
mod round;
mod screening;
mod spare;
mod spending;
mod stopped;
mod submit;
mod successor;
mod tenant;
mod time;
mod trouble;
