//! The process ends between any two writes, and another one goes on.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tlog::layout::{Bundle, CHECKPOINT, Tile};
use tlog::{EVENTS_MAX, HEAD_EVERY_MILLIS, Hash, Head, Writer, WriterError};

use crate::support::Files;
use crate::support::{ORIGIN, begin, entry, public, publish, published, sign, write};

/// Notes every head that stands in a file, and fails if there are two of one size.
fn note_heads(files: &Files, seen: &mut BTreeMap<u64, Hash>) {
    for (path, bytes) in files {
        if path != CHECKPOINT && !path.starts_with("heads/") {
            continue;
        }
        let head = Head::open(bytes, ORIGIN, &[public()]).expect("the writer signed it");
        let root = *seen.entry(head.size).or_insert(head.root);
        assert_eq!(root, head.root, "two heads of size {}", head.size);
        assert!(is_whole(files, head.size), "a head before its files");
    }
}

/// True if every bundle and tile of a log of `size` entries is there, as it is or as it has become.
fn is_whole(files: &Files, size: u64) -> bool {
    let there = |path: String, full: String| files.contains_key(&path) || files.contains_key(&full);
    let bundles = Bundle::all(size).all(|one| there(one.path(), one.full().path()));
    let tiles = Tile::partial(size).into_iter();
    bundles
        && tiles
            .map(|one| (one.path(), one.full().path()))
            .all(|(a, b)| there(a, b))
}

/// In each round some entries come and a head is begun; the process dies before its `cut`th write.
#[derive(Clone, Debug)]
struct Life {
    entries: u64,
    cut: usize,
}

#[test]
fn fg_07_a_process_that_dies_between_any_two_writes_never_leads_to_two_heads_of_one_size() {
    for first in [1, 5, 255, 256, 257, 300] {
        for second in [1, 3, 255, 256, 600] {
            let mut files = Files::new();
            let mut writer = begin(&mut files, 0..first);
            publish(&mut writer, &mut files);
            (first..first + second).for_each(|at| writer.push(&entry(at), 0).unwrap());
            let batch = writer.batch(sign).unwrap();
            let steps = batch.writes.len() + batch.removals.len();
            for cut in 0..=steps {
                let (mut left, mut seen) = (files.clone(), BTreeMap::new());
                batch
                    .writes
                    .iter()
                    .take(cut)
                    .for_each(|one| write(&mut left, one));
                let removed = cut.saturating_sub(batch.writes.len());
                for path in batch.removals.iter().take(removed) {
                    left.remove(path);
                }
                note_heads(&left, &mut seen);
                // The next process has one more entry, or none.
                for more in [0, 1] {
                    let (mut left, mut seen) = (left.clone(), seen.clone());
                    let mut next = begin(&mut left, 0..first + second + more);
                    publish(&mut next, &mut left);
                    note_heads(&left, &mut seen);
                    let head = published(&left).expect("it was published");
                    assert_eq!(head.size, first + second + more, "cut {cut}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn fg_07_many_deaths_lead_to_the_log_of_one_life(
        lives in prop::collection::vec((0u64..400, 0usize..16), 1..8)
    ) {
        let lives = lives.into_iter().map(|(entries, cut)| Life { entries, cut });
        let (mut files, mut seen, mut kept) = (Files::new(), BTreeMap::new(), 0);
        for Life { entries, cut } in lives {
            let mut writer = begin(&mut files, 0..kept);
            (kept..kept + entries).for_each(|at| writer.push(&entry(at), 0).unwrap());
            kept += entries;
            if let Some(batch) = writer.batch(sign) {
                batch.writes.iter().take(cut).for_each(|one| write(&mut files, one));
            }
            note_heads(&files, &mut seen);
        }
        let mut writer = begin(&mut files, 0..kept);
        publish(&mut writer, &mut files);
        note_heads(&files, &mut seen);
        let mut one_life = Files::new();
        publish(&mut begin(&mut Files::new(), 0..kept), &mut one_life);
        prop_assert_eq!(published(&files), published(&one_life));
        for (path, bytes) in &one_life {
            prop_assert_eq!(files.get(path), Some(bytes), "{}", path);
        }
    }
}

#[test]
fn fg_07_a_writer_whose_entries_are_not_those_of_its_head_signs_nothing() {
    let mut files = Files::new();
    publish(&mut begin(&mut Files::new(), 0..300), &mut files);
    let begun = |order: Vec<u64>| {
        let mut writer = Writer::new(ORIGIN.to_owned(), published(&files))?;
        order
            .into_iter()
            .try_for_each(|at| writer.push(&entry(at), 0))?;
        writer.begun()
    };
    assert_eq!(begun((0..300).collect()), Ok(()));
    assert_eq!(begun((0..301).collect()), Ok(()));
    let (size, found) = (300, 299);
    assert_eq!(
        begun((0..299).collect()),
        Err(WriterError::Behind { size, found })
    );
    let contradicted = Err(WriterError::Contradicted { size });
    assert_eq!(begun((1..301).collect()), contradicted);
    let mut swapped: Vec<u64> = (0..300).collect();
    swapped.swap(7, 8);
    assert_eq!(begun(swapped), contradicted);
    let other = Writer::new("diloco/other".to_owned(), published(&files));
    assert_eq!(other.err(), Some(WriterError::Foreign));
}

#[test]
fn a_head_comes_after_ten_seconds_or_256_events_and_never_without_events() {
    let mut files = Files::new();
    let mut writer = begin(&mut files, []);
    assert!(!writer.is_due(u64::MAX));
    assert_eq!(writer.batch(sign), None);
    writer.push(&entry(0), 1_000).unwrap();
    writer.push(&entry(1), 9_000).unwrap();
    assert!(!writer.is_due(1_000 + HEAD_EVERY_MILLIS - 1));
    assert!(
        writer.is_due(1_000 + HEAD_EVERY_MILLIS),
        "the oldest counts"
    );
    publish(&mut writer, &mut files).unwrap();
    assert!(!writer.is_due(u64::MAX));
    assert_eq!(writer.batch(sign), None, "nothing is new");
    for index in 2..2 + EVENTS_MAX {
        assert!(!writer.is_due(0), "{index}");
        writer.push(&entry(index), 0).unwrap();
    }
    assert!(writer.is_due(0));
    assert_eq!(writer.waiting(), EVENTS_MAX);
}

/// Only the newest head has a file that is written more than once.
#[test]
fn fg_07_a_process_that_begins_again_gives_out_what_it_wrote_only_to_fill_gaps() {
    let mut files = Files::new();
    let kept = 0..2 * EVENTS_MAX + 3;
    publish(&mut begin(&mut Files::new(), kept.clone()), &mut files);
    let mut writer = begin(&mut files, kept);
    assert_eq!(writer.take_full(), [], "a head covers all of them");
    let recalled = writer.take_recalled();
    let published: Files = files
        .iter()
        .filter(|(path, _)| path.starts_with("tile/"))
        .map(|(path, bytes)| (path.clone(), bytes.clone()))
        .collect();
    assert!(recalled.iter().all(|write| !write.replaces()));
    let recalled: Files = recalled
        .into_iter()
        .map(|one| (one.path, one.bytes))
        .collect();
    assert_eq!(recalled, published);
    assert_eq!(writer.take_recalled(), [], "they are given out once");
}

/// Files are written while entries come.
#[test]
fn entries_that_come_before_a_head_is_published_wait_for_the_next() {
    let mut files = Files::new();
    let mut writer = begin(&mut files, 0..3);
    let batch = writer.batch(sign).unwrap();
    writer.push(&entry(3), 5_000).unwrap();
    batch.writes.iter().for_each(|one| write(&mut files, one));
    writer.published(&batch.head);
    assert_eq!((batch.head.size, writer.waiting()), (3, 1));
    assert!(!writer.is_due(5_000 + HEAD_EVERY_MILLIS - 1));
    assert!(writer.is_due(5_000 + HEAD_EVERY_MILLIS));
    assert_eq!(publish(&mut writer, &mut files).unwrap().size, 4);
    let mut one_life = Files::new();
    let mut other = begin(&mut one_life, 0..4);
    assert_eq!(
        publish(&mut other, &mut one_life).map(|head| head.root),
        published(&files).map(|head| head.root)
    );
}

/// A reader of any older head finds its files, or full ones that cover them.
#[test]
fn fg_07_partial_tiles_stay_until_their_full_ones_are_under_a_head() {
    let mut files = Files::new();
    let mut writer = begin(&mut files, 0..3);
    let partial = |files: &Files| {
        let paths = files.keys().filter(|path| path.contains(".p/"));
        paths.cloned().collect::<Vec<_>>()
    };
    publish(&mut writer, &mut files);
    for index in 3..6 {
        writer.push(&entry(index), 0).unwrap();
        publish(&mut writer, &mut files);
    }
    assert_eq!(partial(&files).len(), 8, "{:?}", partial(&files));
    // A process that begins later removes what those before it have left.
    let mut writer = begin(&mut files, 0..6);
    (6..255).for_each(|at| writer.push(&entry(at), 0).unwrap());
    assert_eq!(writer.batch(sign).unwrap().removals, [""; 0]);
    publish(&mut writer, &mut files);
    assert_eq!(partial(&files).len(), 10);
    writer.push(&entry(255), 0).unwrap();
    publish(&mut writer, &mut files);
    assert_eq!(partial(&files), ["tile/1/000.p/1"]);
    (256..300).for_each(|at| writer.push(&entry(at), 0).unwrap());
    assert_eq!(writer.batch(sign).unwrap().removals, [""; 0], "once");
    publish(&mut writer, &mut files);
    for size in [3, 4, 5, 6, 255, 256, 300] {
        assert!(files.contains_key(&format!("heads/{size}")));
        assert!(is_whole(&files, size), "{size}");
    }
}

#[test]
fn an_entry_that_no_bundle_can_hold_is_refused() {
    let mut writer = begin(&mut Files::new(), []);
    assert_eq!(
        writer.push(&vec![0; 65_536], 0),
        Err(WriterError::TooLong(65_536))
    );
    assert_eq!(writer.push(&vec![0; 65_535], 0), Ok(()));
    assert_eq!(writer.size(), 1);
}

/// Later entries mend no contradiction.
fn assert_signs_nothing_more(mut writer: Writer, size: u64) {
    let contradicted = Err(WriterError::Contradicted { size });
    assert_eq!(writer.push(&entry(77), 0), contradicted);
    assert_eq!(writer.begun(), contradicted);
    assert!(!writer.is_due(u64::MAX) && writer.waiting() == 0);
    assert!(writer.batch(sign).is_none());
}

/// A head that was signed binds, wherever it is kept.
#[test]
fn fg_07_no_head_is_signed_before_the_entries_lead_to_one_that_is_kept_elsewhere() {
    let mut files = Files::new();
    let elsewhere = publish(&mut begin(&mut Files::new(), 0..20), &mut files).unwrap();
    let newer = || Writer::new(ORIGIN.to_owned(), None).unwrap();
    let mut writer = newer();
    writer.bind(&elsewhere).unwrap();
    for index in 0..19 {
        writer.push(&entry(index), 0).unwrap();
        assert_eq!((writer.missing_up_to(), writer.waiting()), (Some(20), 0));
        assert!(!writer.is_due(u64::MAX));
        assert!(writer.batch(sign).is_none(), "{index}");
    }
    writer.push(&entry(19), 0).unwrap();
    assert_eq!((writer.missing_up_to(), writer.waiting()), (None, 20));
    assert!(writer.is_due(u64::MAX));
    assert_eq!(writer.batch(sign).unwrap().head, elsewhere);
    writer.published(&elsewhere);
    assert_eq!(writer.waiting(), 0);
    // Other entries are found at the size of that head, be it newer or older than the own one.
    let mut other = newer();
    other.bind(&elsewhere).unwrap();
    let pushed: Result<Vec<()>, _> = (0..20).map(|at| other.push(&entry(at + 1), 0)).collect();
    assert_eq!(pushed, Err(WriterError::Contradicted { size: 20 }));
    assert_signs_nothing_more(other, 20);
    let mut ahead = newer();
    let root = [1; 32];
    let size = 20;
    let forked = Head {
        root,
        ..elsewhere.clone()
    };
    ahead.bind(&forked).unwrap();
    let pushed: Result<Vec<()>, _> = (0..30).map(|at| ahead.push(&entry(at), 0)).collect();
    assert_eq!(pushed, Err(WriterError::Contradicted { size }));
    assert_signs_nothing_more(ahead, 20);
    let mut published = Writer::new(ORIGIN.to_owned(), Some(forked.clone())).unwrap();
    let pushed: Result<Vec<()>, _> = (0..30).map(|at| published.push(&entry(at), 0)).collect();
    assert_eq!(pushed, Err(WriterError::Contradicted { size }));
    assert_signs_nothing_more(published, 20);
    let mut own = Writer::new(ORIGIN.to_owned(), Some(elsewhere.clone())).unwrap();
    assert_eq!(own.bind(&forked), Err(WriterError::Contradicted { size }));
    assert_signs_nothing_more(own, 20);
    let mut own = Writer::new(ORIGIN.to_owned(), Some(elsewhere.clone())).unwrap();
    assert_eq!(own.bind(&elsewhere), Ok(()));
    let origin = "diloco/other".to_owned();
    assert_eq!(
        own.bind(&Head {
            origin,
            ..elsewhere
        }),
        Err(WriterError::Foreign)
    );
}

#[test]
fn fg_07_a_published_head_releases_a_log_from_no_newer_one() {
    let (mut files, mut older) = (Files::new(), Files::new());
    let elsewhere = publish(&mut begin(&mut Files::new(), 0..20), &mut files).unwrap();
    let own = publish(&mut begin(&mut Files::new(), 0..10), &mut older).unwrap();
    let mut writer = Writer::new(ORIGIN.to_owned(), Some(own.clone())).unwrap();
    writer.bind(&elsewhere).unwrap();
    (0..10).for_each(|at| writer.push(&entry(at), 0).unwrap());
    writer.published(&own);
    assert_eq!(writer.missing_up_to(), Some(20));
    (10..20).for_each(|at| writer.push(&entry(at), 0).unwrap());
    assert_eq!((writer.missing_up_to(), writer.waiting()), (None, 10));
}

/// A log of no entries binds to nothing.
#[test]
fn a_head_over_nothing_is_missing_nothing() {
    let nothing = Head {
        origin: ORIGIN.to_owned(),
        size: 0,
        root: [0; 32],
    };
    let mut writer = Writer::new(ORIGIN.to_owned(), None).unwrap();
    writer.bind(&nothing).unwrap();
    assert_eq!(writer.missing_up_to(), None);
    writer.push(&entry(0), 0).unwrap();
    assert_eq!(writer.waiting(), 1);
}
