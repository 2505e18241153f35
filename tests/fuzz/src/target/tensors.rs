//! Weights, and the descriptions of models and data.

use std::io::Write as _;

use merge::codec::{self, encoded_bytes};
use merge::{SeededRounding, screen};
use model::{ModelConfig, import_safetensors};
use schemas::layout::{Layout, TensorSpec};
use schemas::run::{CodecKind, TrainerKind};
use schemas::{Chunks, Message as _, V};

/// Elements of the weights that a target decodes: more than a block of each codec.
const ELEMENTS: usize = 300;

/// The first byte chooses the codec, the second the number of elements.
pub(super) fn weights(bytes: &[u8]) {
    let [which, elements, bytes @ ..] = bytes else {
        return;
    };
    let kind = CodecKind::ALL[usize::from(*which) % CodecKind::ALL.len()];
    let elements = usize::from(*elements) * 2;
    let mut values = vec![0.0; elements];
    let decoded = codec::decode(kind, bytes, &mut values);
    assert_eq!(
        decoded.is_ok(),
        bytes.len() == encoded_bytes(kind, elements)
    );
    // What passes the screen has only finite values, and their squares have a sum.
    if let Ok(statistics) = screen(kind, bytes, elements) {
        assert!(values.iter().all(|value| value.is_finite()), "{kind:?}");
        assert!(statistics.sum_of_squares.is_finite(), "{kind:?}");
    }
}

pub(super) fn encodings() -> Vec<Vec<u8>> {
    let values: Vec<f32> = (0..ELEMENTS).map(|n| (n as f32 - 150.0) / 64.0).collect();
    let of_kind = |(which, kind): (usize, &CodecKind)| {
        let mut bytes = vec![0; encoded_bytes(*kind, ELEMENTS)];
        codec::encode(*kind, &values, SeededRounding::NEAREST, &mut bytes).expect("it fits");
        [&[which as u8, (ELEMENTS / 2) as u8], &bytes[..]].concat()
    };
    CodecKind::ALL.iter().enumerate().map(of_kind).collect()
}

fn layout() -> Layout {
    let tensor = |name: &str, shape: &[u64]| TensorSpec {
        name: name.to_owned(),
        shape: shape.to_vec(),
        fragment: 0,
    };
    Layout {
        v: V,
        tensors: vec![tensor("a", &[2, 3]), tensor("b", &[5])],
    }
}

/// A file in the scratch folder with these bytes.
fn scratch(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a scratch file");
    file.write_all(bytes).expect("a scratch file takes bytes");
    file
}

pub(super) fn file(bytes: &[u8]) {
    let layout = layout();
    let mut values = vec![0.0; layout.elements() as usize];
    let file = scratch(bytes);
    let _refused = import_safetensors(&layout, file.path(), &mut values);
}

pub(super) fn files() -> Vec<Vec<u8>> {
    let layout = layout();
    let values: Vec<f32> = (0..layout.elements()).map(|n| n as f32).collect();
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("model.safetensors");
    let plain = std::collections::BTreeMap::new();
    model::export_safetensors(&layout, &values, &path, &plain).expect("a scratch file");
    let whole = std::fs::read(&path).expect("it was just written");
    vec![whole, beyond_every_number()]
}

/// A header whose eight tensors add up to more bytes than a number can say, with the header's own.
fn beyond_every_number() -> Vec<u8> {
    let longest = (1_u64 << 61) - 1;
    let tensors = (0..8).map(|place| {
        let (from, to) = (place * longest, (place + 1) * longest);
        format!(r#""t{place}":{{"dtype":"U8","shape":[{longest}],"data_offsets":[{from},{to}]}}"#)
    });
    let header = format!("{{{}}}", tensors.collect::<Vec<_>>().join(","));
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes()].concat()
}

/// The first byte chooses what is read.
pub(super) fn description(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    match which % 6 {
        0 => {
            for kind in [
                TrainerKind::Torch,
                TrainerKind::Reference,
                TrainerKind::Synthetic,
            ] {
                if let Ok(config) = ModelConfig::parse(kind, bytes) {
                    let again = ModelConfig::parse(kind, &config.to_json());
                    assert_eq!(
                        again.ok().as_ref(),
                        Some(&config),
                        "it is written otherwise"
                    );
                }
            }
        }
        1 => drop(data::parse_manifest(bytes)),
        2 => {
            if let Ok(tokenizer) = data::TextTokenizer::hugging_face(bytes) {
                let _tokens = tokenizer.encode("ab c");
            }
        }
        3 => drop(data::TokenShard::decode(bytes.to_vec(), 300)),
        4 => {
            if let Ok(layout) = Layout::decode(bytes)
                && layout.validate().is_ok()
            {
                let chunks = layout.chunks(4096);
                let total = chunks.map(|all| all.iter().map(|chunk| chunk.elements).sum::<u64>());
                assert!(total.is_err() || total.ok() == Some(layout.elements()));
            }
        }
        _ => {
            let chunks = [kit::sized("a", 8), kit::sized("b", 16)];
            let (listed, whole) = schemas::Listed::of(&chunks);
            // A reader has checked the digest; here the form alone decides.
            if let Ok(read) = listed.read(bytes) {
                assert_eq!(read.len(), chunks.len());
                assert_eq!(read == chunks, bytes == whole);
            }
            assert_eq!(Chunks::Listed(listed).total().get(), 24);
        }
    }
}

pub(super) fn descriptions() -> Vec<Vec<u8>> {
    let tokenizer = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}}"#;
    let mut all = vec![
        [&[2], tokenizer.as_bytes()].concat(),
        [&[3], &data::encode_shard(&[1, 2, 299], 2)[..]].concat(),
        [&[4], &layout().encode()[..]].concat(),
    ];
    let (_, listed) = schemas::Listed::of(&[kit::sized("a", 8), kit::sized("b", 16)]);
    all.push([&[5], &listed[..]].concat());
    let manifest = kit::data().named(2, 64).build();
    let manifest = serde_json::to_vec(&manifest).expect("a manifest is JSON");
    all.push([&[1], &manifest[..]].concat());
    for name in model::PRESETS {
        let preset = model::Preset::named(name).expect("a preset");
        all.push([&[0], &preset.config.to_json()[..]].concat());
    }
    all
}
