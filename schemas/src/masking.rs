//! Masks of contributions: the messages by which the workers of a round agree on masks that cancel
//! in the sum, and by which they reveal what the sum needs when some of them are gone. The crate
//! `masking` has the protocol and its promise.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteArray, ByteBuf};

use crate::lease::{LeaseRef, UnitId, UnitKind};
use crate::limits::{MESSAGE_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
use crate::message::{V, message};
use crate::{Digest, Epoch, PublicKey, Round, RunId, UnitIndex, WorkerId};

/// Fewest workers of a cohort: with a sum of two, each of them knows the other's part.
pub const COHORT_MIN: u32 = 3;
/// Most workers of a cohort: one event names all their keys, and each worker holds a share of every
/// other's secrets.
pub const COHORT_MAX: u32 = 32;

/// 32 bytes of a key, a secret or a share. In text they are hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes32(pub [u8; 32]);

/// The public keys of one worker for one cohort. They are drawn anew for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskKeys {
    /// The X25519 key for which other workers seal shares.
    pub sealing: Bytes32,
    /// The X25519 key from which the masks of pairs come.
    pub masking: Bytes32,
    /// The commitment to the seed of its own mask.
    pub commitment: Digest,
}

/// What a worker signs about its keys, as a statement by its audit key: they are of this run, and
/// of this lease alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyStatement {
    /// Version.
    pub v: V<1>,
    /// Says what the statement is, so that no other has the same bytes.
    pub purpose: KeyPurpose,
    /// The run.
    pub run: RunId,
    /// The digest of the run's settings.
    pub spec: Digest,
    /// The worker.
    pub worker: WorkerId,
    /// The lease.
    pub lease: LeaseRef,
    /// The keys.
    pub keys: MaskKeys,
}

/// The purpose of a [`KeyStatement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyPurpose {
    /// Keys for the masks of one round.
    MaskKeys,
}

/// What the coordinator signs, with the key of its ledger, to each worker of a cohort: the ledger
/// has this cohort for this round. A cohort that was shown to one worker alone leaves this behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortStatement {
    /// Version.
    pub v: V<1>,
    /// Says what the statement is, so that no other has the same bytes.
    pub purpose: CohortPurpose,
    /// The run.
    pub run: RunId,
    /// The round.
    pub round: Round,
    /// The digest of the cohort: of all its workers with their leases and keys, the threshold, the
    /// run's settings and the round.
    pub cohort: Digest,
}

/// The purpose of a [`CohortStatement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CohortPurpose {
    /// The cohort of a round is sealed.
    CohortSealed,
}

/// The coordinator's signature over a [`CohortStatement`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortSeal {
    /// The key that signed: one that may write the ledger.
    pub key: PublicKey,
    /// The signature.
    pub signature: ByteArray<64>,
}

/// One worker of a cohort, with the keys that it announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CohortMember {
    /// The training unit that it does.
    pub unit: UnitIndex,
    /// The lease of the unit.
    pub epoch: Epoch,
    /// The worker.
    pub worker: WorkerId,
    /// The key with which it joined, which signed the keys.
    pub audit_key: PublicKey,
    /// Its keys.
    pub keys: MaskKeys,
    /// Its signature over the [`KeyStatement`].
    pub signature: ByteArray<64>,
}

/// A key or a secret of the worker of one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitKey {
    /// The unit.
    pub unit: UnitIndex,
    /// The key.
    pub key: Bytes32,
}

/// Everything that takes the masks from the sum of a round's contributions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unmasking {
    /// The digest of the cohort, which all masks depend on.
    pub cohort: Digest,
    /// The seed of each contribution's own mask, ascending by unit.
    pub seeds: Vec<UnitKey>,
    /// The public masking keys of the same units. Empty if nobody is gone.
    pub masking: Vec<UnitKey>,
    /// The secret masking keys of the workers that are gone, ascending by unit.
    pub gone: Vec<UnitKey>,
}

/// `mask`: the next step of a worker's part in a cohort. Every step may be repeated, and is
/// answered by what there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskRequest {
    /// Version.
    pub v: V<1>,
    /// The lease under which the worker takes part.
    pub lease: LeaseRef,
    /// The step.
    pub step: MaskStep,
}

/// A step of a worker's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MaskStep {
    /// Announces keys.
    Announce {
        /// The keys.
        keys: MaskKeys,
        /// The signature over their [`KeyStatement`].
        signature: ByteArray<64>,
    },
    /// Hands over shares of its secrets, each sealed for one other worker.
    Share {
        /// The digest of the cohort that they are for.
        cohort: Digest,
        /// One for each worker of the cohort, in its order; its own place is empty.
        sealed: Vec<ByteBuf>,
    },
    /// Asks what to reveal, and reveals it.
    Reveal {
        /// The digest of the cohort.
        cohort: Digest,
        /// For each worker of the cohort, in its order, the share that is needed. Empty for the
        /// question.
        shares: Vec<Bytes32>,
    },
}

/// The answer to a [`MaskRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskReply {
    /// Version.
    pub v: V<1>,
    /// The state of the cohort.
    pub stage: MaskStage,
    /// With shares: the coordinator's word that the ledger has the cohort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<CohortSeal>,
}

/// The state of a cohort, as far as the worker that asks needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskStage {
    /// Others have not done their part yet. Ask again.
    Wait,
    /// All have announced keys: check them, and share secrets.
    Cohort(Vec<CohortMember>),
    /// All have shared: these are the shares for the asker, in the order of the cohort. The cohort
    /// is fixed now. A share is empty that a restart of the coordinator has lost, and that its
    /// worker has not handed in again yet.
    Shares(Vec<ByteBuf>),
    /// A restart of the coordinator has lost the shares that the asker sealed: hand them in again.
    ShareAgain,
    /// This cohort is no more. Announce new keys.
    Again,
    /// The contributions of these units are summed: reveal a share of the seed of each, and a share
    /// of the masking key of each other worker.
    Unmask(Vec<UnitIndex>),
    /// Nothing is left to do for this cohort.
    Over,
}

message!(KeyStatement, "key statement", 4096);
message!(CohortStatement, "cohort statement", 4096);
message!(MaskRequest, "mask", WORKER_MESSAGE_BYTES_MAX);
message!(MaskReply, "mask reply", MESSAGE_BYTES_MAX);

impl CohortStatement {
    /// The statement that the ledger has this cohort.
    pub fn of(run: &RunId, round: Round, cohort: Digest) -> Self {
        Self {
            v: V,
            purpose: CohortPurpose::CohortSealed,
            run: run.clone(),
            round,
            cohort,
        }
    }
}

impl CohortMember {
    /// The lease of a member in a round.
    pub fn lease(&self, round: Round) -> LeaseRef {
        let unit = UnitId {
            round,
            kind: UnitKind::Train,
            index: self.unit,
        };
        LeaseRef {
            unit,
            epoch: self.epoch,
        }
    }
}

impl fmt::Debug for Bytes32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 bytes")
    }
}

impl Serialize for Bytes32 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The form of a digest, which in text names its kind.
        if serializer.is_human_readable() {
            serializer.serialize_str(&Digest::from_bytes(self.0).hex())
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Bytes32 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let digest: Digest = format!("sha256:{text}")
                .parse()
                .map_err(|_| serde::de::Error::custom("not 64 hexadecimal digits"))?;
            Ok(Self(*digest.as_bytes()))
        } else {
            ByteArray::<32>::deserialize(deserializer).map(|bytes| Self(bytes.into_array()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_two_bytes_read_back_from_text_and_from_bytes_and_print_nothing() {
        let bytes = Bytes32([0xA7; 32]);
        let text = serde_json::to_string(&bytes).expect("it is text");
        assert_eq!(text, format!("\"{}\"", "a7".repeat(32)));
        assert_eq!(
            serde_json::from_str::<Bytes32>(&text).expect("it reads"),
            bytes
        );
        assert!(serde_json::from_str::<Bytes32>("\"a7\"").is_err());
        let packed = rmp_serde::to_vec(&bytes).expect("bytes");
        assert_eq!(packed.len(), 34);
        assert_eq!(
            rmp_serde::from_slice::<Bytes32>(&packed).expect("it reads"),
            bytes
        );
        assert!(!format!("{bytes:?}").contains("a7"));
    }
}
