//! A manifest with everything that it names, and the facts that a worker expects in it.

use identity::key::{KeyKind, SigningKey};
use identity::{AuditKey, ManifestKey};
use schemas::lease::UnitId;
use schemas::{Bytes, Epoch, Round, Steps, UnitIndex, V};
use serde_json::{Value, json};

use super::super::*;

pub(super) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
pub(super) const CHUNKS: u64 = 3;
pub(super) const SESSION: Session = Session(0x5e55);

pub(super) struct Scene {
    pub(super) key: ManifestKey,
    pub(super) trust: TrustBundle,
    pub(super) worker: WorkerId,
    pub(super) spec: RunSpec,
}

pub(super) fn object(bytes: u64) -> ObjectRef {
    ObjectRef {
        digest: Digest::of(&bytes.to_le_bytes()),
        bytes: Bytes(bytes),
    }
}

pub(super) fn spec() -> RunSpec {
    kit::run_spec()
        .config(object(1))
        .layout(object(2))
        .chunk_elements(100)
        .initial(vec![object(400), object(400), object(40)])
        .data(object(3))
        .rounds(4)
        .inner_steps(Steps(10))
        .sequence_tokens(8)
        .evaluation_every(1)
        .evaluation_sequences(16)
        .build()
}

pub(super) fn unit(kind: UnitKind, round: u64) -> UnitId {
    UnitId {
        round: Round(round),
        kind,
        index: UnitIndex(0),
    }
}

impl Scene {
    pub(super) fn new() -> Self {
        let key = ManifestKey::generate();
        let trust = kit::trust(key.public(), AuditKey::generate().public());
        let worker = SigningKey::generate(KeyKind::User)
            .public()
            .as_str()
            .parse()
            .expect("a user key");
        Self {
            key,
            trust,
            worker,
            spec: spec(),
        }
    }

    pub(super) fn claims(&self, unit: UnitId) -> Manifest {
        let lease = LeaseRef {
            unit,
            epoch: Epoch(2),
        };
        let seconds = NOW.get() / 1000;
        let (round, chunks) = (unit.round, vec![object(200), object(200), object(20)]);
        let base = match round.get() {
            0 => Weights {
                round,
                codec: Codec {
                    kind: CodecKind::Fp32,
                    rounding: Rounding::Nearest,
                },
                chunks: self.spec.model.initial.clone(),
            },
            _ => Weights {
                round,
                codec: self.spec.download,
                chunks: chunks.into(),
            },
        };
        let work = match unit.kind {
            UnitKind::Train => {
                let steps_before = Steps(unit.round.get() * 10);
                Work::Train {
                    shards: vec![object(1000)],
                    seed: 5,
                    steps: Steps(10),
                    steps_before,
                }
            }
            UnitKind::Evaluate => Work::Evaluate {
                shards: vec![object(1001)],
                sequences: 16,
            },
        };
        Manifest {
            v: V,
            iss: self.key.public().to_string(),
            aud: self.worker.clone(),
            session: SESSION,
            nbf: seconds - 60,
            exp: seconds + 30,
            iat: seconds,
            jti: format!("demo/{}/{}/2", unit.round, unit.token()),
            run: self.spec.run.clone(),
            spec: self.spec.to_object().1,
            lease,
            expires_at: NOW.after(Millis(30_000)),
            base,
            work,
        }
    }

    pub(super) fn expected(&self) -> Expected<'_> {
        Expected {
            trust: &self.trust,
            worker: &self.worker,
            session: SESSION,
            run: &self.spec.run,
            now: NOW,
        }
    }

    pub(super) fn check(&self, document: &str) -> Result<Manifest, NotVerified> {
        manifest(
            document,
            &self.expected(),
            &self.spec,
            self.spec.to_object().1,
        )
    }

    /// Checks claims signed by a coordinator that may be faulty.
    pub(super) fn check_claims(&self, claims: &Value) -> Result<Manifest, NotVerified> {
        self.check(
            &self
                .key
                .sign_document(MANIFEST_TYPE, claims)
                .expect("small claims"),
        )
    }

    pub(super) fn command(&self, verb: CommandVerb) -> Command {
        let iat = NOW.get() / 1000;
        Command {
            v: V,
            iss: self.key.public().to_string(),
            run: self.spec.run.clone(),
            aud: self.worker.clone(),
            session: SESSION,
            iat,
            exp: iat + 60,
            jti: "one".to_owned(),
            verb,
        }
    }
}

/// Every place in a document that holds a value, as a JSON pointer.
pub(super) fn leaves(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(name, value)| leaves(value, &format!("{at}/{name}"), found)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(i, value)| leaves(value, &format!("{at}/{i}"), found)),
        _ => found.push(at.to_owned()),
    }
}

/// Another value of the same kind; for digests and keys a valid one.
pub(super) fn flipped(value: &Value) -> Value {
    match value {
        Value::Bool(bit) => Value::Bool(!bit),
        Value::Number(number) => json!(number.as_u64().expect("all are whole") + 1),
        Value::String(text) if text.starts_with("sha256:") => {
            json!(Digest::of(text.as_bytes()).to_string())
        }
        Value::String(text) if text.len() == 56 => json!(
            SigningKey::generate(match &text[..1] {
                "A" => KeyKind::Account,
                _ => KeyKind::User,
            })
            .public()
            .to_string()
        ),
        Value::String(text) => json!(format!("{text}x")),
        other => panic!("no leaf: {other}"),
    }
}
