//! A worker's part in secure aggregation: the shell's questions to the coordinator, each repeated
//! until it is answered, with real keys and shares. Contributions stay objects by digest here, so
//! nothing is masked; what is agreed, revealed and restored is.

use coordinator_core::WorkerRequest;
use masking::{Disclosures, Keys, Part};
use schemas::lease::{LeaseRef, UnitKind};
use schemas::masking::{
    Bytes32, CohortMember, CohortSeal, CohortStatement, MaskReply, MaskRequest, MaskStage, MaskStep,
};
use schemas::{Code, Digest, Millis, Refusal, UnitIndex, V};
use serde_bytes::ByteArray;
use worker_core::{Agreed, Input, WorkId};

use crate::plan::{audit_key, operator, run_id, worker_id};
use crate::worker::WorkerMachine;
use crate::world::{Delivered, Purpose, SimEvent, World};

/// Time after which a question is asked again.
const ASK_EVERY: Millis = Millis(700);

/// The part of a worker in the cohort of one lease.
#[derive(Debug)]
pub(crate) struct Masking {
    pub(crate) work: WorkId,
    /// Its keys, until it knows its cohort.
    keys: Option<Keys>,
    part: Option<Part>,
    /// True once its cohort is sealed.
    agreed: bool,
    /// True if shares are to be exchanged again after that.
    again: bool,
    /// True once its contribution is uploaded.
    reveals: bool,
    shares: Vec<Bytes32>,
    /// The number of its present question. An answer to an earlier one is void.
    question: u64,
}

impl Masking {
    /// The step that it asks for now.
    fn step(&self) -> Option<MaskStep> {
        if let Some(keys) = &self.keys {
            return Some(MaskStep::Announce {
                keys: keys.announced(),
                signature: ByteArray::new([1; 64]),
            });
        }
        let part = self.part.as_ref()?;
        let cohort = part.cohort().digest();
        if !self.agreed || self.again {
            let sealed = part.share().expect("the keys of a cohort are sound");
            return Some(MaskStep::Share { cohort, sealed });
        }
        let shares = self.shares.clone();
        self.reveals.then_some(MaskStep::Reveal { cohort, shares })
    }
}

impl World {
    /// True for a lease under whose masks a contribution is to be made.
    pub(crate) fn needs_masks(&self, lease: &LeaseRef) -> bool {
        self.plan.spec.secure_aggregation.is_some() && lease.unit.kind == UnitKind::Train
    }

    /// True while this work agrees on masks, or has agreed.
    pub(crate) fn agrees(&mut self, worker: usize, work: WorkId) -> bool {
        let masks = self.masks_of(worker);
        masks.is_some_and(|masks| masks.values().any(|masking| masking.work == work))
    }

    /// Begins to agree on masks once the URLs of a lease came, however often they come.
    pub(crate) fn begin_masks(&mut self, worker: usize, work: WorkId, lease: LeaseRef) {
        if !self.agrees(worker, work) {
            self.agree(worker, work, lease);
        }
    }

    /// Begins to agree on masks, or begins again, with keys of its own for this cohort.
    fn agree(&mut self, worker: usize, work: WorkId, lease: LeaseRef) {
        let mut entropy = [0; 128];
        for byte in &mut entropy {
            *byte = self.random.between(0, 255) as u8;
        }
        let keys = Keys::new(&entropy.into());
        let half = |at: usize| entropy[at..at + 32].try_into().expect("32 bytes");
        let (masking, seed) = (Bytes32(half(32)), Bytes32(half(64)));
        let public = keys.announced().masking;
        self.store.drawn.insert(public, (seed, masking));
        let Some(masks) = self.masks_of(worker) else {
            return;
        };
        let question = masks.get(&lease).map_or(0, |before| before.question + 1);
        let masking = Masking {
            work,
            keys: Some(keys),
            part: None,
            agreed: false,
            again: false,
            reveals: false,
            shares: Vec::new(),
            question,
        };
        if masks.insert(lease, masking).is_none() {
            let incarnation = self.machines[worker].incarnation();
            self.ask_for_masks(worker, incarnation, lease);
        }
    }

    /// The contribution of this work is uploaded: its worker reveals shares from now on.
    pub(crate) fn reveal(&mut self, worker: usize, work: WorkId) {
        if let Some(masks) = self.masks_of(worker)
            && let Some(masking) = masks.values_mut().find(|masking| masking.work == work)
        {
            masking.reveals = true;
        }
    }

    /// The work is over before its contribution was uploaded, so its masks mask nothing.
    pub(crate) fn forget_masks(&mut self, worker: usize, work: WorkId) {
        if let Some(masks) = self.masks_of(worker) {
            masks.retain(|_, masking| masking.work != work || masking.reveals);
        }
    }

    /// Asks the present question, and again after a while.
    pub(crate) fn ask_for_masks(&mut self, worker: usize, incarnation: u64, lease: LeaseRef) {
        if self.machines[worker].incarnation() != incarnation {
            return;
        }
        let Some(masking) = self.masks_of(worker).and_then(|masks| masks.get(&lease)) else {
            return;
        };
        let (question, step) = (masking.question, masking.step());
        if let Some(step) = step {
            let request = MaskRequest { v: V, lease, step };
            let purpose = Purpose::Mask(lease, question);
            self.request(worker, purpose, &WorkerRequest::Mask(request));
        }
        let again = SimEvent::AskForMasks {
            worker,
            incarnation,
            lease,
        };
        self.after(ASK_EVERY, again);
    }

    pub(crate) fn masks_answered(
        &mut self,
        worker: usize,
        (lease, question): (LeaseRef, u64),
        answer: Delivered,
    ) {
        let masks = self.masks_of(worker);
        let masking = masks.and_then(|masks| masks.get_mut(&lease));
        let Some(masking) = masking.filter(|masking| masking.question == question) else {
            return;
        };
        match answer {
            Delivered::Mask(reply, seals) => self.mask_stage(worker, lease, *reply, seals),
            Delivered::Refused(refusal) if refusal.code.passes() => {}
            Delivered::Refused(refusal) => {
                let (work, agreed) = (masking.work, masking.agreed);
                self.drop_masks(worker, &lease);
                if !agreed {
                    let outcome = Err(refusal);
                    self.tell_worker(worker, Input::Fetched { work, outcome });
                }
            }
            other => panic!("{other:?} is no answer about masks"),
        }
    }

    fn mask_stage(
        &mut self,
        worker: usize,
        lease: LeaseRef,
        reply: MaskReply,
        seals: Option<Box<CohortStatement>>,
    ) {
        let Some(masking) = self
            .masks_of(worker)
            .and_then(|masks| masks.get_mut(&lease))
        else {
            return;
        };
        let work = masking.work;
        match reply.stage {
            MaskStage::Wait => {}
            MaskStage::Cohort(members) => self.join_cohort(worker, lease, members),
            MaskStage::Again => self.agree(worker, work, lease),
            MaskStage::Shares(sealed) => {
                let part = masking.part.as_mut().expect("it asked with shares");
                let closed = part.take(&sealed).expect("one place for each worker");
                assert_eq!(closed, [], "a sealed share does not open");
                let first = !std::mem::replace(&mut masking.agreed, true);
                masking.again = false;
                masking.question += 1;
                let cohort = part.cohort().digest();
                let seals = seals.expect("shares come with the coordinator's word");
                assert_eq!(
                    *seals,
                    CohortStatement::of(&run_id(), lease.unit.round, cohort)
                );
                assert!(self.store.cohorts.contains(&cohort), "no ledger has it");
                if first {
                    let outcome = Ok(Some(Box::new(agreed(cohort))));
                    self.tell_worker(worker, Input::Fetched { work, outcome });
                }
            }
            MaskStage::ShareAgain => {
                self.monitor.counts.handed_again += 1;
                self.exchange_again(worker, lease);
            }
            MaskStage::Unmask(survivors) => self.disclose(worker, lease, &survivors),
            MaskStage::Over => self.drop_masks(worker, &lease),
        }
    }

    fn join_cohort(&mut self, worker: usize, lease: LeaseRef, members: Vec<CohortMember>) {
        let spec = &self.plan.spec;
        let threshold = spec.secure_aggregation.expect("it is masked").threshold;
        let digest = spec.to_object().1;
        let cohort = masking::Cohort::new(&run_id(), &digest, lease.unit.round, threshold, members);
        let cohort = cohort.expect("an honest coordinator names a cohort");
        let Some(masking) = self
            .masks_of(worker)
            .and_then(|masks| masks.get_mut(&lease))
        else {
            return;
        };
        let keys = masking.keys.take().expect("it asked with keys");
        masking.question += 1;
        let work = masking.work;
        let own = (&worker_id(worker), &audit_key(worker));
        match Part::join(cohort, keys, &lease, own, |_, _| true) {
            Ok(part) => masking.part = Some(part),
            // A late copy of an earlier question has announced other keys.
            Err(error) => {
                self.drop_masks(worker, &lease);
                let outcome = Err(Refusal::new(error.code(), error.to_string()));
                self.tell_worker(worker, Input::Fetched { work, outcome });
            }
        }
    }

    fn exchange_again(&mut self, worker: usize, lease: LeaseRef) {
        if let Some(masking) = self
            .masks_of(worker)
            .and_then(|masks| masks.get_mut(&lease))
        {
            masking.again = true;
            masking.question += 1;
        }
    }

    /// Reveals shares for a sum, or for no sum if it has revealed some for another of the round.
    fn disclose(&mut self, worker: usize, lease: LeaseRef, survivors: &[UnitIndex]) {
        let Some((masks, disclosures)) = self.machines[worker].masks() else {
            return;
        };
        let Some(masking) = masks.get_mut(&lease) else {
            return;
        };
        let part = masking.part.as_mut().expect("it asked to reveal");
        if part.waits_for(survivors) {
            return self.exchange_again(worker, lease);
        }
        let shares = part.reveal(survivors);
        let shares = shares.expect("an honest coordinator names one set of a cohort");
        if disclosures.note(lease.unit.round, survivors).is_ok() {
            masking.shares = shares;
            masking.question += 1;
        } else {
            // It has revealed for another sum of the round and says so in its log. Until somebody
            // starts it again, the round may need it in vain.
            self.monitor.counts.refused_sums += 1;
            self.refusing.insert(worker);
        }
    }

    /// The run is halted. The operator follows the advice of the code: it starts the workers again
    /// that refuse a sum, or else the coordinator.
    pub(crate) fn mend(&mut self, halted: Option<Code>) {
        if halted != Some(Code::SumLost) {
            return self.crash_coordinator();
        }
        let refusing = std::mem::take(&mut self.refusing);
        for worker in &refusing {
            self.crash_worker(*worker);
        }
        if !refusing.is_empty() {
            self.monitor.counts.sums_lost += 1;
        } else if self.machines.iter().all(WorkerMachine::is_up) {
            // Shares were lost, and no worker that joins will let the run go on.
            self.crash_coordinator();
        }
    }

    fn drop_masks(&mut self, worker: usize, lease: &LeaseRef) {
        if let Some(masks) = self.masks_of(worker) {
            masks.remove(lease);
        }
    }

    fn masks_of(&mut self, worker: usize) -> Option<&mut Masks> {
        Some(self.machines[worker].masks()?.0)
    }
}

/// The parts of a worker, by lease.
pub(crate) type Masks = std::collections::BTreeMap<LeaseRef, Masking>;

/// What a process keeps of secure aggregation.
pub(crate) type Kept<'a> = (&'a mut Masks, &'a mut Disclosures);

/// Stands for the shell's check of the coordinator's signature.
fn agreed(cohort: Digest) -> Agreed {
    let seal = CohortSeal {
        key: operator(),
        signature: ByteArray::new([1; 64]),
    };
    Agreed { cohort, seal }
}
