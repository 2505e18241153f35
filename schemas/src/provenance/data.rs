//! The provenance of a data set, which the operator who imports it signs. The settings of a run
//! that takes the data set name the signed statement, and so does the ledger.

use std::collections::BTreeMap;

use super::{
    BuildDefinition, Builder, Maker, Metadata, PREDICATE_TYPE, Predicate, Provenance, Resource,
    RunDetails, STATEMENT_TYPE, texts,
};
use crate::data::{DataManifest, Shard, Tokenizer};
use crate::{Bytes, ObjectRef, PublicKey};

/// What was done: text became shards of tokens. A change of what a statement holds makes it `v2`.
pub const DATA_TYPE: &str = "urn:diloco:data:v1";

/// The program of an operator.
const PROGRAM: &str = "diloctl";
/// What only the operator can say, by the name of its parameter.
const CLAIMS: [&str; 4] = ["operator", "files", "text_bytes", "distinct_bytes"];

/// What an operator says about an import, besides what the data set's manifest says.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// The key with which the operator connects.
    pub operator: &'a PublicKey,
    /// Files whose text was taken.
    pub files: u64,
    /// Bytes of their text.
    pub text_bytes: Bytes,
    /// Bytes of this text that do not repeat an earlier passage.
    pub distinct_bytes: Bytes,
}

impl Provenance {
    /// The statement about the data set with this manifest, which `maker` signs.
    pub fn of_data(
        manifest: &DataManifest,
        stored: ObjectRef,
        import: Import<'_>,
        maker: Maker<'_>,
    ) -> Self {
        let numbers = [import.files, import.text_bytes.0, import.distinct_bytes.0];
        let values = [import.operator.to_string()].into_iter();
        let values = values.chain(numbers.map(|number| number.to_string()));
        let claims = CLAIMS.map(str::to_owned).into_iter().zip(values);
        let version = texts(&[(PROGRAM, maker.release.to_owned())]);
        let (domain, key) = (maker.domain, maker.key);
        of_data(manifest, stored, (domain, key), claims.collect(), version)
    }

    /// Compares a statement that `key` has signed with the data set's manifest.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_data(
        &self,
        manifest: &DataManifest,
        stored: ObjectRef,
        domain: &str,
        key: &PublicKey,
    ) -> Result<(), String> {
        let build = &self.predicate.build_definition;
        let mut claims = build.external_parameters.clone();
        claims.retain(|name, _| CLAIMS.contains(&name.as_str()));
        let version = self.predicate.run_details.builder.version.clone();
        let expected = of_data(manifest, stored, (domain, key), claims, version);
        let right = &expected.predicate.build_definition;
        let what = if self.subject != expected.subject {
            "another subject"
        } else if build.resolved_dependencies != right.resolved_dependencies {
            "another tokenizer"
        } else if build.external_parameters != right.external_parameters {
            "another domain, source or count"
        } else if self.predicate.run_details != expected.predicate.run_details {
            "another maker"
        } else if *self != expected {
            "another kind of thing"
        } else {
            return Ok(());
        };
        let digest = stored.digest;
        Err(format!(
            "the statement about data set {digest} names {what}"
        ))
    }
}

fn of_data(
    manifest: &DataManifest,
    stored: ObjectRef,
    (domain, key): (&str, &PublicKey),
    claims: BTreeMap<String, String>,
    version: BTreeMap<String, String>,
) -> Provenance {
    let mut subject = vec![Resource::new("manifest".to_owned(), stored.digest)];
    let shards = [("train", &manifest.train), ("held_out", &manifest.held_out)];
    for (part, shards) in shards {
        let named = |(at, shard): (usize, &Shard)| {
            Resource::new(format!("{part}/{at}"), shard.object.digest)
        };
        subject.extend(shards.iter().enumerate().map(named));
    }
    let (tokenizer, made_from) = match manifest.tokenizer {
        Tokenizer::Byte => ("byte", Vec::new()),
        Tokenizer::HuggingFace(object) => {
            let object = Resource::new("tokenizer".to_owned(), object.digest);
            ("hugging_face", vec![object])
        }
    };
    let tokens = |shards: &[Shard]| {
        let tokens = shards.iter().map(|shard| shard.tokens.get());
        tokens.fold(0_u64, u64::saturating_add).to_string()
    };
    let mut parameters = texts(&[
        ("domain", domain.to_owned()),
        ("source", manifest.source.clone()),
        ("tokenizer", tokenizer.to_owned()),
        ("vocabulary", manifest.vocabulary.to_string()),
        ("train_tokens", tokens(&manifest.train)),
        ("held_out_tokens", tokens(&manifest.held_out)),
    ]);
    parameters.extend(claims);
    Provenance {
        kind: STATEMENT_TYPE.to_owned(),
        subject,
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            build_definition: BuildDefinition {
                build_type: DATA_TYPE.to_owned(),
                external_parameters: parameters,
                resolved_dependencies: made_from,
            },
            run_details: RunDetails {
                builder: Builder {
                    id: format!("nkey:{key}"),
                    version,
                },
                metadata: Metadata {
                    invocation_id: format!("{domain}/data/{}", stored.digest.hex()),
                },
                byproducts: Vec::new(),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::data::Entropy;
    use crate::{Tokens, V};

    fn object(name: &str) -> ObjectRef {
        ObjectRef::of(name.as_bytes())
    }

    fn shard(name: &str) -> Shard {
        Shard {
            object: object(name),
            tokens: Tokens(name.len() as u64),
        }
    }

    fn manifest() -> DataManifest {
        DataManifest {
            v: V,
            source: "a text".to_owned(),
            tokenizer: Tokenizer::HuggingFace(object("tokenizer")),
            vocabulary: 300,
            token_bytes: 2,
            train: vec![shard("one"), shard("seven")],
            held_out: vec![shard("held out")],
            entropy: Entropy {
                unigram: 3.0,
                bigram: 2.0,
            },
        }
    }

    fn key(of: char) -> PublicKey {
        format!("U{}", of.to_string().repeat(55))
            .parse()
            .expect("a key")
    }

    fn statement() -> Provenance {
        let (operator, key) = (key('A'), key('B'));
        let import = Import {
            operator: &operator,
            files: 3,
            text_bytes: Bytes(1000),
            distinct_bytes: Bytes(900),
        };
        let maker = Maker {
            domain: "a-domain",
            key: &key,
            release: "1.2.3",
        };
        Provenance::of_data(&manifest(), object("manifest"), import, maker)
    }

    /// The statement as a reader of in-toto and SLSA sees it.
    #[test]
    fn tl_19_a_data_set_has_a_statement_in_toto_that_names_its_shards_source_and_tokenizer() {
        let said: Value = serde_json::from_slice(&statement().to_json()).expect("it is JSON");
        let named = |name: &str, object: &str| json!({ "name": name, "digest": { "sha256": self::object(object).digest.hex() } });
        let subject = [
            named("manifest", "manifest"),
            named("train/0", "one"),
            named("train/1", "seven"),
            named("held_out/0", "held out"),
        ];
        assert_eq!(said["subject"], json!(subject));
        let build = &said["predicate"]["buildDefinition"];
        assert_eq!(build["buildType"], DATA_TYPE);
        let parameters = json!({
            "domain": "a-domain", "source": "a text", "tokenizer": "hugging_face",
            "vocabulary": "300", "train_tokens": "8", "held_out_tokens": "8",
            "operator": key('A').to_string(),
            "files": "3", "text_bytes": "1000", "distinct_bytes": "900",
        });
        assert_eq!(build["externalParameters"], parameters);
        let made_from = json!([named("tokenizer", "tokenizer")]);
        assert_eq!(build["resolvedDependencies"], made_from);
        let details = &said["predicate"]["runDetails"];
        assert_eq!(details["builder"]["id"], format!("nkey:{}", key('B')));
        let version = json!({ "diloctl": "1.2.3" });
        assert_eq!(details["builder"]["version"], version);
    }

    #[test]
    fn tl_19_a_statement_that_says_something_else_than_the_data_set_s_manifest_is_refused() {
        let fault = |change: &dyn Fn(&mut Provenance)| {
            let mut said = statement();
            change(&mut said);
            let checked = said.check_data(&manifest(), object("manifest"), "a-domain", &key('B'));
            checked.err()
        };
        assert_eq!(fault(&|_| {}), None);
        // What only the operator can say may be anything.
        let claim = |said: &mut Provenance| {
            let parameters = &mut said.predicate.build_definition.external_parameters;
            parameters.insert("files".to_owned(), "4".to_owned());
        };
        assert_eq!(fault(&claim), None);
        type Change<'a> = &'a dyn Fn(&mut Provenance);
        let changes: [(&str, Change<'_>); 8] = [
            ("subject", &|said| drop(said.subject.pop())),
            ("subject", &|said| {
                said.subject[0].digest = said.subject[1].digest.clone();
            }),
            ("tokenizer", &|said| {
                said.predicate
                    .build_definition
                    .resolved_dependencies
                    .clear();
            }),
            ("source", &|said| {
                let parameters = &mut said.predicate.build_definition.external_parameters;
                parameters.insert("source".to_owned(), "another".to_owned());
            }),
            ("domain", &|said| {
                let parameters = &mut said.predicate.build_definition.external_parameters;
                parameters.insert("domain".to_owned(), "another".to_owned());
            }),
            ("count", &|said| {
                let parameters = &mut said.predicate.build_definition.external_parameters;
                parameters.insert("more".to_owned(), "x".to_owned());
            }),
            ("maker", &|said| {
                said.predicate.run_details.builder.id = format!("nkey:{}", key('C'));
            }),
            ("kind", &|said| said.predicate_type = "x".to_owned()),
        ];
        for (what, change) in changes {
            let said = fault(change).unwrap_or_else(|| panic!("{what}: it holds"));
            assert!(said.contains(what), "{what}: {said}");
        }
    }
}
