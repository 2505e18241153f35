//! The provenance of an artifact: an in-toto statement (v1) with a predicate of SLSA provenance
//! (v1). It says what the artifact consists of, what it was made from, and who made it. Its maker
//! signs it in a DSSE envelope (crate `identity`).
//!
//! | artifact | signed by | kept |
//! | --- | --- | --- |
//! | full snapshot | the coordinator that saves it | as an object, which `snapshot-saved` names |
//! | contribution | its worker | as a signature in `contribution-accepted` |
//! | data set | the operator who imports it | as an object, which a run's settings name |
//!
//! Everything in a statement about a snapshot follows from the snapshot's manifest, the domain, and
//! the maker, so one that is made again has the same bytes; so does one about a contribution.

mod contribution;
mod data;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::snapshot::{MergeInput, MergeRecord, Slot, SnapshotManifest};
use crate::{Chunks, Digest, ObjectRef, PublicKey};

pub use contribution::{CONTRIBUTION_TYPE, HandedIn, MadeFrom};
pub use data::{DATA_TYPE, Import};

/// The type of a statement, by in-toto.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The type of the predicate, by SLSA.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// The media type of a statement in its envelope, by in-toto.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What was done: the outer steps of the named rounds, by crate `recompute`. A change of what a
/// statement holds makes it `v2`.
pub const BUILD_TYPE: &str = "urn:diloco:snapshot:v1";

/// The statement about one artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub kind: String,
    /// The objects that the artifact consists of: of a snapshot the manifest, and every object of
    /// weights and outer state that it names. Where a list is named, the list's digest fixes the
    /// chunks.
    pub subject: Vec<Resource>,
    /// [`PREDICATE_TYPE`].
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    /// The predicate.
    pub predicate: Predicate,
}

/// An object, by its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its name in this statement.
    pub name: String,
    /// Its digests, by algorithm: here always `sha256`, in hex.
    pub digest: BTreeMap<String, String>,
    /// Facts about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A predicate of SLSA provenance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Predicate {
    /// What was made from what.
    pub build_definition: BuildDefinition,
    /// The maker, and this making.
    pub run_details: RunDetails,
}

/// What was made from what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// [`BUILD_TYPE`], [`CONTRIBUTION_TYPE`] or [`DATA_TYPE`].
    pub build_type: String,
    /// The trust domain, the run, and the snapshot's round or the contribution's lease.
    pub external_parameters: BTreeMap<String, String>,
    /// Everything that it was made from.
    pub resolved_dependencies: Vec<Resource>,
}

/// The maker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetails {
    /// The maker itself.
    pub builder: Builder,
    /// This making.
    pub metadata: Metadata,
    /// What came of it beside the artifact: the worker's statement about a contribution.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub byproducts: Vec<Resource>,
}

/// A process with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builder {
    /// `nkey:` and the public key that signs the statement and the maker's events.
    pub id: String,
    /// The release of each program that took part.
    pub version: BTreeMap<String, String>,
}

/// This making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Run and round, or run and lease, in this domain.
    pub invocation_id: String,
}

/// The process that vouches for an artifact.
#[derive(Clone, Copy, Debug)]
pub struct Maker<'a> {
    /// The trust domain, as text.
    pub domain: &'a str,
    /// The key that signs.
    pub key: &'a PublicKey,
    /// The release of the process.
    pub release: &'a str,
}

impl Provenance {
    /// The statement about the snapshot with this manifest.
    pub fn of_snapshot(manifest: &SnapshotManifest, stored: ObjectRef, maker: Maker<'_>) -> Self {
        let SnapshotManifest {
            run, round, spec, ..
        } = manifest;
        let mut subject = vec![Resource::new("manifest".to_owned(), stored.digest)];
        subject.extend(objects("weights", &manifest.weights, &[]));
        for (slot, chunks) in &manifest.slots {
            let name = match slot {
                Slot::Momentum => "momentum",
            };
            subject.extend(objects(name, chunks, &[]));
        }
        let mut made_from = vec![
            Resource::new("settings".to_owned(), *spec),
            Resource::new("config".to_owned(), manifest.config.digest),
            Resource::new("layout".to_owned(), manifest.layout.digest),
            Resource::new("data".to_owned(), manifest.data.digest),
        ];
        // Without a snapshot before it, it rests on the initial weights, which the settings name.
        let base = manifest.parent;
        made_from.extend(base.map(|digest| Resource::new("base".to_owned(), digest)));
        for merge in &manifest.merges {
            made_from.extend(merge.inputs.iter().flat_map(|input| of_input(merge, input)));
        }
        let parameters = [
            ("domain", maker.domain.to_owned()),
            ("run", run.to_string()),
            ("round", round.to_string()),
        ];
        let (program, key) = ("diloco-coordinator", maker.key);
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject,
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                build_definition: BuildDefinition {
                    build_type: BUILD_TYPE.to_owned(),
                    external_parameters: texts(&parameters),
                    resolved_dependencies: made_from,
                },
                run_details: RunDetails {
                    builder: Builder {
                        id: format!("nkey:{key}"),
                        version: texts(&[(program, maker.release.to_owned())]),
                    },
                    metadata: Metadata {
                        invocation_id: format!("{}/{run}/{round}", maker.domain),
                    },
                    byproducts: Vec::new(),
                },
            },
        }
    }
}

impl Provenance {
    /// Its bytes, which are signed.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts are JSON")
    }
}

impl Resource {
    fn new(name: String, digest: Digest) -> Self {
        Self {
            name,
            digest: texts(&[("sha256", digest.hex())]),
            annotations: BTreeMap::new(),
        }
    }
}

/// The objects of a contribution, each with the lease and the worker that it came from.
fn of_input(merge: &MergeRecord, input: &MergeInput) -> Vec<Resource> {
    let annotations = [
        ("round", merge.round.to_string()),
        ("unit", input.lease.unit.index.to_string()),
        ("epoch", input.lease.epoch.to_string()),
        ("worker", input.worker.to_string()),
        ("weight", input.weight.to_string()),
    ];
    objects("contribution", &input.chunks, &annotations)
}

/// The objects that are named, with their positions where there are several.
fn objects(name: &str, chunks: &Chunks, annotations: &[(&str, String)]) -> Vec<Resource> {
    let listed = chunks.listed().is_some();
    let each = |(index, object): (usize, &ObjectRef)| Resource {
        annotations: texts(annotations),
        ..Resource::new(
            match listed {
                true => format!("{name}/list"),
                false => format!("{name}/{index}"),
            },
            object.digest,
        )
    };
    chunks.objects().iter().enumerate().map(each).collect()
}

fn texts(pairs: &[(&str, String)]) -> BTreeMap<String, String> {
    let own = |(name, text): &(&str, String)| ((*name).to_owned(), text.clone());
    pairs.iter().map(own).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::lease::{LeaseRef, UnitId, UnitKind, Weights};
    use crate::{Epoch, Fragment, Listed, Round, Tokens, UnitIndex, V, Weight};

    fn object(name: &str) -> ObjectRef {
        ObjectRef::of(name.as_bytes())
    }

    fn manifest() -> SnapshotManifest {
        let unit = UnitId {
            round: Round(2),
            kind: UnitKind::Train,
            index: UnitIndex(1),
        };
        let input = MergeInput {
            lease: LeaseRef {
                unit,
                epoch: Epoch(3),
            },
            worker: format!("U{}", "A".repeat(55)).parse().expect("a key"),
            tokens: Tokens(32),
            weight: Weight(8),
            norm: None,
            cosine: None,
            chunks: Chunks::Named(vec![object("contribution 0"), object("contribution 1")]),
        };
        let (listed, _) = Listed::of(&[object("momentum")]);
        SnapshotManifest {
            v: V,
            run: "demo".parse().expect("a name"),
            spec: Digest::of(b"spec"),
            round: Round(3),
            config: object("config"),
            layout: object("layout"),
            data: object("data"),
            weights: Chunks::Named(vec![object("weights 0"), object("weights 1")]),
            slots: BTreeMap::from([(Slot::Momentum, Chunks::Listed(listed))]),
            broadcast: Weights {
                round: Round(3),
                codec: crate::codec::Codec {
                    kind: crate::codec::CodecKind::Bf16,
                    rounding: crate::codec::Rounding::Nearest,
                },
                chunks: Chunks::Named(vec![object("broadcast")]),
            },
            parent: Some(Digest::of(b"parent")),
            merges: vec![MergeRecord {
                round: Round(2),
                fragment: Fragment::FIRST,
                inputs: vec![input],
                broadcast: Digest::of(b"broadcast"),
                unmasking: None,
            }],
        }
    }

    /// The statement as a reader of in-toto and SLSA sees it.
    #[test]
    fn tl_19_a_statement_is_in_toto_with_slsa_provenance_and_names_what_went_in() {
        let key: PublicKey = format!("U{}", "B".repeat(55)).parse().expect("a key");
        let maker = Maker {
            domain: "a-domain",
            key: &key,
            release: "1.2.3",
        };
        let statement = Provenance::of_snapshot(&manifest(), object("manifest"), maker);
        let said = serde_json::to_value(&statement).expect("it is JSON");
        let back: Provenance = serde_json::from_value(said.clone()).expect("it reads back");
        assert_eq!(back, statement);
        assert_eq!(said["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(said["predicateType"], "https://slsa.dev/provenance/v1");
        let hex = |name: &str| json!({ "sha256": object(name).digest.hex() });
        let list = Listed::of(&[object("momentum")]).0.list.digest.hex();
        let subject = json!([
            { "name": "manifest", "digest": hex("manifest") },
            { "name": "weights/0", "digest": hex("weights 0") },
            { "name": "weights/1", "digest": hex("weights 1") },
            { "name": "momentum/list", "digest": { "sha256": list } },
        ]);
        assert_eq!(said["subject"], subject);
        let predicate = &said["predicate"];
        let build = &predicate["buildDefinition"];
        assert_eq!(build["buildType"], BUILD_TYPE);
        let parameters = json!({ "domain": "a-domain", "run": "demo", "round": "3" });
        assert_eq!(build["externalParameters"], parameters);
        let made_from = build["resolvedDependencies"].as_array().expect("a list");
        let names: Vec<&Value> = made_from.iter().map(|one| &one["name"]).collect();
        let expected = [
            "settings",
            "config",
            "layout",
            "data",
            "base",
            "contribution/0",
            "contribution/1",
        ];
        assert_eq!(names, expected);
        assert_eq!(made_from[0]["digest"], hex("spec"));
        assert_eq!(made_from[4]["digest"], hex("parent"));
        assert_eq!(made_from[6]["digest"], hex("contribution 1"));
        let facts = json!({
            "round": "2", "unit": "1", "epoch": "3", "weight": "8",
            "worker": format!("U{}", "A".repeat(55)),
        });
        assert_eq!(made_from[6]["annotations"], facts);
        let details = &predicate["runDetails"];
        assert_eq!(details["builder"]["id"], format!("nkey:{key}"));
        let version = json!({ "diloco-coordinator": "1.2.3" });
        assert_eq!(details["builder"]["version"], version);
        assert_eq!(details["metadata"]["invocationId"], "a-domain/demo/3");
    }
}
