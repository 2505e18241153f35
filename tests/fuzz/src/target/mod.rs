//! The list of targets.

mod asked;
mod cores;
mod files;
mod keys;
mod signed;
mod store;
mod tensors;
mod wire;
mod worker;

/// Something that reads bytes of others.
pub struct Target {
    /// Its name, which is also that of its folder in the corpus.
    pub name: &'static str,
    /// What it feeds with the bytes.
    pub reads: &'static str,
    /// Inputs as they should be.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads one input. It panics if something does not hold.
    pub run: fn(&[u8]),
    /// Changes that the tests try; targets that take longer try fewer.
    pub changes: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "message",
        reads: "every type of message and answer; the first byte says which",
        seeds: wire::messages,
        run: wire::message,
        changes: 20_000,
    },
    Target {
        name: "name",
        reads: "subjects, identifiers, digests, keys of objects, quantities, patterns",
        seeds: wire::names,
        run: wire::name,
        changes: 5_000,
    },
    Target {
        name: "broker",
        reads: "the broker's words, in pieces",
        seeds: wire::broker_words,
        run: wire::broker,
        changes: 5_000,
    },
    Target {
        name: "sentry",
        reads: "what the broker publishes of its clients, and lines of its log; the first byte chooses",
        seeds: wire::sightings,
        run: wire::sighting,
        changes: 20_000,
    },
    Target {
        name: "token",
        reads: "NATS tokens, signed as they should be, and credentials files",
        seeds: signed::tokens,
        run: signed::token,
        changes: 1_000,
    },
    Target {
        name: "manifest",
        reads: "a lease's manifest and a command: the compact document, and claims that are signed; and trust bundles and invitations",
        seeds: signed::manifests,
        run: signed::manifest,
        changes: 500,
    },
    Target {
        name: "certificate",
        reads: "certificates in DER",
        seeds: signed::certificates,
        run: signed::certificate,
        changes: 5_000,
    },
    Target {
        name: "envelope",
        reads: "envelopes of provenance, signatures of releases, and sealed shares of masks",
        seeds: signed::envelopes,
        run: signed::envelope,
        changes: 1_000,
    },
    Target {
        name: "event",
        reads: "messages in a stream of events, their bodies signed, and entries of the log",
        seeds: signed::events,
        run: signed::event,
        changes: 500,
    },
    Target {
        name: "head",
        reads: "heads, bundles and proofs of the log, policies and cosignatures of witnesses",
        seeds: signed::heads,
        run: signed::head,
        changes: 3_000,
    },
    Target {
        name: "weights",
        reads: "encoded weights, in each codec",
        seeds: tensors::encodings,
        run: tensors::weights,
        changes: 2_000,
    },
    Target {
        name: "tensors",
        reads: "safetensors files",
        seeds: tensors::files,
        run: tensors::file,
        changes: 1_000,
    },
    Target {
        name: "model",
        reads: "configurations of models, data manifests, tokenizers, shards, lists of chunks",
        seeds: tensors::descriptions,
        run: tensors::description,
        changes: 2_000,
    },
    Target {
        name: "checkpoint",
        reads: "a checkpoint of the ledger's state",
        seeds: cores::checkpoints,
        run: cores::checkpoint,
        changes: 500,
    },
    Target {
        name: "coordinator",
        reads: "questions of workers and operators, one after another, to a coordinator with a run",
        seeds: cores::conversations,
        run: cores::conversation,
        changes: 500,
    },
    Target {
        name: "worker",
        reads: "a coordinator's answers, leases and commands to a worker, one after another",
        seeds: worker::lives,
        run: worker::life,
        changes: 10_000,
    },
    Target {
        name: "intake",
        reads: "workers' events and questions for tokens, under any subject",
        seeds: cores::arrivals,
        run: cores::arrival,
        changes: 2_000,
    },
    Target {
        name: "question",
        reads: "questions about the log under any subject, answered out of a folder of a log",
        seeds: asked::questions,
        run: asked::question,
        changes: 5_000,
    },
    Target {
        name: "store",
        reads: "bytes on the socket of the S3 store",
        seeds: store::requests,
        run: store::request,
        changes: 150,
    },
];
