//! The public keys of leases and commands, as a JSON Web Key Set (RFC 7517, RFC 8037): for readers
//! in other languages, whose libraries for JWS take that form. The header of a signed document
//! names its key by `kid`.

use data_encoding::BASE64URL_NOPAD;
use schemas::PublicKey;
use schemas::keys::{Jwk, Jwks};

use crate::key::{KeyError, public_bytes};
use crate::trust::TrustBundle;

/// The public keys of leases and commands in a trust bundle.
///
/// # Errors
/// The text of a key is no public key, or its checksum is wrong.
pub fn of(trust: &TrustBundle) -> Result<Jwks, KeyError> {
    let keys = trust.manifest_keys.iter().map(one);
    Ok(Jwks {
        keys: keys.collect::<Result<_, _>>()?,
    })
}

fn one(key: &PublicKey) -> Result<Jwk, KeyError> {
    Ok(Jwk {
        kty: "OKP".to_owned(),
        crv: "Ed25519".to_owned(),
        x: BASE64URL_NOPAD.encode(&public_bytes(key)?),
        kid: key.clone(),
        alg: "EdDSA".to_owned(),
        usage: "sig".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};
    use schemas::UnixMillis;
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::{Domain, InitOptions};
    use crate::purpose::ManifestKey;

    /// A reader that knows RFC 7515, RFC 7517 and RFC 8037, and nothing of this program: it takes
    /// the key that the header names from the set, and returns the claims.
    fn read(document: &str, set: &Value) -> Option<Value> {
        let parts: Vec<&str> = document.split('.').collect();
        let [header, claims, signature] = parts[..] else {
            return None;
        };
        let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).ok();
        let json = |part: &str| serde_json::from_slice::<Value>(&decode(part)?).ok();
        let named = json(header)?;
        let keys = set["keys"].as_array()?;
        let key = keys.iter().find(|key| key["kid"] == named["kid"])?;
        let fits = (&key["kty"], &key["crv"], &key["use"])
            == (&json!("OKP"), &json!("Ed25519"), &json!("sig"))
            && key["alg"] == named["alg"];
        let raw: [u8; 32] = decode(key["x"].as_str()?)?.try_into().ok()?;
        let signature = Signature::from_slice(&decode(signature)?).ok()?;
        let input = format!("{header}.{claims}");
        let key = VerifyingKey::from_bytes(&raw).ok().filter(|_| fits)?;
        key.verify_strict(input.as_bytes(), &signature).ok()?;
        json(claims)
    }

    #[test]
    fn tl_13_a_foreign_reader_checks_a_document_with_the_published_keys_alone() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &options, UnixMillis(1)).expect("an empty folder");
        let next = domain.prepare_manifest_key().expect("it has room");
        let layout = domain.layout();
        let trust = TrustBundle::read(&layout.trust()).expect("it is there");
        let set = of(&trust).expect("keys of ours");
        let kids: Vec<&str> = set.keys.iter().map(|key| key.kid.as_str()).collect();
        let own = ManifestKey::read(&layout.manifest_key()).expect("it is there");
        assert_eq!(kids, [own.public().as_str(), next.as_str()]);
        let text = serde_json::to_string(&set).expect("it is JSON");
        let set: Value = serde_json::from_str(&text).expect("it is JSON");
        let next = ManifestKey::read(&layout.next_manifest_key()).expect("it is there");
        let claims = json!({"a": 1});
        for key in [&own, &next] {
            let document = key.sign_document("test+jwt", &claims).expect("JSON");
            assert_eq!(read(&document, &set), Some(claims.clone()));
            let (input, signature) = document.rsplit_once('.').expect("three parts");
            let (header, _) = input.split_once('.').expect("three parts");
            let other = BASE64URL_NOPAD.encode(br#"{"a":2}"#);
            assert_eq!(read(&format!("{header}.{other}.{signature}"), &set), None);
        }
        let stranger = ManifestKey::generate();
        let document = stranger.sign_document("test+jwt", &claims).expect("JSON");
        assert_eq!(read(&document, &set), None, "nobody published that key");
    }
}
