//! Signatures over released models, by OpenSSF Model Signing v1.0: a Sigstore bundle (v0.3) with a
//! statement that names every file by its sha256, signed with a key on P-256. Its tools verify it:
//! PyPI `model-signing`, `verify key`. The format takes no Ed25519, so a release has a key of its
//! own, which signs nothing else and never connects to anything.

use std::collections::BTreeMap;
use std::path::Path;

use data_encoding::{BASE64, HEXLOWER};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SigningKey as _};
use rustls::SignatureScheme;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use schemas::provenance::{PAYLOAD_TYPE, STATEMENT_TYPE};
use schemas::{Code, Digest, Hasher};
use serde_json::{Value, json};
use tlog::from_base64;

use crate::dsse::signed_bytes;
use crate::secret::{FileError, read_anchor, read_secret, write_private};

/// The media type of a bundle, by Sigstore.
const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The type of the predicate, by OpenSSF Model Signing.
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// What stands before the point in the DER form of a public key on P-256 (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// The files of a model, each with its digest, by name.
pub type Files = BTreeMap<String, Digest>;

/// The private key of a release.
pub struct ReleaseKey(KeyPair);

/// The public key that verifies releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasePublic {
    pem: String,
    /// The point, uncompressed.
    point: Vec<u8>,
}

/// Reasons why a key or a signature of a release cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no key on P-256.
    #[error("{0} is no key on P-256 in PEM")]
    Key(String),
    /// The key cannot be made, or does not sign.
    #[error("a key on P-256: {0}")]
    Making(#[from] rcgen::Error),
    /// The bundle does not hold.
    #[error("the signature does not hold: {0}")]
    Forged(String),
}

impl ReleaseError {
    /// The code of the page that says what to do.
    pub fn code(&self) -> Code {
        match self {
            Self::File(error) => error.code(),
            Self::Key(_) => Code::ReleaseInvalid,
            Self::Making(_) => Code::Internal,
            Self::Forged(_) => Code::ReleaseAltered,
        }
    }
}

schemas::coded!(ReleaseError);

impl std::fmt::Debug for ReleaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReleaseKey(..)")
    }
}

impl ReleaseKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn generate() -> Result<Self, ReleaseError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a key, which only its owner may read.
    ///
    /// # Errors
    /// The file cannot be read, others can read it, or it is no such key.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let text = read_secret(path)?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256);
        key.map(Self)
            .map_err(|_| ReleaseError::Key(path.display().to_string()))
    }

    /// Writes the key into a file that only its owner can read.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ReleaseError> {
        let text = zeroize::Zeroizing::new(self.0.serialize_pem());
        Ok(write_private(path, text.as_bytes())?)
    }

    /// Its public half.
    pub fn public(&self) -> ReleasePublic {
        ReleasePublic {
            pem: self.0.public_key_pem(),
            point: self.0.der_bytes().to_vec(),
        }
    }

    /// Signs the files of a model. Files and folders in `ignored` do not belong to the model.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn sign(
        &self,
        name: &str,
        files: &Files,
        ignored: &[&str],
    ) -> Result<Vec<u8>, ReleaseError> {
        let resource = |(name, digest): (&String, &Digest)| json!({ "name": name, "digest": digest.hex(), "algorithm": "sha256" });
        let statement = json!({
            "_type": STATEMENT_TYPE,
            "subject": [{ "name": name, "digest": { "sha256": root(files).hex() } }],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "resources": files.iter().map(resource).collect::<Vec<_>>(),
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": false,
                    "ignore_paths": ignored,
                },
            },
        });
        let payload = serde_json::to_vec(&statement).expect("texts are JSON");
        let signature = self.0.sign(&signed_bytes(PAYLOAD_TYPE, &payload))?;
        let bundle = json!({
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {
                "publicKey": { "hint": self.public().hint() },
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": BASE64.encode(&payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{ "sig": BASE64.encode(&signature), "keyid": "" }],
            },
        });
        Ok(serde_json::to_vec_pretty(&bundle).expect("texts are JSON"))
    }
}

impl ReleasePublic {
    /// Reads a public key, which only its owner may have written.
    ///
    /// # Errors
    /// The file cannot be read, others can write it, or it is no such key.
    pub fn read(path: &Path) -> Result<Self, ReleaseError> {
        let pem = read_anchor(path)?;
        let wrong = || ReleaseError::Key(path.display().to_string());
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| wrong())?;
        let point = der.strip_prefix(&P256_PREFIX[..]).ok_or_else(wrong)?;
        // An uncompressed point: a byte 4 and two numbers of 32 bytes.
        if point.len() != 65 || point[0] != 4 {
            return Err(wrong());
        }
        let point = point.to_vec();
        Ok(Self { pem, point })
    }

    /// Its text form, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The name of the key in a bundle: the sha256 of its text form.
    fn hint(&self) -> String {
        Digest::of(self.pem.as_bytes()).hex()
    }

    /// Verifies a bundle, and returns the files that it names. Their bytes are not looked at.
    ///
    /// # Errors
    /// It is no such bundle, or this key has not signed it, or it contradicts itself.
    pub fn open(&self, bundle: &[u8]) -> Result<Files, ReleaseError> {
        let forged = |what: &str| ReleaseError::Forged(what.to_owned());
        let bundle: Value =
            serde_json::from_slice(bundle).map_err(|_| forged("it is no bundle in JSON"))?;
        let is = |value: &Value, expected: &str, what: &str| {
            let right = value.as_str() == Some(expected);
            right.then_some(()).ok_or_else(|| forged(what))
        };
        is(&bundle["mediaType"], BUNDLE_TYPE, "another kind of bundle")?;
        let hint = &bundle["verificationMaterial"]["publicKey"]["hint"];
        is(hint, &self.hint(), "it names another key")?;
        let envelope = &bundle["dsseEnvelope"];
        is(
            &envelope["payloadType"],
            PAYLOAD_TYPE,
            "another kind of document",
        )?;
        let decode = |value: &Value| {
            let text = value.as_str().unwrap_or_default();
            from_base64(text).ok_or_else(|| forged("something is not base64"))
        };
        let payload = decode(&envelope["payload"])?;
        let Some([signature]) = envelope["signatures"].as_array().map(Vec::as_slice) else {
            return Err(forged("it has not one signature"));
        };
        let signature = decode(&signature["sig"])?;
        algorithm()
            .verify_signature(
                &self.point,
                &signed_bytes(PAYLOAD_TYPE, &payload),
                &signature,
            )
            .map_err(|_| forged("the key has not signed it"))?;
        let statement: Value =
            serde_json::from_slice(&payload).map_err(|_| forged("it signs no JSON"))?;
        is(
            &statement["_type"],
            STATEMENT_TYPE,
            "another kind of statement",
        )?;
        is(
            &statement["predicateType"],
            PREDICATE_TYPE,
            "another kind of predicate",
        )?;
        let predicate = &statement["predicate"];
        let files = files(&predicate["resources"]).ok_or_else(|| forged("its list of files"))?;
        let named = &statement["subject"][0]["digest"]["sha256"];
        is(
            named,
            &root(&files).hex(),
            "its files do not lead to its root",
        )?;
        Ok(files)
    }
}

/// The digest over all files, by the format: over their digests, in the order of their names.
fn root(files: &Files) -> Digest {
    let mut hasher = Hasher::default();
    for digest in files.values() {
        hasher.update(digest.as_bytes());
    }
    hasher.finish()
}

/// The files that a statement lists; none if one is listed twice or in another form.
fn files(resources: &Value) -> Option<Files> {
    let mut files = Files::new();
    for resource in resources.as_array()? {
        let name = resource["name"].as_str()?;
        let digest = resource["digest"].as_str()?;
        if resource["algorithm"] != "sha256" || HEXLOWER.decode(digest.as_bytes()).is_err() {
            return None;
        }
        let digest = format!("sha256:{digest}").parse().ok()?;
        if files.insert(name.to_owned(), digest).is_some() {
            return None;
        }
    }
    Some(files)
}

/// ECDSA on P-256 with sha256, from the library under TLS.
fn algorithm() -> &'static dyn SignatureVerificationAlgorithm {
    let provider = rustls::crypto::ring::default_provider();
    let known = provider.signature_verification_algorithms.mapping.iter();
    let mut found = known.filter(|(scheme, _)| *scheme == SignatureScheme::ECDSA_NISTP256_SHA256);
    let (_, algorithms) = found.next().expect("ring has P-256");
    algorithms[0]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn model() -> Files {
        let file = |name: &str| (name.to_owned(), Digest::of(name.as_bytes()));
        ["model.safetensors", "config.json"].map(file).into()
    }

    fn signed() -> (ReleaseKey, Value) {
        let key = ReleaseKey::generate().expect("a key");
        let bundle = key.sign("demo-3", &model(), &[]).expect("it signs");
        (key, serde_json::from_slice(&bundle).expect("JSON"))
    }

    /// The same bundle with another statement, which the key signs again if it is given.
    fn restated(bundle: &Value, key: Option<&ReleaseKey>, change: &dyn Fn(&mut Value)) -> Value {
        let mut bundle = bundle.clone();
        let payload = bundle["dsseEnvelope"]["payload"].as_str().expect("a text");
        let payload = BASE64.decode(payload.as_bytes()).expect("base64");
        let mut statement = serde_json::from_slice(&payload).expect("JSON");
        change(&mut statement);
        let payload = serde_json::to_vec(&statement).expect("JSON");
        bundle["dsseEnvelope"]["payload"] = BASE64.encode(&payload).into();
        if let Some(key) = key {
            let signature = key.0.sign(&signed_bytes(PAYLOAD_TYPE, &payload));
            let signature = BASE64.encode(&signature.expect("it signs"));
            bundle["dsseEnvelope"]["signatures"][0]["sig"] = signature.into();
        }
        bundle
    }

    fn open(key: &ReleaseKey, bundle: &Value) -> Result<Files, String> {
        let bytes = serde_json::to_vec(bundle).expect("JSON");
        let opened = key.public().open(&bytes);
        opened.map_err(|error| error.to_string())
    }

    #[test]
    fn tl_19_a_release_opens_for_its_key_and_names_its_files() {
        let (key, bundle) = signed();
        assert_eq!(open(&key, &bundle), Ok(model()));
        let other = ReleaseKey::generate().expect("a key");
        let refused = open(&other, &bundle).expect_err("another key");
        assert!(refused.contains("another key"), "{refused}");
        let mut renamed = bundle;
        let hint = &mut renamed["verificationMaterial"]["publicKey"]["hint"];
        *hint = other.public().hint().into();
        let refused = open(&other, &renamed).expect_err("another key");
        assert!(refused.contains("has not signed"), "{refused}");
    }

    #[test]
    fn tl_19_what_is_changed_in_a_release_is_noticed() {
        let (key, bundle) = signed();
        let other = Digest::of(b"other").hex();
        type Change<'a> = &'a dyn Fn(&mut Value);
        let changes: [(&str, Change<'_>); 6] = [
            ("to its root", &|said| {
                said["predicate"]["resources"][0]["digest"] = other.clone().into();
            }),
            ("list of files", &|said| {
                let first = said["predicate"]["resources"][0].clone();
                let all = said["predicate"]["resources"].as_array_mut();
                all.expect("a list").push(first);
            }),
            ("list of files", &|said| {
                said["predicate"]["resources"][0]["algorithm"] = "md5".into();
            }),
            ("to its root", &|said| {
                said["subject"][0]["digest"]["sha256"] = other.clone().into();
            }),
            ("kind of statement", &|said| said["_type"] = "x".into()),
            ("kind of predicate", &|said| {
                said["predicateType"] = "x".into()
            }),
        ];
        for (what, change) in changes {
            // Without the key the change is nobody's word; with it the contradiction is found.
            let forged = open(&key, &restated(&bundle, None, change));
            assert!(
                forged.is_err_and(|said| said.contains("has not signed")),
                "{what}"
            );
            let signed = open(&key, &restated(&bundle, Some(&key), change));
            assert!(signed.is_err_and(|said| said.contains(what)), "{what}");
        }
        let mut twice = bundle.clone();
        let signatures = &mut twice["dsseEnvelope"]["signatures"];
        let first = signatures[0].clone();
        signatures.as_array_mut().expect("a list").push(first);
        assert!(open(&key, &twice).is_err());
        for (at, what) in [
            ("/mediaType", "bundle"),
            ("/dsseEnvelope/payloadType", "document"),
        ] {
            let mut changed = bundle.clone();
            *changed.pointer_mut(at).expect("it is there") = "x".into();
            let refused = open(&key, &changed).expect_err("another kind");
            assert!(refused.contains(what), "{refused}");
        }
    }

    #[test]
    fn tl_19_a_key_of_a_release_is_a_secret_file_and_a_public_one() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("release.pem");
        let key = ReleaseKey::generate().expect("a key");
        key.write(&path).expect("it is written");
        let again = ReleaseKey::read(&path).expect("it reads back");
        assert_eq!(again.public(), key.public());
        assert_eq!(format!("{key:?}"), "ReleaseKey(..)");
        let public = scratch.path().join("release.pub");
        std::fs::write(&public, key.public().pem()).expect("it is written");
        std::fs::set_permissions(&public, PermissionsExt::from_mode(0o644)).expect("a mode");
        let read = ReleasePublic::read(&public).expect("it reads back");
        assert_eq!(read, key.public());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("a mode");
        let exposed = ReleaseKey::read(&path).expect_err("others can read it");
        assert_eq!(exposed.code(), Code::CredentialExposed);
        std::fs::set_permissions(&public, PermissionsExt::from_mode(0o666)).expect("a mode");
        let writable = ReleasePublic::read(&public).expect_err("others can write it");
        assert_eq!(writable.code(), Code::CredentialExposed);
        // An audit key signs no release.
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        std::fs::write(&public, ed25519.public_key_pem()).expect("it is written");
        std::fs::set_permissions(&public, PermissionsExt::from_mode(0o644)).expect("a mode");
        let other = ReleasePublic::read(&public).expect_err("another curve");
        assert_eq!(other.code(), Code::ReleaseInvalid);
    }

    #[test]
    fn tl_19_a_public_key_of_releases_is_a_whole_point_on_p_256() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("release.pub");
        let key = ReleaseKey::generate().expect("a key").public();
        let point = &key.point;
        let cases = [
            (point.clone(), true),
            ([&[2], &point[1..]].concat(), false),
            (point[..33].to_vec(), false),
            ([&point[..], &[0]].concat(), false),
            (Vec::new(), false),
        ];
        for (point, right) in cases {
            let der = BASE64.encode(&[&P256_PREFIX[..], &point].concat());
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
            write_private(&path, pem.as_bytes()).expect("the folder takes files");
            let read = ReleasePublic::read(&path);
            assert_eq!(read.is_ok(), right, "{} bytes", point.len());
            let code = read.err().map(|error| error.code());
            assert_eq!(code, (!right).then_some(Code::ReleaseInvalid));
        }
    }
}
