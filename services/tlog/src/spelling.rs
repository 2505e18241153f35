//! Base64 (RFC 4648, section 4) in its one spelling.

use data_encoding::BASE64;

/// Reads base64 with padding at its end and nowhere else. The decoder below also takes texts that
/// are strung together, each with padding of its own: then one signed text would have several
/// spellings, and its bytes could be changed without a key.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = BASE64.decode(text.as_bytes()).ok()?;
    (BASE64.encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_spelling() {
        assert_eq!(from_base64("YWI="), Some(b"ab".to_vec()));
        assert_eq!(from_base64(""), Some(Vec::new()));
        // Two texts strung together, spare bits that are set, no padding, and other letters.
        for other in ["YQ==Yg==", "YWJ=", "YWI", "YW-_", " YWI=", "YWI=\n"] {
            assert_eq!(from_base64(other), None, "{other:?}");
        }
    }
}
