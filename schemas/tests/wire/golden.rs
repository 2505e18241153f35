//! The bytes of every message type are fixed: a change here is a change of the protocol and needs a
//! new version.
//!
//! `DILOCO_WRITE_GOLDEN=1 cargo test -p schemas --test wire golden` writes files that are missing;
//! it never replaces one.

use crate::examples;

use std::path::PathBuf;

use data_encoding::HEXLOWER;

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
