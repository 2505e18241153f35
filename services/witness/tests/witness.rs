//! A witness beside a log that grows: what continues it is taken, and nothing else.

use std::collections::BTreeMap;
use std::convert::Infallible;

use ed25519_dalek::{Signer as _, SigningKey};
use tlog::layout::Tile;
use tlog::proof::Prover;
use tlog::{Hash, Head, HeadError, Writer};
use witness::{Doubt, Followed, Step, is_included};

const ORIGIN: &str = "diloco/test";

/// A log with all files and heads that it ever had.
struct World {
    key: SigningKey,
    writer: Writer,
    files: BTreeMap<String, Vec<u8>>,
    heads: BTreeMap<u64, (Head, String)>,
}

impl World {
    fn new() -> Self {
        Self {
            key: SigningKey::from_bytes(&[7; 32]),
            writer: Writer::new(ORIGIN.to_owned(), None).expect("a new log"),
            files: BTreeMap::new(),
            heads: BTreeMap::new(),
        }
    }

    fn followed(&self) -> Followed {
        Followed::new(ORIGIN.to_owned(), vec![self.key.verifying_key().to_bytes()])
    }

    fn push(&mut self, salt: &str) {
        let entry = format!("{salt}{}", self.writer.size());
        self.writer.push(entry.as_bytes(), 0).expect("it is short");
    }

    /// Publishes a head over everything.
    fn publish(&mut self) {
        let key = &self.key;
        let batch = self
            .writer
            .batch(|head| signed(key, head))
            .expect("new entries");
        for write in batch.writes {
            self.files.insert(write.path, write.bytes);
        }
        for path in batch.removals {
            self.files.remove(&path);
        }
        self.writer.published(&batch.head);
        let note = signed(&self.key, &batch.head);
        self.heads.insert(batch.head.size, (batch.head, note));
    }

    /// Reads a tile as a reader of the folder does: a log that has grown may have the full one
    /// only.
    fn read(&self, tile: Tile) -> Option<Vec<u8>> {
        let own = self.files.get(&tile.path());
        own.or_else(|| self.files.get(&tile.full().path())).cloned()
    }

    fn consistency(&self, from: u64, to: u64) -> Option<Vec<Hash>> {
        let mut read = |tile| Ok::<_, Infallible>(self.read(tile));
        let Ok(hashes) = Prover::new(to, &mut read).consistency(from);
        hashes
    }

    fn inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        let mut read = |tile| Ok::<_, Infallible>(self.read(tile));
        let Ok(hashes) = Prover::new(size, &mut read).inclusion(index);
        hashes
    }

    fn head(&self, size: u64) -> &Head {
        &self.heads[&size].0
    }

    fn note(&self, size: u64) -> &[u8] {
        self.heads[&size].1.as_bytes()
    }
}

fn signed(key: &SigningKey, head: &Head) -> String {
    let signature = key.sign(head.text().as_bytes()).to_bytes();
    head.signed(&key.verifying_key().to_bytes(), &signature)
}

/// A log with a head after each of these sizes.
fn world(sizes: &[u64]) -> World {
    let mut world = World::new();
    for size in sizes {
        while world.writer.size() < *size {
            world.push("entry ");
        }
        world.publish();
    }
    world
}

/// The proofs come from the writer's own code, and are checked by another's.
#[test]
fn tl_03_each_head_is_taken_after_each_older_one_and_no_altered_proof_is() {
    let sizes: Vec<u64> = (1..=70)
        .chain([255, 256, 257, 300, 511, 512, 513])
        .collect();
    let world = world(&sizes);
    let followed = world.followed();
    let mut altered = 0;
    for (at, from) in sizes.iter().enumerate() {
        for to in &sizes[at + 1..] {
            let (kept, note) = (world.head(*from), world.note(*to));
            let hashes = world.consistency(*from, *to).expect("all tiles are there");
            let step = followed.follow(Some(kept), note, &hashes);
            assert_eq!(
                step,
                Ok(Step::Newer(world.head(*to).clone())),
                "{from} {to}"
            );
            let unproven = Err(Doubt::Unproven {
                found: *to,
                kept: *from,
            });
            for place in 0..hashes.len() {
                let mut wrong = hashes.clone();
                wrong[place][31] ^= 1;
                assert_eq!(followed.follow(Some(kept), note, &wrong), unproven);
                wrong.remove(place);
                assert_eq!(followed.follow(Some(kept), note, &wrong), unproven);
                altered += 2;
            }
            let longer = [&hashes[..], &[[0; 32]]].concat();
            assert_eq!(followed.follow(Some(kept), note, &longer), unproven);
        }
    }
    assert!(altered > 10_000, "{altered}");
}

/// Tiles of the second level are hashed too.
#[test]
fn a_log_of_more_than_two_levels_is_followed() {
    let sizes = [1, 65_535, 65_536, 65_537, 66_000];
    let world = world(&sizes);
    let followed = world.followed();
    for (at, from) in sizes.iter().enumerate() {
        for to in &sizes[at + 1..] {
            let hashes = world.consistency(*from, *to).expect("all tiles are there");
            let step = followed.follow(Some(world.head(*from)), world.note(*to), &hashes);
            assert_eq!(
                step,
                Ok(Step::Newer(world.head(*to).clone())),
                "{from} {to}"
            );
        }
    }
    for index in [0, 255, 256, 65_535, 65_536, 65_999] {
        let hashes = world.inclusion(index, 66_000).expect("all tiles are there");
        let entry = format!("entry {index}");
        assert!(is_included(
            world.head(66_000),
            index,
            entry.as_bytes(),
            &hashes
        ));
        assert!(!is_included(
            world.head(66_000),
            index ^ 1,
            entry.as_bytes(),
            &hashes
        ));
    }
}

#[test]
fn an_entry_is_shown_under_each_head_that_covers_it_and_under_no_other() {
    let sizes: Vec<u64> = (1..=40).chain([256, 300]).collect();
    let world = world(&sizes);
    for size in &sizes {
        for index in (0..*size).step_by(7) {
            let hashes = world.inclusion(index, *size).expect("all tiles are there");
            let entry = format!("entry {index}");
            let holds = |entry: &str, hashes: &[Hash]| {
                is_included(world.head(*size), index, entry.as_bytes(), hashes)
            };
            assert!(holds(&entry, &hashes), "{index} of {size}");
            assert!(!holds("another", &hashes));
            assert!(!holds(&entry, &[&hashes[..], &[[0; 32]]].concat()));
            if let Some((_, shorter)) = hashes.split_last() {
                assert!(!holds(&entry, shorter));
            }
        }
        assert_eq!(
            world.inclusion(*size, *size),
            None,
            "there is no such entry"
        );
    }
    assert_eq!(world.consistency(41, 40), None);
    assert_eq!(world.consistency(0, 40), Some(vec![]));
    assert_eq!(world.consistency(40, 40), Some(vec![]));
}

/// What is not there is said, and not made up.
#[test]
fn without_a_tile_there_is_no_proof() {
    let mut world = world(&[3, 300]);
    let tile = world
        .files
        .keys()
        .find(|path| path.starts_with("tile/0/000"));
    let tile = tile.expect("the first tile").clone();
    let whole = world.files.remove(&tile).expect("it was there");
    assert_eq!(world.consistency(3, 300), None);
    assert_eq!(world.inclusion(0, 300), None);
    world.files.insert(tile, whole[..64].to_vec());
    assert_eq!(world.consistency(3, 300), None, "it is too short");
}

#[test]
fn tl_03_another_history_an_older_head_and_a_strangers_head_are_refused() {
    let honest = world(&[5, 9]);
    let followed = honest.followed();
    let kept = honest.head(9);
    let same = followed.follow(Some(kept), honest.note(9), &[]);
    assert_eq!(same, Ok(Step::Same));
    let back = followed.follow(Some(kept), honest.note(5), &[]);
    assert_eq!(back, Err(Doubt::WentBack { found: 5, kept: 9 }));

    // The same key signs another history of the same size, and one that is longer.
    let mut forked = World::new();
    for size in [9, 12] {
        while forked.writer.size() < size {
            forked.push("other ");
        }
        forked.publish();
    }
    let fork = followed.follow(Some(kept), forked.note(9), &[]);
    assert_eq!(fork, Err(Doubt::Forked(9)));
    let proof = forked.consistency(9, 12).expect("its own tiles");
    let longer = followed.follow(Some(kept), forked.note(12), &proof);
    assert_eq!(longer, Err(Doubt::Unproven { found: 12, kept: 9 }));
    // Who has seen nothing cannot tell.
    let first = followed.follow(None, forked.note(12), &[]);
    assert_eq!(first, Ok(Step::Newer(forked.head(12).clone())));

    let stranger = SigningKey::from_bytes(&[8; 32]);
    let note = signed(&stranger, honest.head(9));
    let refused = followed.follow(None, note.as_bytes(), &[]);
    assert_eq!(refused, Err(Doubt::Head(HeadError::Unsigned)));
    assert!(followed.follow(None, b"", &[]).is_err());
    assert!(!followed.is_unsigned());
    assert!(Followed::new(ORIGIN.to_owned(), vec![]).is_unsigned());
}

/// Every log continues one without events.
#[test]
fn any_head_may_follow_one_over_nothing() {
    let world = world(&[3]);
    let nothing = Head {
        origin: ORIGIN.to_owned(),
        size: 0,
        root: [0; 32],
    };
    let step = world.followed().follow(Some(&nothing), world.note(3), &[]);
    assert_eq!(step, Ok(Step::Newer(world.head(3).clone())));
}
