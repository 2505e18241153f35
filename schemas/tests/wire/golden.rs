//! The bytes of every message type are fixed: a change here is a change of the protocol and needs a
//! new version.
//!
//! `DILOCO_WRITE_GOLDEN=1 cargo test -p schemas --test wire golden` writes files that are missing;
//! it never replaces one.

use crate::examples;

use std::path::PathBuf;

use data_encoding::HEXLOWER;
use schemas::Message as _;
use schemas::run::{Combination, Comparison, RunSpec};

/// The file of an example, by its name and the version in its bytes. An answer wraps its message,
/// and so the message's version.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let place = bytes
        .windows(2)
        .position(|window| window == [0xa1, b'v'])
        .expect("a message has a version");
    let version = bytes[place + 2];
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(format!("{plain}.v{version}.hex"))
}

#[test]
fn encodings_are_those_on_file() {
    for example in examples::all() {
        let path = file(example.name, &example.bytes);
        let hex = HEXLOWER.encode(&example.bytes);
        if !path.exists() && std::env::var_os("DILOCO_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{hex}\n")).expect("a writable folder");
        }
        let golden = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(
            golden.trim(),
            hex,
            "the encoding of {} changed",
            example.name
        );
    }
}

#[test]
fn every_example_decodes_to_itself() {
    for example in examples::all() {
        let again = (example.decode)(&example.bytes)
            .unwrap_or_else(|error| panic!("{}: {error}", example.name));
        assert_eq!(again, example.bytes, "{}", example.name);
    }
}

#[test]
fn names_are_unique() {
    let names: Vec<_> = examples::all().iter().map(|example| example.name).collect();
    let unique: std::collections::BTreeSet<_> = names.iter().collect();
    assert_eq!(names.len(), unique.len());
}

/// A run's settings are named by their digest in every lease and in the ledger, so a choice must
/// not change its bytes. The oldest choices have none: the settings of earlier releases keep
/// theirs.
#[test]
fn each_choice_of_a_run_keeps_its_bytes() {
    let mut plain = examples::spec();
    plain.combination = Combination::Mean;
    plain.policy.comparison = Comparison::None;
    let bytes = |change: fn(&mut RunSpec)| {
        let mut spec = plain.clone();
        change(&mut spec);
        spec.encode()
    };
    let has = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let none = plain.encode();
    assert!(!has(&none, "combination") && !has(&none, "comparison"));
    type Choice = (fn(&mut RunSpec), &'static str);
    let choices: [Choice; 6] = [
        (
            |spec| spec.combination = Combination::Clipped { norm_ratio: 1.5 },
            "ab636f6d62696e6174696f6e81a7636c697070656481aa6e6f726d5f726174696fca3fc00000",
        ),
        (
            |spec| spec.combination = Combination::Trimmed { each_end: 2 },
            "ab636f6d62696e6174696f6e81a77472696d6d656481a8656163685f656e6402",
        ),
        (
            |spec| spec.combination = Combination::Median,
            "ab636f6d62696e6174696f6ea66d656469616e",
        ),
        (
            |spec| spec.combination = Combination::Radial,
            "ab636f6d62696e6174696f6ea672616469616c",
        ),
        (
            |spec| spec.policy.comparison = Comparison::of_norms(4.0),
            "aa636f6d70617269736f6e81a66f746865727381ae6e6f726d5f726174696f5f6d6178cb4010000000000000",
        ),
        (
            |spec| {
                spec.policy.comparison = Comparison::Others {
                    norm_ratio_max: 4.0,
                    cosine_min: Some(-0.5),
                    loss_ratio_max: Some(2.0),
                };
            },
            "aa636f6d70617269736f6e81a66f746865727383ae6e6f726d5f726174696f5f6d6178cb4010000000000000\
             aa636f73696e655f6d696ecbbfe0000000000000ae6c6f73735f726174696f5f6d6178cb4000000000000000",
        ),
    ];
    for (change, expected) in choices {
        let with = bytes(change);
        let start = if has(&with, "combination") {
            "combination"
        } else {
            "comparison"
        };
        let at = with
            .windows(start.len())
            .position(|part| part == start.as_bytes())
            .expect("the choice is in the message");
        let more = with.len() - none.len();
        // The key's own header is one byte before it.
        let found = HEXLOWER.encode(&with[at - 1..at - 1 + more]);
        assert_eq!(found, expected);
    }
}
