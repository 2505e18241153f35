//! What people carry from machine to machine, and what only few readers read: trust bundles,
//! invitations, signatures of releases, policies of witnesses, and shares that were sealed for one
//! worker. They are further inputs of the targets that they are nearest to.

use std::io::Write as _;
use std::sync::OnceLock;

use identity::endorsed::read_endorsed;
use identity::release::{Files, ReleaseKey};
use identity::secret::write_private;
use identity::{InvitationFile, KeyKind, TokenFile, TrustBundle};
use masking::{Cohort, Entropy, Keys, Part};
use schemas::masking::CohortMember;
use schemas::{Digest, Round, UnitIndex};
use serde_bytes::ByteBuf;
use tlog::Head;
use tlog::cosign::{Policy, Witness, cosigned};

use super::keys;

/// The type of a signed trust bundle.
const ENDORSED_TYPE: &str = "diloco-trust+jwt";

/// A private file with these bytes, as its owner would have it.
fn scratch(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("file");
    write_private(&path, bytes).expect("a scratch folder takes a file");
    (folder, path)
}

/// What is read as a trust bundle is written as it was read.
pub(super) fn trust_bundle(bytes: &[u8]) {
    let (folder, path) = scratch(bytes);
    let mut authority = std::fs::File::create(folder.path().join("ca.pem")).expect("a file");
    authority
        .write_all(b"no authority")
        .expect("it takes bytes");
    let Ok(bundle) = TrustBundle::read(&path) else {
        return;
    };
    let again = folder.path().join("again");
    bundle.write(&again).expect("a scratch folder takes a file");
    let read = TrustBundle::read(&again);
    assert_eq!(read.ok().as_ref(), Some(&bundle), "a bundle in two forms");
}

/// The newer bundle that the registrar hands to a new machine, signed as the domain's own key
/// would.
pub(super) fn endorsed(bytes: &[u8], trust: &TrustBundle) {
    let header = format!(
        r#"{{"alg":"EdDSA","kid":"{}","typ":"{ENDORSED_TYPE}"}}"#,
        trust.domain
    );
    let present = serde_json::to_vec(trust).expect("names and keys are JSON");
    let (folder, path) = scratch(&present);
    let document = keys::compact(header.as_bytes(), bytes);
    let signed = folder.path().join("file.jws");
    write_private(&signed, document.as_bytes()).expect("a scratch folder takes a file");
    if let Ok(Some(read)) = read_endorsed(&path) {
        assert_eq!(read, document, "another document");
    }
}

pub(super) fn endorsed_text(trust: &TrustBundle) -> Vec<u8> {
    let endorsed = serde_json::json!({"at": 1, "trust": trust});
    serde_json::to_vec(&endorsed).expect("names and keys are JSON")
}

/// A token that was signed anew and carried to its worker.
pub(super) fn reissued(bytes: &[u8]) {
    let (folder, path) = scratch(bytes);
    let Ok(token) = TokenFile::read(&path) else {
        return;
    };
    let again = folder.path().join("again");
    token.write(&again).expect("a scratch folder takes a file");
    assert!(TokenFile::read(&again).is_ok(), "it was a token before");
}

pub(super) fn reissued_text(token: &str) -> Vec<u8> {
    let written = serde_json::json!({
        "v": 1, "name": "worker-1", "worker": keys::public(KeyKind::User), "token": token, "ends": 1,
    });
    serde_json::to_vec(&written).expect("texts and numbers")
}

pub(super) fn invitation(bytes: &[u8]) {
    let (_folder, path) = scratch(bytes);
    if let Ok(read) = InvitationFile::read(&path) {
        assert_eq!(
            format!("{read:?}").matches("SU").count(),
            0,
            "no seed is shown"
        );
    }
}

pub(super) fn invitation_text(trust: &TrustBundle, credentials: &str) -> Vec<u8> {
    // As the generator writes 32 bytes.
    let token = data_encoding::BASE32_NOPAD.encode(&[7; 32]);
    let written = serde_json::json!({
        "v": 1, "bus": "tls://localhost:4222", "run": kit::run_id(), "ends": 1, "ca": "no authority",
        "token": token, "credentials": credentials, "trust": trust,
    });
    serde_json::to_vec(&written).expect("texts and numbers")
}

fn release_key() -> &'static ReleaseKey {
    static KEY: OnceLock<ReleaseKey> = OnceLock::new();
    KEY.get_or_init(|| ReleaseKey::generate().expect("random numbers"))
}

/// Only what the key has signed opens.
pub(super) fn release(bytes: &[u8]) {
    if let Ok(files) = release_key().public().open(bytes) {
        assert_eq!(files, released(), "files that nobody signed");
    }
}

fn released() -> Files {
    let files = ["config.json", "model.safetensors"];
    let files = files.map(|name| (name.to_owned(), Digest::of(name.as_bytes())));
    files.into_iter().collect()
}

pub(super) fn release_text() -> Vec<u8> {
    let signed = release_key().sign("model", &released(), &["model.sig"]);
    signed.expect("random numbers")
}

fn head() -> Head {
    Head {
        origin: "diloco/OAAA".to_owned(),
        size: 1,
        root: [1; 32],
    }
}

fn witness() -> Witness {
    Witness::new("w", keys::raw_public()).expect("a name")
}

/// A policy, and the lines below a head that its witnesses may have cosigned.
pub(super) fn policy(bytes: &[u8]) {
    if let Ok(policy) = Policy::read(bytes) {
        assert!(
            policy.witnesses().count() <= bytes.len(),
            "witnesses from nothing"
        );
        let _met = policy.is_met(&Default::default());
        let _names = policy.names_log("diloco/OAAA", &[keys::raw_public()]);
        for (_, witness) in policy.witnesses() {
            let again = Witness::read(&witness.text()).expect("it was a witness before");
            assert_eq!(again.text(), witness.text());
        }
    }
    // Nobody else has the key of this witness, so a line that counts is the one that it wrote.
    if let Ok(Some(time)) = witness().cosigned_at(bytes, &head()) {
        assert_eq!(time, 7, "a cosignature that nobody made");
    }
}

pub(super) fn policies() -> Vec<Vec<u8>> {
    let (witness, head) = (witness(), head());
    let line = witness.line(7, &keys::sign(cosigned(&head, 7).as_bytes()));
    let note = keys::head_key().sign_head(&head) + &line;
    let text = witness.text();
    let policy = format!("witness a {text}\ngroup g 1 a\nquorum g\n");
    vec![note.into_bytes(), policy.into_bytes()]
}

/// The secrets of the worker of a unit; they are the same in every run.
fn secrets(unit: u32) -> Keys {
    let mut entropy = Entropy::new([0; 128]);
    for (at, byte) in (0_u8..).zip(entropy.iter_mut()) {
        *byte = at
            .wrapping_mul(7)
            .wrapping_add(u8::try_from(unit).expect("a small number") + 1);
    }
    Keys::new(&entropy)
}

fn part(unit: u32) -> Part {
    let member = |unit: u32| CohortMember {
        unit: UnitIndex(unit),
        epoch: schemas::Epoch(1),
        worker: kit::worker(unit + 1),
        audit_key: kit::public_key(unit + 1),
        keys: secrets(unit).announced(),
        signature: serde_bytes::ByteArray::new([0; 64]),
    };
    let members = (0..3).map(member).collect();
    let cohort = Cohort::new(&kit::run_id(), &Digest::of(b"x"), Round(0), 2, members);
    let lease = kit::lease(kit::train(0, unit), 1);
    let (worker, key) = (kit::worker(unit + 1), kit::public_key(unit + 1));
    let own = (&worker, &key);
    let cohort = cohort.expect("three workers are a cohort");
    let part = Part::join(cohort, secrets(unit), &lease, own, |_, _| true);
    part.expect("its keys are in the cohort")
}

/// What two other workers sealed for the first one. The first byte is the length of the first
/// share.
pub(super) fn shares(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else {
        return;
    };
    let (one, two) = rest.split_at(usize::from(*length).min(rest.len()));
    let sealed = [one, two].map(|sealed| ByteBuf::from(sealed.to_vec()));
    let [one, two] = &sealed;
    let mut part = part(0);
    let all = [ByteBuf::new(), one.clone(), two.clone()];
    let closed = part.take(&all).expect("as many as there are workers");
    for (unit, sealed) in (1..).zip(&sealed) {
        let is_its = *sealed == sealed_by(unit);
        let opened = !sealed.is_empty() && !closed.contains(&UnitIndex(unit));
        assert_eq!(opened, is_its, "the share of unit {unit}");
    }
}

/// What the worker of a unit seals for the first one.
fn sealed_by(unit: u32) -> ByteBuf {
    part(unit).share().expect("sound keys").swap_remove(0)
}

pub(super) fn shares_text() -> Vec<u8> {
    let (one, two) = (sealed_by(1), sealed_by(2));
    let length = u8::try_from(one.len()).expect("a share is short");
    [&[length], &one[..], &two].concat()
}

/// The credentials file of the fixed user, with any token.
pub(super) fn credentials(token: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        keys::seed_text(KeyKind::User)
    )
}

/// Asserts that each seed of these readers is read: one that refuses its seed at once is no target.
pub(super) fn assert_seeds_are_read(manifests: &[Vec<u8>]) {
    let file = |which: u8| {
        let chosen = manifests.iter().find(|input| input[0] == which);
        scratch(&chosen.expect("a seed")[1..])
    };
    let (_folder, path) = file(253);
    InvitationFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let (_folder, path) = file(254);
    TrustBundle::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let (_folder, path) = file(251);
    TokenFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
    let opened = release_key().public().open(&release_text());
    assert_eq!(opened.ok(), Some(released()));
    let [note, policy] = &policies()[..] else {
        unreachable!("there are two")
    };
    assert_eq!(witness().cosigned_at(note, &head()), Ok(Some(7)));
    let policy = Policy::read(policy).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(policy.witnesses().count(), 1);
    let text = shares_text();
    assert_eq!(usize::from(text[0]) * 2 + 1, text.len(), "two shares");
}
