//! The search for secrets in the output and files of processes.

use std::fs;
use std::path::{Path, PathBuf};

use harness::Cluster;

/// Least length of a secret that is searched for: a shorter one could be found by chance.
const SECRET_BYTES_MIN: usize = 16;

/// Names the secrets in `text`: those of the cluster, and everything that has the form of a secret.
pub fn found(cluster: &Cluster, text: &[u8]) -> Vec<String> {
    found_beside(cluster, &[], text)
}

/// As [`found`], with further secrets, each with its name.
pub fn found_beside(cluster: &Cluster, more: &[(String, String)], text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let more = more.iter().filter(|(_, secret)| text.contains(secret));
    let own = own(cluster)
        .into_iter()
        .filter(|(_, secret)| text.contains(secret.as_str()));
    let mut found: Vec<String> = own
        .map(|(path, _)| format!("a secret of {}", path.display()))
        .chain(more.map(|(name, _)| name.clone()))
        .collect();
    found.extend(
        text.match_indices('S')
            .filter(|(at, _)| is_seed(&text.as_bytes()[*at..]))
            .map(|(at, _)| format!("a seed at byte {at}")),
    );
    found.extend(
        text.match_indices("eyJ")
            .filter(|(at, _)| is_token(&text[*at..]))
            .map(|(at, _)| format!("a signed token at byte {at}")),
    );
    for name in [
        "X-Amz-Signature=",
        "x-amz-signature=",
        "AWS4-HMAC-SHA256 Credential=",
        "PRIVATE KEY",
    ] {
        found.extend(text.contains(name).then(|| format!("{name:?}")));
    }
    found
}

/// Every secret in the cluster's trust domain: seeds, signatures of tokens, access keys, private
/// keys.
fn own(cluster: &Cluster) -> Vec<(PathBuf, String)> {
    let mut secrets = Vec::new();
    let folder = cluster.domain().layout().folder();
    for part in [
        "vault",
        "issuer",
        "keys",
        "credentials",
        "audit-keys",
        "store",
        "tls",
    ] {
        for path in files(&folder.join(part)) {
            let text = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let extension = path.extension().and_then(|extension| extension.to_str());
            let found = match extension {
                // The names of accounts are public keys.
                Some("json") if path.ends_with("issuer/accounts.json") => Vec::new(),
                Some("json") => values(&text),
                // A certificate is public.
                Some("pem") => Vec::new(),
                _ => lines(&text),
            };
            secrets.extend(found.into_iter().map(|secret| (path.clone(), secret)));
        }
    }
    assert!(
        secrets.len() > 12,
        "a domain has more secrets than {}",
        secrets.len()
    );
    secrets
}

/// The secret lines of a text: seeds, the signatures of tokens (their claims are public), and the
/// body of private keys.
pub fn lines(text: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('-') && line.len() >= SECRET_BYTES_MIN);
    lines
        .map(|line| line.rsplit('.').next().unwrap_or(line).to_owned())
        .filter(|line| !line.contains(' ') && line.len() >= SECRET_BYTES_MIN)
        .collect()
}

/// The secrets in a file of access keys: every long string, since the short ones are names.
fn values(text: &str) -> Vec<String> {
    fn walk(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    // An access key's id is public: every URL names it.
                    if name != "id" {
                        walk(value, found);
                    }
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
            serde_json::Value::String(text) if text.len() >= SECRET_BYTES_MIN => {
                found.push(text.clone())
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(
        &serde_json::from_str(text).unwrap_or_else(|error| panic!("access keys: {error}")),
        &mut found,
    );
    found
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let listed =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file())
        .collect()
}

/// True for a seed: `S`, the kind of key, and 56 characters of base32.
fn is_seed(text: &[u8]) -> bool {
    let kind = text.get(1).is_some_and(|kind| b"OANUCX".contains(kind));
    let base32 = |byte: &u8| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(byte);
    kind && text.get(2..58).is_some_and(|body| body.iter().all(base32))
}

/// True for a token: three parts of base64url, the last as long as an Ed25519 signature.
fn is_token(text: &str) -> bool {
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        .unwrap_or(text.len());
    let parts: Vec<&str> = text[..end].split('.').collect();
    parts.len() >= 3 && parts[1].len() > 20 && parts[2].len() >= 86
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_secrets_are_known() {
        let seed = identity::SigningKey::generate(identity::KeyKind::User).seed();
        let scratch = std::env::temp_dir().join(format!("seed-{}", std::process::id()));
        seed.write(&scratch).unwrap();
        let text = fs::read_to_string(&scratch).unwrap();
        fs::remove_file(&scratch).unwrap();
        assert!(is_seed(text.as_bytes()));
        assert!(!is_seed(b"SOMETHING ELSE"));
        let token = format!("eyJhbGciOiJ9.{}.{}", "a".repeat(40), "b".repeat(86));
        assert!(is_token(&token) && is_token(&format!("{token} and more")));
        assert!(!is_token("eyJhbGciOiJ9 and no more"));
        assert_eq!(
            lines("-----BEGIN\neyJh.claims.signature-of-the-token\nshort\n").len(),
            1
        );
    }
}
