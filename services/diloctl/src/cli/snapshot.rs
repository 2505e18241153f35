//! The commands about full snapshots.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use schemas::hold::Reason;
use schemas::promotion::PointerName;
use schemas::{Digest, RunId, WorkerId};

use super::audit::AncestrySource;
use super::parse_digest;

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// List the full snapshots of a run.
    Ls {
        /// Name of the run.
        #[arg(default_value = "demo")]
        run: RunId,
    },
    /// Download a snapshot as a model folder: config.json, generation_config.json,
    /// model.safetensors, and the tokenizer with its settings. Other tools load it as the model
    /// that was trained.
    Pull {
        /// Name of the run.
        run: RunId,
        /// The round that starts from the snapshot; by default the newest snapshot is taken.
        #[arg(long)]
        round: Option<u64>,
        /// The snapshot to which this pointer leads, `latest-good` without a name.
        #[arg(
            long,
            value_name = "NAME",
            num_args = 0..=1,
            default_missing_value = LATEST_GOOD,
            conflicts_with = "round"
        )]
        promoted: Option<PointerName>,
        /// Folder to write.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Move a pointer of a run to a full snapshot, once it is verified: the ledger up to it, its
    /// signed statement and those of the snapshots that it rests on, and every object of it, which
    /// is read back and hashed. To go back, promote an older snapshot. The ledger keeps who
    /// promoted what, and why. A frozen run promotes nothing. Nor is a snapshot promoted that has
    /// contributions of a worker in quarantine, unless `--accept-quarantined` names that worker.
    Promote(PromoteArgs),
    /// Make a key that signs releases (ECDSA on P-256): a private file, and beside it a public one
    /// with `.pub` at the end of its name, for those who verify.
    ReleaseKey {
        /// File for the private key; it must not exist.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Sign a folder that `snapshot pull` has written, as OpenSSF Model Signing v1.0 says: the file
    /// `model.sig` names every other file by its sha256. Its tools verify it (PyPI `model-signing`:
    /// `model_signing verify key DIR --signature DIR/model.sig --public_key FILE.pub`).
    Release {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// The private key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Verify a folder that `snapshot release` has signed: the signature, and every file.
    Verify {
        /// The folder.
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// The public key.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Lead a run back to a full snapshot, for an incident: it trains on from the snapshot's
    /// weights and outer state. Every object of the snapshot is read back and hashed first; if one
    /// is gone or has other bytes, nothing happens. A run that trains is frozen in the same moment,
    /// and it stays frozen: look, then `run unfreeze`. All leases end, contributions to the round
    /// that is open are dropped, and uploads of before are deleted. Nothing of the history is
    /// deleted or renumbered: the snapshot's weights become the next version, and what was merged
    /// since is marked as undone. Until the run is unfrozen, a repeated command changes nothing and
    /// says so.
    Restore(RestoreArgs),
    /// Let the model of a snapshot write text.
    Sample {
        /// Name of the run.
        run: RunId,
        /// The round that starts from the snapshot; by default the newest snapshot is taken.
        #[arg(long)]
        round: Option<u64>,
        /// Text that the model continues.
        #[arg(long, default_value = "pub fn ")]
        prompt: String,
        /// Number of tokens to write.
        #[arg(long, default_value_t = 200)]
        tokens: u32,
        /// 0 takes the likeliest token each time; 1 draws from the model's own distribution.
        #[arg(long, default_value_t = 0.9)]
        temperature: f64,
        /// Seed of the random draws.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// Digest of the snapshot's manifest, as `snapshot ls` shows it.
    #[arg(value_name = "DIGEST", value_parser = parse_digest)]
    pub(crate) digest: Digest,
    /// Name of the pointer: 1 to 32 of a-z, 0-9 and -.
    #[arg(long = "as", value_name = "NAME", default_value = LATEST_GOOD)]
    pub(crate) pointer: PointerName,
    /// Accept the contributions of this worker to the snapshot, although it is in quarantine: its
    /// whole key, as the refusal names it. Once for each worker. The ledger keeps which ones you
    /// accepted, beside the reason.
    #[arg(long, value_name = "KEY")]
    pub(crate) accept_quarantined: Vec<WorkerId>,
    /// Reason for the order, one line.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Reason,
    #[command(flatten)]
    pub(crate) from: AncestrySource,
}

/// The name of a pointer, where the command line gives none.
const LATEST_GOOD: &str = "latest-good";

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Digest of the snapshot's manifest, as `snapshot ls` lists it.
    pub(crate) digest: Digest,
    /// Name of the run; the command fails if the snapshot is of another one. By default the digest
    /// decides.
    #[arg(long)]
    pub(crate) run: Option<RunId>,
    /// Reason for the order, one line, which the audit keeps.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Reason,
    /// Take the snapshot although it has contributions of a worker in quarantine. Without this such
    /// a snapshot is refused, and the refusal names one that has none.
    #[arg(long)]
    pub(crate) force: bool,
}
