//! The agreement on masks in a run with secure aggregation: who is in a round's cohort, which
//! messages the coordinator passes on, and when a sum is unmasked or given up.
//!
//! The coordinator passes sealed shares on and cannot read them. Until a cohort is sealed all of
//! this is lost with the process, and the workers begin again with new keys. From then on the
//! ledger holds the cohort, and after a restart the workers hand the shares in again that they
//! sealed, for those who had not got them.

use std::collections::{BTreeMap, BTreeSet};

use ledger::Run;
use masking::Cohort;
use schemas::contribution::Contribution;
use schemas::event::LedgerEvent;
use schemas::foundry::Order;
use schemas::hold::Hold;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::masking::{
    Bytes32, CohortMember, CohortStatement, MaskKeys, MaskReply, MaskRequest, MaskStage, MaskStep,
};
use schemas::{Code, Digest, Refusal, Round, UnitIndex, UnixMillis, V};
use serde_bytes::{ByteArray, ByteBuf};

use crate::deadline::RunTimer;
use crate::effect::Answer;
use crate::input::Peer;
use crate::run::RunRoom;
use crate::run::leases::check_holder;
use crate::run::members::check_member;
use crate::turn::{Handled, Outcome, Turn};

/// Bytes of a sealed share: two shares of 32 bytes and the tag of their cipher.
const SEALED_BYTES: usize = 80;
/// A run is halted after so many sums in a row that were not had: once for a worker that was
/// silent, and once more for another. Its workers may have revealed for another set of the round,
/// and then they reveal for no more until they are started again.
pub(crate) const SUMS_LOST_MAX: u32 = 3;

/// What is known of the agreement of the open round, as long as this process lives.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    /// The round that all of it is about.
    round: Option<Round>,
    /// Announced keys with their signatures, by lease.
    announced: BTreeMap<LeaseRef, (MaskKeys, ByteArray<64>)>,
    /// The cohort that all have announced keys for.
    cohort: Option<Cohort>,
    /// Leases whose workers were told the cohort.
    told: BTreeSet<LeaseRef>,
    /// Keys of a cohort that is no more, which its worker was told, by lease. They count for no
    /// other cohort.
    spent: BTreeMap<LeaseRef, MaskKeys>,
    /// Sealed shares by their sender's place in the cohort.
    shared: BTreeMap<usize, Vec<ByteBuf>>,
    /// Revealed shares by the unit of who revealed them.
    revealed: BTreeMap<UnitIndex, Vec<Bytes32>>,
    /// The time at which a sealed set that is not unmasked is given up.
    pub(crate) ends_at: Option<UnixMillis>,
}

impl RunRoom<'_> {
    /// Takes the next step of a worker's part in a cohort.
    pub(crate) fn mask(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        request: MaskRequest,
    ) -> Handled {
        let MaskRequest { lease, step, .. } = request;
        if !has_trained(&self.run, peer, &lease) {
            check_member(&self.run, peer)?;
        }
        if !self.run.is_masked() || lease.unit.kind != UnitKind::Train {
            let detail = format!("lease {lease} is of no round with masks");
            return Err(Refusal::new(Code::CohortOver, detail).into());
        }
        let stage = match step {
            MaskStep::Announce { keys, signature } => {
                self.announce(turn, peer, lease, keys, signature)?
            }
            MaskStep::Share { cohort, sealed } => self.share(turn, peer, lease, cohort, sealed)?,
            MaskStep::Reveal { cohort, shares } => self.reveal(turn, peer, lease, cohort, shares),
        };
        // Shares are only handed out for a cohort that is in the ledger.
        let round = lease.unit.round;
        let cohort = self.run.cohort_digest(round);
        let cohort = cohort.filter(|_| matches!(stage, MaskStage::Shares(_)));
        let seals = cohort.map(|cohort| CohortStatement::of(self.run.name(), round, cohort));
        let seal = None;
        Ok(Outcome::Now(Answer::Mask {
            reply: Box::new(MaskReply { v: V, stage, seal }),
            seals: seals.map(Box::new),
        }))
    }

    fn announce(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        lease: LeaseRef,
        keys: MaskKeys,
        signature: ByteArray<64>,
    ) -> Result<MaskStage, Refusal> {
        check_holder(&self.run, peer, &lease)?;
        if self.run.is_fixed(&lease.unit) {
            let detail = format!("the keys for lease {lease} are fixed");
            return Err(Refusal::new(Code::CohortOver, detail));
        }
        if !masking::are_sound(&keys) {
            let detail = format!("the keys for lease {lease} agree on no secret");
            return Err(Refusal::new(Code::MaskKeysRefused, detail));
        }
        // Who waits for others does not stand still.
        self.live.lease_mut(&lease.unit).progress_at = turn.now;
        let agreement = &mut self.live.agreement;
        agreement.look_at(&self.run, lease.unit.round);
        if agreement.spent.get(&lease) == Some(&keys) {
            return Ok(MaskStage::Again);
        }
        let known = agreement.announced.get(&lease);
        if known.map(|(known, _)| known) != Some(&keys) {
            // Others may have shared for the keys that it changes.
            if agreement.place(&lease).is_some() {
                let detail = format!("lease {lease} is in a cohort with other keys");
                return Err(Refusal::new(Code::CohortOver, detail));
            }
            agreement.announced.insert(lease, (keys, signature));
        }
        if self.live.agreement.cohort.is_none()
            && let Some(members) = self.live.agreement.members(&self.run, lease.unit.round)
        {
            let cohort = self.run.cohort_of(lease.unit.round, members);
            let cohort = cohort.map_err(|error| {
                // The keys that came last are those of another worker.
                self.live.agreement.announced.remove(&lease);
                Refusal::new(error.code(), error.to_string())
            })?;
            self.live.agreement.cohort = Some(cohort);
        }
        let agreement = &mut self.live.agreement;
        Ok(match &agreement.cohort {
            Some(cohort) => {
                agreement.told.insert(lease);
                MaskStage::Cohort(cohort.members().to_vec())
            }
            None => MaskStage::Wait,
        })
    }

    fn share(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        lease: LeaseRef,
        digest: Digest,
        sealed: Vec<ByteBuf>,
    ) -> Result<MaskStage, Refusal> {
        let round = lease.unit.round;
        if let Some(fixed) = self.run.cohort(round) {
            return self.share_again(peer, lease, &fixed, (digest, sealed));
        }
        check_holder(&self.run, peer, &lease)?;
        self.live.lease_mut(&lease.unit).progress_at = turn.now;
        let agreement = &mut self.live.agreement;
        agreement.look_at(&self.run, round);
        let cohort = agreement.cohort.as_ref();
        let cohort = cohort.filter(|cohort| cohort.digest() == digest);
        let placed = cohort.and_then(|cohort| Some((cohort, cohort.place(&lease)?)));
        let Some((cohort, place)) = placed else {
            return Ok(MaskStage::Again);
        };
        let count = cohort.members().len();
        check_sealed(&lease, place, count, &sealed)?;
        let members = cohort.members().to_vec();
        agreement.shared.insert(place, sealed);
        if agreement.shared.len() < count {
            return Ok(MaskStage::Wait);
        }
        self.append(turn, LedgerEvent::CohortSealed { round, members });
        // From here on the ledger holds the cohort; only the shares are still to be passed on.
        self.live.agreement.seal();
        let shares = self.live.agreement.shares_for(place, count);
        Ok(MaskStage::Shares(shares))
    }

    /// Answers a worker of a cohort that is sealed with the shares for it. After a restart only
    /// those are here that were handed in again; the shares that come with the question are kept
    /// for the others. The lease may be over by then.
    fn share_again(
        &mut self,
        peer: &Peer,
        lease: LeaseRef,
        fixed: &Cohort,
        (digest, sealed): (Digest, Vec<ByteBuf>),
    ) -> Result<MaskStage, Refusal> {
        let own = |place: &usize| fixed.members()[*place].worker == peer.worker;
        let place = fixed.place(&lease).filter(own);
        let Some(place) = place.filter(|_| fixed.digest() == digest) else {
            let detail = format!("lease {lease} is in another cohort");
            return Err(Refusal::new(Code::CohortOver, detail));
        };
        let count = fixed.members().len();
        check_sealed(&lease, place, count, &sealed)?;
        let agreement = &mut self.live.agreement;
        agreement.look_at(&self.run, lease.unit.round);
        agreement.shared.entry(place).or_insert(sealed);
        Ok(MaskStage::Shares(agreement.shares_for(place, count)))
    }

    /// Asks a worker for its shares once the set is sealed, and takes them.
    fn reveal(
        &mut self,
        turn: &mut Turn<'_>,
        peer: &Peer,
        lease: LeaseRef,
        digest: Digest,
        shares: Vec<Bytes32>,
    ) -> MaskStage {
        let round = lease.unit.round;
        let cohort = self
            .run
            .cohort(round)
            .filter(|cohort| cohort.digest() == digest);
        let Some(cohort) = cohort else {
            return MaskStage::Over;
        };
        let own = |place: &usize| cohort.members()[*place].worker == peer.worker;
        let Some(place) = cohort.place(&lease).filter(own) else {
            return MaskStage::Over;
        };
        let is_here = self.live.agreement.shared.contains_key(&place);
        if !is_here && self.run.unmasking(round).is_none() {
            return MaskStage::ShareAgain;
        }
        let survivors = match self.run.sealed_masked() {
            Some((sealed, survivors)) if sealed == round => survivors,
            _ if self.run.unmasking(round).is_some() => return MaskStage::Over,
            _ => return MaskStage::Wait,
        };
        if !survivors.contains(&lease.unit.index) {
            return MaskStage::Over;
        }
        if shares.is_empty() {
            return MaskStage::Unmask(survivors);
        }
        let revealed = &mut self.live.agreement.revealed;
        revealed.insert(lease.unit.index, shares);
        if self.run.is_held(Hold::Merges) {
            return MaskStage::Wait;
        }
        match cohort.recover(&survivors, revealed) {
            Ok(None) => MaskStage::Wait,
            Ok(Some(secrets)) => {
                self.append(turn, LedgerEvent::RoundUnmasked { round, secrets });
                self.live.agreement = Agreement::default();
                self.live.foundry.sums_lost = 0;
                self.advance(turn);
                MaskStage::Over
            }
            Err(_) => {
                self.dissolve(turn, round);
                self.advance(turn);
                MaskStage::Over
            }
        }
    }

    /// Gives a masked round up, whose sum cannot be had, and opens its units again.
    pub(crate) fn dissolve(&mut self, turn: &mut Turn<'_>, round: Round) {
        let is_lost = self.run.sealed_masked().is_some();
        let mut open = self.run.open.iter();
        let open = open.find(|(sync, _)| sync.round == round);
        let inputs = open.map(|(_, open)| open.inputs().map(|input| input.lease));
        let inputs: Vec<LeaseRef> = inputs.into_iter().flatten().collect();
        let event = LedgerEvent::CohortDissolved {
            round,
            contributions: u32::try_from(inputs.len()).expect("a cohort is small"),
        };
        self.append(turn, event);
        for lease in inputs {
            self.order(turn, Order::Unstage { lease });
        }
        self.live.agreement = Agreement::default();
        if is_lost {
            self.sum_lost(turn, round);
        }
        self.offer_open(turn);
    }

    /// Counts a sum that enough workers contributed to and too few revealed shares for. Nothing
    /// here can make them reveal, so the run does not train the round for ever.
    fn sum_lost(&mut self, turn: &mut Turn<'_>, round: Round) {
        let lost = &mut self.live.foundry.sums_lost;
        *lost = lost.saturating_add(1);
        if *lost >= SUMS_LOST_MAX {
            let detail = format!(
                "round {round} was trained {lost} times in a row, each time too few workers revealed \
                 shares for its sum, and none joined in between"
            );
            self.halt(turn, &Refusal::new(Code::SumLost, detail));
        }
    }

    /// A process that has just joined has revealed nothing yet, so the next sum may be had.
    pub(crate) fn sums_may_come(&mut self, turn: &mut Turn<'_>) {
        let foundry = &mut self.live.foundry;
        foundry.sums_lost = 0;
        let halted = foundry.halted.as_ref();
        if halted.is_some_and(|halted| halted.code == Code::SumLost) {
            foundry.halted = None;
            self.mark_changed(turn);
        }
    }

    /// Waits for shares of a sealed set for as long as a silent worker may take to come back.
    pub(crate) fn watch_unmasking(&mut self, turn: &mut Turn<'_>) {
        // A held run unmasks nothing, so nobody is late.
        let waits = self.run.sealed_masked().is_some() && !self.run.is_held(Hold::Merges);
        match self.live.agreement.ends_at {
            None if waits => {
                let ends_at = turn.now.after(self.run.spec.policy.silence_max);
                self.live.agreement.ends_at = Some(ends_at);
                self.wake(turn, ends_at, RunTimer::Weights);
            }
            Some(_) if !waits => self.live.agreement.ends_at = None,
            Some(_) | None => {}
        }
    }
}

impl Agreement {
    /// Turns to a round, and drops what is of another one, or of workers that are gone.
    fn look_at(&mut self, run: &Run, round: Round) {
        match self.round {
            // After a restart nothing is known of it but the time at which it is given up.
            None => self.round = Some(round),
            Some(before) if before == round => {}
            Some(_) => {
                *self = Self {
                    round: Some(round),
                    ..Self::default()
                };
            }
        }
        if self.cohort_is_gone(run) {
            self.begin_again();
        }
        let is_held = |lease: &LeaseRef| {
            let holder = run.holder(&lease.unit);
            holder.is_some_and(|(_, epoch)| epoch == lease.epoch)
        };
        self.announced.retain(|lease, _| is_held(lease));
        self.spent.retain(|lease, _| is_held(lease));
    }

    /// Forgets the cohort that was about to be, with the keys of those that were told of it: they
    /// may have shared, and will announce new ones. The others ask again with those that they have.
    fn begin_again(&mut self) {
        self.cohort = None;
        self.shared.clear();
        for lease in std::mem::take(&mut self.told) {
            if let Some((keys, _)) = self.announced.remove(&lease) {
                self.spent.insert(lease, keys);
            }
        }
    }

    /// Keeps the shares for the workers of the cohort that is sealed now, and nothing else.
    fn seal(&mut self) {
        *self = Self {
            round: self.round,
            shared: std::mem::take(&mut self.shared),
            ..Self::default()
        };
    }

    /// The place of a lease in the cohort that is about to be.
    fn place(&self, lease: &LeaseRef) -> Option<usize> {
        self.cohort.as_ref()?.place(lease)
    }

    /// True if a worker of the cohort that is about to be has lost its lease.
    fn cohort_is_gone(&self, run: &Run) -> bool {
        let (Some(cohort), Some(round)) = (&self.cohort, self.round) else {
            return false;
        };
        !cohort.members().iter().all(|member| {
            let LeaseRef { unit, epoch } = member.lease(round);
            run.holder(&unit) == Some((&member.worker, epoch))
        })
    }

    /// The workers of the round with their keys; none while a unit has no holder who has announced
    /// any.
    fn members(&self, run: &Run, round: Round) -> Option<Vec<CohortMember>> {
        let units = (0..run.spec.schedule.units).map(UnitIndex);
        let member = |index| {
            let kind = UnitKind::Train;
            let unit = UnitId { round, kind, index };
            let (worker, epoch) = run.holder(&unit)?;
            let (keys, signature) = self.announced.get(&LeaseRef { unit, epoch })?;
            Some(CohortMember {
                unit: index,
                epoch,
                worker: worker.clone(),
                audit_key: run.members.get(worker)?.audit_key.clone(),
                keys: *keys,
                signature: *signature,
            })
        };
        units.map(member).collect()
    }

    /// The sealed shares for the worker at a place of so many; empty ones after a restart, for
    /// those that were not handed in again.
    fn shares_for(&self, place: usize, count: usize) -> Vec<ByteBuf> {
        let from = |from: usize| self.shared.get(&from)?.get(place).cloned();
        (0..count)
            .map(|place| from(place).unwrap_or_default())
            .collect()
    }
}

/// True for a worker of a sealed cohort that is not shut out. It may take part in the sum also if
/// it has left since: a worker that drains waits for that.
fn has_trained(run: &Run, peer: &Peer, lease: &LeaseRef) -> bool {
    let record = run.cohorts.get(&lease.unit.round);
    let mut members = record.iter().flat_map(|record| &record.members);
    let own = members
        .any(|member| member.worker == peer.worker && member.lease(lease.unit.round) == *lease);
    let known = run.members.get(&peer.worker);
    let welcome = known.is_some_and(|known| known.account == peer.account && !known.removed);
    own && welcome && !run.is_quarantined(&peer.worker)
}

/// Refuses sealed shares that are not one for each of `count` workers but the one at `place`.
fn check_sealed(
    lease: &LeaseRef,
    place: usize,
    count: usize,
    sealed: &[ByteBuf],
) -> Result<(), Refusal> {
    let fits = |(to, sealed): (usize, &ByteBuf)| {
        let expected = if to == place { 0 } else { SEALED_BYTES };
        sealed.len() == expected
    };
    match sealed.len() == count && sealed.iter().enumerate().all(fits) {
        true => Ok(()),
        false => {
            let detail = format!("lease {lease} has not one share for each of {count} workers");
            Err(Refusal::new(Code::MaskKeysRefused, detail))
        }
    }
}

/// Refuses a contribution to a masked round that is none of its cohort's, or that tells more than
/// the sum does.
pub(crate) fn check_masked(
    run: &Run,
    lease: &LeaseRef,
    contribution: &Contribution,
) -> Result<(), Refusal> {
    let of_another = |detail: String| Err(Refusal::new(Code::CohortOther, detail));
    let stated = contribution.cohort;
    if !run.is_masked() {
        return match stated {
            None => Ok(()),
            Some(stated) => {
                of_another(format!("it is masked for {stated}, in a run without masks"))
            }
        };
    }
    if !run.is_fixed(&lease.unit) {
        let detail = format!("lease {lease} is of a round whose workers have agreed on no masks");
        return Err(Refusal::new(Code::CohortOver, detail));
    }
    if contribution.loss != 0.0 {
        let detail = "it states a training loss, which no mask covers";
        return Err(Refusal::new(Code::StatementInvalid, detail));
    }
    let sealed = run.cohort_digest(lease.unit.round);
    if stated != sealed {
        let say = |cohort: Option<Digest>| cohort.map_or("none".to_owned(), |one| one.to_string());
        let (stated, sealed) = (say(stated), say(sealed));
        return of_another(format!(
            "the cohort that it is masked for is {stated}, that of round {} is {sealed}",
            lease.unit.round
        ));
    }
    Ok(())
}
