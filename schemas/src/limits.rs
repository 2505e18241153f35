//! Every bound in one place, each with its reason. A bound that only one crate needs may live
//! there; a bound that two sides must agree on lives here.

use crate::{Bytes, Millis};

/// Longest message that any decoder accepts. NATS is configured for 1 MiB; workers' JWTs allow 256
/// KiB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest message from a worker: matches the payload limit in the scoped worker template.
pub const WORKER_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Room for the envelope of an answer, on top of the reply in it.
pub const ENVELOPE_BYTES_MAX: usize = 512;
/// Longest event body: the audit log's entries must stay below the 64 KiB of tlog-tiles, with room
/// for the signature.
pub const EVENT_BYTES_MAX: usize = 16 << 10;
/// Longest signed event: a body, and room for its key, its signature and their names.
pub const SIGNED_EVENT_BYTES_MAX: usize = EVENT_BYTES_MAX + 512;
/// Longest order to a foundry, and longest answer: a restore names all merges since the last full
/// snapshot, with every chunk of every contribution, and a data manifest lists its shards. It is
/// longer than a message on the bus may be: between processes such an order travels as an object.
pub const FOUNDRY_BYTES_MAX: usize = 64 << 20;
/// Most inputs that one event seals: three numbers of at most 9 bytes each, and one that says so,
/// stay well below [`EVENT_BYTES_MAX`] together.
pub const SEALED_MAX: usize = 512;
/// A run's name is a subject token, an object-key segment and a table column.
pub const RUN_ID_BYTES_MAX: usize = 32;
/// Longest free text in a refusal or an event.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Largest object, and so the largest single PUT (`object-store`: S3 has no whole-object sha256 for
/// multipart).
pub const OBJECT_BYTES_MAX: Bytes = Bytes::mebi(256);
/// Most chunks of one copy of the weights. Their list has less than 1 MiB, and with chunks of 16
/// MiB the model a quarter of a TiB.
pub const CHUNKS_MAX: usize = 16_384;
/// Most chunks that are named where they are used, without a list: events name them all and stay
/// below [`EVENT_BYTES_MAX`].
pub const NAMED_CHUNKS_MAX: usize = 256;
/// Most objects in one request for URLs.
pub const GRANTS_MAX: usize = 256;
/// Most URLs that come with a lease: as many objects as a worker reads at a time, and one message
/// stays short.
pub const BASE_GRANTS_MAX: usize = 8;
/// Most tensors in a layout.
pub const TENSORS_MAX: usize = 16_384;
/// Most dimensions of a tensor.
pub const DIMENSIONS_MAX: usize = 8;
/// Most units in a round; each is one offer on the queue.
pub const UNITS_MAX: u32 = 4096;
/// Most workers of one run.
pub const WORKERS_MAX: usize = 4096;
/// Most data shards that one unit reads.
pub const UNIT_SHARDS_MAX: usize = 64;
/// Most shards of a data set: they are listed in one manifest object.
pub const SHARDS_MAX: usize = 65_536;
/// Most runs that one coordinator knows.
pub const RUNS_MAX: usize = 1024;
/// A presigned URL's life by the store's clock: it covers queueing, not the transfer (expiry is
/// checked at the start).
pub const URL_LIFE: Millis = Millis::from_secs(60);
/// The longest a claim is held open when there is nothing to do. A claim that is lost with its
/// coordinator costs its worker this long and a little more, so it is short; and a claim every few
/// seconds from each idle worker is little to answer.
pub const CLAIM_WAIT_MAX: Millis = Millis::from_secs(5);
/// The time that a requester waits for an answer before it asks again; longer than
/// [`CLAIM_WAIT_MAX`].
pub const REQUEST_TIMEOUT: Millis = Millis::from_secs(30);
/// Shortest lease. A fail-over of a replicated stream takes 6 s: an operator who wants that to cost
/// no lease chooses a longer one.
pub const LEASE_MIN: Millis = Millis::from_secs(5);
/// Longest lease: a lost worker's unit is issued again after at most this.
pub const LEASE_MAX: Millis = Millis::from_secs(24 * 3600);
/// Largest tokens in one sequence.
pub const SEQUENCE_TOKENS_MAX: u32 = 131_072;
/// Largest mean loss, nats a token, that anybody states. A guess among 2^32 tokens costs 22; a
/// model that has diverged may reach some hundreds, and beyond this its weights are of no use to
/// others.
pub const LOSS_MAX: f64 = 1e4;
/// Highest speed that a worker states, tokens a second: a hundred times what one machine does with
/// the smallest model.
pub const SPEED_MAX: f64 = 1e9;
/// Most bytes a second, in one direction, that a worker is believed to have moved since it joined:
/// a line of 100 Gbit/s. So no sum over workers comes near the end of its type within years.
pub const TRAFFIC_MAX: Bytes = Bytes(12_500_000_000);
/// Most failed attempts at transfers a second that a worker is believed to have made since it
/// joined: sixteen run side by side in each direction, with a pause after each.
pub const TRANSFER_FAILURES_PER_SECOND_MAX: u64 = 1000;
/// Most memory of a device that a worker states: a thousand times what one has.
pub const DEVICE_MEMORY_MAX: Bytes = Bytes(1 << 50);
/// Longest time that the inner steps of a unit are said to have taken: credentials do not last
/// longer.
pub const TRAIN_MAX: Millis = Millis::from_secs(366 * 24 * 3600);
