//! Every bound in one place, each with its reason. A bound that only one crate needs may live
//! there; a bound that two sides must agree on lives here.

use crate::{Bytes, Millis};

/// Longest message that any decoder accepts. NATS is configured for 1 MiB; workers' JWTs allow 256
/// KiB.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest message from a worker: the payload limit in the workers' role template.
pub const WORKER_MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Space for the envelope of an answer, in addition to the reply in it.
pub const ENVELOPE_BYTES_MAX: usize = 512;
/// Longest event body: the audit log's entries must stay below the 64 KiB of tlog-tiles, with room
/// for the signature.
pub const EVENT_BYTES_MAX: usize = 16 << 10;
/// Longest signed event: a body, and room for its key, its signature and their names.
pub const SIGNED_EVENT_BYTES_MAX: usize = EVENT_BYTES_MAX + 512;
/// Longest order to a foundry, and longest answer: a restore names all merges since the last full
/// snapshot, with every chunk of every contribution, and a data manifest lists its shards. This is
/// longer than a message on the bus may be, so between processes such an order travels as an
/// object.
pub const FOUNDRY_BYTES_MAX: usize = 64 << 20;
/// Most inputs that one event seals: three numbers for each, of at most 9 bytes, and one byte for
/// the array stay well below [`EVENT_BYTES_MAX`] together.
pub const SEALED_MAX: usize = 512;
/// Most contributions that one event compares: two whole numbers and a cosine for each, of at most
/// 16 bytes together with their frame, stay well below [`EVENT_BYTES_MAX`].
pub const COMPARED_MAX: usize = 512;
/// A run's name is a subject token, an object-key segment and a table column.
pub const RUN_ID_BYTES_MAX: usize = 32;
/// A tenant's name begins the names of its runs, so it leaves half of their length to each.
pub const TENANT_NAME_BYTES_MAX: usize = 15;
/// Longest reason of an operator's order.
pub const REASON_BYTES_MAX: usize = 256;
/// Longest free text in a refusal or an event.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Largest object, and so the largest single PUT (`object-store`: S3 has no whole-object sha256 for
/// multipart).
pub const OBJECT_BYTES_MAX: Bytes = Bytes::mebi(256);
/// Most chunks of one copy of the weights. Their list has less than 1 MiB; with chunks of 16 MiB
/// the model has a quarter of a TiB.
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
/// Most tenants that a domain ever has, its own and those that ended among them. Each has a stream,
/// for which the broker reserves space.
pub const TENANTS_MAX: usize = 64;
/// The same without the domain's own.
pub const FURTHER_TENANTS_MAX: usize = TENANTS_MAX - 1;
/// Most data shards that one unit reads.
pub const UNIT_SHARDS_MAX: usize = 64;
/// Most shards of a data set: they are listed in one manifest object.
pub const SHARDS_MAX: usize = 65_536;
/// Most runs that one coordinator knows.
pub const RUNS_MAX: usize = 1024;
/// Life of a presigned URL by the store's clock. It covers waiting, not the transfer, since expiry
/// is checked at the start.
pub const URL_LIFE: Millis = Millis::from_secs(60);
/// Time after which no URL of a run is taken, from the moment in the ledger since which none is
/// given out. It is more than a URL's life, what clocks may differ by, and the time until the
/// answer to an earlier request is signed, which waits for the ledger.
pub const URLS_OUT_MAX: Millis = Millis::from_secs(24 * 3600);
/// Longest time for which a claim is held open without work. A claim that is lost with its
/// coordinator costs its worker this time and a little more, so it is short; and a claim from each
/// idle worker every few seconds is little work.
pub const CLAIM_WAIT_MAX: Millis = Millis::from_secs(5);
/// Time that an asker waits for an answer before it asks again; longer than [`CLAIM_WAIT_MAX`].
pub const REQUEST_TIMEOUT: Millis = Millis::from_secs(30);
/// Shortest lease. A fail-over of a replicated stream takes 6 s; operators choose a longer lease if
/// that should cost none.
pub const LEASE_MIN: Millis = Millis::from_secs(5);
/// Longest lease, after which a lost worker's unit is issued again at the latest.
pub const LEASE_MAX: Millis = Millis::from_secs(24 * 3600);
/// Most tokens in one sequence.
pub const SEQUENCE_TOKENS_MAX: u32 = 131_072;
/// Largest mean loss that is accepted, in nats a token. A guess among 2^32 tokens costs 22; a model
/// that has diverged may reach some hundreds, and above this limit its weights are useless to
/// others.
pub const LOSS_MAX: f64 = 1e4;
/// Highest speed that is accepted, in tokens a second: a hundred times that of one machine with the
/// smallest model.
pub const SPEED_MAX: f64 = 1e9;
/// Most bytes a second, in one direction, that a worker may claim to have transferred since it
/// joined: a line of 100 Gbit/s. With it no sum over workers reaches the end of its type within
/// years.
pub const TRAFFIC_MAX: Bytes = Bytes(12_500_000_000);
/// Most failed transfers a second that a worker may claim since it joined: sixteen run in parallel
/// in each direction, with a pause after each.
pub const TRANSFER_FAILURES_PER_SECOND_MAX: u64 = 1000;
/// Most device memory that a worker may claim: a thousand times that of one device.
pub const DEVICE_MEMORY_MAX: Bytes = Bytes(1 << 50);
/// Longest time that the inner steps of a unit may claim: credentials do not last longer.
pub const TRAIN_MAX: Millis = Millis::from_secs(366 * 24 * 3600);
