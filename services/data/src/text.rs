//! Text to tokens and back.

use tokenizers::Tokenizer;

use crate::DataError;

/// Largest `tokenizer.json` that is read; those of large vocabularies have some 20 MiB.
const TOKENIZER_BYTES_MAX: usize = 128 << 20;
const BYTE_VOCABULARY: u32 = 256;

/// How text becomes tokens.
#[derive(Clone, Debug)]
pub enum TextTokenizer {
    /// Every byte is a token.
    Byte,
    /// A Hugging Face tokenizer.
    HuggingFace(Box<Tokenizer>),
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`DataError::Tokenizer`]: it is too long or does not load.
    pub fn hugging_face(json: &[u8]) -> Result<Self, DataError> {
        if json.len() > TOKENIZER_BYTES_MAX {
            let reason = format!("a file of {} bytes, at most {TOKENIZER_BYTES_MAX} are accepted", json.len());
            return Err(DataError::Tokenizer(reason));
        }
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        // Padding and truncation are for batches of sentences: here they would add to the text or take from it.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        Ok(Self::HuggingFace(Box::new(tokenizer)))
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> u32 {
        match self {
            Self::Byte => BYTE_VOCABULARY,
            // Ids may have gaps, so the largest counts, not their number.
            Self::HuggingFace(tokenizer) => {
                tokenizer.get_vocab(true).into_values().max().map_or(0, |largest| largest.saturating_add(1))
            }
        }
    }

    /// The tokens of `text`, without special tokens around it.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Byte => Ok(text.bytes().map(u32::from).collect()),
            Self::HuggingFace(tokenizer) => {
                let encoding =
                    tokenizer.encode(text, false).map_err(|error| DataError::Tokenizer(error.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of `tokens`; bytes that are no UTF-8 become replacement characters.
    ///
    /// # Errors
    /// A token is outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, DataError> {
        match self {
            Self::Byte => {
                let byte = |token: &u32| {
                    u8::try_from(*token).map_err(|_| DataError::Tokenizer(format!("token {token} is no byte")))
                };
                let bytes: Vec<u8> = tokens.iter().map(byte).collect::<Result<_, _>>()?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::HuggingFace(tokenizer) => {
                tokenizer.decode(tokens, false).map_err(|error| DataError::Tokenizer(error.to_string()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = r#"{
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "fn": 1, "main": 5, "(": 2, ")": 3}, "unk_token": "[UNK]"}
    }"#;

    #[test]
    fn bytes_round_trip() {
        let text = "fn main() { println!(\"äöü\") }";
        let tokens = TextTokenizer::Byte.encode(text).expect("any text");
        assert_eq!(tokens.len(), text.len());
        assert_eq!(TextTokenizer::Byte.decode(&tokens).expect("bytes"), text);
        assert_eq!(TextTokenizer::Byte.decode(&[0xff, 65]).expect("bytes"), "\u{fffd}A");
        assert!(TextTokenizer::Byte.decode(&[256]).is_err());
    }

    #[test]
    fn a_hugging_face_file_loads_and_garbage_does_not() {
        let tokenizer = TextTokenizer::hugging_face(WORDS.as_bytes()).expect("loads");
        assert_eq!(tokenizer.vocabulary(), 6);
        assert_eq!(tokenizer.encode("fn main what").expect("encodes"), [1, 5, 0]);
        assert_eq!(tokenizer.decode(&[1, 5]).expect("decodes"), "fn main");
        let error = TextTokenizer::hugging_face(b"{}").expect_err("not a tokenizer");
        assert_eq!(error.code(), schemas::Code::TokenizerInvalid);
    }
}
