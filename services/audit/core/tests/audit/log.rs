//! Logs as a coordinator and its workers write them, signed, chained and numbered.

use audit_core::{Auditor, Checked, Payload, Record, StreamSequence};
use data_encoding::BASE32_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use schemas::event::{Event, EventBody, LeaseEnd, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::head::KnownHead;
use schemas::lease::Weights;
use schemas::member::{JoinRequest, Posture, Session};
use schemas::run::RunSpec;
use schemas::security::SecurityEvent;
use schemas::subject::{ledger_subject, record_subject, security_subject};
use schemas::sync::SealedInput;
use schemas::{
    AccountId, ChainSequence, Digest, Fragment, Message as _, ObjectRef, PublicKey, Round, RunId,
    Steps, Tokens, UnitIndex, UnixMillis, V, Weight, WorkerId,
};
use serde_bytes::{ByteArray, ByteBuf};

pub(crate) const DOMAIN: &str = "a-domain";
/// The seed of the sentry's key.
pub(crate) const SENTRY: u8 = 77;
const START: u64 = 1_700_000_000_000;

/// An emitter that signs events.
#[derive(Clone)]
pub(crate) struct Emitter {
    key: SigningKey,
    pub(crate) public: PublicKey,
    pub(crate) next: u64,
    pub(crate) head: Option<Digest>,
    /// The head of the log that its next events name.
    pub(crate) known: Option<KnownHead>,
}

/// A worker: where it speaks, and with which key.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) worker: WorkerId,
    pub(crate) account: AccountId,
    pub(crate) emitter: Emitter,
}

/// A log that is being written.
pub(crate) struct Log {
    pub(crate) domain: String,
    pub(crate) coordinator: Emitter,
    pub(crate) records: Vec<Record>,
}

/// The shape of a generated log.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) workers: u8,
    pub(crate) rounds: u64,
    pub(crate) units: u32,
    /// True if workers speak before the ledger says that they joined.
    pub(crate) early: bool,
    /// True when the first lease of each round expires.
    pub(crate) expiries: bool,
    /// Tokens that the ledger makes up when it says that a lease expired.
    pub(crate) made_up: u64,
    /// Makes the keys differ.
    pub(crate) seed: u8,
    /// Rounds from one full snapshot to the next.
    pub(crate) saved_every: u64,
}

/// A small run: most tests audit this one.
pub(crate) const PLAN: Plan = Plan {
    workers: 2,
    rounds: 2,
    units: 2,
    early: false,
    expiries: true,
    made_up: 0,
    seed: 10,
    saved_every: 1,
};

pub(crate) fn run() -> RunId {
    "demo".parse().expect("a name or key")
}

/// A public key in text form: kind, 32 bytes, checksum.
pub(crate) fn nkey(prefix: u8, raw: &[u8; 32]) -> String {
    let mut bytes = vec![prefix];
    bytes.extend(raw);
    let mut crc = 0u16;
    for byte in &bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    bytes.extend(crc.to_le_bytes());
    BASE32_NOPAD.encode(&bytes)
}

impl Emitter {
    pub(crate) fn new(seed: u8) -> Self {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let public = nkey(20 << 3, key.verifying_key().as_bytes())
            .parse()
            .expect("a name or key");
        Self {
            key,
            public,
            next: 0,
            head: None,
            known: None,
        }
    }

    /// Signs its next event.
    pub(crate) fn speak(
        &mut self,
        domain: &str,
        time: u64,
        run: Option<RunId>,
        event: Event,
    ) -> SignedEvent {
        let body = EventBody {
            v: V,
            known: self.known,
            emitter: self.public.clone(),
            sequence: ChainSequence(self.next),
            previous: self.head,
            time: UnixMillis(time),
            run,
            event,
        };
        let body = body.encode();
        self.next += 1;
        self.head = Some(Digest::of(&body));
        self.sign(domain, body)
    }

    /// Signs any bytes as an event's body.
    pub(crate) fn sign(&self, domain: &str, body: Vec<u8>) -> SignedEvent {
        let hash = Digest::of(domain.as_bytes());
        let signed = [
            &[0xFF],
            &b"diloco/audit-event/v1"[..],
            &[0],
            hash.as_bytes(),
            &body,
        ]
        .concat();
        let signature = ByteArray::new(self.key.sign(&signed).to_bytes());
        SignedEvent {
            v: V,
            key: self.public.clone(),
            signature,
            body: ByteBuf::from(body),
        }
    }
}

impl Emitter {
    /// Signs the body of a statement.
    pub(crate) fn sign_statement(&self, domain: &str, body: &[u8]) -> [u8; 64] {
        let hash = Digest::of(domain.as_bytes());
        let purpose = &b"diloco/statement/v1"[..];
        let signed = [&[0xFF], purpose, &[0], hash.as_bytes(), body].concat();
        self.key.sign(&signed).to_bytes()
    }
}

impl Member {
    pub(crate) fn new(seed: u8) -> Self {
        let worker = nkey(20 << 3, &[seed; 32]).parse().expect("a name or key");
        Self {
            worker,
            account: nkey(0, &[9; 32]).parse().expect("a name or key"),
            emitter: Emitter::new(seed),
        }
    }

    pub(crate) fn joined(&self) -> LedgerEvent {
        let request = JoinRequest {
            audit_key: self.emitter.public.clone(),
            ..kit::join_request(1)
        };
        kit::joined(self.worker.clone(), self.account.clone(), request)
    }
}

impl Log {
    pub(crate) fn new(domain: &str, seed: u8) -> Self {
        Self {
            domain: domain.to_owned(),
            coordinator: Emitter::new(seed),
            records: Vec::new(),
        }
    }

    pub(crate) fn auditor(&self) -> Auditor {
        Auditor::new(DOMAIN, [self.coordinator.public.clone()])
            .hearing([Emitter::new(SENTRY).public])
    }

    fn now(&self) -> u64 {
        START + 1000 * self.records.len() as u64
    }

    pub(crate) fn push(&mut self, subject: String, said: &SignedEvent) {
        let stream_sequence = StreamSequence(self.records.len() as u64 + 1);
        let (stored_at, payload) = (UnixMillis(self.now() + 3), Payload::of(&said.encode()));
        self.records.push(Record {
            stream_sequence,
            subject,
            stored_at,
            payload,
        });
    }

    pub(crate) fn ledger(&mut self, run: Option<RunId>, event: LedgerEvent) {
        let subject = ledger_subject(run.as_ref(), &self.coordinator.public, event.kind());
        let time = self.now();
        let said = self
            .coordinator
            .speak(&self.domain, time, run, Event::Ledger(event));
        self.push(subject, &said);
    }

    /// The coordinator's key names the next one, which goes on with its chain. Returns the old one.
    pub(crate) fn succeed(&mut self, seed: u8) -> Emitter {
        let new = Emitter::new(seed);
        let next = new.public.clone();
        self.ledger(None, LedgerEvent::EmitterSucceeded { next });
        let Emitter { next, head, .. } = self.coordinator;
        std::mem::replace(&mut self.coordinator, Emitter { next, head, ..new })
    }

    pub(crate) fn security(&mut self, sentry: &mut Emitter, event: SecurityEvent) {
        let subject = security_subject(&sentry.public, event.kind());
        let time = self.now();
        let said = sentry.speak(&self.domain, time, None, Event::Security(event));
        self.push(subject, &said);
    }

    pub(crate) fn worker(&mut self, member: &mut Member, event: WorkerEvent) {
        let subject = record_subject(&member.account, &run(), &member.worker, event.kind());
        let time = self.now();
        let said = member
            .emitter
            .speak(&self.domain, time, Some(run()), Event::Worker(event));
        self.push(subject, &said);
    }

    /// A whole run, from the coordinator's start to the run's end.
    pub(crate) fn write(plan: &Plan) -> Self {
        let mut log = Self::new(DOMAIN, plan.seed);
        let mut members: Vec<Member> = (0..plan.workers)
            .map(|at| Member::new(plan.seed + 1 + at))
            .collect();
        let spec = spec(plan);
        let joined = || WorkerEvent::Joined {
            release: "0.1.0".to_owned(),
            device: "cpu".to_owned(),
        };
        let (release, session) = ("0.1.0".to_owned(), Session(2));
        log.ledger(
            None,
            LedgerEvent::CoordinatorStarted {
                release,
                posture: Posture::default(),
                session,
            },
        );
        let operator = log.coordinator.public.clone();
        log.ledger(
            Some(run()),
            LedgerEvent::RunCreated {
                spec: Box::new(spec.clone()),
                operator,
            },
        );
        for member in &mut members {
            if plan.early {
                log.worker(member, joined());
            }
            log.ledger(Some(run()), member.joined());
            if !plan.early {
                log.worker(member, joined());
            }
        }
        for round in (0..plan.rounds).map(Round) {
            log.round(plan, &spec, round, &mut members);
        }
        log.ledger(Some(run()), LedgerEvent::RunCompleted);
        log
    }

    fn round(&mut self, plan: &Plan, spec: &RunSpec, round: Round, members: &mut [Member]) {
        self.ledger(Some(run()), LedgerEvent::RoundOpened { round });
        let mut inputs = Vec::new();
        for index in (0..plan.units).map(UnitIndex) {
            let at = index.get() as usize % members.len();
            let member = &mut members[at];
            let mut lease = kit::lease(kit::train(round.get(), index.get()), 1);
            let worker = member.worker.clone();
            self.ledger(
                Some(run()),
                LedgerEvent::LeaseGranted {
                    lease,
                    worker: worker.clone(),
                },
            );
            self.worker(member, WorkerEvent::Started { lease });
            if plan.expiries && index.get() == 0 {
                let tokens = spec.unit_tokens() + Tokens(plan.made_up);
                let cause = LeaseEnd::Expired;
                self.ledger(
                    Some(run()),
                    LedgerEvent::LeaseEnded {
                        lease,
                        worker: worker.clone(),
                        cause,
                        tokens,
                    },
                );
                lease.epoch = lease.epoch.next();
                self.ledger(
                    Some(run()),
                    LedgerEvent::LeaseGranted {
                        lease,
                        worker: worker.clone(),
                    },
                );
            }
            let statement = Digest::of(lease.to_string().as_bytes());
            self.worker(member, WorkerEvent::Submitted { lease, statement });
            let (contribution, signature) = (
                Box::new(kit::contribution(spec, vec![object()])),
                ByteArray::new([0; 64]),
            );
            let accepted = LedgerEvent::ContributionAccepted {
                lease,
                worker,
                contribution,
                norm: 1.0,
                statement,
                signature,
                provenance: None,
            };
            self.ledger(Some(run()), accepted);
            inputs.push(SealedInput {
                unit: index,
                epoch: lease.epoch,
                weight: Weight::of_tokens(spec.unit_tokens()),
            });
        }
        // An earlier release named no sealed sets, and its ledgers must remain readable.
        if round.get() > 0 {
            self.ledger(
                Some(run()),
                LedgerEvent::RoundSealed {
                    round,
                    fragment: Fragment::FIRST,
                    inputs,
                    left_out: Vec::new(),
                    rest: 0,
                },
            );
        }
        let broadcast = Weights {
            round: round.next(),
            codec: spec.download,
            chunks: vec![object()].into(),
        };
        let tokens = spec.unit_tokens();
        self.ledger(
            Some(run()),
            LedgerEvent::RoundClosed {
                round,
                fragment: Fragment::FIRST,
                broadcast,
                norm: 0.5,
                tokens,
            },
        );
        if round.next().get().is_multiple_of(plan.saved_every) {
            let manifest = object();
            let round = round.next();
            self.ledger(
                Some(run()),
                LedgerEvent::SnapshotSaved {
                    round,
                    manifest,
                    statement: None,
                },
            );
        }
    }
}

/// Numbers records as a stream would.
pub(crate) fn renumber(records: &mut [Record]) {
    for (at, record) in records.iter_mut().enumerate() {
        record.stream_sequence = StreamSequence(at as u64 + 1);
    }
}

/// The event that a record holds.
pub(crate) fn signed(record: &Record) -> SignedEvent {
    match &record.payload {
        Payload::Whole(bytes) => SignedEvent::decode(bytes).expect("records of a log hold events"),
        Payload::TooLong { .. } => panic!("no event is too long"),
    }
}

/// Replaces the event in a record.
pub(crate) fn put(record: &mut Record, event: &SignedEvent) {
    record.payload = Payload::of(&event.encode());
}

/// All results of an auditor for records that end at `last`.
pub(crate) fn audit(
    auditor: &mut Auditor,
    records: &[Record],
    last: StreamSequence,
) -> Vec<Checked> {
    let mut results: Vec<Checked> = records
        .iter()
        .flat_map(|record| auditor.observe(record))
        .collect();
    results.extend(auditor.conclude(last));
    results
}

pub(crate) fn object() -> ObjectRef {
    ObjectRef::of(b"object")
}

fn spec(plan: &Plan) -> RunSpec {
    kit::run_spec()
        .rounds(plan.rounds)
        .units(plan.units)
        .inner_steps(Steps(5))
        .sequence_tokens(16)
        .chunk_elements(1 << 10)
        .initial(vec![object()])
        .build()
}

/// The event of the ledger that a record holds.
pub(crate) fn event(record: &Record) -> LedgerEvent {
    let body = EventBody::decode(&signed(record).body).expect("an event's body");
    match body.event {
        Event::Ledger(event) => event,
        other => panic!("{other:?}"),
    }
}
