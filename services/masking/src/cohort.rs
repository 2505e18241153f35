//! A cohort: the workers of a round with their keys, and the part of one of them.

use std::collections::{BTreeMap, BTreeSet};

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use schemas::lease::LeaseRef;
use schemas::masking::{
    Bytes32, COHORT_MAX, CohortMember, KeyPurpose, KeyStatement, MaskKeys, UnitKey, Unmasking,
};
use schemas::{Code, Digest, Message as _, PublicKey, Round, RunId, UnitIndex, V, WorkerId};
use serde_bytes::ByteBuf;
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::fixed::FixedPoint;
use crate::keys::{Keys, agree, are_sound, commitment, derive, public_of};
use crate::mask::{Masks, Sign, ascend, own_key, pair_key, pair_sign};
use crate::shamir::{self, Share};

const COHORT: &[u8] = b"diloco/mask/cohort/v1";
const SEAL: &[u8] = b"diloco/mask/seal/v1";
const POLYNOMIALS: &[u8] = b"diloco/mask/polynomials/v1";
/// Every key seals one message.
const NONCE: [u8; 12] = [0; 12];
/// Bytes of a share of both secrets.
const SHARES_BYTES: usize = 64;
/// In the place of shares that did not open. No polynomial gives them but by a chance of `2^-256`.
const MISSING: [u8; SHARES_BYTES] = [0; SHARES_BYTES];

/// The workers of a round with their keys: the setting of every secret and every mask.
#[derive(Clone, Debug)]
pub struct Cohort {
    run: RunId,
    spec: Digest,
    round: Round,
    threshold: u32,
    members: Vec<CohortMember>,
    digest: Digest,
}

/// The reason why a step of the protocol is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CohortError {
    /// The workers are no cohort.
    #[error("{0}")]
    Unfit(String),
    /// A worker has not signed its keys, or has signed others, or for another lease.
    #[error("the keys of unit {0} are not signed by its worker")]
    Signature(UnitIndex),
    /// The worker's own keys are not those of its lease in the cohort.
    #[error("the cohort has other keys for lease {0} than this worker announced")]
    NotIn(LeaseRef),
    /// A sealed share does not open: it is of another cohort, for another worker, or altered.
    #[error("the shares of unit {0} do not open")]
    Sealed(UnitIndex),
    /// There are not as many shares as workers.
    #[error("{got} shares in a cohort of {expected}")]
    Count {
        /// Shares that came.
        got: usize,
        /// Shares that are expected.
        expected: usize,
    },
    /// The workers that are said to count are not workers of the cohort, or too few, or not the
    /// asked one.
    #[error("{0}")]
    Survivors(String),
    /// Another set of workers was said to count before: both secrets of a worker are wanted.
    #[error("another set of contributions was named before for this cohort")]
    BothSecrets,
    /// An earlier cohort of the round had another set of contributions.
    #[error("shares were revealed for another set of contributions of round {0}")]
    AnotherSum(Round),
    /// Shares give another secret than the worker has committed to.
    #[error("the shares for unit {0} do not give the secret that its worker committed to")]
    Secret(UnitIndex),
}

impl CohortError {
    /// The code of the page that says what to do.
    pub const fn code(&self) -> Code {
        match self {
            Self::NotIn(_) => Code::CohortOver,
            _ => Code::MaskKeysRefused,
        }
    }
}

schemas::coded!(CohortError);

impl Cohort {
    /// The cohort of these workers, ascending by unit.
    ///
    /// # Errors
    /// They do not ascend, a worker or a key stands twice, or the threshold does not fit.
    pub fn new(
        run: &RunId,
        spec: &Digest,
        round: Round,
        threshold: u32,
        members: Vec<CohortMember>,
    ) -> Result<Self, CohortError> {
        let unfit = |text: &str| Err(CohortError::Unfit(text.to_owned()));
        let count = members.len();
        if count > COHORT_MAX as usize || threshold as usize > count {
            return unfit("too many workers, or fewer than the threshold");
        }
        // Two sets of the threshold's size must have a worker in common.
        if threshold as usize * 2 <= count {
            return unfit("a threshold of half of the workers or less");
        }
        if !ascend(members.iter().map(|member| member.unit)) {
            return unfit("the units of a cohort do not ascend");
        }
        let workers: BTreeSet<&WorkerId> = members.iter().map(|member| &member.worker).collect();
        let keys = |of: fn(&MaskKeys) -> Bytes32| {
            let keys: BTreeSet<Bytes32> = members.iter().map(|member| of(&member.keys)).collect();
            keys.len()
        };
        let audit_keys: BTreeSet<_> = members.iter().map(|member| &member.audit_key).collect();
        let distinct = [
            workers.len(),
            audit_keys.len(),
            keys(|keys| keys.sealing),
            keys(|keys| keys.masking),
        ];
        if distinct.iter().any(|distinct| *distinct != count) {
            return unfit("a worker or a key is twice in a cohort");
        }
        if !members.iter().all(|member| are_sound(&member.keys)) {
            return unfit("a key in a cohort agrees on no secret");
        }
        let digest = Self::digest_of(run, spec, round, threshold, &members);
        Ok(Self {
            run: run.clone(),
            spec: *spec,
            round,
            threshold,
            members,
            digest,
        })
    }

    /// The digest of the cohort of these workers: over the threshold and each worker's whole
    /// statement about its keys, which names run, settings, round and lease, with the key that
    /// signed it.
    pub fn digest_of(
        run: &RunId,
        spec: &Digest,
        round: Round,
        threshold: u32,
        members: &[CohortMember],
    ) -> Digest {
        let mut bytes = COHORT.to_vec();
        bytes.extend(threshold.to_le_bytes());
        for member in members {
            let lease = member.lease(round);
            let statement = statement(run, spec, &member.worker, lease, member.keys).encode();
            bytes.extend((statement.len() as u64).to_le_bytes());
            bytes.extend(statement);
            bytes.extend(Digest::of(member.audit_key.as_str().as_bytes()).as_bytes());
        }
        Digest::of(&bytes)
    }

    /// The digest over all of it, from which every key is derived.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Its workers, ascending by unit.
    pub fn members(&self) -> &[CohortMember] {
        &self.members
    }

    /// What the worker of a member must have signed.
    pub fn statement(&self, member: &CohortMember) -> KeyStatement {
        let lease = member.lease(self.round);
        statement(&self.run, &self.spec, &member.worker, lease, member.keys)
    }

    /// The place of a lease among the workers.
    pub fn place(&self, lease: &LeaseRef) -> Option<usize> {
        let mut members = self.members.iter();
        members.position(|member| member.lease(self.round) == *lease)
    }

    /// What takes the masks from the sum of the contributions of `survivors`, from the shares that
    /// workers revealed, by their units. None while more of them could still help: fewer than the
    /// threshold have revealed a share, or some revealed false ones. Up to two false shares of a
    /// secret do no harm once as many more than the threshold are there.
    ///
    /// # Errors
    /// [`CohortError::Survivors`], or [`CohortError::Secret`]: all have revealed, and their shares
    /// do not give this worker's secret.
    pub fn recover(
        &self,
        survivors: &[UnitIndex],
        revealed: &BTreeMap<UnitIndex, Vec<Bytes32>>,
    ) -> Result<Option<Vec<UnitKey>>, CohortError> {
        self.check_survivors(survivors)?;
        let rows = (1_u8..).zip(&self.members);
        let rows = rows.filter_map(|(x, member)| {
            let shares = revealed.get(&member.unit)?;
            (shares.len() == self.members.len()).then_some((x, shares))
        });
        let rows: Vec<(u8, &Vec<Bytes32>)> = rows.collect();
        let all = survivors.iter().all(|unit| revealed.contains_key(unit));
        let mut secrets = Vec::with_capacity(self.members.len());
        for (place, member) in self.members.iter().enumerate() {
            let shares = rows.iter().map(|(x, row)| Share {
                x: *x,
                y: row[place].0,
            });
            // A worker says by zeros that it has no share of this one.
            let shares: Vec<Share> = shares.filter(|share| share.y != [0; 32]).collect();
            let counts = survivors.contains(&member.unit);
            let Some(key) = self.secret(member, counts, &shares) else {
                let enough = rows.len() >= self.threshold as usize;
                return match all && enough {
                    true => Err(CohortError::Secret(member.unit)),
                    false => Ok(None),
                };
            };
            let unit = member.unit;
            secrets.push(UnitKey { unit, key });
        }
        Ok(Some(secrets))
    }

    /// The secret that a worker has committed to, from shares of which up to two may be false:
    /// each, and each pair, is left out in turn.
    fn secret(&self, member: &CohortMember, counts: bool, shares: &[Share]) -> Option<Bytes32> {
        let (threshold, count) = (self.threshold as usize, shares.len());
        let outs = (0..=count).rev();
        let mut outs = outs.flat_map(|out| (out..=count).rev().map(move |other| (out, other)));
        outs.find_map(|(out, other)| {
            let kept = shares.iter().enumerate();
            let kept = kept.filter(|(at, _)| *at != out && *at != other);
            let kept: Vec<Share> = kept.map(|(_, share)| *share).take(threshold).collect();
            let key = (kept.len() == threshold).then(|| Bytes32(*shamir::join(&kept)))?;
            fits(member, counts, &key).then_some(key)
        })
    }

    /// What takes the masks from the sum of the contributions of `survivors`, from a secret of each
    /// worker of the cohort, in its order.
    ///
    /// # Errors
    /// [`CohortError::Survivors`], or [`CohortError::Secret`]: a secret is not the worker's.
    pub fn unmasking(
        &self,
        survivors: &[UnitIndex],
        secrets: &[UnitKey],
    ) -> Result<Unmasking, CohortError> {
        self.check_survivors(survivors)?;
        let (got, expected) = (secrets.len(), self.members.len());
        if got != expected {
            return Err(CohortError::Count { got, expected });
        }
        let mut unmasking = Unmasking {
            cohort: self.digest,
            seeds: vec![],
            masking: vec![],
            gone: vec![],
        };
        for (member, secret) in self.members.iter().zip(secrets) {
            let (unit, key) = (member.unit, secret.key);
            let counts = survivors.contains(&unit);
            if !fits(member, counts, &key) || secret.unit != unit {
                return Err(CohortError::Secret(unit));
            }
            if counts {
                unmasking.seeds.push(*secret);
                let key = member.keys.masking;
                unmasking.masking.push(UnitKey { unit, key });
            } else {
                unmasking.gone.push(*secret);
            }
        }
        if unmasking.gone.is_empty() {
            unmasking.masking.clear();
        }
        Ok(unmasking)
    }

    fn check_survivors(&self, survivors: &[UnitIndex]) -> Result<(), CohortError> {
        let wrong = |text: String| Err(CohortError::Survivors(text));
        let members: BTreeSet<UnitIndex> = self.members.iter().map(|member| member.unit).collect();
        if !ascend(survivors.iter().copied())
            || survivors.iter().any(|unit| !members.contains(unit))
        {
            return wrong(
                "units are said to count that are not the cohort's, or not in order".into(),
            );
        }
        if survivors.len() < self.threshold as usize {
            let (count, threshold) = (survivors.len(), self.threshold);
            return wrong(format!(
                "{count} contributions count, fewer than {threshold}"
            ));
        }
        Ok(())
    }
}

/// True for the secret that a worker has committed to: the seed of its own mask if its contribution
/// counts, and otherwise its masking key.
fn fits(member: &CohortMember, counts: bool, key: &Bytes32) -> bool {
    match counts {
        true => commitment(&key.0) == member.keys.commitment,
        false => public_of(&key.0) == member.keys.masking,
    }
}

/// What a worker signs about its keys.
pub fn statement(
    run: &RunId,
    spec: &Digest,
    worker: &WorkerId,
    lease: LeaseRef,
    keys: MaskKeys,
) -> KeyStatement {
    KeyStatement {
        v: V,
        purpose: KeyPurpose::MaskKeys,
        run: run.clone(),
        spec: *spec,
        worker: worker.clone(),
        lease,
        keys,
    }
}

/// The contributions that a worker has revealed shares for, by round. A round that is opened again
/// has another cohort and maybe other workers; the difference of two sums would show what one of
/// them contributed.
#[derive(Debug, Default)]
pub struct Disclosures(BTreeMap<Round, Vec<UnitIndex>>);

impl Disclosures {
    /// Notes the set for a round, before anything is revealed for it.
    ///
    /// # Errors
    /// [`CohortError::AnotherSum`]: shares were revealed for another set of the round.
    pub fn note(&mut self, round: Round, survivors: &[UnitIndex]) -> Result<(), CohortError> {
        let noted = self.0.entry(round).or_insert_with(|| survivors.to_vec());
        match noted == survivors {
            true => Ok(()),
            false => Err(CohortError::AnotherSum(round)),
        }
    }
}

/// The part of one worker in a cohort.
#[derive(Debug)]
pub struct Part {
    cohort: Cohort,
    keys: Keys,
    place: usize,
    /// Shares of the seed and of the masking key of each worker, in the order of the cohort; zeros
    /// where one did not open. Empty until they have come.
    held: Vec<Zeroizing<[u8; SHARES_BYTES]>>,
    /// Units whose share has not come.
    absent: BTreeSet<UnitIndex>,
    /// The contributions that were named when shares were revealed.
    revealed: Option<Vec<UnitIndex>>,
}

impl Part {
    /// Takes part in a cohort, as the worker with the audit key `own`. `is_signed` checks the
    /// signature of a member over the encoding of a statement.
    ///
    /// # Errors
    /// A worker has not signed its keys, or this worker's are not in the cohort.
    pub fn join(
        cohort: Cohort,
        keys: Keys,
        lease: &LeaseRef,
        own: (&WorkerId, &PublicKey),
        is_signed: impl Fn(&CohortMember, &[u8]) -> bool,
    ) -> Result<Self, CohortError> {
        for member in &cohort.members {
            if !is_signed(member, &cohort.statement(member).encode()) {
                return Err(CohortError::Signature(member.unit));
            }
        }
        let own = |place: &usize| {
            let member = &cohort.members[*place];
            member.keys == keys.announced() && (&member.worker, &member.audit_key) == own
        };
        let place = cohort.place(lease).filter(own);
        let place = place.ok_or(CohortError::NotIn(*lease))?;
        Ok(Self {
            cohort,
            keys,
            place,
            held: vec![],
            absent: BTreeSet::new(),
            revealed: None,
        })
    }

    /// The cohort.
    pub const fn cohort(&self) -> &Cohort {
        &self.cohort
    }

    fn own_unit(&self) -> UnitIndex {
        self.cohort.members[self.place].unit
    }

    /// Shares of both secrets, each sealed for one worker, in the order of the cohort; the own
    /// place is empty. They are the same each time.
    ///
    /// # Errors
    /// The key of a worker agrees on no secret.
    pub fn share(&self) -> Result<Vec<ByteBuf>, CohortError> {
        let shares = self.split();
        let places = self.cohort.members.iter().zip(&shares).enumerate();
        let sealed = places.map(|(place, (member, shares))| {
            if place == self.place {
                return Ok(ByteBuf::new());
            }
            let cipher = self.cipher(member, self.own_unit(), member.unit)?;
            let nonce = Nonce::from(NONCE);
            let sealed = cipher.encrypt(&nonce, Payload::from(&shares[..]));
            Ok(ByteBuf::from(
                sealed.expect("64 bytes are no more than fit"),
            ))
        });
        sealed.collect()
    }

    /// Shares of both secrets for each worker, in the order of the cohort.
    fn split(&self) -> Vec<Zeroizing<[u8; SHARES_BYTES]>> {
        let members = &self.cohort.members;
        let count = u8::try_from(members.len()).expect("a cohort is small");
        let threshold = self.cohort.threshold as usize;
        let polynomials = derive(&self.cohort.digest, &self.keys.polynomials, &[POLYNOMIALS]);
        let mut random = ChaCha20Rng::from_seed(*polynomials);
        let masking = Zeroizing::new(self.keys.masking.to_bytes());
        let mut split = |secret: &[u8; 32]| {
            shamir::split(secret, threshold, count, |bytes| random.fill_bytes(bytes))
        };
        let (seeds, keys) = (split(&self.keys.seed), split(&masking));
        let both = seeds.iter().zip(&keys).map(|(seed, key)| {
            let mut both = Zeroizing::new([0; SHARES_BYTES]);
            both[..32].copy_from_slice(&seed.y);
            both[32..].copy_from_slice(&key.y);
            both
        });
        both.collect()
    }

    /// The cipher for the one message from the worker of one unit to that of another.
    fn cipher(
        &self,
        other: &CohortMember,
        from: UnitIndex,
        to: UnitIndex,
    ) -> Result<ChaCha20Poly1305, CohortError> {
        let shared = agree(&self.keys.sealing, &other.keys.sealing);
        let shared = shared.ok_or(CohortError::Sealed(other.unit))?;
        let purpose: [&[u8]; 3] = [SEAL, &from.get().to_le_bytes(), &to.get().to_le_bytes()];
        let key = derive(&self.cohort.digest, &shared, &purpose);
        Ok(ChaCha20Poly1305::new(&Key::from(*key)))
    }

    /// Takes the shares that the others sealed for this worker, in the order of the cohort. Returns
    /// the units whose share does not open: what it says is its worker's, and the others are kept.
    /// An empty one is not here yet: the share that came before is kept, and if none has, the unit
    /// is one of those that are waited for.
    ///
    /// # Errors
    /// They are not as many as the workers. None is kept then.
    pub fn take(&mut self, sealed: &[ByteBuf]) -> Result<Vec<UnitIndex>, CohortError> {
        let (got, expected) = (sealed.len(), self.cohort.members.len());
        if got != expected {
            return Err(CohortError::Count { got, expected });
        }
        let mut held = self.split();
        let mut closed = Vec::new();
        let mut absent = BTreeSet::new();
        for (place, (member, sealed)) in self.cohort.members.iter().zip(sealed).enumerate() {
            if place == self.place {
                continue;
            }
            if sealed.is_empty() {
                let before = self.held.get(place);
                match before.filter(|_| !self.absent.contains(&member.unit)) {
                    Some(before) => held[place] = before.clone(),
                    None => {
                        held[place] = Zeroizing::new(MISSING);
                        absent.insert(member.unit);
                    }
                }
                continue;
            }
            let opened = self.open(member, sealed);
            held[place] = opened.unwrap_or_else(|| {
                closed.push(member.unit);
                Zeroizing::new(MISSING)
            });
        }
        (self.held, self.absent) = (held, absent);
        Ok(closed)
    }

    /// True while the share of a worker of these units has not come, so that it is worth to ask for
    /// it again.
    pub fn waits_for(&self, units: &[UnitIndex]) -> bool {
        units.iter().any(|unit| self.absent.contains(unit))
    }

    fn open(&self, from: &CohortMember, sealed: &[u8]) -> Option<Zeroizing<[u8; SHARES_BYTES]>> {
        let cipher = self.cipher(from, from.unit, self.own_unit()).ok()?;
        let opened = cipher.decrypt(&Nonce::from(NONCE), Payload::from(sealed));
        let opened = Zeroizing::new(opened.ok()?);
        let opened: [u8; SHARES_BYTES] = opened[..].try_into().ok()?;
        Some(Zeroizing::new(opened))
    }

    /// The masks of this worker's contribution.
    ///
    /// # Errors
    /// The key of a worker agrees on no secret.
    pub fn masks(&self, fixed: FixedPoint) -> Result<Masks, CohortError> {
        let (cohort, unit) = (&self.cohort.digest, self.own_unit());
        let mut streams = vec![(Sign::Add, own_key(cohort, &self.keys.seed, unit))];
        let masking: &StaticSecret = &self.keys.masking;
        let others = self
            .cohort
            .members
            .iter()
            .filter(|member| member.unit != unit);
        for other in others {
            let key = pair_key(cohort, masking, unit, &other.keys.masking, other.unit);
            let key = key.ok_or(CohortError::Sealed(other.unit))?;
            streams.push((pair_sign(unit, other.unit), key));
        }
        Ok(Masks::new(fixed, streams))
    }

    /// Reveals one share for each worker, in the order of the cohort: of the seed where its
    /// contribution counts, of the masking key where it does not; zeros where its share did not
    /// open. Empty if this worker has no shares. The same question gets the same answer, and any
    /// other an error.
    ///
    /// # Errors
    /// [`CohortError::Survivors`] or [`CohortError::BothSecrets`].
    pub fn reveal(&mut self, survivors: &[UnitIndex]) -> Result<Vec<Bytes32>, CohortError> {
        self.cohort.check_survivors(survivors)?;
        if !survivors.contains(&self.own_unit()) {
            let text = "this worker's contribution is said not to count";
            return Err(CohortError::Survivors(text.to_owned()));
        }
        let named = self.revealed.get_or_insert_with(|| survivors.to_vec());
        if named != survivors {
            return Err(CohortError::BothSecrets);
        }
        let shares = self.held.iter().zip(&self.cohort.members);
        let shares = shares.map(|(both, member)| {
            let (seed, key) = both.split_at(32);
            let share = if survivors.contains(&member.unit) {
                seed
            } else {
                key
            };
            Bytes32(share.try_into().expect("half of 64 bytes"))
        });
        Ok(shares.collect())
    }
}

#[cfg(test)]
mod tests;
