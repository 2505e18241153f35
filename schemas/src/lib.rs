//! Everything that goes over the wire, and nothing else: quantities, identifiers, messages,
//! subjects, the permission table, limits and error codes. All other crates of this workspace
//! depend on this one; it depends on none of them.
//!
//! Three rules hold for every message. Its first field is a version, and another version is refused
//! ([`V`]). It is MessagePack with named fields, read through [`Message::decode`], which checks the
//! length before it parses. Unknown fields are refused, so that two builds never disagree in
//! silence. Answers stand in an envelope of their own ([`answer`]).

pub mod account;
pub mod answer;
pub mod blob;
pub mod call;
pub mod checkpoint;
pub mod chunks;
pub mod code;
pub mod codec;
pub mod collection;
pub mod contribution;
pub mod control;
pub mod data;
pub mod digest;
pub mod ending;
pub mod enrolment;
pub mod event;
pub mod foundry;
pub mod head;
pub mod hold;
pub mod id;
pub mod keys;
pub mod layout;
pub mod lease;
pub mod limits;
pub mod log_manifest;
pub mod masking;
pub mod member;
pub mod message;
pub mod permission;
pub mod promotion;
pub mod provenance;
pub mod public;
pub mod quarantine;
pub mod renewal;
pub mod restore;
pub mod revocation;
pub mod role;
pub mod run;
pub mod seat;
pub mod security;
pub mod snapshot;
pub mod subject;
pub mod sync;
pub mod telemetry;
pub mod tenant;
pub mod text;
pub mod unit;
pub mod view;
pub mod voice;
pub mod weights;

pub use answer::{Addressee, Answer, is_answer};
pub use chunks::{Chunks, Listed};
pub use code::{Class, Code, Coded, Refusal};
pub use digest::{Digest, Hasher, ObjectRef};
pub use id::{AccountId, IdError, PublicKey, RunId, TenantName, WorkerId};
pub use message::{DecodeError, Message, Reply, V};
pub use seat::{GroupId, Rank, Seat};
pub use sync::SyncId;
pub use unit::{
    Bytes, ChainSequence, Epoch, Fragment, Millis, Round, Steps, Tokens, UnitIndex, UnixMillis,
    Weight,
};
