//! Tests of the effect of each end on the residual, in memory and on disk.

use std::path::Path;

use merge::codec::decode;
use model::Preset;
use proptest::prelude::*;
use schemas::layout::Layout;
use schemas::run::Rounding;
use trainer::InnerState;

use super::file::path;
use super::*;

const CODEC: CodecKind = CodecKind::E3m0;
const OWNER: &str = "domain/run/settings";

fn layout() -> Layout {
    let preset = Preset::named("reference").expect("a preset");
    preset.config.layout()
}

fn refused(code: Code) -> ResultEnd {
    ResultEnd::Refused(Refusal::new(code, "played by the test"))
}

fn fresh(elements: usize) -> Residual {
    Residual::new(vec![0.0; elements], Marks::new(OWNER, &layout()))
}

/// The decoded values of a contribution of `local` from zero, sent in pieces of `size`.
fn send_in(
    residual: &mut Residual,
    work: u64,
    (size, rounding): (usize, SeededRounding),
    local: &[f32],
) -> Vec<f32> {
    residual.begin(WorkId(work));
    let mut arrived = vec![0.0; local.len()];
    for start in (0..local.len()).step_by(size) {
        let range = start..(start + size).min(local.len());
        let (base, local) = (vec![0.0; range.len()], &local[range.clone()]);
        let bytes = residual
            .encode(CODEC, rounding.skip(start), range.clone(), &base, local)
            .expect("it fits");
        decode(CODEC, &bytes, &mut arrived[range]).expect("it fits");
    }
    arrived
}

fn send(residual: &mut Residual, work: u64, local: &[f32]) -> Vec<f32> {
    let how = (local.len() / 2, SeededRounding::NEAREST);
    send_in(residual, work, how, local)
}

fn wave(elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|place| (place as f32 * 0.37).sin())
        .collect()
}

/// A residual after one result that counts, and the values sent in the next contribution.
fn owing() -> (Residual, Vec<f32>, Vec<f32>) {
    let local = wave(1024);
    let mut residual = fresh(local.len());
    send(&mut residual, 1, &local);
    residual.ended(WorkId(1), &ResultEnd::Counted);
    let owed = residual.owed.clone();
    assert!(owed.iter().any(|value| *value != 0.0));
    let sent = send(&mut residual, 2, &local);
    (residual, owed, sent)
}

#[test]
fn each_end_leaves_what_the_table_says() {
    let (mut residual, owed, sent) = owing();
    residual.ended(WorkId(2), &ResultEnd::Counted);
    for (at, left) in residual.owed.iter().enumerate() {
        let whole = owed[at] - wave(1024)[at];
        assert!((left + sent[at] - whole).abs() <= 1e-6, "element {at}");
    }
    for code in [Code::LeaseLost, Code::SizeMismatch, Code::TrainingFailed] {
        let (mut residual, owed, _) = owing();
        residual.ended(WorkId(2), &refused(code));
        assert_eq!(residual.owed, owed, "{code}");
    }
    let doubts = [
        refused(Code::NotFinite),
        refused(Code::NormOutlier),
        ResultEnd::Unknown,
    ];
    for end in doubts {
        let (mut residual, ..) = owing();
        residual.ended(WorkId(2), &end);
        assert!(residual.owed.iter().all(|value| *value == 0.0), "{end:?}");
    }
}

/// The shell reports an end beside the next work.
#[test]
fn an_end_is_of_one_unit_and_a_contribution_without_an_end_is_unknown() {
    let (mut residual, owed, _) = owing();
    residual.ended(WorkId(1), &ResultEnd::Unknown);
    residual.ended(WorkId(7), &ResultEnd::Counted);
    assert_eq!(residual.owed, owed, "unit 2 is on its way");
    assert!(!residual.begin(WorkId(2)), "it has begun");
    assert!(residual.begin(WorkId(3)), "and here is another");
    assert!(residual.owed.iter().all(|value| *value == 0.0));
    residual.ended(WorkId(2), &ResultEnd::Counted);
    assert!(residual.owed.iter().all(|value| *value == 0.0), "too late");
}

#[test]
fn only_what_was_sent_is_cleared() {
    let (mut residual, owed, _) = owing();
    residual.ended(WorkId(2), &refused(Code::LeaseLost));
    residual.begin(WorkId(3));
    let (base, local) = ([0.0; 256], wave(256));
    let encoded = residual.encode(CODEC, SeededRounding::NEAREST, 256..512, &base, &local);
    encoded.expect("it fits");
    residual.ended(WorkId(3), &ResultEnd::Unknown);
    assert!(residual.owed[256..512].iter().all(|value| *value == 0.0));
    assert_eq!(residual.owed[..256], owed[..256]);
    assert_eq!(residual.owed[512..], owed[512..]);
}

#[test]
fn a_piece_with_a_value_that_is_no_number_is_cleared_though_the_result_counts() {
    let (mut residual, ..) = owing();
    residual.left[600] = f32::INFINITY;
    let first = residual.left[..512].to_vec();
    residual.ended(WorkId(2), &ResultEnd::Counted);
    assert_eq!(residual.owed[..512], first);
    assert!(residual.owed[512..].iter().all(|value| *value == 0.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Since the last unknown end, the merged part and the owed part together are the differences
    /// of the units that count: nothing is missing and nothing is there twice, with stochastic
    /// rounding too.
    #[test]
    fn what_was_merged_and_what_is_owed_are_the_differences_that_count(
        units in prop::collection::vec((0_u8..6, any::<u64>(), 1_usize..5), 1..24),
        stochastic in any::<bool>(),
    ) {
        const ELEMENTS: usize = 256;
        let mut residual = fresh(ELEMENTS);
        let (mut differences, mut merged) = (vec![0.0_f64; ELEMENTS], vec![0.0_f64; ELEMENTS]);
        for (number, (fate, seed, pieces)) in (1..).zip(units) {
            let local: Vec<f32> = (0..ELEMENTS)
                .map(|at| ((at as f32 + (seed % 1000) as f32) * 0.61).sin() * 0.1)
                .collect();
            let rule = if stochastic { Rounding::Stochastic } else { Rounding::Nearest };
            let rounding = SeededRounding { rule, seed, first_element: 0 };
            let size = ELEMENTS / pieces / 32 * 32;
            let sent = send_in(&mut residual, number, (size, rounding), &local);
            let (end, forgets) = match fate {
                0..=2 => (ResultEnd::Counted, false),
                3 => (refused(Code::LeaseLost), false),
                4 => (refused(Code::NormOutlier), true),
                _ => (ResultEnd::Unknown, true),
            };
            if end == ResultEnd::Counted {
                let sums = differences.iter_mut().zip(&mut merged);
                for ((difference, merged), (local, sent)) in sums.zip(local.iter().zip(&sent)) {
                    *difference -= f64::from(*local);
                    *merged += f64::from(*sent);
                }
            }
            residual.ended(WorkId(number), &end);
            if forgets {
                prop_assert!(residual.owed.iter().all(|owed| *owed == 0.0));
                differences.fill(0.0);
                merged.fill(0.0);
            }
            let wholes = merged.iter().zip(&residual.owed);
            for ((merged, owed), difference) in wholes.zip(&differences) {
                let whole = merged + f64::from(*owed);
                prop_assert!((whole - difference).abs() < 1e-5, "{whole} and {difference}");
            }
        }
    }
}

/// A folder with an inner state under this name, and with the residual of `owed` that belongs to
/// it.
fn saved(owed: &[f32], name: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let scratch = tempfile::tempdir().expect("a folder");
    let inner = scratch.path().join("inner.safetensors");
    write_inner(&inner, name);
    let residual = Residual::new(owed.to_vec(), Marks::new(OWNER, &layout()));
    let saved = residual.saved();
    saved.write(&inner, name).expect("written");
    saved.put_in_place(&inner).expect("in place");
    (scratch, inner)
}

fn write_inner(inner: &Path, name: &str) {
    let (layout, mut state) = (layout(), InnerState::default());
    let elements = layout.elements() as usize;
    let zeros = vec![0.0; elements];
    state.retake(&layout, 0).copy(&zeros, &zeros);
    state.write_named(inner, name).expect("written");
}

fn take_up(inner: &Path, owner: &str, layout: &Layout) -> Vec<f32> {
    let elements = layout.elements() as usize;
    Residual::take_up(inner, elements, Marks::new(owner, layout)).owed
}

#[test]
fn a_restart_keeps_it_and_nothing_else_gets_it() {
    let (layout, owed) = (layout(), wave(layout().elements() as usize));
    let (_scratch, inner) = saved(&owed, "first");
    assert_eq!(take_up(&inner, OWNER, &layout), owed);
    let mut other = layout.clone();
    other.tensors[0].name.push('x');
    for (owner, layout) in [
        (OWNER, &other),
        ("another/run/settings", &layout),
        ("domain/another/settings", &layout),
        ("", &layout),
    ] {
        let (_scratch, inner) = saved(&owed, "first");
        let taken = take_up(&inner, owner, layout);
        assert!(taken.iter().all(|owed| *owed == 0.0), "{owner}");
        assert!(!path(&inner).exists() && inner.with_file_name("residual.refused").exists());
    }
}

/// The process was killed after it wrote the next state and before it wrote its residual.
#[test]
fn it_belongs_to_one_inner_state() {
    let (layout, owed) = (layout(), wave(layout().elements() as usize));
    let (_scratch, inner) = saved(&owed, "first");
    write_inner(&inner, "second");
    assert!(
        take_up(&inner, OWNER, &layout)
            .iter()
            .all(|owed| *owed == 0.0)
    );
    assert!(
        !path(&inner).exists(),
        "it does not come back with a state of its name"
    );
}

#[test]
fn values_that_are_no_numbers_are_put_aside() {
    let (layout, mut owed) = (layout(), wave(layout().elements() as usize));
    for special in [f32::NAN, f32::INFINITY] {
        owed[7] = special;
        let (_scratch, inner) = saved(&owed, "first");
        assert!(
            take_up(&inner, OWNER, &layout)
                .iter()
                .all(|owed| *owed == 0.0)
        );
    }
    let (_scratch, inner) = saved(&owed, "first");
    std::fs::write(path(&inner), b"nonsense").expect("written");
    assert!(
        take_up(&inner, OWNER, &layout)
            .iter()
            .all(|owed| *owed == 0.0)
    );
    remove(&inner).expect("none is there");
}
