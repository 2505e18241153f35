//! Somebody who can speak as the coordinator on the bus, such as a captured broker, answers real
//! workers: with leases that the coordinator did not sign, did not sign for them, or did not sign
//! now. Each is refused with a code and told in an event; no worker fetches an object or starts
//! on a unit, and the next honest lease is trained.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use data_encoding::BASE64URL_NOPAD;
use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE, Recorded};
use identity::ManifestKey;
use runtime::{Bus, Subscription, clock};
use schemas::answer::Addressee;
use schemas::blob::{Grant, HttpAction, Method};
use schemas::event::{Event, LedgerEvent, WorkerEvent};
use schemas::lease::{
    ClaimOutcome, ClaimReply, ClaimRequest, LeaseRef, MANIFEST_TYPE, Manifest, UnitId, UnitKind,
    Work,
};
use schemas::member::{JoinRequest, Session};
use schemas::permission::Role;
use schemas::public::{COMMAND_TYPE, Command, CommandVerb};
use schemas::run::RunSpec;
use schemas::subject::{Incoming, Verb, command_subject};
use schemas::view::RunPhase;
use schemas::{
    Answer, Bytes, Chunks, Code, Digest, Epoch, Message as _, Millis, ObjectRef, Reply, Round,
    Steps, UnitIndex, V, WorkerId,
};
use serde_json::json;
use tokio::net::TcpListener;

/// Workers that are lied to. They share the forgeries: a worker pauses longer after each.
const LIED_TO: usize = 4;
const DAY: u64 = 86_400;

/// A document, and how it must be refused: the code, and words of the reason.
struct Forged {
    document: String,
    code: Code,
    reason: &'static str,
}

/// What the impostor has: the settings, which every member knows, keys of its own, and documents
/// that the coordinator signed for somebody else or at another time.
struct Forger {
    spec: RunSpec,
    /// The coordinator's key, for those documents.
    coordinator: ManifestKey,
    stranger: ManifestKey,
    /// Signs any bytes with the stranger's key.
    signs: nkeys::KeyPair,
    /// The process that the next documents are for.
    session: Cell<Session>,
}

fn encoded(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

fn parts(document: &str) -> [&str; 3] {
    let parts: Vec<&str> = document.split('.').collect();
    parts.try_into().expect("header, claims and signature")
}

/// HMAC with SHA-256 (RFC 2104), with a secret of at most 64 bytes.
fn keyed_hash(secret: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..secret.len()].copy_from_slice(secret);
    let pad = |byte: u8| block.map(|one| one ^ byte);
    let inner = Digest::of(&[&pad(0x36)[..], message].concat());
    *Digest::of(&[&pad(0x5c)[..], inner.as_bytes()].concat()).as_bytes()
}

impl Forger {
    fn new(cluster: &Cluster, spec: RunSpec) -> Self {
        let coordinator = ManifestKey::read(&cluster.domain().layout().manifest_key()).unwrap();
        let stranger = ManifestKey::generate();
        let path = cluster.path("stranger.nk");
        stranger.seed().write(&path).unwrap();
        let seed = std::fs::read_to_string(&path).unwrap();
        let signs = nkeys::KeyPair::from_seed(seed.trim()).unwrap();
        Self {
            spec,
            coordinator,
            stranger,
            signs,
            session: Cell::new(Session(0)),
        }
    }

    /// The claims of a lease that is in order.
    fn claims(&self, worker: &WorkerId) -> Manifest {
        let unit = UnitId {
            round: Round(0),
            kind: UnitKind::Train,
            index: UnitIndex(0),
        };
        let epoch = Epoch(1);
        let (now, lease) = (clock::now(), self.spec.policy.lease);
        let seconds = now.get() / 1000;
        Manifest {
            v: V,
            iss: self.coordinator.public().to_string(),
            aud: worker.clone(),
            session: self.session.get(),
            nbf: seconds - 5,
            exp: seconds + lease.get() / 1000,
            iat: seconds,
            jti: format!("{}/{unit}/{epoch}", self.spec.run),
            run: self.spec.run.clone(),
            spec: self.spec.to_object().1,
            lease: LeaseRef { unit, epoch },
            expires_at: now.after(lease),
            base: self.spec.initial_weights(),
            work: Work::Train {
                shards: vec![self.spec.data],
                seed: 1,
                steps: self.spec.schedule.inner_steps,
                steps_before: Steps(0),
            },
        }
    }

    /// A document that the coordinator did sign.
    fn signed(&self, claims: &Manifest) -> String {
        let signed = self.coordinator.sign_document(MANIFEST_TYPE, claims);
        signed.expect("small claims")
    }

    fn header(&self, algorithm: &str) -> String {
        let kid = self.coordinator.public();
        let header = json!({"alg": algorithm, "kid": kid, "typ": MANIFEST_TYPE});
        encoded(header.to_string().as_bytes())
    }

    /// The algorithm and the key are not the sender's choice.
    fn algorithms_and_keys(&self, worker: &WorkerId) -> Vec<Forged> {
        let claims = self.claims(worker);
        let document = self.signed(&claims);
        let [_, payload, _] = parts(&document);
        let with = |algorithm: &str, signature: &dyn Fn(&[u8]) -> Vec<u8>| {
            let input = format!("{}.{payload}", self.header(algorithm));
            format!("{input}.{}", encoded(&signature(input.as_bytes())))
        };
        let public = self.coordinator.public().as_str().as_bytes();
        let hashed = |input: &[u8]| keyed_hash(public, input).to_vec();
        let signed = |input: &[u8]| self.signs.sign(input).unwrap();
        let of_stranger = Manifest {
            iss: self.stranger.public().to_string(),
            ..claims
        };
        let by_stranger = self.stranger.sign_document(MANIFEST_TYPE, &of_stranger);
        vec![
            Forged {
                document: with("none", &|_| Vec::new()),
                code: Code::ManifestInvalid,
                reason: "names algorithm \"none\"",
            },
            Forged {
                document: with("HS256", &hashed),
                code: Code::ManifestInvalid,
                reason: "names algorithm \"HS256\"",
            },
            Forged {
                document: with("EdDSA", &hashed),
                code: Code::SignatureInvalid,
                reason: "signature",
            },
            Forged {
                document: with("EdDSA", &signed),
                code: Code::SignatureInvalid,
                reason: "signature",
            },
            Forged {
                document: by_stranger.expect("small claims"),
                code: Code::SignatureInvalid,
                reason: "which the trust bundle does not list",
            },
        ]
    }

    /// Each part is changed, and the others stay as the coordinator made them.
    fn altered(&self, worker: &WorkerId, other: &WorkerId) -> Vec<Forged> {
        let claims = self.claims(worker);
        let document = self.signed(&claims);
        let [header, payload, signature] = parts(&document);
        let longer = Manifest {
            exp: claims.exp + 1,
            ..claims
        };
        let longer = serde_json::to_vec(&longer).expect("small claims");
        let foreign = self.signed(&self.claims(other));
        let [_, of_other, _] = parts(&foreign);
        let mut flipped = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        flipped[32] ^= 1;
        let kid = self.coordinator.public().as_str();
        let decoded = BASE64URL_NOPAD.decode(header.as_bytes()).unwrap();
        let renamed = String::from_utf8(decoded)
            .unwrap()
            .replace(kid, self.stranger.public().as_str());
        let refused = |document: String, code: Code, reason: &'static str| Forged {
            document,
            code,
            reason,
        };
        vec![
            refused(
                format!("{}.{payload}.{signature}", encoded(renamed.as_bytes())),
                Code::SignatureInvalid,
                "which the trust bundle does not list",
            ),
            refused(
                format!("{header}.{}.{signature}", encoded(&longer)),
                Code::SignatureInvalid,
                "signature",
            ),
            refused(
                format!("{header}.{of_other}.{signature}"),
                Code::SignatureInvalid,
                "signature",
            ),
            refused(
                format!("{header}.{payload}.{}", encoded(&flipped)),
                Code::SignatureInvalid,
                "signature",
            ),
            refused(
                format!("{header}.{payload}"),
                Code::ManifestInvalid,
                "expected three parts",
            ),
        ]
    }

    /// The coordinator's own, for somebody else or of another time.
    fn misplaced(&self, worker: &WorkerId, other: &WorkerId) -> Vec<Forged> {
        let claims = self.claims(worker);
        let at = |seconds: i64| Manifest {
            nbf: claims.nbf.saturating_add_signed(seconds),
            exp: claims.exp.saturating_add_signed(seconds),
            ..claims.clone()
        };
        let of_another_run = Manifest {
            run: "another".parse().expect("a name"),
            ..claims.clone()
        };
        let command = self.coordinator.sign_document(COMMAND_TYPE, &claims);
        let day = i64::try_from(DAY).expect("a small number");
        [
            (
                self.signed(&self.claims(other)),
                Code::ManifestInvalid,
                "the manifest is for",
            ),
            (
                self.signed(&of_another_run),
                Code::ManifestInvalid,
                "the manifest is of run another",
            ),
            (
                command.expect("small claims"),
                Code::ManifestInvalid,
                "has type",
            ),
            (self.signed(&at(-day)), Code::ClockOff, "in the past"),
            (self.signed(&at(day)), Code::ClockOff, "in the future"),
        ]
        .map(|(document, code, reason)| Forged {
            document,
            code,
            reason,
        })
        .into()
    }

    /// Signed for this worker, and not what its settings and its lease say.
    fn unbound(&self, worker: &WorkerId) -> Vec<Forged> {
        let claims = self.claims(worker);
        let mut huge = claims.clone();
        let Chunks::Named(chunks) = &mut huge.base.chunks else {
            panic!("a small run names its chunks");
        };
        chunks[0].bytes = Bytes::mebi(1 << 20);
        let work = |steps: Steps| Work::Train {
            shards: vec![self.spec.data],
            seed: 1,
            steps,
            steps_before: Steps(0),
        };
        let changed = |change: &dyn Fn(&mut Manifest)| {
            let mut claims = claims.clone();
            change(&mut claims);
            claims
        };
        [
            (
                changed(&|claims| claims.spec = Digest::of(b"other settings")),
                "settings are",
            ),
            (
                changed(&|claims| claims.jti.push('0')),
                "does not name lease",
            ),
            (huge, "are not the initial ones"),
            (
                changed(&|claims| claims.work = work(Steps(u64::MAX))),
                "inner steps",
            ),
        ]
        .map(|(claims, reason)| Forged {
            document: self.signed(&claims),
            code: Code::ManifestInvalid,
            reason,
        })
        .into()
    }
}

/// Answers claims before the coordinator does, which has no work to give.
struct Impostor {
    bus: Bus,
    requests: Subscription,
    /// Where its URLs lead.
    decoy: TcpListener,
    spec: RunSpec,
    /// What workers asked, beside claims.
    asked: Vec<(WorkerId, Verb)>,
}

impl Impostor {
    async fn listen(cluster: &Cluster, spec: RunSpec) -> Self {
        let role = Role::Coordinator;
        let bus = cluster.connect(role, role.name()).await;
        let requests = bus.subscribe("diloco.request.>").await.unwrap();
        Self {
            bus,
            requests,
            decoy: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            spec,
            asked: Vec::new(),
        }
    }

    /// URLs for the weights that a lease begins with.
    fn urls(&self) -> Vec<Grant> {
        let address: SocketAddr = self.decoy.local_addr().unwrap();
        let url = |object: &ObjectRef| Grant {
            digest: object.digest,
            action: Some(HttpAction {
                method: Method::Get,
                href: format!("https://{address}/blobs/{}", object.digest.hex()),
                headers: BTreeMap::new(),
                expires_at: clock::now().after(Millis::from_secs(60)),
            }),
        };
        self.spec.model.initial.objects().iter().map(url).collect()
    }

    /// Answers claims of these workers with documents that are made for the process that claims
    /// first, one after another, and says that there is nothing when they are over. Returns when
    /// each worker has asked for more, or one has begun to fetch.
    async fn answer(
        &mut self,
        mut waiting: BTreeSet<WorkerId>,
        forge: impl Fn(&WorkerId, Session) -> VecDeque<String>,
    ) -> bool {
        let lied_to = waiting.clone();
        let mut documents: BTreeMap<WorkerId, VecDeque<String>> = BTreeMap::new();
        while !waiting.is_empty() {
            let message = tokio::select! {
                message = self.requests.next() => message.unwrap().expect("it is connected"),
                _ = self.decoy.accept() => return true,
            };
            let Ok(Incoming::Request { worker, verb, .. }) = message.subject.as_str().parse()
            else {
                panic!("{}", message.subject);
            };
            if verb != Verb::Claim {
                let fetches = verb == Verb::Get;
                self.asked.push((worker, verb));
                if fetches {
                    return true;
                }
                continue;
            }
            if lied_to.contains(&worker) && !documents.contains_key(&worker) {
                let claim = ClaimRequest::decode(&message.payload).unwrap();
                documents.insert(worker.clone(), forge(&worker, claim.session));
            }
            let next = documents.get_mut(&worker).and_then(VecDeque::pop_front);
            let reply = match next {
                Some(document) => ClaimReply {
                    base: self.urls(),
                    ..ClaimReply::of(ClaimOutcome::Lease(document))
                },
                None => {
                    waiting.remove(&worker);
                    ClaimReply::of(ClaimOutcome::Nothing)
                }
            };
            let asker = Addressee::of(&message.subject, &message.payload).unwrap();
            let answer = Answer::new(&asker, Reply::Ok(reply)).encode();
            let inbox = message.reply.expect("a claim is answered");
            self.bus.publish(&inbox, answer.into()).await.unwrap();
        }
        false
    }
}

/// The worker's own events, in its order.
fn events<'a>(recorded: &'a [Recorded], worker: &WorkerId) -> Vec<&'a WorkerEvent> {
    let of_worker = |one: &&Recorded| one.subject.contains(worker.as_str());
    let own = recorded.iter().filter(of_worker);
    own.filter_map(|one| match &one.body.event {
        Event::Worker(event) => Some(event),
        _ => None,
    })
    .collect()
}

fn worker_of(cluster: &Cluster, name: &str) -> WorkerId {
    let credentials = cluster.domain().layout().credentials(name);
    let public = cluster.source(&credentials).public().clone();
    public.as_str().parse().unwrap()
}

/// The forgeries for each worker that is lied to; the last worker is the other one in them.
fn forgeries<'a>(forger: &Forger, workers: &'a [WorkerId]) -> BTreeMap<&'a WorkerId, Vec<Forged>> {
    let [first, second, third, fourth, control] = workers else {
        panic!("{workers:?}");
    };
    BTreeMap::from([
        (first, forger.algorithms_and_keys(first)),
        (second, forger.altered(second, control)),
        (third, forger.misplaced(third, control)),
        (fourth, forger.unbound(fourth)),
    ])
}

#[tokio::test]
async fn tl_09_tl_10_tl_11_tl_24_forged_leases_are_refused_by_workers_and_the_next_honest_one_is_trained()
 {
    let mut cluster = Cluster::start(Options::default(), 0).await;
    // The round begins when one more worker has joined, which the test decides.
    Recipe::reference(1, LIED_TO as u32 + 1, 60)
        .set("schedule.evaluation_every=0")
        .set(&format!("policy.workers_min={}", LIED_TO + 2))
        .set("policy.lease=30s")
        .create(&cluster)
        .await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    let spec = operator.run(&run).await.unwrap().spec;
    let forger = Forger::new(&cluster, spec.clone());
    let mut impostor = Impostor::listen(&cluster, spec).await;
    let names: Vec<String> = (0..=LIED_TO).map(|at| format!("worker-{at}")).collect();
    // Not waited for: the impostor answers their first claims at once, before the coordinator does.
    for name in &names {
        cluster.spawn_worker(name, &[]);
    }
    let workers: Vec<WorkerId> = names.iter().map(|name| worker_of(&cluster, name)).collect();
    let forged = forgeries(&forger, &workers);
    let control = &workers[LIED_TO];
    let lied_to = workers[..LIED_TO].iter().cloned().collect();
    let forge = |worker: &WorkerId, session: Session| {
        forger.session.set(session);
        let all = forgeries(&forger, &workers).remove(worker).unwrap();
        all.into_iter().map(|one| one.document).collect()
    };
    let fetched = impostor.answer(lied_to, forge).await;
    assert!(!fetched, "a worker began to fetch: {:?}", impostor.asked);
    let harmless = |verb: &Verb| matches!(verb, Verb::Join | Verb::Release);
    let mut asked = impostor.asked.iter();
    assert!(
        asked.all(|(_, verb)| harmless(verb)),
        "{:?}",
        impostor.asked
    );

    // The coordinator's state is as before.
    let view = operator.run(&run).await.unwrap().view;
    assert_eq!((view.round, view.phase), (Round(0), RunPhase::Waiting));
    assert_eq!(operator.leases(&run).await, []);
    let ledger = cluster.evidence().await.ledger().await;
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { .. });
    assert!(!ledger.iter().any(granted), "{ledger:?}");

    // A document that is in order has the impostor's URLs used: each forgery could have had that.
    let sound = |worker: &WorkerId, session: Session| {
        forger.session.set(session);
        VecDeque::from([forger.signed(&forger.claims(worker))])
    };
    let fetched = impostor.answer([control.clone()].into(), sound).await;
    assert!(fetched, "nothing was fetched");
    drop(impostor);

    // The honest coordinator's leases are trained, by each of those who were lied to.
    let last = Scripted::connect(&cluster, "one-more").await;
    last.join().await;
    operator.until_complete(&run).await;
    let running: Vec<&str> = names.iter().map(String::as_str).collect();
    cluster.end_well(&running).await;
    cluster.copied().await;
    let recorded = cluster.evidence().await.everything().await;
    for (worker, forged) in &forged {
        let told = events(&recorded, worker);
        let refused: Vec<(Code, &str)> = told
            .iter()
            .filter_map(|event| match event {
                WorkerEvent::Refused { code, detail } => Some((*code, detail.as_str())),
                _ => None,
            })
            .collect();
        // One event for each forgery, in their order, with its reason.
        assert_eq!(refused.len(), forged.len(), "{refused:?}");
        for ((code, detail), expected) in refused.iter().zip(forged) {
            assert_eq!(*code, expected.code, "{detail}");
            assert!(detail.contains(expected.reason), "{detail}");
        }
        let place = |wanted: fn(&WorkerEvent) -> bool| told.iter().position(|one| wanted(one));
        let started = place(|event| matches!(event, WorkerEvent::Started { .. }));
        let started = started.unwrap_or_else(|| panic!("{worker} trained nothing: {told:?}"));
        let before = &told[..started];
        let refusals = before
            .iter()
            .filter(|event| matches!(event, WorkerEvent::Refused { .. }));
        assert_eq!(refusals.count(), forged.len(), "it started on a forgery");
        assert!(place(|event| matches!(event, WorkerEvent::Submitted { .. })) > Some(started));
    }
    cluster.record_verifies().await;
}

/// Each character of a signed order, changed. The worker's answer to each is the same, so that a
/// whole sweep can be tried on one process; a lease goes through the same reader.
#[tokio::test]
async fn tl_24_an_order_with_any_character_altered_is_not_obeyed_by_a_running_worker() {
    let mut cluster = Cluster::broker(Options::default()).await;
    let role = Role::Coordinator;
    let thief = cluster.connect(role, role.name()).await;
    let mut requests = thief.subscribe("diloco.request.>").await.unwrap();
    cluster.start_worker("worker-0", &[]).await;
    let worker = worker_of(&cluster, "worker-0");
    // The process tells its session when it asks to join.
    let join = requests.next().await.unwrap().expect("it is connected");
    let session = JoinRequest::decode(&join.payload).unwrap().session;
    let key = ManifestKey::read(&cluster.domain().layout().manifest_key()).unwrap();
    let account = cluster.domain().tenant().unwrap();
    let run = cluster.run().clone();
    let now = clock::now().get() / 1000;
    let order = |verb: CommandVerb| {
        let command = Command {
            v: V,
            iss: key.public().to_string(),
            run: run.clone(),
            aud: worker.clone(),
            session,
            iat: now,
            exp: now + 600,
            jti: "one".to_owned(),
            verb,
        };
        let subject = command_subject(&account, &run, &worker, verb);
        (subject, key.sign_document(COMMAND_TYPE, &command).unwrap())
    };
    let (subject, document) = order(CommandVerb::Stop);
    let characters = document.as_bytes();
    assert!(characters.len() > 400, "{document}");
    for at in 0..characters.len() {
        for other in [b'A', b'x', b'.'] {
            let mut altered = characters.to_vec();
            altered[at] = other;
            if altered != characters {
                thief.publish(&subject, altered.into()).await.unwrap();
            }
        }
    }
    // Messages arrive in their order: what comes next shows that all these were heard.
    let (subject, document) = order(CommandVerb::Drain);
    thief.publish(&subject, document.into()).await.unwrap();
    thief.round_trip().await.unwrap();
    let status = cluster.process("worker-0").exit(PATIENCE).await;
    assert!(status.success(), "{status}");
    let log = cluster.process("worker-0").log();
    let obeyed: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("command of the coordinator"))
        .collect();
    let [drain] = obeyed[..] else {
        panic!("{obeyed:?}");
    };
    assert!(
        drain.contains("verb=\"drain\"") || drain.contains("verb=drain"),
        "{drain}"
    );
    assert!(log.contains("a command is ignored"), "{log}");
}
