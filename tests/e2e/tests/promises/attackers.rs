//! Attacks with clients that share no code with this project: `tests/attack`, in Python. They get
//! credentials of a worker, a stranger, an operator and an auditor, and messages and URLs of
//! another worker. While they try, that worker keeps its lease; afterwards its result counts, and
//! nothing else was stored, joined or altered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options};
use identity::claims::{AccountClaims, UserClaims};
use identity::jwt::{self, Subject, mint};
use identity::{
    ConnectionKey, Credentials, Domain, InitOptions, Issued, KeyKind, SigningKey, StoreKeys, UrlsOf,
};
use objects::{Endpoint, Signer, StoreClock, Trust};
use runtime::clock;
use schemas::blob::{GetRequest, Grant, Grants, PutRequest};
use schemas::contribution::{Fate, StageRequest, SubmitReply, SubmitRequest};
use schemas::event::{LedgerEvent, WorkerEvent};
use schemas::lease::{LeaseRef, ReleaseRequest, RenewReply, RenewRequest};
use schemas::member::LeaveRequest;
use schemas::permission::Role;
use schemas::run::RunSpec;
use schemas::security::Refuser;
use schemas::subject::{AUDIT_STREAM, LEDGER_STREAM, Verb, events_stream};
use schemas::view::RunPhase;
use schemas::{
    Bytes, Code, Digest, Message as _, Millis, ObjectRef, PublicKey, RunId, Steps, UnixMillis, V,
    WorkerId,
};
use serde_json::{Value, json};

use crate::refused_requests::{recorded, refusal};

/// Time between two renewals of the honest worker.
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// All attacks take less than a minute on a machine that has nothing else to do.
const ATTACKS_MAX: Duration = Duration::from_secs(600);
/// More than any service ever held in memory here, and a quarter of what a bomb unpacks to.
const MEMORY_MAX: Bytes = Bytes::mebi(256);

/// A cluster with a run, an honest worker with a lease, and a member that is a thief.
struct Stage {
    cluster: Cluster,
    spec: RunSpec,
    victim: Scripted,
    thief: Scripted,
    lease: LeaseRef,
    /// Uploaded, and not handed in.
    chunk: ObjectRef,
}

impl Stage {
    async fn set() -> Self {
        let options = Options {
            sentry: true,
            ..Options::default()
        };
        let cluster = Cluster::start(options, 0).await;
        Recipe::scripted(2, 1)
            .set("policy.strikes_max=1000")
            .create(&cluster)
            .await;
        let victim = Scripted::connect(&cluster, "worker-0").await;
        let thief = Scripted::connect(&cluster, "worker-1").await;
        let spec = victim.join().await;
        thief.join().await;
        let lease = victim.claim().await.lease;
        let chunk = victim.upload(lease, chunk(&spec, 0.001)).await;
        Self {
            cluster,
            spec,
            victim,
            thief,
            lease,
            chunk,
        }
    }

    /// Credentials that the broker must not take, by what is wrong with them.
    async fn bad_credentials(&self) -> Value {
        let now = clock::now();
        let hour = Millis::from_secs(3600);
        let real = self.signer(Role::Worker);
        let past = UnixMillis(now.get() - hour.0);
        let revoked = self.issued(Role::Worker, "revoked", self.cluster.run());
        self.cluster
            .diloctl_ok(&["auth", "revoke", "revoked"])
            .await;
        let elsewhere = Domain::init(
            &self.cluster.path("elsewhere"),
            &InitOptions::default(),
            now,
        );
        let foreign = elsewhere.unwrap().issue(
            Role::Worker,
            "worker-1",
            Some(self.cluster.run()),
            hour,
            now,
        );
        json!({
            "ended": self.mint("ended", &real, None, past),
            "early": self.mint("early", &real, Some(now.after(hour)), now.after(Millis(hour.0 * 2))),
            "wrong-role": self.mint("wrong-role", &self.signer(Role::Coordinator), None, now.after(hour)),
            "wrong-signer": self.mint("wrong-signer", &SigningKey::generate(KeyKind::Account), None, now.after(hour)),
            "foreign": foreign.unwrap().credentials,
            "revoked": revoked.credentials,
        })
    }

    /// The signing key of a role.
    fn signer(&self, role: Role) -> SigningKey {
        let folder = self.cluster.domain().layout().folder().join("issuer");
        let path = folder.join(format!("role-{}.nk", role.name()));
        SigningKey::read(KeyKind::Account, &path).unwrap()
    }

    /// A worker's credentials that are made by hand, and end at `expires`.
    fn mint(
        &self,
        name: &str,
        signer: &SigningKey,
        not_before: Option<UnixMillis>,
        expires: UnixMillis,
    ) -> PathBuf {
        let key = ConnectionKey::generate();
        let subject = Subject {
            name: "worker-1",
            key: key.public(),
            not_before,
            expires: Some(expires),
        };
        let claims = UserClaims::of_role(
            self.cluster.domain().tenant().unwrap(),
            vec![format!("run:{}", self.cluster.run())],
        );
        let token = mint(&subject, claims, signer, clock::now()).unwrap();
        let path = self.cluster.path(&format!("{name}.creds"));
        Credentials::new(token, key).unwrap().write(&path).unwrap();
        path
    }

    /// Credentials made by hand in which everything is right.
    fn made(&self, name: &str) -> PathBuf {
        let hour = clock::now().after(Millis::from_secs(3600));
        self.mint(name, &self.signer(Role::Worker), None, hour)
    }

    /// The token of the tenant's account, which is in the broker's configuration.
    fn account_token(&self) -> String {
        let config = self.cluster.domain().layout().broker_generated();
        let config = fs::read_to_string(config.join("auth.conf")).unwrap();
        let tenant = self.cluster.domain().tenant().unwrap();
        let mut words = config.split(|c: char| c.is_whitespace() || "\",".contains(c));
        let of_tenant = words.find(|word| {
            let token = jwt::verify::<AccountClaims>(word, clock::now());
            token.is_ok_and(|token| token.subject.as_str() == tenant.as_str())
        });
        of_tenant.expect("the tenant has an account").to_owned()
    }

    fn issued(&self, role: Role, name: &str, run: &RunId) -> Issued {
        let run = role.is_tenant().then_some(run);
        self.cluster
            .issue_for(role, name, run, Millis::from_secs(3600))
    }

    /// What the attackers know.
    async fn facts(&self) -> Value {
        let other: RunId = "other".parse().unwrap();
        let domain = self.cluster.domain();
        let run = self.cluster.run();
        let holders = [
            ("victim", self.issued(Role::Worker, "worker-0", run)),
            ("thief", self.issued(Role::Worker, "worker-1", run)),
            ("stranger", self.issued(Role::Worker, "stranger", &other)),
            ("operator", self.issued(Role::Operator, "operator", run)),
            ("auditor", self.issued(Role::Auditor, "auditor", run)),
        ]
        .map(|(who, issued)| {
            let holder = json!({"key": issued.public, "credentials": issued.credentials});
            (who.to_owned(), holder)
        });
        let tenant = domain.tenant().unwrap();
        json!({
            "bus": self.cluster.bus_url(),
            "store": self.cluster.store_url(),
            "ca": domain.layout().ca(),
            "asyncapi": workspace().join("docs/asyncapi.json"),
            "run": run,
            "other_run": other,
            "account": tenant,
            "coordinator_key": domain.trust().audit_keys[0],
            "streams": [AUDIT_STREAM, LEDGER_STREAM, "WORK", "KV_state", &events_stream(&tenant)],
            "holders": serde_json::Map::from_iter(holders),
            "bad_credentials": self.bad_credentials().await,
            "made_credentials": self.made("made"),
            "account_token": self.account_token(),
            "overheard": self.overheard(),
            "object": {
                "key": format!("sha256/{}/{}", &self.spec.data.digest.hex()[..2], self.spec.data.digest.hex()),
                "hex": self.spec.data.digest.hex(),
            },
            "question": {"verb": Verb::Get.to_string(), "hex": hex(&self.question().encode())},
            "get": self.url_to_read().await,
            "once": self.url_to_read().await,
            "ended": self.url_that_ended(),
            "put": self.url_to_upload(0.002).await,
            "used": self.used_url().await,
        })
    }

    /// Messages of the victim, by their verbs.
    fn overheard(&self) -> Value {
        let (lease, object) = (self.lease, self.chunk);
        let renew = RenewRequest {
            v: V,
            lease,
            steps_done: Steps(1),
            bytes_moved: Bytes(0),
        };
        let release = ReleaseRequest {
            v: V,
            lease,
            reason: "enough".to_owned(),
        };
        let put = PutRequest {
            v: V,
            lease,
            objects: vec![object],
        };
        let stage = StageRequest {
            v: V,
            lease,
            index: 0,
            object,
        };
        let leave = LeaveRequest {
            v: V,
            session: self.victim.session(),
            reason: "enough".to_owned(),
        };
        let event = self.victim.signed_event(WorkerEvent::Joined {
            release: "0".to_owned(),
            device: "a script".to_owned(),
        });
        let messages = [
            (Verb::Join.to_string(), self.victim.join_request().encode()),
            (
                Verb::Claim.to_string(),
                self.victim.claim_request(Millis(1)).encode(),
            ),
            (Verb::Renew.to_string(), renew.encode()),
            (Verb::Release.to_string(), release.encode()),
            (Verb::Put.to_string(), put.encode()),
            (Verb::Stage.to_string(), stage.encode()),
            (Verb::Submit.to_string(), self.result().encode()),
            (Verb::Leave.to_string(), leave.encode()),
            ("event".to_owned(), event.encode()),
        ];
        Value::Object(
            messages
                .into_iter()
                .map(|(verb, bytes)| (verb, Value::String(hex(&bytes))))
                .collect(),
        )
    }

    /// The victim's signed result, not handed in yet.
    fn result(&self) -> SubmitRequest {
        let contribution = Scripted::contribution(&self.spec, vec![self.chunk]);
        self.victim.result(&self.spec, self.lease, contribution)
    }

    /// The question of any member for the run's data.
    fn question(&self) -> GetRequest {
        GetRequest {
            v: V,
            objects: vec![self.spec.data.digest],
        }
    }

    async fn url_to_read(&self) -> Value {
        let granted: Grants = self.victim.ask(Verb::Get, &self.question()).await.unwrap();
        request_of(&granted.grants[0])
    }

    /// The URL that the coordinator signed an hour ago for the run's data.
    fn url_that_ended(&self) -> Value {
        let layout = self.cluster.domain().layout();
        let keys = StoreKeys::read(&layout.coordinators_store_keys()).unwrap();
        let ca = Trust::Authority(fs::read(layout.ca()).unwrap());
        let endpoint = Endpoint::new(&self.cluster.store_url(), "us-east-1", ca).unwrap();
        let signer = Signer::new(&endpoint, &keys, StoreClock::default()).unwrap();
        let run = UrlsOf::Run(self.cluster.run().clone());
        let ago = UnixMillis(clock::now().get() - 3_600_000);
        let signed = signer.deriving(true).of(&run);
        request_of(&signed.get(self.spec.data.digest, ago))
    }

    async fn url_to_upload(&self, value: f32) -> Value {
        let bytes = chunk(&self.spec, value);
        let granted = self
            .victim
            .grant(self.lease, ObjectRef::of(&bytes))
            .await
            .unwrap();
        let mut request = request_of(&granted);
        request["bytes"] = hex(&bytes).into();
        request
    }

    async fn used_url(&self) -> Value {
        let bytes = chunk(&self.spec, 0.003);
        let grant = self
            .victim
            .grant(self.lease, ObjectRef::of(&bytes))
            .await
            .unwrap();
        let mut request = request_of(&grant);
        request["bytes"] = hex(&bytes).into();
        self.victim.send(&grant, bytes).await;
        request
    }

    /// Who is a member, with which lease and how many accepted results.
    async fn held(&self) -> Vec<(WorkerId, bool, Option<LeaseRef>, u64)> {
        let operator = self.cluster.operator().await;
        let workers = operator.workers(self.cluster.run()).await;
        let held = workers
            .into_iter()
            .map(|one| (one.worker, one.member, one.lease, one.accepted));
        held.collect()
    }

    /// The victim keeps its lease until it is told that the attacks are over.
    async fn keep_lease(&self) {
        let mut every = tokio::time::interval(RENEW_EVERY);
        loop {
            every.tick().await;
            let renew = RenewRequest {
                v: V,
                lease: self.lease,
                steps_done: Steps(1),
                bytes_moved: Bytes(0),
            };
            let renewed: Result<RenewReply, _> = self.victim.ask(Verb::Renew, &renew).await;
            renewed.unwrap_or_else(|error| panic!("the honest worker's lease: {error}"));
        }
    }

    /// Each refusal of a request of the thief, for a reason of security, is an event with its code,
    /// and the record has no refusal of the thief that it was not told. Of other refusals the
    /// ledger has the first ones.
    async fn each_refusal_is_in_the_record(&self, told: &BTreeMap<String, BTreeSet<Code>>) {
        let (cluster, by) = (&self.cluster, Refuser::Coordinator);
        let thief: PublicKey = self.thief.worker.as_str().parse().unwrap();
        let mut expected = 0;
        for verb in Verb::ALL {
            let subject = self.thief.subject(*verb);
            let codes = told.get(&subject).into_iter().flatten();
            for code in codes.filter(|code| code.is_of_security()) {
                recorded(cluster, by, &thief, &subject, *code).await;
                expected += 1;
            }
        }
        assert!(expected > 10, "only {expected} kinds of refusals: {told:?}");
        let was_told = |subject: &str, code: Code| {
            // Some answers were to go elsewhere, and those to a flood are not read.
            [Code::MessageInvalid, Code::AskedTooMuch].contains(&code)
                || told.get(subject).is_some_and(|told| told.contains(&code))
        };
        let mut denied = 0;
        for one in cluster.evidence().await.everything().await {
            if let Some(LedgerEvent::RequestDenied {
                worker, verb, code, ..
            }) = one.ledger()
                && *worker == self.thief.worker
            {
                denied += 1;
                let subject = format!("diloco.request.{}.{thief}.{verb}", cluster.run());
                assert!(
                    was_told(&subject, *code),
                    "{verb} was not refused with {code}"
                );
            }
            if let Some((_, seen)) = refusal(&one)
                .filter(|(service, seen)| *service == by && seen.user.as_ref() == Some(&thief))
            {
                let code = seen.reason.split(' ').next().unwrap().parse().unwrap();
                assert!(was_told(&seen.subject, code), "{seen:?} was no answer");
            }
        }
        assert!(denied > 0, "the ledger has some");
    }

    /// Runs the attacks; returns what they print.
    async fn attack(&self, clients: &Path) -> String {
        let facts = self.cluster.path("facts.json");
        fs::write(&facts, self.facts().await.to_string()).unwrap();
        let mut python = tokio::process::Command::new("python3");
        python
            .args(["-s", "-B", "-m", "attack"])
            .arg(&facts)
            .current_dir(workspace().join("tests/attack"))
            .env("PYTHONPATH", clients)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let attacks = async {
            let output = tokio::time::timeout(ATTACKS_MAX, python.output())
                .await
                .expect("the attacks end")
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}\n{complaints}");
            said
        };
        tokio::select! {
            said = attacks => said,
            () = self.keep_lease() => unreachable!("it renews until it panics"),
        }
    }
}

/// The codes with which the attackers were refused, by the subjects on which they asked.
fn codes(said: &str) -> BTreeMap<String, BTreeSet<Code>> {
    let line = said.lines().find_map(|line| line.strip_prefix("codes "));
    let codes: BTreeMap<String, BTreeSet<String>> =
        serde_json::from_str(line.expect("the attackers say their codes")).unwrap();
    let read = |codes: BTreeSet<String>| codes.iter().map(|code| code.parse().unwrap()).collect();
    codes
        .into_iter()
        .map(|(subject, codes)| (subject, read(codes)))
        .collect()
}

/// The most memory that a process has ever held.
fn memory_peak(pid: u32) -> Bytes {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibi = peak.and_then(|peak| peak.split_whitespace().next());
    Bytes(kibi.expect("a peak").parse::<u64>().unwrap() << 10)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A chunk of a contribution in which all numbers are `value`.
fn chunk(spec: &RunSpec, value: f32) -> Vec<u8> {
    value
        .to_le_bytes()
        .repeat((spec.model.initial.objects()[0].bytes.get() / 4) as usize)
}

/// The request that a grant allows.
fn request_of(grant: &Grant) -> Value {
    let action = grant
        .action
        .as_ref()
        .expect("the store does not have it yet");
    json!({"method": action.method, "href": action.href, "headers": action.headers})
}

/// The names of all files below a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(names(&path));
        } else {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

#[tokio::test]
#[expect(
    clippy::print_stderr,
    reason = "says what was tried, or why it proves nothing here"
)]
async fn tl_02_tl_11_tl_25_foreign_clients_get_nothing_that_is_not_theirs() {
    let clients = workspace().join(".deps/attack");
    if !clients.join("nats").is_dir() {
        eprintln!(
            "skipped: the attacks' clients are not in .deps/attack; `cargo xtask test` installs them"
        );
        return;
    }
    let mut stage = Stage::set().await;
    let run = stage.cluster.run().clone();
    let objects = names(&stage.cluster.path("store/blobs"));
    let held = stage.held().await;
    let said = stage.attack(&clients).await;
    eprintln!("{said}");
    assert!(said.lines().count() > 20, "{said}");

    // Nothing was joined, leased, merged or published meanwhile.
    assert_eq!(stage.held().await, held);
    let holders = held
        .iter()
        .filter_map(|(worker, _, lease, _)| Some((worker, (*lease)?)));
    assert_eq!(
        holders.collect::<Vec<_>>(),
        [(&stage.victim.worker, stage.lease)]
    );
    let operator = stage.cluster.operator().await;
    let view = operator.run(&run).await.unwrap().view;
    assert_eq!((view.round.get(), view.phase), (0, RunPhase::Training));
    let members: Vec<_> = operator.workers(&run).await;
    let keys: Vec<_> = members.iter().map(|member| &member.worker).collect();
    assert_eq!(keys.len(), 2);
    assert!(keys.contains(&&stage.victim.worker) && keys.contains(&&stage.thief.worker));
    assert_eq!(names(&stage.cluster.path("store/blobs")), objects);
    let uploads = names(&stage.cluster.path("store/incoming"));
    let victims = [0.001, 0.003].map(|value| Digest::of(&chunk(&stage.spec, value)).hex());
    for upload in &uploads {
        assert!(
            victims.iter().any(|victim| upload.ends_with(victim)),
            "{upload} was uploaded"
        );
    }

    // The victim's result counts, and counts once.
    let handed_in: SubmitReply = stage
        .victim
        .ask(Verb::Submit, &stage.result())
        .await
        .unwrap();
    assert_eq!(handed_in.fate, Fate::Merged);
    for name in ["coordinator", "audit", "store"] {
        let process = stage.cluster.process(name);
        assert!(process.ended().is_none(), "{name}");
        let peak = memory_peak(process.pid().unwrap());
        assert!(peak < MEMORY_MAX, "{name} held {peak:?}");
    }
    stage.each_refusal_is_in_the_record(&codes(&said)).await;
    stage.cluster.stop_well(&["audit"]).await;
    let replay = ["--output", "json", "audit", "replay", "--summary"];
    let summary = stage.cluster.diloctl_ok(&replay).await;
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["foreign"], 0, "{summary}");
    assert_eq!(summary["evidence"], false, "{summary}");
}
