//! Text to tokens and back.
//!
//! A text's tokens are those of its characters and nothing else. The name of a special token that
//! is spelt in it, such as `<|endoftext|>` in an article about tokenizers, is encoded as the text
//! that it is: only a program that builds prompts can mean the token, and text that anyone wrote
//! must not be able to.

use schemas::data::BYTE_VOCABULARY;
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::DataError;

/// Largest `tokenizer.json` that is read; those of large vocabularies have some 20 MiB.
const TOKENIZER_BYTES_MAX: usize = 128 << 20;

/// The way in which text becomes tokens.
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
            let reason = format!(
                "a file of {} bytes, at most {TOKENIZER_BYTES_MAX} are accepted",
                json.len()
            );
            return Err(DataError::Tokenizer(reason));
        }
        let mut tokenizer =
            Tokenizer::from_bytes(json).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        // Padding and truncation are for batches of sentences: here they would change the text.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| DataError::Tokenizer(error.to_string()))?;
        // The post-processor would add special tokens, which are not wanted here, and would exclude
        // blanks from the places of tokens.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        tokenizer.set_encode_special_tokens(true);
        Ok(Self::HuggingFace(Box::new(tokenizer)))
    }

    /// Token ids are below this.
    pub fn vocabulary(&self) -> u32 {
        match self {
            Self::Byte => BYTE_VOCABULARY,
            // Ids may have gaps, so the largest id counts, and not their number.
            Self::HuggingFace(tokenizer) => tokenizer
                .get_vocab(true)
                .into_values()
                .max()
                .map_or(0, |largest| largest.saturating_add(1)),
        }
    }

    /// The names of special tokens.
    pub(crate) fn specials(&self) -> Specials {
        let mut names: Vec<String> = match self {
            Self::Byte => Vec::new(),
            Self::HuggingFace(tokenizer) => {
                let added = tokenizer.get_added_tokens_decoder().into_values();
                added
                    .filter(|token| token.special && !token.content.is_empty())
                    .map(|token| token.content)
                    .collect()
            }
        };
        names.sort_unstable();
        Specials(names)
    }

    /// The tokens of `text`, without special tokens around it or in it.
    ///
    /// # Errors
    /// The tokenizer cannot represent the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Byte => Ok(text.bytes().map(u32::from).collect()),
            Self::HuggingFace(tokenizer) => {
                let encoding = tokenizer
                    .encode(text, false)
                    .map_err(|error| DataError::Tokenizer(error.to_string()))?;
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
                    u8::try_from(*token)
                        .map_err(|_| DataError::Tokenizer(format!("token {token} is no byte")))
                };
                let bytes: Vec<u8> = tokens.iter().map(byte).collect::<Result<_, _>>()?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::HuggingFace(tokenizer) => tokenizer
                .decode(tokens, false)
                .map_err(|error| DataError::Tokenizer(error.to_string())),
        }
    }
}

/// Names of special tokens, to be looked for in text.
#[derive(Clone, Debug)]
pub(crate) struct Specials(Vec<String>);

impl Specials {
    /// Number of times that `text` spells one of them.
    pub(crate) fn spelt_in(&self, text: &str) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        let mut begins = [false; 256];
        self.0
            .iter()
            .for_each(|name| begins[usize::from(name.as_bytes()[0])] = true);
        let (bytes, mut at, mut count) = (text.as_bytes(), 0, 0);
        while at < bytes.len() {
            let here = begins[usize::from(bytes[at])].then(|| {
                let spelt = self
                    .0
                    .iter()
                    .filter(|name| bytes[at..].starts_with(name.as_bytes()));
                spelt.map(String::len).max()
            });
            let found = here.flatten();
            count += u64::from(found.is_some());
            at += found.unwrap_or(1);
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn bytes_round_trip() {
        let text = "fn main() { println!(\"äöü\") }";
        let tokens = TextTokenizer::Byte.encode(text).expect("any text");
        assert_eq!(tokens.len(), text.len());
        assert_eq!(TextTokenizer::Byte.decode(&tokens).expect("bytes"), text);
        assert_eq!(
            TextTokenizer::Byte.decode(&[0xff, 65]).expect("bytes"),
            "\u{fffd}A"
        );
        assert!(TextTokenizer::Byte.decode(&[256]).is_err());
    }

    #[test]
    fn a_hugging_face_file_loads_and_garbage_does_not() {
        let tokenizer = TextTokenizer::hugging_face(fixture::WORDS.as_bytes()).expect("loads");
        assert_eq!(tokenizer.vocabulary(), 6);
        assert_eq!(
            tokenizer.encode("fn main what").expect("encodes"),
            [1, 5, 0]
        );
        assert_eq!(tokenizer.decode(&[1, 5]).expect("decodes"), "fn main");
        let error = TextTokenizer::hugging_face(b"{}").expect_err("not a tokenizer");
        assert_eq!(error.code(), schemas::Code::TokenizerInvalid);
    }

    #[test]
    fn a_tokenizer_has_a_longest_length() {
        let error = TextTokenizer::hugging_face(&vec![0; TOKENIZER_BYTES_MAX + 1])
            .expect_err("too long")
            .to_string();
        assert!(error.contains("are accepted"), "{error}");
    }

    #[test]
    fn special_tokens_that_are_spelt_are_text() {
        let specials = [("byte pairs", "<|endoftext|>"), ("pieces", "</s>")];
        for ((name, json), (_, spelt)) in fixture::tokenizers().into_iter().zip(specials) {
            let tokenizer = TextTokenizer::hugging_face(json.as_bytes()).expect("loads");
            let text = format!("a line{spelt}and {spelt}{spelt}\n<s");
            let ids = tokenizer.encode(&text).expect("encodes");
            let plain = Tokenizer::from_bytes(json.as_bytes()).expect("loads");
            let special = plain.token_to_id(spelt).expect("is a token");
            assert!(!ids.contains(&special), "{name}: {ids:?}");
            assert_eq!(
                tokenizer.decode(&ids).expect("decodes").trim_start(),
                text,
                "{name}"
            );
            assert_eq!(tokenizer.specials().spelt_in(&text), 3, "{name}");
        }
        assert_eq!(TextTokenizer::Byte.specials().spelt_in("<s>"), 0);
    }

    /// A tokenizer whose file cuts and pads texts to lengths, and whose template adds a token.
    #[test]
    fn nothing_is_added_and_nothing_taken() {
        let tokenizer = TextTokenizer::hugging_face(fixture::pieces().as_bytes()).expect("loads");
        let ids = tokenizer.encode(&"line ".repeat(20)).expect("encodes");
        assert!(
            ids.len() > 60 && !ids.contains(&1) && !ids.contains(&0),
            "{ids:?}"
        );
    }
}
