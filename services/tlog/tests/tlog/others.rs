//! Two other implementations read what this writer writes.

use ed25519_dalek::VerifyingKey;
use signed_note::{Note, StandardVerifier, VerifierList, new_ed25519_verifier_key};
use tlog::layout::{CHECKPOINT, entries_of};
use tlog::note::NOTE_BYTES_MAX;
use tlog::{Head, HeadError};
use tlog_tiles::{
    Checkpoint, Error, HashReader, Tile, TileHashReader, TileReader, check_record, prove_record,
    record_hash, stored_hashes, tree_hash,
};

use crate::support::{Files, ORIGIN, begin, entry, key, public, publish, sign};

/// All hashes of a tree, as the other implementation makes them from the entries.
#[derive(Default)]
struct Stored(Vec<tlog_tiles::Hash>);

impl HashReader for Stored {
    fn read_hashes(&self, indices: &[u64]) -> Result<Vec<tlog_tiles::Hash>, Error> {
        Ok(indices.iter().map(|at| self.0[*at as usize]).collect())
    }
}

/// The tiles of a log in memory.
struct Tiles<'a>(&'a Files);

impl TileReader for Tiles<'_> {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let read = |tile: &Tile| {
            let path = tile.path().replacen("tile/8/", "tile/", 1);
            self.0
                .get(&path)
                .unwrap_or_else(|| panic!("{path}"))
                .clone()
        };
        Ok(tiles.iter().map(read).collect())
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

#[test]
fn tl_03_another_implementation_comes_to_the_same_root_at_every_size() {
    let (mut files, mut stored) = (Files::new(), Stored::default());
    let mut writer = begin(&mut files, []);
    for index in 0..600 {
        let more = stored_hashes(index, &entry(index), &stored).unwrap();
        stored.0.extend(more);
        writer.push(&entry(index), 0).unwrap();
        let head = publish(&mut writer, &mut files).unwrap();
        let theirs = tree_hash(index + 1, &stored).unwrap();
        assert_eq!(head.root, theirs.0, "size {}", index + 1);
    }
}

#[test]
fn tl_03_another_implementation_proves_entries_from_the_tiles_and_bundles() {
    for size in [1, 2, 255, 256, 257, 512, 700, 65_536, 65_793] {
        let mut files = Files::new();
        let head = publish(&mut begin(&mut Files::new(), 0..size), &mut files).unwrap();
        let (tiles, root) = (Tiles(&files), tlog_tiles::Hash(head.root));
        let reader = TileHashReader::new(size, root, &tiles);
        for index in [0, size / 2, size - 1] {
            let proof = prove_record(size, index, &reader).unwrap();
            let leaf = record_hash(&entry(index));
            check_record(&proof, size, root, index, leaf).unwrap();
        }
        let mut index = 0;
        for bundle in tlog::layout::Bundle::all(size) {
            let entries = entries_of(&files[&bundle.path()], bundle.width).unwrap();
            for found in entries {
                assert_eq!(found, entry(index));
                index += 1;
            }
        }
        assert_eq!(index, size);
    }
}

#[test]
fn tl_03_another_implementation_reads_and_verifies_a_head() {
    let mut files = Files::new();
    let head = publish(&mut begin(&mut Files::new(), 0..5), &mut files).unwrap();
    let note = Note::from_bytes(&files[CHECKPOINT]).unwrap();
    let verifier_key = VerifyingKey::from_bytes(&public()).unwrap();
    let text = new_ed25519_verifier_key(ORIGIN, &verifier_key);
    let verifier = StandardVerifier::new(&text).unwrap();
    let known = VerifierList::new(vec![Box::new(verifier)]);
    let (verified, others) = note.verify(&known).unwrap();
    assert_eq!((verified.len(), others.len()), (1, 0));
    let theirs = Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((theirs.origin(), theirs.size()), (ORIGIN, 5));
    assert_eq!(theirs.hash().0, head.root);
}

#[test]
fn tl_03_no_altered_head_is_taken() {
    let head = Head {
        origin: ORIGIN.to_owned(),
        size: 17,
        root: [9; 32],
    };
    let note = sign(&head);
    let open = |note: &[u8]| Head::open(note, ORIGIN, &[[1; 32], public()]);
    assert_eq!(open(note.as_bytes()), Ok(head));
    for at in 0..note.len() {
        for bit in 0..8 {
            let mut other = note.clone().into_bytes();
            other[at] ^= 1 << bit;
            assert!(open(&other).is_err(), "byte {at}, bit {bit}");
        }
        assert!(open(&note.as_bytes()[..at]).is_err(), "cut at {at}");
        let mut longer = note.clone().into_bytes();
        longer.insert(at, b'0');
        assert!(open(&longer).is_err(), "a byte more at {at}");
    }
    let strangers = Head::open(note.as_bytes(), ORIGIN, &[[1; 32]]);
    assert_eq!(strangers, Err(HeadError::Unsigned));
    let elsewhere = Head::open(note.as_bytes(), "diloco/other", &[public()]);
    assert!(matches!(elsewhere, Err(HeadError::Origin { .. })));
}

/// A witness adds its line; that line says nothing about the log's own.
#[test]
fn signatures_of_strangers_are_ignored() {
    let head = Head {
        origin: ORIGIN.to_owned(),
        size: 1,
        root: [9; 32],
    };
    let witness = "\u{2014} witness.example AAAAAAAA\n";
    let both = format!("{}{witness}", sign(&head));
    assert_eq!(
        Head::open(both.as_bytes(), ORIGIN, &[public()]),
        Ok(head.clone())
    );
    let alone = format!("{}\n{witness}", head.text());
    let opened = Head::open(alone.as_bytes(), ORIGIN, &[public()]);
    assert_eq!(opened, Err(HeadError::Unsigned));
    let forged = head.signed(&public(), &[0; 64]);
    let opened = Head::open(forged.as_bytes(), ORIGIN, &[public()]);
    assert_eq!(opened, Err(HeadError::Forged));
    let long = format!("{both}{}", witness.repeat(1000));
    let opened = Head::open(long.as_bytes(), ORIGIN, &[key().verifying_key().to_bytes()]);
    assert!(matches!(opened, Err(HeadError::Malformed(_))));
}

#[test]
fn a_line_that_is_no_signature_spoils_a_note() {
    let head = Head {
        origin: ORIGIN.to_owned(),
        size: 1,
        root: [9; 32],
    };
    let with = |line: &str| {
        let note = format!("{}\u{2014} {line}\n", sign(&head));
        Head::open(note.as_bytes(), ORIGIN, &[public()])
    };
    assert!(with("witness AAAAAAA=").is_ok(), "one byte behind the key");
    for line in [
        "witness AAAAAA==",
        "witness AAAA",
        " AAAAAAAA",
        "witness",
        "witness !",
    ] {
        assert!(matches!(with(line), Err(HeadError::Malformed(_))), "{line}");
    }
}

#[test]
fn a_note_may_be_as_long_as_its_limit_and_no_longer() {
    let head = Head {
        origin: ORIGIN.to_owned(),
        size: 1,
        root: [9; 32],
    };
    let of_length = |bytes: usize| {
        let note = sign(&head);
        let (before, after) = ("\u{2014} ", " AAAAAAAA\n");
        let name = "w".repeat(bytes - note.len() - before.len() - after.len());
        let note = format!("{note}{before}{name}{after}");
        assert_eq!(note.len(), bytes);
        Head::open(note.as_bytes(), ORIGIN, &[public()])
    };
    assert_eq!(of_length(NOTE_BYTES_MAX), Ok(head.clone()));
    assert!(matches!(
        of_length(NOTE_BYTES_MAX + 1),
        Err(HeadError::Malformed(_))
    ));
}

#[test]
fn texts_that_are_no_heads_are_refused_with_a_reason() {
    let open = |text: &str| Head::open(text.as_bytes(), ORIGIN, &[public()]);
    let root = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
    let line = "\u{2014} diloco/test AAAAAAAA\n";
    for text in [
        String::new(),
        "\n\n".to_owned(),
        format!("{ORIGIN}\n1\n\n{line}"),
        format!("{ORIGIN}\n01\n{root}\n\n{line}"),
        format!("{ORIGIN}\n+1\n{root}\n\n{line}"),
        format!("{ORIGIN}\n1\n{root}\nextension\n\n{line}"),
        format!("{ORIGIN}\n1\n{}\n\n{line}", &root[4..]),
        format!("with space\n1\n{root}\n\n{line}"),
        format!("{ORIGIN}\n1\n{root}\n\n{}", line.trim_end()),
        format!("{ORIGIN}\n1\n{root}\n\nno signature\n"),
    ] {
        assert!(
            matches!(open(&text), Err(HeadError::Malformed(_))),
            "{text:?}"
        );
    }
}

/// Code that checks trees panics on greater ones.
#[test]
fn a_signed_head_of_a_size_that_no_log_has_is_refused() {
    let open = |size| {
        let head = Head {
            origin: ORIGIN.to_owned(),
            size,
            root: [1; 32],
        };
        Head::open(sign(&head).as_bytes(), ORIGIN, &[public()])
    };
    assert!(open(u64::MAX / 2).is_ok());
    for size in [u64::MAX / 2 + 1, u64::MAX] {
        assert!(matches!(open(size), Err(tlog::HeadError::Malformed(_))));
    }
}
