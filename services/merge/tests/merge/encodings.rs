//! Golden files hold the bytes of every codec: a codec with other bytes is another codec, and needs
//! another name.
//!
//! `DILOCO_WRITE_GOLDEN=1 cargo test -p merge --test merge encodings` writes files that are
//! missing; it never replaces one.

use std::fmt::Write as _;
use std::path::PathBuf;

use merge::{SeededRounding, codec};
use schemas::run::{CodecKind, Rounding};

use crate::naive;

/// A whole block of every codec, and a partial one.
const ELEMENTS: usize = 300;

/// Encodings with rounding to nearest, and then with noise, a line each.
fn encodings(kind: CodecKind) -> String {
    let values = naive::numbers(6, ELEMENTS);
    let stochastic = SeededRounding {
        rule: Rounding::Stochastic,
        seed: 11,
        first_element: 1_000_003,
    };
    let mut lines = String::new();
    for rounding in [SeededRounding::NEAREST, stochastic] {
        let mut bytes = vec![0; codec::encoded_bytes(kind, ELEMENTS)];
        codec::encode(kind, &values, rounding, &mut bytes).unwrap();
        for byte in bytes {
            write!(lines, "{byte:02x}").unwrap();
        }
        lines.push('\n');
    }
    lines
}

#[test]
fn encodings_are_those_on_file() {
    for kind in CodecKind::ALL.iter().copied() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(format!("{}.hex", kind.name()));
        let found = encodings(kind);
        if !path.exists() && std::env::var_os("DILOCO_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &found).expect("a writable folder");
        }
        let golden = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(golden, found, "the encoding of {kind:?} changed");
    }
}
