//! Shards: consecutive tokens as fixed-width little-endian numbers, and the manifest that lists
//! them.

use std::sync::Arc;

use schemas::data::{DataManifest, token_bytes};

use crate::DataError;

/// Longest manifest that is read: enough for the most shards, at some 200 bytes each.
const MANIFEST_BYTES_MAX: usize = 32 << 20;

/// The bytes of a shard.
///
/// # Panics
/// When a token does not fit in `token_bytes`.
pub fn encode_shard(tokens: &[u32], token_bytes: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_tokens(tokens, token_bytes, &mut bytes);
    bytes
}

/// Appends tokens in the form that they have in a shard.
///
/// # Panics
/// When a token does not fit in `token_bytes`.
pub(crate) fn append_tokens(tokens: &[u32], token_bytes: u8, bytes: &mut Vec<u8>) {
    let width = usize::from(token_bytes);
    bytes.reserve(tokens.len() * width);
    for token in tokens {
        let raw = token.to_le_bytes();
        assert!(
            raw[width..].iter().all(|byte| *byte == 0),
            "token {token} fits in {width} bytes"
        );
        bytes.extend(&raw[..width]);
    }
}

/// The tokens of such bytes.
pub(crate) fn read_tokens(bytes: &[u8], token_bytes: u8) -> impl Iterator<Item = u32> {
    let width = usize::from(token_bytes);
    bytes.chunks_exact(width).map(move |token| {
        let mut raw = [0; 4];
        raw[..width].copy_from_slice(token);
        u32::from_le_bytes(raw)
    })
}

/// Reads a data set's manifest and checks that it is consistent and within the limits.
///
/// # Errors
/// [`DataError::Invalid`]
pub fn parse_manifest(json: &[u8]) -> Result<DataManifest, DataError> {
    let invalid = |reason: String| DataError::Invalid(format!("manifest: {reason}"));
    if json.len() > MANIFEST_BYTES_MAX {
        return Err(invalid(format!(
            "{} bytes, at most {MANIFEST_BYTES_MAX} are accepted",
            json.len()
        )));
    }
    let manifest: DataManifest =
        serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    manifest
        .validate()
        .map_err(|refusal| DataError::Invalid(refusal.detail))?;
    Ok(manifest)
}

/// The tokens of one shard, kept as they are stored. Clones share them.
#[derive(Clone, Debug)]
pub struct TokenShard {
    bytes: Arc<Vec<u8>>,
    width: usize,
}

impl TokenShard {
    /// Takes a shard's bytes after checking every token. The caller has checked that they are the
    /// right bytes.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: the length is no multiple of a token's, or a token is not below
    /// `vocabulary`.
    pub fn decode(bytes: Vec<u8>, vocabulary: u32) -> Result<Self, DataError> {
        let width = usize::from(token_bytes(vocabulary));
        if bytes.is_empty() || !bytes.len().is_multiple_of(width) {
            return Err(DataError::Invalid(format!(
                "a shard of {} bytes, {width} a token",
                bytes.len()
            )));
        }
        let shard = Self {
            bytes: Arc::new(bytes),
            width,
        };
        match (0..shard.tokens())
            .map(|at| shard.token(at))
            .find(|token| *token >= vocabulary)
        {
            Some(token) => Err(DataError::Invalid(format!(
                "a shard holds token {token}, outside the vocabulary of {vocabulary}"
            ))),
            None => Ok(shard),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.bytes.len() / self.width
    }

    /// Appends the `count` tokens from `start` on.
    ///
    /// # Panics
    /// The shard has fewer tokens.
    pub fn append(&self, start: usize, count: usize, into: &mut Vec<u32>) {
        assert!(
            start + count <= self.tokens(),
            "{count} tokens from {start} on, of {}",
            self.tokens()
        );
        into.extend((start..start + count).map(|at| self.token(at)));
    }

    fn token(&self, at: usize) -> u32 {
        let mut raw = [0; 4];
        raw[..self.width].copy_from_slice(&self.bytes[at * self.width..(at + 1) * self.width]);
        u32::from_le_bytes(raw)
    }
}

#[cfg(test)]
mod tests {
    use schemas::data::{Shard, Tokenizer};
    use schemas::{ObjectRef, Tokens};

    use super::*;

    #[test]
    fn every_width_round_trips() {
        for vocabulary in [256, 257, 65_536, 65_537, 1 << 24] {
            let tokens: Vec<u32> = [0, 1, 255, vocabulary / 2, vocabulary - 1].to_vec();
            let bytes = encode_shard(&tokens, token_bytes(vocabulary));
            let shard = TokenShard::decode(bytes, vocabulary).expect("valid");
            let mut again = Vec::new();
            shard.append(0, shard.tokens(), &mut again);
            assert_eq!(again, tokens);
        }
    }

    #[test]
    fn shards_that_do_not_fit_are_refused() {
        assert!(TokenShard::decode(vec![], 256).is_err());
        assert!(TokenShard::decode(vec![0; 3], 1000).is_err());
        assert!(TokenShard::decode(encode_shard(&[1000], 2), 1000).is_err());
        assert!(TokenShard::decode(vec![200], 200).is_err());
    }

    #[test]
    #[should_panic(expected = "fits in 1 bytes")]
    fn a_token_that_does_not_fit_is_not_cut_off() {
        encode_shard(&[256], 1);
    }

    #[test]
    fn a_manifest_has_a_longest_length() {
        let error = parse_manifest(&vec![0; MANIFEST_BYTES_MAX + 1])
            .expect_err("too long")
            .to_string();
        assert!(error.contains("are accepted"), "{error}");
    }

    #[test]
    fn manifests_that_contradict_themselves_are_refused() {
        let shard = Shard {
            object: ObjectRef::of(&[0; 10]),
            tokens: Tokens(10),
        };
        let good = kit::data().train(vec![shard]).held_out(vec![shard]).build();
        let parse = |manifest: &DataManifest| {
            parse_manifest(&serde_json::to_vec(manifest).expect("serialises"))
        };
        assert_eq!(parse(&good).expect("valid"), good);
        let tokenizer = Tokenizer::HuggingFace(ObjectRef::of(b"x"));
        let bad = [
            DataManifest {
                vocabulary: 300,
                ..good.clone()
            },
            DataManifest {
                token_bytes: 2,
                ..good.clone()
            },
            DataManifest {
                held_out: vec![],
                ..good.clone()
            },
            DataManifest {
                train: vec![Shard {
                    tokens: Tokens(9),
                    ..shard
                }],
                ..good.clone()
            },
            DataManifest {
                vocabulary: 70_000,
                token_bytes: 2,
                tokenizer,
                ..good
            },
        ];
        assert!(bad.iter().all(|manifest| parse(manifest).is_err()));
        assert!(parse_manifest(b"{}").is_err());
    }
}
