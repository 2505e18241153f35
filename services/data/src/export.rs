//! Files beside a model's weights from which other programs take its tokenizer, so that they read
//! text as in training: the same tokens, nothing before or after them, and special tokens only
//! where a program asks for them by id.

use serde_json::{Map, Value, json};

use crate::{DataError, TextTokenizer};

/// Name of the file that holds the tokenizer itself.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// A file to write: its name and its bytes.
pub type ExportFile = (&'static str, Vec<u8>);

/// The tokenizer's files for a model of `positions` positions: `tokenizer.json`,
/// `tokenizer_config.json`, `special_tokens_map.json`. `json` is the `tokenizer.json` of the data
/// set; without one a tokenizer for bytes is made.
///
/// # Errors
/// [`DataError::Tokenizer`]: no text can have been trained with `json`.
pub fn tokenizer_files(json: Option<&[u8]>, positions: u32) -> Result<Vec<ExportFile>, DataError> {
    let tokenizer = match json {
        Some(json) => {
            // A tokenizer that does not load here was never trained with.
            TextTokenizer::hugging_face(json)?;
            as_trained(
                serde_json::from_slice(json)
                    .map_err(|error| DataError::Tokenizer(error.to_string()))?,
            )
        }
        None => bytes(),
    };
    Ok(vec![
        (TOKENIZER_FILE, text(&tokenizer)),
        ("tokenizer_config.json", text(&config(positions))),
        // No text began or ended with a special token, and none stands for an unknown word.
        ("special_tokens_map.json", text(&json!({}))),
    ])
}

/// Removes the parts that make a reader do more than encode: padding, truncation, and tokens that a
/// template adds. The post-processor of a byte-level tokenizer stays, since it only concerns
/// positions in the text.
fn as_trained(mut tokenizer: Map<String, Value>) -> Value {
    tokenizer.insert("truncation".to_owned(), Value::Null);
    tokenizer.insert("padding".to_owned(), Value::Null);
    let is_level = |value: &Value| value["type"] == "ByteLevel";
    let kept = tokenizer
        .get("post_processor")
        .filter(|value| is_level(value))
        .cloned();
    tokenizer.insert("post_processor".to_owned(), kept.unwrap_or(Value::Null));
    Value::Object(tokenizer)
}

/// A tokenizer whose tokens are bytes: byte pairs without any pair.
fn bytes() -> Value {
    let letters = (0..=u8::MAX).map(|byte| (byte_letter(byte).to_string(), Value::from(byte)));
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": letters.collect::<Map<String, Value>>(), "merges": [],
        },
    })
}

/// The letter that stands for a byte in the vocabulary of a byte-level tokenizer: the byte itself
/// if it is printable in Latin-1, and otherwise the next letter from U+0100 on (GPT-2's table).
pub(crate) fn byte_letter(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !prints(*other)).count() as u32;
    char::from_u32(0x100 + before).expect("68 letters from U+0100 on")
}

fn config(positions: u32) -> Value {
    json!({
        // This class does as `tokenizer.json` says; a class of its own would add its usual tokens.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": false,
        "add_eos_token": false,
        "bos_token": null,
        "eos_token": null,
        "unk_token": null,
        "pad_token": null,
        "clean_up_tokenization_spaces": false,
        "split_special_tokens": true,
        "model_max_length": positions,
    })
}

fn text(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("JSON serialises")
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer;

    use super::*;
    use crate::fixture;

    fn file(files: &[ExportFile], name: &str) -> Vec<u8> {
        files
            .iter()
            .find(|(own, _)| *own == name)
            .expect("is written")
            .1
            .clone()
    }

    /// Reads the text like a program that does not know this project: it lets the tokenizer add its
    /// special tokens.
    fn read_by_others(files: &[ExportFile], text: &str) -> Vec<u32> {
        let tokenizer = Tokenizer::from_bytes(file(files, TOKENIZER_FILE)).expect("loads");
        tokenizer
            .encode(text, true)
            .expect("encodes")
            .get_ids()
            .to_vec()
    }

    #[test]
    fn others_read_the_tokens_that_were_trained() {
        let text = "a line of text — with äöü\n\n  and blanks ".repeat(9);
        for (name, json) in fixture::tokenizers() {
            let trained = TextTokenizer::hugging_face(json.as_bytes())
                .expect("loads")
                .encode(&text)
                .expect("encodes");
            let files = tokenizer_files(Some(json.as_bytes()), 512).expect("files");
            assert_eq!(read_by_others(&files, &text), trained, "{name}");
        }
        let files = tokenizer_files(None, 512).expect("files");
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        assert_eq!(read_by_others(&files, &text), bytes);
        let again = TextTokenizer::hugging_face(&file(&files, TOKENIZER_FILE)).expect("loads");
        assert_eq!(
            (again.vocabulary(), again.decode(&bytes).expect("decodes")),
            (256, text)
        );
        assert_eq!(
            again.encode("\0\u{7f}\r\n<s>").expect("encodes"),
            [0, 0x7f, 13, 10, 60, 115, 62]
        );
        assert!(tokenizer_files(Some(b"{}"), 512).is_err());
    }

    #[test]
    fn no_token_of_its_own_begins_or_ends_a_text() {
        let files = tokenizer_files(Some(fixture::pieces().as_bytes()), 77).expect("files");
        let config: Value =
            serde_json::from_slice(&file(&files, "tokenizer_config.json")).expect("JSON");
        for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            assert_eq!(
                config.get(key),
                Some(&Value::Null),
                "{key}: absent would be a class's own"
            );
        }
        for key in ["add_bos_token", "add_eos_token"] {
            assert_eq!(config[key], false, "{key}");
        }
        assert_eq!(
            (&config["split_special_tokens"], &config["model_max_length"]),
            (&true.into(), &77.into())
        );
        assert_eq!(file(&files, "special_tokens_map.json"), b"{}");
    }
}
