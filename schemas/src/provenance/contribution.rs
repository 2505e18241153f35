//! The provenance of a contribution, which its worker signs. Everything in it follows from the
//! worker's own statement, its lease and its join. So only the signature travels and is recorded:
//! the coordinator makes the same bytes again when it checks a result, and so does an auditor.
//!
//! It tells nothing that the ledger does not tell: neither a loss nor a time is in it.

use serde::{Deserialize, Serialize};

use super::{
    BuildDefinition, Builder, Metadata, PREDICATE_TYPE, Predicate, Provenance, Resource,
    RunDetails, STATEMENT_TYPE, objects, texts,
};
use crate::contribution::Contribution;
use crate::lease::{LeaseRef, Weights};
use crate::run::RunSpec;
use crate::{Digest, ObjectRef, PublicKey, WorkerId};

/// What was done: the inner steps of a unit. Signatures are kept without what they sign, so a
/// change of what a statement holds makes it `v2`, beside this one.
pub const CONTRIBUTION_TYPE: &str = "urn:diloco:contribution:v1";

/// What a contribution was made from, besides what its worker's statement names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeFrom {
    /// The weights that the unit starts from.
    pub base: Weights,
    /// The shards that its sequences are drawn from.
    pub shards: Vec<ObjectRef>,
    /// The release of the worker, as it joined.
    pub release: String,
}

/// A contribution with what its worker's statement says about it.
#[derive(Clone, Copy, Debug)]
pub struct HandedIn<'a> {
    /// The run's settings.
    pub spec: &'a RunSpec,
    /// Their digest.
    pub spec_digest: Digest,
    /// The worker.
    pub worker: &'a WorkerId,
    /// The lease.
    pub lease: LeaseRef,
    /// The contribution.
    pub contribution: &'a Contribution,
    /// The digest of the worker's statement, as it was signed.
    pub statement: Digest,
}

impl Provenance {
    /// The statement about a contribution in `domain`, which its worker signs with `key`.
    pub fn of_contribution(
        handed: HandedIn<'_>,
        from: &MadeFrom,
        domain: &str,
        key: &PublicKey,
    ) -> Self {
        let HandedIn {
            spec,
            lease,
            contribution,
            ..
        } = handed;
        let (run, unit) = (&spec.run, lease.unit);
        let mut made_from = vec![
            Resource::new("settings".to_owned(), handed.spec_digest),
            Resource::new("config".to_owned(), spec.model.config.digest),
            Resource::new("layout".to_owned(), contribution.layout),
            Resource::new("data".to_owned(), spec.data.digest),
        ];
        let shard =
            |(at, shard): (usize, &ObjectRef)| Resource::new(format!("shard/{at}"), shard.digest);
        made_from.extend(from.shards.iter().enumerate().map(shard));
        made_from.extend(objects("base", &from.base.chunks, &[]));
        let cohort = contribution.cohort;
        made_from.extend(cohort.map(|digest| Resource::new("cohort".to_owned(), digest)));
        let parameters = [
            ("domain", domain.to_owned()),
            ("run", run.to_string()),
            ("round", unit.round.to_string()),
            ("unit", unit.index.to_string()),
            ("epoch", lease.epoch.to_string()),
            ("worker", handed.worker.to_string()),
            ("steps", contribution.steps.to_string()),
            ("tokens", contribution.tokens.to_string()),
        ];
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: objects("contribution", &contribution.chunks, &[]),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                build_definition: BuildDefinition {
                    build_type: CONTRIBUTION_TYPE.to_owned(),
                    external_parameters: texts(&parameters),
                    resolved_dependencies: made_from,
                },
                run_details: RunDetails {
                    builder: Builder {
                        id: format!("nkey:{key}"),
                        version: texts(&[("diloco-worker", from.release.clone())]),
                    },
                    metadata: Metadata {
                        invocation_id: format!("{domain}/{run}/{lease}"),
                    },
                    byproducts: vec![Resource::new("statement".to_owned(), handed.statement)],
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::codec::{Codec, CodecKind, Rounding};
    use crate::lease::{UnitId, UnitKind};
    use crate::{Chunks, Epoch, Listed, Message as _, Round, Steps, Tokens, UnitIndex};

    fn object(name: &str) -> ObjectRef {
        ObjectRef::of(name.as_bytes())
    }

    fn codec() -> Codec {
        Codec {
            kind: CodecKind::Bf16,
            rounding: Rounding::Nearest,
        }
    }

    fn contribution(chunks: Chunks) -> Contribution {
        Contribution {
            layout: Digest::of(b"layout"),
            codec: codec(),
            chunks,
            tokens: Tokens(32),
            steps: Steps(4),
            loss: 2.5,
            train_ms: 1234,
            privacy: None,
            cohort: None,
        }
    }

    fn from() -> MadeFrom {
        MadeFrom {
            base: Weights {
                round: Round(2),
                codec: codec(),
                chunks: Chunks::Named(vec![object("base 0"), object("base 1")]),
            },
            shards: vec![object("shard 7")],
            release: "1.2.3".to_owned(),
        }
    }

    fn said(contribution: &Contribution) -> Value {
        let key: PublicKey = format!("U{}", "B".repeat(55)).parse().expect("a key");
        let worker: WorkerId = format!("U{}", "A".repeat(55)).parse().expect("a key");
        let text = include_str!("../../golden/RunSpec.v1.hex");
        let bytes = data_encoding::HEXLOWER.decode(text.trim().as_bytes());
        let spec = RunSpec::decode(&bytes.expect("hex")).expect("settings");
        let from = from();
        let unit = UnitId {
            round: Round(2),
            kind: UnitKind::Train,
            index: UnitIndex(1),
        };
        let handed = HandedIn {
            spec: &spec,
            spec_digest: Digest::of(b"spec"),
            worker: &worker,
            lease: LeaseRef {
                unit,
                epoch: Epoch(3),
            },
            contribution,
            statement: Digest::of(b"statement"),
        };
        let statement = Provenance::of_contribution(handed, &from, "a-domain", &key);
        let bytes = statement.to_json();
        let back: Provenance = serde_json::from_slice(&bytes).expect("it reads back");
        assert_eq!((&back, back.to_json()), (&statement, bytes.clone()));
        let mut said: Value = serde_json::from_slice(&bytes).expect("it is JSON");
        // The names of the run's own objects, as the settings have them.
        let hex = |digest: Digest| json!({ "sha256": digest.hex() });
        let made_from = &mut said["predicate"]["buildDefinition"]["resolvedDependencies"];
        assert_eq!(made_from[1]["digest"], hex(spec.model.config.digest));
        assert_eq!(made_from[3]["digest"], hex(spec.data.digest));
        let parameters = &said["predicate"]["buildDefinition"]["externalParameters"];
        assert_eq!(parameters["run"], spec.run.to_string());
        said
    }

    /// The statement as a reader of in-toto and SLSA sees it.
    #[test]
    fn tl_19_a_contribution_has_a_statement_in_toto_that_names_its_base_its_data_and_its_worker() {
        let chunks = vec![object("chunk 0"), object("chunk 1")];
        let said = said(&contribution(Chunks::Named(chunks)));
        assert_eq!(said["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(said["predicateType"], "https://slsa.dev/provenance/v1");
        let hex = |name: &str| json!({ "sha256": object(name).digest.hex() });
        let subject = json!([
            { "name": "contribution/0", "digest": hex("chunk 0") },
            { "name": "contribution/1", "digest": hex("chunk 1") },
        ]);
        assert_eq!(said["subject"], subject);
        let build = &said["predicate"]["buildDefinition"];
        assert_eq!(build["buildType"], CONTRIBUTION_TYPE);
        let parameters = &build["externalParameters"];
        for (name, value) in [
            ("domain", "a-domain"),
            ("round", "2"),
            ("unit", "1"),
            ("epoch", "3"),
            ("steps", "4"),
            ("tokens", "32"),
        ] {
            assert_eq!(parameters[name], value);
        }
        assert_eq!(parameters["worker"], format!("U{}", "A".repeat(55)));
        assert_eq!(parameters.as_object().map(serde_json::Map::len), Some(8));
        let made_from = build["resolvedDependencies"].as_array().expect("a list");
        let names: Vec<&Value> = made_from.iter().map(|one| &one["name"]).collect();
        let expected = [
            "settings", "config", "layout", "data", "shard/0", "base/0", "base/1",
        ];
        assert_eq!(names, expected);
        for (at, name) in [
            (0, "spec"),
            (2, "layout"),
            (4, "shard 7"),
            (5, "base 0"),
            (6, "base 1"),
        ] {
            assert_eq!(made_from[at]["digest"], hex(name));
        }
        let details = &said["predicate"]["runDetails"];
        assert_eq!(
            details["builder"]["id"],
            format!("nkey:U{}", "B".repeat(55))
        );
        assert_eq!(
            details["builder"]["version"],
            json!({ "diloco-worker": "1.2.3" })
        );
        let invocation = details["metadata"]["invocationId"].as_str().expect("text");
        assert!(invocation.starts_with("a-domain/") && invocation.ends_with("/2/train-1@3"));
        let byproduct = json!([{ "name": "statement", "digest": hex("statement") }]);
        assert_eq!(details["byproducts"], byproduct);
    }

    /// A private run's noise covers no loss and no time, and a masked one's masks cover neither.
    #[test]
    fn tl_16_the_provenance_of_a_contribution_tells_neither_its_loss_nor_its_time() {
        let (listed, _) = Listed::of(&[object("chunk")]);
        let one = Contribution {
            cohort: Some(Digest::of(b"cohort")),
            ..contribution(Chunks::Listed(listed))
        };
        let other = Contribution {
            loss: 7.5,
            train_ms: 5,
            ..one.clone()
        };
        let told = said(&one);
        assert_eq!(told, said(&other));
        assert_eq!(told["subject"][0]["name"], "contribution/list");
        let made_from = &told["predicate"]["buildDefinition"]["resolvedDependencies"];
        let last = made_from.as_array().and_then(|all| all.last());
        assert_eq!(last.expect("dependencies")["name"], "cohort");
    }
}
