//! Shards: consecutive tokens as fixed-width little-endian numbers, and the manifest that lists them.

use schemas::data::{DataManifest, Shard, Tokenizer};
use schemas::limits::{OBJECT_BYTES_MAX, SHARDS_MAX};

use crate::DataError;

/// Longest manifest that is read: the most shards there may be, at some 200 bytes each.
const MANIFEST_BYTES_MAX: usize = 32 << 20;

/// Bytes a token takes in the shards of a vocabulary.
pub const fn token_bytes(vocabulary: u32) -> u8 {
    match vocabulary {
        0..=0x100 => 1,
        0x101..=0x1_0000 => 2,
        _ => 4,
    }
}

/// The bytes of a shard.
///
/// # Panics
/// When a token does not fit in `token_bytes`.
pub fn encode_shard(tokens: &[u32], token_bytes: u8) -> Vec<u8> {
    let width = usize::from(token_bytes);
    let mut bytes = Vec::with_capacity(tokens.len() * width);
    for token in tokens {
        let raw = token.to_le_bytes();
        assert!(raw[width..].iter().all(|byte| *byte == 0), "token {token} fits in {width} bytes");
        bytes.extend(&raw[..width]);
    }
    bytes
}

/// Reads a data set's manifest and checks that it agrees with itself and with the limits.
///
/// # Errors
/// [`DataError::Invalid`]
pub fn parse_manifest(json: &[u8]) -> Result<DataManifest, DataError> {
    let invalid = |reason: String| DataError::Invalid(format!("manifest: {reason}"));
    if json.len() > MANIFEST_BYTES_MAX {
        return Err(invalid(format!("{} bytes, at most {MANIFEST_BYTES_MAX} are accepted", json.len())));
    }
    let manifest: DataManifest = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    let DataManifest { vocabulary, token_bytes: width, tokenizer, train, held_out, .. } = &manifest;
    if *vocabulary < 2 || *tokenizer == Tokenizer::Byte && *vocabulary != 256 {
        return Err(invalid(format!("vocabulary is {vocabulary} with tokenizer {tokenizer:?}")));
    }
    if *width != token_bytes(*vocabulary) {
        let expected = token_bytes(*vocabulary);
        return Err(invalid(format!("token_bytes is {width}, expected {expected} for a vocabulary of {vocabulary}")));
    }
    for (name, shards) in [("train", train), ("held_out", held_out)] {
        if shards.is_empty() || shards.len() > SHARDS_MAX {
            return Err(invalid(format!("{name} has {} shards, expected 1 to {SHARDS_MAX}", shards.len())));
        }
        if let Some(shard) = shards.iter().find(|shard| !fits(shard, *width)) {
            let (tokens, bytes) = (shard.tokens, shard.object.bytes);
            return Err(invalid(format!("{name} lists a shard of {tokens} tokens in {bytes} bytes, {width} a token")));
        }
    }
    Ok(manifest)
}

fn fits(shard: &Shard, width: u8) -> bool {
    let bytes = shard.tokens.get().checked_mul(width.into());
    shard.tokens.get() > 0 && bytes == Some(shard.object.bytes.get()) && shard.object.bytes <= OBJECT_BYTES_MAX
}

/// The tokens of one shard, kept as they are stored.
#[derive(Clone, Debug)]
pub struct TokenShard {
    bytes: Vec<u8>,
    width: usize,
}

impl TokenShard {
    /// Takes a shard's bytes, after checking every token. That they are the right bytes is the fetcher's to check.
    ///
    /// # Errors
    /// [`DataError::Invalid`]: the length is no multiple of a token's, or a token is not below `vocabulary`.
    pub fn decode(bytes: Vec<u8>, vocabulary: u32) -> Result<Self, DataError> {
        let width = usize::from(token_bytes(vocabulary));
        if bytes.is_empty() || !bytes.len().is_multiple_of(width) {
            return Err(DataError::Invalid(format!("a shard of {} bytes, {width} a token", bytes.len())));
        }
        let shard = Self { bytes, width };
        match (0..shard.tokens()).map(|at| shard.token(at)).find(|token| *token >= vocabulary) {
            Some(token) => {
                Err(DataError::Invalid(format!("a shard holds token {token}, outside the vocabulary of {vocabulary}")))
            }
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
    /// When they are not all there.
    pub fn append(&self, start: usize, count: usize, into: &mut Vec<u32>) {
        assert!(start + count <= self.tokens(), "{count} tokens from {start} on, of {}", self.tokens());
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
    use schemas::data::Entropy;
    use schemas::{ObjectRef, Tokens, V};

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
    fn manifests_that_contradict_themselves_are_refused() {
        let shard = Shard { object: ObjectRef::of(&[0; 10]), tokens: Tokens(10) };
        let good = DataManifest {
            v: V,
            source: "a test".to_owned(),
            tokenizer: Tokenizer::Byte,
            vocabulary: 256,
            token_bytes: 1,
            train: vec![shard],
            held_out: vec![shard],
            entropy: Entropy { unigram: 3.0, bigram: 2.0 },
        };
        let parse = |manifest: &DataManifest| parse_manifest(&serde_json::to_vec(manifest).expect("serialises"));
        assert_eq!(parse(&good).expect("valid"), good);
        let tokenizer = Tokenizer::HuggingFace(ObjectRef::of(b"x"));
        let bad = [
            DataManifest { vocabulary: 300, ..good.clone() },
            DataManifest { token_bytes: 2, ..good.clone() },
            DataManifest { held_out: vec![], ..good.clone() },
            DataManifest { train: vec![Shard { tokens: Tokens(9), ..shard }], ..good.clone() },
            DataManifest { vocabulary: 70_000, token_bytes: 2, tokenizer, ..good },
        ];
        assert!(bad.iter().all(|manifest| parse(manifest).is_err()));
        assert!(parse_manifest(b"{}").is_err());
    }
}
