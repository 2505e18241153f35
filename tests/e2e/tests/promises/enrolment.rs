//! A machine is invited, makes its own keys, becomes the worker that the invitation promises, and
//! trains. Somebody who copies the invitation, forges a proof or comes too late gets nothing.
//! Groups get work when all their seats are taken.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::{Recipe, Scripted};
use harness::{Cluster, Options, PATIENCE, RawConnection, publication};
use identity::{
    AuditKey, Credentials, DomainLayout, InvitationFile, Newcomer, Registration, TrustBundle,
};
use runtime::{Bus, BusConfig, BusError, clock};
use schemas::enrolment::{EnrolmentReply, EnrolmentRequest};
use schemas::event::{Departure, LedgerEvent};
use schemas::member::{JoinReply, JoinRequest, Posture};
use schemas::subject::{Verb, enrolment_subject};
use schemas::{Code, Message as _, Millis, PublicKey, UnixMillis};

const WAIT: Duration = Duration::from_secs(10);

fn options() -> Options {
    Options {
        token_lifetime: Some(Millis::from_secs(3600)),
        ..Options::default()
    }
}

async fn with_registrar() -> Cluster {
    let mut cluster = Cluster::bare(options()).await;
    cluster.start_registrar().await;
    cluster
}

/// Invites a machine; returns the file that it gets.
pub(crate) async fn invite(cluster: &Cluster, name: &str, more: &[&str]) -> PathBuf {
    let file = cluster.path(&format!("{name}.json"));
    let into = file.display().to_string();
    let command = ["worker", "invite", "--into", &into];
    let named: &[&str] = match more.contains(&"--keys") {
        true => &[],
        false => &["--name", name],
    };
    let arguments = [&command, named, more].concat();
    cluster.diloctl_ok(&arguments).await;
    file
}

/// The machine in the cluster's subfolder `machine` uses an invitation. Returns its output's code.
pub(crate) async fn enrol(cluster: &Cluster, machine: &str, file: &Path) -> Result<(), Code> {
    let (folder, file) = (cluster.path(machine), file.display().to_string());
    let folder = folder.display().to_string();
    let arguments = ["--domain", &folder, "worker", "enrol", &file];
    let output = cluster.diloctl(&arguments).await;
    if output.status.success() {
        return Ok(());
    }
    let coded = |code: &&Code| output.stderr.contains(&code.to_string());
    let code = Code::ALL.iter().find(coded);
    Err(*code.unwrap_or_else(|| panic!("no code in {}", output.stderr)))
}

pub(crate) fn layout(cluster: &Cluster, machine: &str) -> DomainLayout {
    DomainLayout::new(&cluster.path(machine))
}

pub(crate) fn record(cluster: &Cluster, key: &PublicKey) -> Option<Registration> {
    cluster.domain().layout().issued().find(key).unwrap()
}

fn everything_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(everything_below(&path)),
            false => found.push(path),
        }
    }
    found
}

#[tokio::test]
async fn fg_03_an_invited_machine_trains_and_the_thief_of_its_invitation_gets_nothing() {
    let mut cluster = Cluster::start(options(), 0).await;
    let run = cluster.run().clone();
    let file = invite(&cluster, "invited", &[]).await;
    let stolen = cluster.path("stolen.json");
    fs::copy(&file, &stolen).unwrap();
    enrol(&cluster, "machine", &file).await.unwrap();

    // The command can be repeated: it asks nobody, and writes what is missing.
    let own = layout(&cluster, "machine");
    let config = own.folder().join("config/invited.toml");
    let written = fs::read(&config).unwrap();
    for _ in 0..2 {
        enrol(&cluster, "machine", &file).await.unwrap();
        assert!(!own.newcomer().exists());
        assert_eq!(fs::read(&config).unwrap(), written);
        fs::remove_file(&config).unwrap();
    }
    enrol(&cluster, "machine", &file).await.unwrap();

    // The machine has what a worker needs, and its keys are nowhere else.
    let credentials = Credentials::read(&own.credentials("invited")).unwrap();
    let audit = AuditKey::read(&own.audit_key("invited")).unwrap();
    let entered = record(&cluster, credentials.public()).unwrap();
    assert_eq!(
        (
            entered.name.as_str(),
            entered.run.as_ref(),
            &entered.audit_key
        ),
        ("invited", Some(&run), &Some(audit.public().clone()))
    );
    let seed = fs::read_to_string(own.audit_key("invited")).unwrap();
    for path in everything_below(cluster.domain().layout().folder()) {
        let text = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(!text.contains(seed.trim()), "{}", path.display());
    }

    // The thief connects, is told who was before it, and has nothing afterwards.
    for _ in 0..2 {
        let refused = enrol(&cluster, "thief", &stolen).await;
        assert_eq!(refused, Err(Code::InvitationUsed));
    }
    assert!(!layout(&cluster, "thief").credentials("invited").exists());
    assert_eq!(
        cluster
            .domain()
            .layout()
            .issued()
            .all()
            .unwrap()
            .iter()
            .filter(|record| record.name == "invited")
            .count(),
        1
    );
    let log = cluster.process("registrar").log();
    assert!(log.contains(&Code::InvitationUsed.to_string()));
    let token = InvitationText::read(&file).token;
    assert!(!log.contains(&token), "the join token is in the log");

    Recipe::reference(2, 1, 5).create(&cluster).await;
    let machine = cluster.path("machine");
    cluster.start_worker_of(&machine, "invited").await;
    let operator = cluster.operator().await;
    operator.until_complete(&run).await;
    let recorded = cluster.evidence().await.everything().await;
    let joined = recorded.iter().find_map(|one| match one.ledger() {
        Some(LedgerEvent::WorkerJoined {
            worker, audit_key, ..
        }) => Some((worker.to_string(), audit_key.clone())),
        _ => None,
    });
    let expected = (credentials.public().to_string(), audit.public().clone());
    assert_eq!(joined, Some(expected));
    cluster.record_verifies().await;
}

/// The secret parts of an invitation, for a thief.
#[derive(serde::Deserialize)]
struct InvitationText {
    token: String,
}

impl InvitationText {
    fn read(file: &Path) -> Self {
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    }
}

#[tokio::test]
async fn fg_03_the_same_keys_get_the_same_answer_also_from_a_registrar_that_died() {
    let mut cluster = with_registrar().await;
    let file = invite(&cluster, "invited", &[]).await;
    let (first, second) = (layout(&cluster, "machine"), layout(&cluster, "again"));
    let keys = Newcomer::prepare(&first).unwrap();
    // The machine asks a second time, as if the first answer had been lost.
    fs::create_dir_all(second.newcomer()).unwrap();
    for entry in fs::read_dir(first.newcomer()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, second.newcomer().join(path.file_name().unwrap())).unwrap();
    }
    enrol(&cluster, "machine", &file).await.unwrap();
    let before = record(&cluster, keys.worker()).unwrap();
    cluster.kill9("registrar");
    // It died after it had noted the machine, and before it had entered the new worker.
    let entry = format!("{}.json", keys.worker());
    fs::remove_file(cluster.domain().layout().issued().folder().join(entry)).unwrap();
    cluster.restart("registrar").await;
    assert_eq!(
        enrol(&cluster, "thief", &file).await,
        Err(Code::InvitationUsed)
    );
    enrol(&cluster, "again", &file).await.unwrap();
    let after = record(&cluster, keys.worker()).unwrap();
    assert_eq!(
        Registration {
            ends: before.ends,
            ..after
        },
        before
    );
    let held = Credentials::read(&second.credentials("invited")).unwrap();
    assert_eq!(held.public(), keys.worker());
}

#[tokio::test]
async fn fg_03_a_person_admits_one_machine_by_its_key() {
    let cluster = with_registrar().await;
    let file = invite(&cluster, "approved", &["--by-hand"]).await;
    let keys = ["machine", "other"].map(|machine| {
        let keys = Newcomer::prepare(&layout(&cluster, machine)).unwrap();
        keys.worker().to_string()
    });
    let person = async {
        let mut shown = String::new();
        while !keys.iter().all(|key| shown.contains(key.as_str())) {
            shown = cluster.diloctl_ok(&["worker", "pending"]).await;
        }
        assert!(record(&cluster, &keys[0].parse().unwrap()).is_none());
        cluster
            .diloctl_ok(&["worker", "approve", &keys[0][..12]])
            .await;
        let second = cluster.diloctl(&["worker", "approve", &keys[1]]).await;
        assert!(
            second.stderr.contains(&Code::InvitationUsed.to_string()),
            "{}",
            second.stderr
        );
    };
    let (admitted, refused, ()) = tokio::join!(
        enrol(&cluster, "machine", &file),
        enrol(&cluster, "other", &file),
        person
    );
    assert_eq!((admitted, refused), (Ok(()), Err(Code::InvitationUsed)));
    let entered = record(&cluster, &keys[0].parse().unwrap()).unwrap();
    assert_eq!(entered.name, "approved");
    let shown = cluster.diloctl_ok(&["worker", "pending"]).await;
    assert!(!shown.contains(&keys[0]), "{shown}");

    // A word against a machine ends its wait.
    let file = invite(&cluster, "denied", &["--by-hand"]).await;
    let key = Newcomer::prepare(&layout(&cluster, "third"))
        .unwrap()
        .worker()
        .to_string();
    let person = async {
        while !cluster
            .diloctl_ok(&["worker", "pending"])
            .await
            .contains(&key)
        {}
        cluster.diloctl_ok(&["worker", "deny", &key]).await;
    };
    let (denied, ()) = tokio::join!(enrol(&cluster, "third", &file), person);
    assert_eq!(denied, Err(Code::EnrolmentDenied));
}

#[tokio::test]
async fn fg_03_invitations_that_are_listed_ended_withdrawn_or_altered() {
    let cluster = with_registrar().await;
    // By list: the machine shows its key first.
    let folder = cluster.path("listed").display().to_string();
    let shown = cluster
        .diloctl_ok(&["--domain", &folder, "worker", "keys", "-o", "json"])
        .await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let key = shown["worker"].as_str().unwrap();
    let list = cluster.path("list.txt");
    fs::write(&list, format!("# one machine\nby-list {key}\n")).unwrap();
    let file = invite(&cluster, "list", &["--keys", &list.display().to_string()]).await;
    let other = enrol(&cluster, "unlisted", &file).await;
    assert_eq!(other, Err(Code::InvitationMismatch));
    enrol(&cluster, "listed", &file).await.unwrap();
    assert_eq!(
        record(&cluster, &key.parse().unwrap()).unwrap().name,
        "by-list"
    );

    // What it is now is not taken from it with the invitation.
    let denied = cluster.diloctl(&["worker", "deny", "by-list"]).await;
    assert!(!denied.status.success());
    let text = &denied.stderr;
    assert!(text.contains(&Code::InvitationUsed.to_string()), "{text}");
    assert!(text.contains(key) && text.contains("auth revoke"), "{text}");
    let late = enrol(&cluster, "unlisted", &file).await;
    assert_eq!(
        late,
        Err(Code::EnrolmentDenied),
        "it is withdrawn all the same"
    );

    // No file is written over, and nothing is promised then.
    let (into, all) = (
        file.display().to_string(),
        cluster.domain().layout().invitations(),
    );
    let (text, before) = (fs::read(&file).unwrap(), all.all().unwrap());
    let over = cluster
        .diloctl(&["worker", "invite", "--into", &into])
        .await;
    let refused = over.stderr.contains(&Code::ConfigInvalid.to_string());
    assert!(refused, "{}", over.stderr);
    assert_eq!(
        (fs::read(&file).unwrap(), all.all().unwrap()),
        (text, before)
    );

    // Names are promised once.
    let twice = cluster
        .diloctl(&["worker", "invite", "--name", "by-list"])
        .await;
    assert!(
        twice.stderr.contains(&Code::NameTaken.to_string()),
        "{}",
        twice.stderr
    );

    let file = invite(&cluster, "withdrawn", &[]).await;
    cluster.diloctl_ok(&["worker", "deny", "withdrawn"]).await;
    assert_eq!(
        enrol(&cluster, "a", &file).await,
        Err(Code::EnrolmentDenied)
    );

    let file = invite(&cluster, "short", &["--ends", "10s"]).await;
    let invitation = InvitationFile::read(&file).unwrap();
    let ends = invitation.ends;
    // One that connected in time is refused when its invitation has ended, and is cut off.
    let machine = Newcomer::prepare(&layout(&cluster, "late")).unwrap();
    let bus = approach(&cluster, &machine, &invitation).await;
    let subject = enrolment_subject(invitation.id());
    while clock::now() < ends {
        bus.round_trip().await.ok();
        tokio::task::yield_now().await;
    }
    let question = machine.question(&invitation, Posture::default(), clock::now());
    let answer: Result<EnrolmentReply, BusError> = bus.request(&subject, &question, WAIT).await;
    let code = answer.expect_err("it has ended").code();
    assert_ne!(code, Code::EnrolmentPending);
    assert!(record(&cluster, machine.worker()).is_none());
    assert_eq!(
        enrol(&cluster, "late", &file).await,
        Err(Code::InvitationEnded)
    );

    // A file that was altered is noticed on the machine, without a question.
    let file = invite(&cluster, "altered", &[]).await;
    let token = InvitationText::read(&file).token;
    let text = fs::read_to_string(&file).unwrap();
    for sample in ["", " ", "changeme", "AAAAAAAA"] {
        fs::write(&file, text.replace(&token, sample)).unwrap();
        let refused = enrol(&cluster, "a", &file).await;
        assert_eq!(refused, Err(Code::InvitationInvalid), "{sample:?}");
    }
}

pub(crate) async fn approach(
    cluster: &Cluster,
    machine: &Newcomer,
    invitation: &InvitationFile,
) -> Bus {
    let approach = machine.approach(invitation).unwrap();
    let config = BusConfig {
        url: cluster.bus_url().to_owned(),
        credentials: approach.credentials,
        ca: approach.ca,
    };
    Bus::connect("newcomer", &config, clock::now())
        .await
        .unwrap()
}

#[tokio::test]
async fn fg_03_no_message_of_a_newcomer_changes_what_it_becomes() {
    let mut cluster = with_registrar().await;
    let (file, others) = (
        invite(&cluster, "invited", &[]).await,
        invite(&cluster, "other", &[]).await,
    );
    let (own, other) = (
        InvitationFile::read(&file).unwrap(),
        InvitationFile::read(&others).unwrap(),
    );
    let machine = Newcomer::prepare(&layout(&cluster, "machine")).unwrap();
    let stranger = Newcomer::prepare(&layout(&cluster, "stranger")).unwrap();
    let bus = approach(&cluster, &machine, &own).await;
    let subject = enrolment_subject(own.id());
    let now = clock::now();
    let right = || machine.question(&own, Posture::default(), now);
    let ask = async |subject: &str, question: &EnrolmentRequest| {
        let answer: Result<EnrolmentReply, BusError> = bus.request(subject, question, WAIT).await;
        answer.map_err(|error| error.code())
    };
    // Another's invitation cannot even be asked with.
    let subject_of_other = enrolment_subject(other.id());
    assert_eq!(ask(&subject_of_other, &right()).await, Err(Code::BusDenied));
    let alter: [fn(&mut EnrolmentRequest, EnrolmentRequest); 6] = [
        |question, other| question.worker = other.worker,
        |question, other| question.audit_key = other.audit_key,
        |question, other| question.token = other.token,
        |question, _| question.run = "elsewhere".parse().unwrap(),
        |question, other| question.by_audit_key = other.by_audit_key,
        |question, _| question.at = UnixMillis(question.at.get() + 1),
    ];
    let theirs = stranger.question(&other, Posture::default(), now);
    for (index, alter) in alter.into_iter().enumerate() {
        let mut question = right();
        alter(&mut question, theirs.clone());
        let refused = ask(&subject, &question).await;
        assert_eq!(refused, Err(Code::EnrolmentUnproven), "alteration {index}");
    }
    // Signed as it should be, but with the join token of another invitation.
    let swapped = InvitationFile {
        token: other.token,
        credentials: Credentials::read(
            &layout(&cluster, "machine")
                .newcomer()
                .join("invitation.creds"),
        )
        .unwrap(),
        trust: TrustBundle::read(&cluster.domain().layout().trust()).unwrap(),
        bus: String::new(),
        certificate: None,
        ca: String::new(),
        run: own.run.clone(),
        made: own.made,
        ends: own.ends,
    };
    let question = machine.question(&swapped, Posture::default(), now);
    assert_eq!(
        ask(&subject, &question).await,
        Err(Code::InvitationMismatch)
    );
    for key in [machine.worker(), stranger.worker()] {
        assert!(record(&cluster, key).is_none());
    }

    // An answer goes where its asker says. There it harms nobody: it is no question, and no other
    // client hears it.
    let mut raw = RawConnection::connect(
        &cluster,
        &layout(&cluster, "machine")
            .newcomer()
            .join("invitation.creds"),
    )
    .await;
    let payload = right().encode();
    for place in [
        subject_of_other.as_str(),
        subject.as_str(),
        "diloco.renewal.cluster.x.token",
        "$SYS.REQ.CLAIMS.UPDATE",
        "$JS.API.STREAM.DELETE.LEDGER",
    ] {
        raw.say(publication(
            subject.as_bytes(),
            place.as_bytes(),
            b"",
            &payload,
        ))
        .await;
        raw.settled().await;
    }
    let reply = ask(&subject, &right()).await.unwrap();
    assert_eq!(
        (&reply.worker, &reply.name),
        (machine.worker(), &"invited".to_owned())
    );
    assert!(record(&cluster, machine.worker()).is_some());
    let registrar = cluster.process("registrar");
    assert!(registrar.ended().is_none());
    let lines = registrar
        .until_logged(PATIENCE, |log| log.contains("a machine is enrolled"))
        .await;
    assert!(
        !lines.contains(&right().token),
        "a join token is in the log"
    );
}

#[tokio::test]
async fn fg_03_a_group_gets_work_when_each_seat_is_taken_and_ends_as_a_whole() {
    let mut cluster = Cluster::start(options(), 0).await;
    let seat = |rank| ["--group", "pair", "--rank", rank, "--of", "2"];
    let first = invite(&cluster, "left", &seat("0")).await;
    let second = invite(&cluster, "right", &seat("1")).await;
    let spare = invite(&cluster, "spare", &seat("1")).await;
    enrol(&cluster, "left", &first).await.unwrap();
    enrol(&cluster, "right", &second).await.unwrap();
    // The seat has a worker now: neither an older nor a newer invitation gives it away.
    assert_eq!(enrol(&cluster, "spare", &spare).await, Err(Code::SeatTaken));
    let command = ["worker", "invite", "--name", "another"];
    let newer = cluster.diloctl(&[&command[..], &seat("1")].concat()).await;
    let taken = Code::SeatTaken.to_string();
    assert!(newer.stderr.contains(&taken), "{}", newer.stderr);

    Recipe::reference(4000, 1, 40).create(&cluster).await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    let folders = ["left", "right"].map(|machine| cluster.path(machine));
    cluster.start_worker_of(&folders[0], "left").await;
    operator
        .until(&run, PATIENCE, |view| view.workers == 1)
        .await;
    cluster.start_worker_of(&folders[1], "right").await;
    let view = operator
        .until(&run, PATIENCE, |view| view.round.get() > 1)
        .await;
    let joins = |events: &[LedgerEvent]| {
        let join = |event: &&LedgerEvent| matches!(event, LedgerEvent::WorkerJoined { .. });
        events.iter().filter(join).count()
    };
    let events = cluster.evidence().await.ledger().await;
    let granted = |event: &LedgerEvent| matches!(event, LedgerEvent::LeaseGranted { .. });
    let before = events.iter().position(granted).unwrap();
    assert_eq!(
        joins(&events[..before]),
        2,
        "both are there before the first unit"
    );
    let rank_0 = Credentials::read(&layout(&cluster, "left").credentials("left")).unwrap();
    for event in &events {
        if let LedgerEvent::LeaseGranted { worker, .. } = event {
            assert_eq!(worker.as_str(), rank_0.public().as_str());
        }
    }

    // One rank says goodbye: the other is evicted, and both come back.
    cluster.stop_well(&["right"]).await;
    let evicted = |event: &LedgerEvent| {
        matches!(
            event,
            LedgerEvent::WorkerLeft {
                cause: Departure::GroupEnded,
                ..
            }
        )
    };
    let count = cluster
        .evidence()
        .await
        .ledger()
        .await
        .iter()
        .filter(|event| evicted(event))
        .count();
    assert_eq!(count, 1);
    cluster.restart("right").await;
    operator
        .until(&run, PATIENCE, |now| now.round.get() > view.round.get() + 2)
        .await;
    assert!(cluster.process("left").ended().is_none());
    cluster.record_verifies().await;
}

#[tokio::test]
async fn fg_03_a_thief_of_credentials_that_were_never_used_joins_with_no_key_of_its_own() {
    let cluster = Cluster::start(Options::default(), 0).await;
    Recipe::reference(2, 1, 5).create(&cluster).await;
    let worker = Scripted::connect(&cluster, "worker-0").await;
    let domain = cluster.domain().trust().domain.to_string();
    // The thief has the credentials and not the audit key.
    let thiefs = AuditKey::generate();
    let proof = thiefs.sign_join(&domain, cluster.run(), &worker.worker);
    let own = worker.join_request();
    let stolen = JoinRequest {
        audit_key: thiefs.public().clone(),
        proof: proof.into(),
        ..own.clone()
    };
    let joined: Result<JoinReply, BusError> = worker.ask(Verb::Join, &stolen).await;
    let code = joined.map(|_| ()).map_err(|error| error.code());
    assert_eq!(code, Err(Code::AuditKeyRefused));
    let joined: Result<JoinReply, BusError> = worker.ask(Verb::Join, &own).await;
    joined.expect("it is the key that was issued");
}
