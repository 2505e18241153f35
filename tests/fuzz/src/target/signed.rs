//! What is signed. A change of a signed document would stop at the signature, so these targets also
//! sign what they are given, as somebody with a key could.

use audit_core::log::{Proof, Trusted};
use audit_core::{Auditor, Payload, Record, StreamSequence};
use chain::Reader;
use identity::certificate::Facts;
use identity::claims::{AccountClaims, OperatorClaims, UserClaims};
use identity::jwt::{self, Subject};
use identity::{Credentials, Holder, KeyKind, TrustBundle, dsse, jws};
use schemas::event::{Event, EventBody, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::lease::{MANIFEST_TYPE, Manifest, Work};
use schemas::member::Posture;
use schemas::public::{COMMAND_TYPE, Command, CommandVerb};
use schemas::security::SecurityEvent;
use schemas::{ChainSequence, Digest, Message as _, ObjectRef, Steps, UnixMillis, V};
use serde_bytes::ByteArray;
use tlog::layout::{add_entry, entries_of, first_entries};
use tlog::{Head, layout};

use super::{files, keys};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const DOMAIN: &str = "OAAA";
const JWT_HEADER: &[u8] = br#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// The first byte chooses the kind of token; of the rest, the text or the claims are read.
pub(super) fn token(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let text = match which / 3 % 2 {
        0 => keys::compact(JWT_HEADER, bytes),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    match which % 3 {
        0 => drop(jwt::verify::<UserClaims>(&text, NOW)),
        1 => drop(jwt::verify::<AccountClaims>(&text, NOW)),
        _ => drop(jwt::verify::<OperatorClaims>(&text, NOW)),
    }
    let domain = keys::public(KeyKind::Operator);
    let _chain = jwt::verify_chain(&text, &text, &text, &domain, NOW);
    let _credentials = Credentials::parse(&String::from_utf8_lossy(bytes));
}

pub(super) fn tokens() -> Vec<Vec<u8>> {
    let account = keys::public(KeyKind::Account);
    let id = account.as_str().parse().expect("an account's id");
    let user = keys::public(KeyKind::User);
    let subject = Subject {
        name: "worker-1",
        key: &user,
        not_before: None,
        expires: Some(UnixMillis(NOW.0 + 1000)),
    };
    let signer = identity::SigningKey::from_seed(KeyKind::Account, &keys::seed(KeyKind::Account));
    let claims = UserClaims::of_role(id, vec!["run:demo".to_owned()]);
    let minted = jwt::mint(&subject, claims, &signer.expect("a seed"), NOW).expect("a token");
    let claims = minted.split('.').nth(1).expect("three parts");
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes());
    let claims = claims.expect("base64");
    let file = files::credentials(&minted);
    vec![
        [&[0], &claims[..]].concat(),
        [&[1], &claims[..]].concat(),
        [&[3], minted.as_bytes()].concat(),
        [&[3], file.as_bytes()].concat(),
    ]
}

fn trust() -> TrustBundle {
    let user = keys::public(KeyKind::User);
    let mut trust = kit::trust(&keys::public(KeyKind::Account), &user);
    trust.domain = keys::public(KeyKind::Operator);
    trust
}

/// The first byte says what is chosen: the claims, the header, or the whole document; its last
/// values choose other readers.
pub(super) fn manifest(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which {
        255 => return command(bytes),
        254 => return files::trust_bundle(bytes),
        253 => return files::invitation(bytes),
        252 => return files::endorsed(bytes, &trust()),
        251 => return files::reissued(bytes),
        _ => {}
    }
    let header = format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"{MANIFEST_TYPE}"}}"#,
        keys::public(KeyKind::Account)
    );
    let document = match which % 3 {
        0 => keys::compact(header.as_bytes(), bytes),
        1 => keys::compact(bytes, b"{}"),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    let Ok(manifest) = jws::verify::<Manifest>(&document, MANIFEST_TYPE, &trust()) else {
        return;
    };
    let _window = jws::check_window(manifest.nbf, manifest.exp, NOW, schemas::Millis(1000));
    let again = keys::manifest_key().sign_document(MANIFEST_TYPE, &manifest);
    let again = again.expect("it was a document before");
    let read = jws::verify::<Manifest>(&again, MANIFEST_TYPE, &trust());
    assert_eq!(read.ok().as_ref(), Some(&manifest));
}

/// The claims of a command, signed.
fn command(bytes: &[u8]) {
    let header = format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"{COMMAND_TYPE}"}}"#,
        keys::public(KeyKind::Account)
    );
    let document = keys::compact(header.as_bytes(), bytes);
    // A lease's type is not a command's, whatever the claims say.
    assert!(jws::verify::<Command>(&document, MANIFEST_TYPE, &trust()).is_err());
    let Ok(command) = jws::verify::<Command>(&document, COMMAND_TYPE, &trust()) else {
        return;
    };
    let _window = jws::check_window(command.iat, command.exp, NOW, schemas::Millis(1000));
    let again = keys::manifest_key().sign_document(COMMAND_TYPE, &command);
    let read = jws::verify::<Command>(&again.expect("it was one before"), COMMAND_TYPE, &trust());
    assert_eq!(read.ok().as_ref(), Some(&command));
}

fn commands() -> Vec<u8> {
    let command = Command {
        v: V,
        iss: keys::public(KeyKind::Account).to_string(),
        run: kit::run_id(),
        aud: kit::worker(1),
        session: kit::session(7),
        iat: 1_700_000_000,
        exp: 1_700_000_060,
        jti: "demo/1".to_owned(),
        verb: CommandVerb::Drain,
    };
    serde_json::to_vec(&command).expect("claims are JSON")
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    let spec = kit::run_spec().build();
    let manifest = Manifest {
        v: V,
        iss: keys::public(KeyKind::Account).to_string(),
        aud: kit::worker(1),
        session: kit::session(7),
        nbf: 1_700_000_000,
        exp: 1_700_000_060,
        iat: 1_700_000_000,
        jti: "demo/1/1".to_owned(),
        run: kit::run_id(),
        spec: Digest::of(&spec.encode()),
        lease: kit::lease(kit::train(0, 1), 1),
        expires_at: UnixMillis(NOW.0 + 60_000),
        base: kit::weights(0, spec.download, spec.model.initial),
        work: Work::Train {
            shards: vec![kit::object("shard")],
            seed: 7,
            steps: Steps(4),
            steps_before: Steps(0),
        },
    };
    let claims = serde_json::to_vec(&manifest).expect("claims are JSON");
    let minted = tokens().swap_remove(2);
    let minted = String::from_utf8_lossy(&minted[1..]).into_owned();
    let (credentials, reissued) = (files::credentials(&minted), files::reissued_text(&minted));
    let invitation = files::invitation_text(&trust(), &credentials);
    let bundle = serde_json::to_vec(&trust()).expect("names and keys are JSON");
    let whole = keys::manifest_key().sign_document(MANIFEST_TYPE, &manifest);
    let header = format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"{MANIFEST_TYPE}"}}"#,
        keys::public(KeyKind::Account)
    );
    let all = vec![
        [&[0], &claims[..]].concat(),
        [&[1], header.as_bytes()].concat(),
        [&[2], whole.expect("a document").as_bytes()].concat(),
        [&[255], &commands()[..]].concat(),
        [&[254], &bundle[..]].concat(),
        [&[253], &invitation[..]].concat(),
        [&[252], &files::endorsed_text(&trust())[..]].concat(),
        [&[251], &reissued[..]].concat(),
    ];
    files::assert_seeds_are_read(&all);
    all
}

pub(super) fn certificate(bytes: &[u8]) {
    let facts = Facts::of(bytes);
    // A holder is named by facts alone.
    if Holder::of(bytes).is_ok() {
        assert!(facts.is_some());
    }
}

pub(super) fn certificates() -> Vec<Vec<u8>> {
    let named = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        let user = keys::public(KeyKind::User);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, user.as_str());
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationalUnitName, "worker");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        made.der().to_vec()
    };
    vec![named(&["localhost", "127.0.0.1"]), named(&[])]
}

/// The first byte says what is chosen: the envelope, or the statement in one that is signed.
pub(super) fn envelope(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let key = keys::public(KeyKind::User);
    match which {
        255 => return files::release(bytes),
        254 => return files::shares(bytes),
        _ => {}
    }
    match which % 2 {
        0 => {
            drop(dsse::open_provenance(bytes, [&key]));
            let data = kit::data().named(1, 8).build();
            let stored = ObjectRef::of(b"a manifest");
            drop(dsse::open_data_provenance(bytes, DOMAIN, &data, stored));
        }
        _ => {
            let sealed = keys::audit_key().seal_provenance(bytes);
            let opened = dsse::open_provenance(&sealed, [&key]).expect("it was just sealed");
            assert_eq!(opened, (bytes.to_vec(), key));
        }
    }
}

pub(super) fn envelopes() -> Vec<Vec<u8>> {
    let sealed = keys::audit_key().seal_provenance(b"{\"_type\":\"x\"}");
    vec![
        [&[0], &sealed[..]].concat(),
        b"\x01{}".to_vec(),
        [&[255], &files::release_text()[..]].concat(),
        [&[254], &files::shares_text()[..]].concat(),
    ]
}

fn signed(body: &[u8]) -> SignedEvent {
    SignedEvent {
        v: V,
        key: keys::public(KeyKind::User),
        signature: ByteArray::new(keys::sign(&chain::signed_bytes(DOMAIN, body))),
        body: serde_bytes::ByteBuf::from(body),
    }
}

/// A message in a stream of events. The first byte says if its body is chosen, which is then
/// signed, or all of it; and if it stands where the ledger or a worker writes.
pub(super) fn event(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let payload = match which % 2 {
        0 => signed(bytes).encode(),
        _ => bytes.to_vec(),
    };
    let (run, key) = (kit::run_id(), keys::public(KeyKind::User));
    let subject = match which / 2 % 2 {
        0 => schemas::subject::ledger_subject(Some(&run), &key, "worker-joined"),
        _ => schemas::subject::record_subject(&kit::account(1), &run, &kit::worker(1), "started"),
    };
    let reader = Reader::new(DOMAIN, vec![key.clone()]);
    let _judgement = reader.judge(&subject, &payload);
    let mut auditor = Auditor::new(DOMAIN, [key]);
    for place in 1..=2 {
        // The second one repeats the first.
        let _checked = auditor.observe(&Record {
            stream_sequence: StreamSequence(place),
            subject: subject.clone(),
            stored_at: NOW,
            payload: Payload::of(&payload),
        });
    }
    let _checked = auditor.conclude(StreamSequence(2));
    if let Some(event) = chain::of_leaf(bytes) {
        assert_eq!(
            chain::leaf(&event).as_deref(),
            Some(bytes),
            "two forms of an entry"
        );
    }
    if let Some(document) = chain::of_manifest_leaf(bytes) {
        assert_eq!(chain::manifest_leaf(document), bytes, "two forms of one");
        let _owner = identity::log_manifest::open(document, &trust());
    }
}

pub(super) fn events() -> Vec<Vec<u8>> {
    let body = |run, event| EventBody {
        v: V,
        known: None,
        emitter: keys::public(KeyKind::User),
        sequence: ChainSequence(0),
        previous: None,
        time: NOW,
        run,
        event,
    };
    let joined = kit::joined(kit::worker(1), kit::account(1), kit::join_request(1));
    let lease = kit::lease(kit::train(0, 1), 1);
    let started = LedgerEvent::CoordinatorStarted {
        release: "1".to_owned(),
        posture: Posture::default(),
        session: kit::session(1),
    };
    let bodies = [
        body(None, Event::Ledger(started)),
        body(Some(kit::run_id()), Event::Ledger(joined)),
        body(
            Some(kit::run_id()),
            Event::Worker(WorkerEvent::Started { lease }),
        ),
        body(None, Event::Security(SecurityEvent::SentryStopped)),
    ];
    let mut all = Vec::new();
    for (place, body) in (0u8..).zip(bodies) {
        let body = body.encode();
        all.push([&[(place & 2)], &body[..]].concat());
        all.push([&[1 | (place & 2)], &signed(&body).encode()[..]].concat());
        all.push([&[1][..], &chain::leaf(&signed(&body)).expect("an entry")].concat());
    }
    let header = format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"diloco-log-manifest+jwt"}}"#,
        keys::public(KeyKind::Operator)
    );
    let manifest = keys::compact(header.as_bytes(), b"{}");
    all.push([&[1][..], &chain::manifest_leaf(&manifest)].concat());
    all.extend(
        super::wire::golden()
            .into_iter()
            .filter(|(name, _)| name.starts_with("event"))
            .map(|(_, body)| [&[0], &body[..]].concat()),
    );
    all
}

/// The first byte chooses: a head, the text of one that is signed, a bundle, or a proof.
pub(super) fn head(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    if *which == 255 {
        return files::policy(bytes);
    }
    match which % 4 {
        0 => {
            let opened = Head::open(bytes, "diloco/OAAA", &[keys::raw_public()]);
            if let Ok(head) = opened {
                let again = keys::head_key().sign_head(&head);
                let read = Head::open(again.as_bytes(), "diloco/OAAA", &[keys::raw_public()]);
                assert_eq!(read, Ok(head));
            }
        }
        1 => {
            let text = String::from_utf8_lossy(bytes);
            let note = format!(
                "{text}\n\u{2014} diloco/OAAA {}\n",
                data_encoding::BASE64.encode(&keys::sign(text.as_bytes()))
            );
            let _head = Head::open(note.as_bytes(), "diloco/OAAA", &[keys::raw_public()]);
        }
        2 => {
            if let Some((entries, rest)) = first_entries(bytes, 2) {
                let mut again = Vec::new();
                entries
                    .iter()
                    .for_each(|entry| add_entry(&mut again, entry));
                assert_eq!([&again[..], rest].concat(), bytes);
                assert_eq!(entries_of(bytes, 2).is_some(), rest.is_empty());
            }
            assert!(bytes.is_empty() || entries_of(bytes, 0).is_none());
        }
        _ => {
            let Ok(proof) = Proof::read(bytes) else {
                return;
            };
            assert_eq!(proof.text().as_bytes(), bytes, "a proof with two texts");
            let trusted = Trusted {
                domain: DOMAIN.to_owned(),
                tenants: vec![kit::account(1)],
                coordinators: vec![keys::public(KeyKind::User)],
                ended: Default::default(),
                sentries: vec![keys::public(KeyKind::User)],
                heads: vec![keys::raw_public()],
            };
            let _verdict = proof.verify(&trusted);
        }
    }
}

pub(super) fn heads() -> Vec<Vec<u8>> {
    let entry = chain::leaf(&signed(b"no body")).expect("an entry");
    let mut hashed = vec![0];
    hashed.extend(&entry);
    let head = Head {
        origin: "diloco/OAAA".to_owned(),
        size: 1,
        root: *Digest::of(&hashed).as_bytes(),
    };
    let note = keys::head_key().sign_head(&head);
    let mut bundle = Vec::new();
    add_entry(&mut bundle, &entry);
    add_entry(&mut bundle, b"another");
    let proof = Proof {
        entry,
        index: 0,
        hashes: Vec::new(),
        note: note.clone(),
    };
    let _widest = layout::TILE_WIDTH;
    let mut all = vec![
        [&[0], note.as_bytes()].concat(),
        [&[1], head.text().as_bytes()].concat(),
        [&[2], &bundle[..]].concat(),
        [&[3], proof.text().as_bytes()].concat(),
    ];
    all.extend(
        files::policies()
            .iter()
            .map(|text| [&[255], &text[..]].concat()),
    );
    all
}
