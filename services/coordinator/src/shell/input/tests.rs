use std::fs;

use identity::{AuditKey, ConnectionKey, KeyKind, SigningKey};
use schemas::event::LedgerEvent;
use schemas::masking::MaskRequest;
use schemas::member::{JoinRequest, OpenLayer, Session};
use schemas::{PublicKey, Rank, Seat, UnixMillis, V};
use serde_bytes::ByteArray;
use tempfile::TempDir;

use super::*;

struct Scene {
    scratch: TempDir,
    peer: Peer,
    key: PublicKey,
    record: Registration,
    join: WorkerRequest,
}

impl Scene {
    fn new() -> Self {
        let (worker, audit) = (ConnectionKey::generate(), AuditKey::generate());
        let key = worker.public().clone();
        let account = SigningKey::generate(KeyKind::Account).public().clone();
        let peer = Peer {
            account: account.as_str().parse().expect("an account's key"),
            run: "demo".parse().expect("a name"),
            worker: key.as_str().parse().expect("a worker's key"),
        };
        let record = Registration {
            v: V,
            name: "worker-7".to_owned(),
            role: Role::Worker,
            run: Some(peer.run.clone()),
            account: peer.account.clone(),
            public: key.clone(),
            issued: UnixMillis(1),
            ends: UnixMillis(2),
            blocked: None,
            audit_key: Some(audit.public().clone()),
            seat: Seat::new("left".parse().expect("a name"), Rank(1), 2).ok(),
            before: None,
            changes_until: None,
        };
        let join = WorkerRequest::Join(JoinRequest {
            v: V,
            session: Session(1),
            audit_key: audit.public().clone(),
            proof: [0; 64].into(),
            trainers: Vec::new(),
            device: String::new(),
            release: String::new(),
            posture: Posture::default(),
        });
        let scratch = tempfile::tempdir().expect("a scratch folder");
        Self {
            scratch,
            peer,
            key,
            record,
            join,
        }
    }

    fn list(&self) -> IssuedList {
        IssuedList::at(&self.scratch.path().join("issued"))
    }

    fn join(&self, posture: &Posture) -> Result<Option<Recorded>, Code> {
        let bound = bound(&self.list(), posture, &self.peer, &self.join);
        bound.map_err(|refusal| {
            let key = self.peer.worker.as_str();
            assert!(refusal.detail.contains(key), "{refusal}");
            refusal.code
        })
    }

    /// Joins after the record became this one.
    fn with(&self, alter: impl FnOnce(&mut Registration)) -> Result<Option<Recorded>, Code> {
        let mut record = self.record.clone();
        alter(&mut record);
        self.list().record(&record).expect("it takes files");
        self.join(&Posture::default())
    }
}

fn open(layer: Layer) -> Posture {
    Posture {
        open: vec![OpenLayer {
            layer,
            reason: "a test".to_owned(),
        }],
    }
}

#[test]
fn fg_03_a_worker_joins_as_its_record_says_and_not_without_one() {
    let scene = Scene::new();
    let seat = scene.record.seat.clone();
    let recorded = |before: &[schemas::WorkerId]| {
        Some(Recorded {
            seat: seat.clone(),
            before: before.to_vec(),
        })
    };
    let stranger = Scene::new();
    // A folder with the records of others is there.
    let list = scene.list();
    list.record(&stranger.record).expect("it takes files");
    for posture in [Posture::default(), open(Layer::Enrolment)] {
        assert_eq!(scene.join(&posture), Err(Code::RecordMissing));
    }
    assert_eq!(scene.with(|_| ()), Ok(recorded(&[])));
    let before = stranger.record.public.clone();
    let key = before.as_str().parse().expect("a worker's key");
    let renamed = scene.with(|record| record.before = Some(before));
    assert_eq!(renamed, Ok(recorded(&[key])));
    // The keys before that one, as far as there are records; in a circle each once.
    let third = Scene::new();
    let circle = Registration {
        before: Some(stranger.record.public.clone()),
        ..third.record.clone()
    };
    list.record(&circle).expect("it takes files");
    let second = Registration {
        before: Some(third.record.public.clone()),
        ..stranger.record.clone()
    };
    list.record(&second).expect("it takes files");
    let renamed = scene.with(|record| record.before = Some(stranger.record.public.clone()));
    let keys = [stranger.peer.worker.clone(), third.peer.worker];
    assert_eq!(renamed, Ok(recorded(&keys)));
    let lost = Scene::new().key;
    let renamed = scene.with(|record| record.before = Some(lost));
    assert_eq!(renamed, Err(Code::RecordMissing));
    let other = stranger.record.audit_key.clone();
    assert_eq!(
        scene.with(|record| record.audit_key = other),
        Err(Code::AuditKeyRefused)
    );
    // Records of earlier releases name no audit key.
    assert_eq!(
        scene.with(|record| record.audit_key = None),
        Ok(recorded(&[]))
    );
    assert_eq!(
        scene.with(|record| record.blocked = Some(UnixMillis(1))),
        Err(Code::HolderBlocked)
    );
    let elsewhere = stranger.record.account;
    let alter: [&dyn Fn(&mut Registration); 4] = [
        &|record| record.run = Some("other".parse().expect("a name")),
        &|record| record.run = None,
        &|record| record.role = Role::Operator,
        &|record| record.account = elsewhere.clone(),
    ];
    for alter in alter {
        assert_eq!(scene.with(alter), Err(Code::HolderMismatch));
    }
}

#[test]
fn fg_03_a_record_that_cannot_be_read_lets_nobody_in() {
    let scene = Scene::new();
    assert!(scene.with(|_| ()).is_ok());
    let file = scene.list().folder().join(format!("{}.json", scene.key));
    fs::write(&file, "{}").expect("it is ours");
    assert_eq!(
        scene.join(&Posture::default()),
        Err(Code::RegistrationInvalid)
    );
    fs::remove_file(&file).expect("it is ours");
    fs::create_dir(&file).expect("it is ours");
    let refused = scene.join(&open(Layer::Enrolment));
    assert_eq!(refused, Err(Code::RegistrationInvalid));
}

#[test]
fn fg_03_without_the_folder_only_an_open_layer_lets_workers_in() {
    let scene = Scene::new();
    for posture in [Posture::default(), open(Layer::Bus)] {
        assert_eq!(scene.join(&posture), Err(Code::RecordMissing));
    }
    assert_eq!(scene.join(&open(Layer::Enrolment)), Ok(None));
    // What is no folder, or leads nowhere that can be read, is not absent.
    let folder = scene.list().folder().to_owned();
    fs::write(&folder, "").expect("it is ours");
    let refused = scene.join(&open(Layer::Enrolment));
    assert_eq!(refused, Err(Code::RegistrationInvalid));
    fs::remove_file(&folder).expect("it is ours");
    std::os::unix::fs::symlink(&folder, &folder).expect("it is ours");
    let refused = scene.join(&open(Layer::Enrolment));
    assert_eq!(refused, Err(Code::RegistrationInvalid));
}

#[test]
fn tl_17_keys_that_their_worker_did_not_sign_for_their_lease_reach_no_cohort() {
    let (key, run) = (AuditKey::generate(), kit::run_id());
    let spec = kit::masked_run_spec(4).build();
    let created = LedgerEvent::RunCreated {
        spec: Box::new(spec),
        operator: kit::operator(),
    };
    let mut join = kit::join_request(1);
    join.audit_key = key.public().clone();
    let joined = kit::joined(kit::worker(1), kit::account(1), join);
    let mut state = ledger::State::default();
    for event in [created, joined] {
        let applied = state.apply(UnixMillis(1), Some(&run), &event);
        applied.expect("it follows");
    }
    let digest = state.run(&run).expect("it was created").spec_digest;
    let keys = masking::Keys::new(&[7; 128].into()).announced();
    let lease = |epoch| kit::lease(kit::train(0, 0), epoch);
    let signed = |key: &AuditKey, epoch| {
        let (worker, of) = (kit::worker(1), lease(epoch));
        let body = masking::statement(&run, &digest, &worker, of, keys).encode();
        ByteArray::new(key.sign_statement("domain", &body))
    };
    let other = AuditKey::generate();
    for (signature, number, refused) in [
        (signed(&key, 1), 1, None),
        (signed(&other, 1), 1, Some(Code::MaskKeysRefused)),
        (signed(&key, 2), 1, Some(Code::MaskKeysRefused)),
        // The core refuses who is no member.
        (signed(&other, 1), 2, None),
    ] {
        let request = WorkerRequest::Mask(MaskRequest {
            v: V,
            lease: lease(1),
            step: MaskStep::Announce { keys, signature },
        });
        let peer = Peer {
            account: kit::account(1),
            run: run.clone(),
            worker: kit::worker(number),
        };
        let outcome = announced("domain", &state, &peer, &request);
        assert_eq!(outcome.err().map(|refusal| refusal.code), refused);
    }
}

#[test]
fn tl_07_a_revoked_key_comes_back_by_a_record_of_after_its_revocation_alone() {
    let scene = Scene::new();
    let (key, until) = (scene.key.clone(), UnixMillis(50_000));
    let mut state = ledger::State::default();
    let lifts = |state: &ledger::State| match reissued(&scene.list(), state, key.clone()) {
        None => None,
        Some(Input::Reissued { key: of, issued }) if of == key => Some(issued),
        Some(other) => panic!("{other:?}"),
    };
    assert!(
        scene
            .with(|record| record.issued = UnixMillis(60_000))
            .is_ok()
    );
    assert_eq!(lifts(&state), None, "it is not revoked");
    let revoked = LedgerEvent::CredentialRevoked {
        key: key.clone(),
        role: None,
        name: None,
        until,
        reason: None,
        operator: key.clone(),
    };
    state.apply(UnixMillis(1), None, &revoked).expect("it fits");
    assert_eq!(lifts(&state), Some(UnixMillis(60_000)));
    let blocked = scene.with(|record| {
        (record.issued, record.blocked) = (UnixMillis(60_000), Some(UnixMillis(2)));
    });
    assert_eq!(blocked, Err(Code::HolderBlocked));
    assert_eq!(lifts(&state), None, "the list has it as blocked");
    assert!(scene.with(|record| record.issued = until).is_ok());
    assert_eq!(lifts(&state), None, "the record is of before");
    fs::remove_file(scene.list().folder().join(format!("{key}.json"))).expect("it is ours");
    assert_eq!(lifts(&state), None, "there is no record");
}
