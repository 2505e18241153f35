//! Small tokenizers for tests, one of each kind that differs in how text becomes tokens.

/// Some known words, and one token for all others.
pub(crate) const WORDS: &str = r#"{
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "fn": 1, "main": 5, "(": 2, ")": 3}, "unk_token": "[UNK]"}
}"#;

fn special(id: usize, content: &str) -> serde_json::Value {
    serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

/// Byte pairs over bytes, split at words first, with a token for the end of a text, as in GPT-2.
pub(crate) fn byte_pairs() -> String {
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=u8::MAX {
        vocabulary.insert(
            crate::export::byte_letter(byte).to_string(),
            u32::from(byte).into(),
        );
    }
    let merges = [
        ("l", "i"),
        ("li", "n"),
        ("t", "e"),
        ("-", "-"),
        ("--", "--"),
        ("\u{120}", "o"),
    ];
    for (left, right) in merges {
        vocabulary.insert(format!("{left}{right}"), vocabulary.len().into());
    }
    let end = vocabulary.len();
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let pairs: Vec<[&str; 2]> = merges.iter().map(|(left, right)| [*left, *right]).collect();
    serde_json::json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(end, "<|endoftext|>")], "pre_tokenizer": level, "post_processor": level,
        "decoder": level, "model": {"type": "BPE", "vocab": vocabulary, "merges": pairs}})
    .to_string()
}

/// As in Llama 2: no splitting, a blank before every text, bytes where there is no letter, a first
/// token that a template adds, and lengths to which a batch would be padded and cut.
pub(crate) fn pieces() -> String {
    let mut names: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    names.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    names.extend(
        ('a'..='z')
            .chain(['\u{2581}', '-'])
            .map(|letter| letter.to_string()),
    );
    let merges = [
        ("l", "i"),
        ("t", "e"),
        ("\u{2581}", "o"),
        ("-", "-"),
        ("\u{2581}", "\u{2581}"),
    ];
    names.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocabulary: serde_json::Map<_, _> = names
        .into_iter()
        .zip(0_u32..)
        .map(|(name, id)| (name, id.into()))
        .collect();
    let pairs: Vec<[&str; 2]> = merges.iter().map(|(left, right)| [*left, *right]).collect();
    serde_json::json!({"version": "1.0",
        "truncation": {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
            "merges": pairs}})
    .to_string()
}

/// The two kinds of tokenizer, with names.
pub(crate) fn tokenizers() -> [(&'static str, String); 2] {
    [("byte pairs", byte_pairs()), ("pieces", pieces())]
}
