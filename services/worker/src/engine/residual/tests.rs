//! Tests of the effect of each end on the residual, in memory and on disk.

use std::path::Path;

use merge::codec::decode;
use model::Preset;
use proptest::prelude::*;
use schemas::layout::Layout;
use schemas::run::Rounding;
use schemas::{Code, Refusal};
use trainer::{HostFeedback, HostResidual, InnerState};

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

/// A residual beside weights in memory; the global ones are zeros.
struct Scene {
    residual: Residual,
    values: HostResidual,
    global: Vec<f32>,
    local: Vec<f32>,
}

impl Scene {
    fn new(elements: usize) -> Self {
        Self {
            residual: Residual::new(Marks::new(OWNER, &layout())),
            values: HostResidual::default(),
            global: vec![0.0; elements],
            local: vec![0.0; elements],
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Residual, &mut dyn Feedback) -> T) -> T {
        let mut values = HostFeedback::new(&self.global, &self.local, &mut self.values);
        act(&mut self.residual, &mut values)
    }

    fn begin(&mut self, work: u64) -> bool {
        let begun = self.with(|residual, values| residual.begin(values, WorkId(work)));
        self.residual.withdrawn();
        begun.expect("memory does not fail")
    }

    fn ended(&mut self, work: u64, end: &ResultEnd) {
        self.with(|residual, values| residual.ended(values, WorkId(work), end))
            .expect("memory does not fail");
    }

    fn owed(&mut self) -> Vec<f32> {
        let mut owed = Vec::new();
        self.with(|_, values| values.copy_owed(&mut owed))
            .expect("memory does not fail");
        owed
    }

    fn owes_nothing(&mut self) -> bool {
        self.owed().iter().all(|value| *value == 0.0)
    }

    /// The decoded values of these pieces of a contribution of `local`.
    fn send_pieces(
        &mut self,
        work: u64,
        rounding: SeededRounding,
        local: &[f32],
        pieces: &[Range<usize>],
    ) -> Vec<f32> {
        self.begin(work);
        self.local.copy_from_slice(local);
        let (mut arrived, mut at) = (vec![0.0; local.len()], pieces.iter());
        let mut take = |bytes: Bytes| {
            let piece = at.next().expect("one for each piece").clone();
            decode(CODEC, &bytes, &mut arrived[piece]).expect("it fits");
            ControlFlow::Continue(())
        };
        self.with(|residual, values| residual.encode(values, CODEC, rounding, pieces, &mut take))
            .expect("they fit");
        arrived
    }

    /// The decoded values of a contribution of `local`, sent in pieces of `size`.
    fn send_in(
        &mut self,
        work: u64,
        (size, rounding): (usize, SeededRounding),
        local: &[f32],
    ) -> Vec<f32> {
        let starts = (0..local.len()).step_by(size);
        let pieces: Vec<_> = starts
            .map(|start| start..(start + size).min(local.len()))
            .collect();
        self.send_pieces(work, rounding, local, &pieces)
    }

    fn send(&mut self, work: u64, local: &[f32]) -> Vec<f32> {
        self.send_in(work, (local.len() / 2, SeededRounding::NEAREST), local)
    }
}

fn wave(elements: usize) -> Vec<f32> {
    (0..elements)
        .map(|place| (place as f32 * 0.37).sin())
        .collect()
}

/// A residual after one result that counts, and the values sent in the next contribution.
fn owing() -> (Scene, Vec<f32>, Vec<f32>) {
    let local = wave(1024);
    let mut scene = Scene::new(local.len());
    scene.send(1, &local);
    scene.ended(1, &ResultEnd::Counted);
    let owed = scene.owed();
    assert!(owed.iter().any(|value| *value != 0.0));
    let sent = scene.send(2, &local);
    (scene, owed, sent)
}

#[test]
fn each_end_leaves_what_the_table_says() {
    let (mut scene, owed, sent) = owing();
    scene.ended(2, &ResultEnd::Counted);
    for (at, left) in scene.owed().iter().enumerate() {
        let whole = owed[at] - wave(1024)[at];
        assert!((left + sent[at] - whole).abs() <= 1e-6, "element {at}");
    }
    for code in [Code::LeaseLost, Code::SizeMismatch, Code::TrainingFailed] {
        let (mut scene, owed, _) = owing();
        scene.ended(2, &refused(code));
        assert_eq!(scene.owed(), owed, "{code}");
    }
    let doubts = [
        refused(Code::NotFinite),
        refused(Code::NormOutlier),
        ResultEnd::Unknown,
    ];
    for end in doubts {
        let (mut scene, ..) = owing();
        scene.ended(2, &end);
        assert!(scene.owes_nothing(), "{end:?}");
    }
}

/// The shell reports an end beside the next work.
#[test]
fn an_end_is_of_one_unit_and_a_contribution_without_an_end_is_unknown() {
    let (mut scene, owed, _) = owing();
    scene.ended(1, &ResultEnd::Unknown);
    scene.ended(7, &ResultEnd::Counted);
    assert_eq!(scene.owed(), owed, "unit 2 is on its way");
    assert!(!scene.begin(2), "it has begun");
    assert!(scene.begin(3), "and here is another");
    assert!(scene.owes_nothing());
    scene.ended(2, &ResultEnd::Counted);
    assert!(scene.owes_nothing(), "too late");
}

#[test]
fn only_what_was_sent_is_cleared() {
    let (mut scene, owed, _) = owing();
    scene.ended(2, &refused(Code::LeaseLost));
    let piece = 256..512;
    let pieces = std::slice::from_ref(&piece);
    scene.send_pieces(3, SeededRounding::NEAREST, &wave(1024), pieces);
    scene.ended(3, &ResultEnd::Unknown);
    let rest = scene.owed();
    assert!(rest[256..512].iter().all(|value| *value == 0.0));
    assert_eq!(rest[..256], owed[..256]);
    assert_eq!(rest[512..], owed[512..]);
}

/// A piece that was made ahead, and that nobody wanted, was never sent.
#[test]
fn a_piece_that_nobody_took_is_still_owed() {
    let (mut scene, owed, _) = owing();
    scene.ended(2, &refused(Code::LeaseLost));
    scene.begin(3);
    let pieces = [0..256, 256..512, 512..1024];
    let mut taken = 0;
    let mut take = |_| {
        taken += 1;
        match taken {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let nearest = SeededRounding::NEAREST;
    scene
        .with(|residual, values| residual.encode(values, CODEC, nearest, &pieces, &mut take))
        .expect("they fit");
    scene.ended(3, &ResultEnd::Unknown);
    let rest = scene.owed();
    assert!(rest[..512].iter().all(|value| *value == 0.0));
    assert_eq!(rest[512..], owed[512..]);
}

#[test]
fn a_piece_with_a_value_that_is_no_number_is_cleared_though_the_result_counts() {
    let mut local = wave(1024);
    local[600] = f32::INFINITY;
    let mut scene = Scene::new(local.len());
    scene
        .with(|_, values| values.owe(0, &[0.3; 1024]))
        .expect("they fit");
    scene.send(1, &local);
    scene.ended(1, &ResultEnd::Counted);
    let owed = scene.owed();
    assert!(owed[..512].iter().all(|value| value.is_finite()));
    assert!(owed[..512].iter().any(|value| *value != 0.0));
    assert!(owed[512..].iter().all(|value| *value == 0.0));
}

#[test]
fn a_contribution_that_fails_in_the_middle_clears_what_was_handed_over() {
    let (mut scene, owed, _) = owing();
    scene.ended(2, &refused(Code::LeaseLost));
    scene.begin(3);
    let (nearest, pieces) = (SeededRounding::NEAREST, [0..256, 256..2048, 512..1024]);
    let mut take = |_| ControlFlow::Continue(());
    scene
        .with(|residual, values| residual.encode(values, CODEC, nearest, &pieces, &mut take))
        .expect_err("the second piece reaches past the end");
    scene.ended(3, &ResultEnd::Unknown);
    let rest = scene.owed();
    assert!(rest[..256].iter().all(|value| *value == 0.0));
    assert_eq!(rest[256..], owed[256..]);
}

/// What is left over would be that of the second encoding, and the first may be the one that
/// counts.
#[test]
fn a_piece_is_encoded_once_for_a_unit() {
    let (mut scene, ..) = owing();
    let piece = 512..1024;
    let mut take = |_| ControlFlow::Continue(());
    let again = scene.with(|residual, values| {
        let pieces = std::slice::from_ref(&piece);
        residual.encode(values, CODEC, SeededRounding::NEAREST, pieces, &mut take)
    });
    again.expect_err("unit 2 has sent it");
}

/// A removal that failed is tried again before anything is sent.
#[test]
fn a_contribution_waits_until_the_saved_residual_has_left_the_disk() {
    let mut scene = Scene::new(256);
    for _ in 0..2 {
        let begun = scene.with(|residual, values| residual.begin(values, WorkId(1)));
        assert!(begun.expect("memory does not fail"), "it is still on disk");
    }
    scene.residual.withdrawn();
    assert!(!scene.begin(1));
}

/// A device that fails for a while.
struct Failing<'a> {
    values: &'a mut dyn Feedback,
    /// Changes that still succeed.
    good: usize,
}

impl Failing<'_> {
    fn check(&mut self) -> Result<(), TrainerError> {
        match self.good.checked_sub(1) {
            None => Err(TrainerError::Device("played by the test".to_owned())),
            Some(good) => {
                self.good = good;
                Ok(())
            }
        }
    }
}

impl Feedback for Failing<'_> {
    fn owe(&mut self, start: usize, values: &[f32]) -> Result<(), TrainerError> {
        self.values.owe(start, values)
    }

    fn encode(
        &mut self,
        codec: CodecKind,
        rounding: SeededRounding,
        pieces: &[Range<usize>],
        take: &mut dyn FnMut(Bytes) -> ControlFlow<()>,
    ) -> Result<(), TrainerError> {
        self.values.encode(codec, rounding, pieces, take)
    }

    fn keep(&mut self, range: Range<usize>) -> Result<bool, TrainerError> {
        self.check()?;
        self.values.keep(range)
    }

    fn forget(&mut self, range: Range<usize>) -> Result<(), TrainerError> {
        self.check()?;
        self.values.forget(range)
    }

    fn copy_owed(&mut self, values: &mut Vec<f32>) -> Result<(), TrainerError> {
        self.values.copy_owed(values)
    }
}

/// One of two pieces was kept when the device failed. The other still owes what was sent.
#[test]
fn after_a_failure_of_the_device_nothing_that_was_sent_is_owed_or_saved() {
    for good in [0, 1] {
        let (mut scene, ..) = owing();
        let failed = scene.with(|residual, values| {
            let values = &mut Failing { values, good };
            residual.ended(values, WorkId(2), &ResultEnd::Counted)
        });
        failed.expect_err("the device failed");
        let saved = scene.with(|residual, values| residual.saved(values, Vec::new()));
        assert!(
            saved.expect("it reads").is_none(),
            "a restart would send it again"
        );
        let failed = scene.with(|residual, values| {
            let values = &mut Failing { values, good };
            residual.begin(values, WorkId(3))
        });
        failed.expect_err("the device still fails, so no contribution begins");
        assert!(scene.begin(3));
        assert!(scene.owes_nothing());
    }
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
        let mut scene = Scene::new(ELEMENTS);
        let (mut differences, mut merged) = (vec![0.0_f64; ELEMENTS], vec![0.0_f64; ELEMENTS]);
        for (number, (fate, seed, pieces)) in (1..).zip(units) {
            let local: Vec<f32> = (0..ELEMENTS)
                .map(|at| ((at as f32 + (seed % 1000) as f32) * 0.61).sin() * 0.1)
                .collect();
            let rule = if stochastic { Rounding::Stochastic } else { Rounding::Nearest };
            let rounding = SeededRounding { rule, seed, first_element: 0 };
            let size = ELEMENTS / pieces / 32 * 32;
            let sent = scene.send_in(number, (size, rounding), &local);
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
            scene.ended(number, &end);
            if forgets {
                prop_assert!(scene.owes_nothing());
                differences.fill(0.0);
                merged.fill(0.0);
            }
            let owed = scene.owed();
            let wholes = merged.iter().zip(&owed);
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
    let saved = Saved::new(owed.to_vec(), Marks::new(OWNER, &layout()));
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

fn taken_up(inner: &Path, owner: &str, layout: &Layout) -> Option<Vec<f32>> {
    let elements = layout.elements() as usize;
    take_up(inner, elements, &Marks::new(owner, layout))
}

#[test]
fn a_restart_keeps_it_and_nothing_else_gets_it() {
    let (layout, owed) = (layout(), wave(layout().elements() as usize));
    let (_scratch, inner) = saved(&owed, "first");
    assert_eq!(taken_up(&inner, OWNER, &layout), Some(owed.clone()));
    let mut other = layout.clone();
    other.tensors[0].name.push('x');
    for (owner, layout) in [
        (OWNER, &other),
        ("another/run/settings", &layout),
        ("domain/another/settings", &layout),
        ("", &layout),
    ] {
        let (_scratch, inner) = saved(&owed, "first");
        assert_eq!(taken_up(&inner, owner, layout), None, "{owner}");
        assert!(!path(&inner).exists() && inner.with_file_name("residual.refused").exists());
    }
}

/// The process was killed after it wrote the next state and before it wrote its residual.
#[test]
fn it_belongs_to_one_inner_state() {
    let (layout, owed) = (layout(), wave(layout().elements() as usize));
    let (_scratch, inner) = saved(&owed, "first");
    write_inner(&inner, "second");
    assert_eq!(taken_up(&inner, OWNER, &layout), None);
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
        assert_eq!(taken_up(&inner, OWNER, &layout), None);
    }
    let (_scratch, inner) = saved(&owed, "first");
    std::fs::write(path(&inner), b"nonsense").expect("written");
    assert_eq!(taken_up(&inner, OWNER, &layout), None);
    remove(&inner).expect("none is there");
}
