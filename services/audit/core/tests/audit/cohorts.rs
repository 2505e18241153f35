//! Cohorts of masked rounds: who has signed what the ledger tells of them, and a coordinator that
//! shows a worker another cohort than the ledger has.

use audit_core::{Auditor, Finding};
use masking::{Cohort, Keys};
use schemas::contribution::{Contribution, Outcome, Statement};
use schemas::event::{LedgerEvent, WorkerEvent};
use schemas::lease::{LeaseRef, Weights};
use schemas::masking::{Bytes32, CohortMember, CohortSeal, CohortStatement, UnitKey};
use schemas::run::RunSpec;
use schemas::sync::SealedInput;
use schemas::{Code, Digest, Epoch, Fragment, Message as _, Round, UnitIndex, Weight};
use serde_bytes::ByteArray;

use crate::log::{DOMAIN, Emitter, Log, Member, object, run};

const UNITS: u32 = 3;
const ROUND: Round = Round(0);

/// A masked round that is being written.
struct Scene {
    log: Log,
    members: Vec<Member>,
    spec: RunSpec,
}

fn lease(unit: u32) -> LeaseRef {
    kit::lease(kit::train(0, unit), 1)
}

/// Random bytes of a worker.
fn entropy(unit: u32) -> [u8; 128] {
    let mut bytes = [unit as u8 + 1; 128];
    (0..4).for_each(|part| bytes[32 * part] = part as u8 * 16);
    bytes
}

impl Scene {
    /// Three workers that hold the units of a round.
    fn new() -> Self {
        let members: Vec<Member> = (0..UNITS as u8).map(|at| Member::new(50 + at)).collect();
        let spec = kit::masked_run_spec(UNITS).run(run()).rounds(1);
        let spec = spec.initial(vec![object()]).build();
        let mut scene = Self {
            log: Log::new(DOMAIN, 40),
            members,
            spec,
        };
        scene.ledger(LedgerEvent::RunCreated {
            spec: Box::new(scene.spec.clone()),
            operator: kit::operator(),
        });
        for member in scene.members.clone() {
            scene.ledger(member.joined());
        }
        scene.ledger(LedgerEvent::RoundOpened { round: ROUND });
        for unit in 0..UNITS {
            let worker = scene.members[unit as usize].worker.clone();
            let lease = lease(unit);
            scene.ledger(LedgerEvent::LeaseGranted { lease, worker });
        }
        scene
    }

    fn ledger(&mut self, event: LedgerEvent) {
        self.log.ledger(Some(run()), event);
    }

    /// The cohort of these workers, as they sign it.
    fn cohort(&self) -> Vec<CohortMember> {
        let member = |unit: u32| {
            let Member {
                worker, emitter, ..
            } = &self.members[unit as usize];
            let keys = Keys::new(&entropy(unit).into()).announced();
            let spec = self.spec.to_object().1;
            let body = masking::statement(&run(), &spec, worker, lease(unit), keys);
            CohortMember {
                unit: UnitIndex(unit),
                epoch: Epoch(1),
                worker: worker.clone(),
                audit_key: emitter.public.clone(),
                keys,
                signature: ByteArray::new(emitter.sign_statement(DOMAIN, &body.encode())),
            }
        };
        (0..UNITS).map(member).collect()
    }

    fn digest(&self) -> Digest {
        let spec = self.spec.to_object().1;
        Cohort::digest_of(&run(), &spec, ROUND, 3, &self.cohort())
    }

    fn seal(&mut self) {
        let members = self.cohort();
        let round = ROUND;
        self.ledger(LedgerEvent::CohortSealed { round, members });
    }

    /// A worker tells its cohort, which this key has signed as that of a round.
    fn tell(&mut self, unit: u32, cohort: Digest, round: Round, by: &Emitter) {
        let body = CohortStatement::of(&run(), round, cohort).encode();
        let seal = CohortSeal {
            key: by.public.clone(),
            signature: ByteArray::new(by.sign_statement(DOMAIN, &body)),
        };
        let lease = lease(unit);
        let event = WorkerEvent::Masked {
            lease,
            cohort,
            seal,
        };
        self.log.worker(&mut self.members[unit as usize], event);
    }

    /// The event of a contribution that its worker has signed.
    fn contribution(&self, unit: u32) -> LedgerEvent {
        self.contribution_by(unit, &self.members[unit as usize].emitter)
    }

    /// The same, signed by any key.
    fn contribution_by(&self, unit: u32, emitter: &Emitter) -> LedgerEvent {
        let worker = &self.members[unit as usize].worker;
        let mut contribution = kit::contribution(&self.spec, vec![object()]);
        contribution.cohort = Some(self.digest());
        let outcome = Outcome::Contribution(contribution.clone());
        let statement: Statement = kit::statement(&self.spec, worker.clone(), lease(unit), outcome);
        let body = statement.encode();
        LedgerEvent::ContributionAccepted {
            lease: lease(unit),
            worker: worker.clone(),
            contribution: Box::new(contribution),
            norm: 0.0,
            statement: Digest::of(&body),
            signature: ByteArray::new(emitter.sign_statement(DOMAIN, &body)),
            provenance: None,
        }
    }

    fn contribute(&mut self) {
        for unit in 0..UNITS {
            let event = self.contribution(unit);
            self.ledger(event);
        }
    }

    /// The set is sealed, unmasked and merged.
    fn close(&mut self) {
        let input = |unit| SealedInput {
            unit: UnitIndex(unit),
            epoch: Epoch(1),
            weight: Weight::of_tokens(self.spec.unit_tokens()),
        };
        let secret = |unit| UnitKey {
            unit: UnitIndex(unit),
            key: Bytes32(entropy(unit)[64..96].try_into().expect("32 bytes")),
        };
        let (round, fragment) = (ROUND, Fragment::FIRST);
        let (inputs, secrets) = (
            (0..UNITS).map(input).collect(),
            (0..UNITS).map(secret).collect(),
        );
        self.ledger(LedgerEvent::RoundSealed {
            round,
            fragment,
            inputs,
            rest: 0,
            left_out: Vec::new(),
        });
        self.ledger(LedgerEvent::RoundUnmasked { round, secrets });
        let broadcast = Weights {
            round: round.next(),
            codec: self.spec.download,
            chunks: vec![object()].into(),
        };
        self.ledger(LedgerEvent::RoundClosed {
            round,
            fragment,
            broadcast,
            norm: 0.5,
            tokens: self.spec.unit_tokens(),
        });
    }

    /// The auditor after the whole record.
    fn audited(&self) -> Auditor {
        let mut auditor = self.log.auditor();
        for record in &self.log.records {
            auditor.observe(record);
        }
        auditor
    }
}

/// The names of what was found, and the code of the first evidence against the ledger.
fn found(auditor: &Auditor) -> (Vec<&'static str>, Option<Code>) {
    let names = auditor.findings().iter().map(|found| found.finding.name());
    (
        names.collect(),
        auditor.evidence().map(|found| found.code()),
    )
}

/// A change of what the ledger tells of a contribution.
type Change = fn(&mut Digest, &mut ByteArray<64>, &mut Contribution);

const CLEAN: (Vec<&str>, Option<Code>) = (vec![], None);

#[test]
fn tl_17_a_masked_round_whose_workers_were_shown_its_cohort_has_no_finding() {
    for early in [true, false] {
        let mut scene = Scene::new();
        let (digest, coordinator) = (scene.digest(), scene.log.coordinator.clone());
        // The copy of a worker's events may be ahead of that of the ledger.
        let tell = |scene: &mut Scene| {
            (0..UNITS).for_each(|unit| scene.tell(unit, digest, ROUND, &coordinator));
        };
        if early {
            tell(&mut scene);
        }
        scene.seal();
        if !early {
            tell(&mut scene);
        }
        scene.contribute();
        scene.close();
        let auditor = scene.audited();
        assert_eq!(found(&auditor), CLEAN, "early {early}");
        assert_eq!(
            auditor.state().run(&run()).expect("a run").rounds_closed(),
            Round(1)
        );
    }
}

#[test]
fn tl_17_a_cohort_that_one_worker_alone_was_shown_is_evidence_against_the_coordinator() {
    let invented = Digest::of(b"the keys of nobody but the coordinator");
    for late in [false, true] {
        let mut scene = Scene::new();
        let coordinator = scene.log.coordinator.clone();
        if !late {
            scene.tell(1, invented, ROUND, &coordinator);
        }
        scene.seal();
        scene.contribute();
        // As long as the round is open, another cohort may still come.
        assert_eq!(found(&scene.audited()), CLEAN);
        scene.close();
        if late {
            scene.tell(1, invented, ROUND, &coordinator);
        }
        let auditor = scene.audited();
        let expected = (vec!["cohort-hidden"], Some(Code::CohortFalse));
        assert_eq!(found(&auditor), expected, "late {late}");
        assert_eq!(
            auditor.faulty_workers(),
            [],
            "its worker has done nothing wrong"
        );
        let evidence = auditor.evidence().expect("it was found");
        let told = format!("{:?}", evidence.finding);
        assert!(
            matches!(
                evidence.finding,
                Finding::CohortHidden { round: ROUND, cohort, .. } if cohort == invented
            ),
            "{told}"
        );
    }
}

#[test]
fn tl_17_a_worker_that_tells_a_cohort_without_the_coordinators_word_blames_nobody_else() {
    let mut scene = Scene::new();
    let invented = Digest::of(b"made up by the worker");
    let coordinator = scene.log.coordinator.clone();
    let own = scene.members[1].emitter.clone();
    scene.tell(1, invented, ROUND, &own);
    // The word for another round.
    scene.tell(2, invented, Round(1), &coordinator);
    scene.seal();
    scene.contribute();
    scene.close();
    let auditor = scene.audited();
    assert_eq!(found(&auditor), (vec!["cohort-unsigned"; 2], None));
    assert_eq!(auditor.faulty_workers().len(), 2);
}

/// A thief of a key that signs no more cannot make evidence, neither against the ledger nor against
/// the worker that believes it.
#[test]
fn tl_28_tl_17_a_cohort_under_a_key_that_has_a_successor_blames_nobody() {
    let mut scene = Scene::new();
    let digest = scene.digest();
    scene.seal();
    let old = scene.log.succeed(98);
    let new = scene.log.coordinator.public.clone();
    // One that the ledger has, signed before the change and told after it.
    scene.tell(0, digest, ROUND, &old);
    scene.tell(1, Digest::of(b"made up by a thief"), ROUND, &old);
    scene.contribute();
    scene.close();
    let mut auditor = Auditor::new(DOMAIN, [old.public, new]);
    for record in &scene.log.records {
        auditor.observe(record);
    }
    assert_eq!(found(&auditor), (vec!["cohort-out-of-turn"], None));
    assert_eq!(auditor.faulty_workers(), []);
    let told = &auditor.findings()[0];
    assert_eq!(told.code(), Code::ForeignMessage);
}

/// Nor can a thief of the next key, with a worker that helps it: the key has not gone on with the
/// ledger.
#[test]
fn tl_28_tl_17_a_cohort_under_a_key_whose_turn_has_not_come_blames_nobody() {
    let (next, later) = (Emitter::new(98), Emitter::new(97));
    let invented = Digest::of(b"made up by a thief");
    for (late, succeeds) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut scene = Scene::new();
        let first = scene.log.coordinator.public.clone();
        if !late {
            scene.tell(1, invented, ROUND, &next);
            scene.tell(2, invented, ROUND, &later);
        }
        scene.seal();
        if succeeds {
            scene.log.succeed(98);
        }
        scene.contribute();
        scene.close();
        if late {
            scene.tell(1, invented, ROUND, &next);
            scene.tell(2, invented, ROUND, &later);
        }
        let keys = [first, next.public.clone(), later.public.clone()];
        let mut auditor = Auditor::new(DOMAIN, keys);
        for record in &scene.log.records {
            auditor.observe(record);
        }
        let (mut names, code) = found(&auditor);
        names.sort_unstable();
        // In its own turn the key speaks for the ledger.
        let expected = match succeeds {
            true => (
                vec!["cohort-hidden", "cohort-out-of-turn"],
                Some(Code::CohortFalse),
            ),
            false => (vec!["cohort-out-of-turn"; 2], None),
        };
        assert_eq!((names, code), expected, "late {late}, succeeds {succeeds}");
        assert_eq!(auditor.faulty_workers(), []);
    }
}

#[test]
fn tl_17_keys_and_contributions_that_their_worker_has_not_signed_are_evidence() {
    let stranger = Emitter::new(99);
    for unit in 0..UNITS {
        let mut scene = Scene::new();
        let (mut members, round) = (scene.cohort(), ROUND);
        let body = b"other keys";
        let signature = scene.members[unit as usize]
            .emitter
            .sign_statement(DOMAIN, body);
        members[unit as usize].signature = ByteArray::new(signature);
        scene.ledger(LedgerEvent::CohortSealed { round, members });
        let expected = (vec!["keys-unsigned"], Some(Code::CohortFalse));
        assert_eq!(found(&scene.audited()), expected);
    }
    let changes: [Change; 4] = [
        // The fold takes one without a cohort, as they were once.
        |_, _, contribution| contribution.cohort = None,
        |statement, _, _| *statement = Digest::of(b"another"),
        |_, signature, _| signature[0] ^= 1,
        |_, _, contribution| contribution.train_ms += 1,
    ];
    for change in changes {
        let mut scene = Scene::new();
        scene.seal();
        let mut event = scene.contribution(0);
        if let LedgerEvent::ContributionAccepted {
            statement,
            signature,
            contribution,
            ..
        } = &mut event
        {
            change(statement, signature, contribution);
        }
        scene.ledger(event);
        let expected = (vec!["contribution-unsigned"], Some(Code::CohortFalse));
        assert_eq!(found(&scene.audited()), expected);
    }
    // Signed as it should be, by somebody else.
    let mut scene = Scene::new();
    scene.seal();
    let event = scene.contribution_by(0, &stranger);
    scene.ledger(event);
    assert_eq!(found(&scene.audited()).0, ["contribution-unsigned"]);
}
