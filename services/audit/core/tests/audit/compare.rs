//! The comparison of merges with their record, by references alone.

use audit_core::StreamSequence;
use audit_core::recompute::{
    Comparison, Difference, Fault, NORM_TOLERANCE, Recorded, Remade, Segment,
};
use schemas::lease::Weights;
use schemas::run::RunSpec;
use schemas::snapshot::{MergeInput, MergeRecord};
use schemas::{
    ChainSequence, Chunks, Code, Digest, Fragment, Listed, ObjectRef, Refusal, Round, Tokens,
    Weight,
};

/// The chunks that round `round` published.
fn published(round: u64) -> [ObjectRef; 2] {
    ["a", "b"].map(|chunk| kit::object(&format!("{chunk} of round {round}")))
}

/// Merges of two rounds, honestly recorded: each chunk adds 8 to the sum of squares.
fn segment() -> Segment {
    let merge = |round: u64| {
        let input = |unit: u32| MergeInput {
            lease: kit::lease(kit::train(round, unit), 1),
            worker: kit::worker(unit),
            tokens: Tokens(32),
            weight: Weight(32),
            norm: None,
            cosine: None,
            chunks: Chunks::Named(Vec::new()),
        };
        let chunks = published(round).to_vec();
        let broadcast = kit::weights(round + 1, kit::BF16, chunks);
        Recorded {
            at: StreamSequence(round),
            record: MergeRecord {
                round: Round(round),
                fragment: Fragment::FIRST,
                inputs: vec![input(0), input(1)],
                broadcast: broadcast.digest(),
                unmasking: None,
            },
            broadcast,
            norm: 4.0,
            tokens: Tokens(64),
            given_up: None,
        }
    };
    Segment {
        base: None,
        restored: None,
        merges: vec![merge(0), merge(1)],
        end: None,
    }
}

fn remade(broadcast: ObjectRef) -> Remade {
    Remade {
        broadcast,
        sum_of_squares: 8.0,
        finite: true,
    }
}

/// The faults of a segment, all of whose chunks are made again; `more` is told as well.
fn faults_of(
    spec: &RunSpec,
    segment: &Segment,
    more: impl FnOnce(&mut Comparison<'_>),
) -> Vec<Option<Fault>> {
    let mut comparison = Comparison::new(spec, segment, 2);
    for index in 0..2 {
        for (place, recorded) in segment.merges.iter().enumerate() {
            let expected = match &recorded.broadcast.chunks {
                Chunks::Named(chunks) => chunks.get(index).copied(),
                Chunks::Listed(_) => None,
            };
            let made = published(place as u64)[index];
            comparison.chunk(place, index, expected, remade(made));
        }
    }
    more(&mut comparison);
    let outcomes = comparison.outcomes().into_iter();
    outcomes.map(|outcome| outcome.fault).collect()
}

fn faults(more: impl FnOnce(&mut Comparison<'_>)) -> Vec<Option<Fault>> {
    faults_of(&kit::run_spec().build(), &segment(), more)
}

fn gone(what: &str) -> Fault {
    Fault::Unproven(what.to_owned())
}

fn altered() -> Fault {
    Fault::Altered("an object".to_owned())
}

fn follows() -> Option<Fault> {
    Some(gone("it follows on round 0, which is not verified"))
}

/// What a collection deleted is neither lost nor altered; an altered object is evidence as ever.
#[test]
fn tl_04_what_was_given_up_is_told_apart_from_what_is_missing() {
    let mut segment = segment();
    for merge in &mut segment.merges {
        merge.given_up = Some(ChainSequence(70));
    }
    let spec = kit::run_spec().build();
    let given_up = Some(Fault::GivenUp(ChainSequence(70)));
    let faults = |fault: Fault| faults_of(&spec, &segment, |all| all.broken(0, fault));
    assert_eq!(faults(gone("an object")), [given_up.clone(), given_up]);
    assert_eq!(faults(altered())[0], Some(altered()));
    let fault = Fault::GivenUp(ChainSequence(70));
    assert_eq!(fault.code(), Code::ObjectsGivenUp);
    assert!(!fault.is_evidence() && fault.to_string().contains("event 70"));
    // Objects that something else needs are still there, and are compared.
    assert_eq!(faults_of(&spec, &segment, |_| ()), [None, None]);
}

#[test]
fn tl_04_what_agrees_is_verified() {
    assert_eq!(faults(|_| ()), [None, None]);
}

#[test]
fn tl_04_the_first_chunk_that_differs_is_named_and_later_rounds_are_not_judged() {
    let other = kit::object("another");
    let found = faults(|comparison| {
        assert_eq!(comparison.broken_at(), None);
        comparison.chunk(0, 0, Some(other), remade(published(0)[0]));
        comparison.chunk(0, 1, Some(other), remade(published(0)[1]));
        assert_eq!(comparison.broken_at(), Some(0));
        comparison.broken(1, altered());
    });
    let difference = Difference::Chunk {
        index: 0,
        expected: other,
        got: published(0)[0],
    };
    assert_eq!(found, [Some(Fault::Differs(difference)), follows()]);
}

#[test]
fn tl_04_evidence_comes_before_what_is_missing_and_the_first_evidence_stays() {
    let found = faults(|comparison| {
        comparison.broken(0, gone("one chunk"));
        comparison.broken(0, altered());
        comparison.broken(0, Fault::Altered("a later one".to_owned()));
        comparison.broken(0, gone("another chunk"));
    });
    assert_eq!(found, [Some(altered()), follows()]);
    let found = faults(|comparison| {
        comparison.broken(1, gone("one chunk"));
        comparison.broken(1, gone("another chunk"));
    });
    assert_eq!(found, [None, Some(gone("one chunk"))]);
}

#[test]
fn tl_04_a_fault_beside_the_merge_spoils_its_round_alone() {
    let found = faults(|comparison| {
        comparison.beside(0, altered());
        comparison.beside(0, gone("a later one"));
        comparison.end(gone("the snapshot's object"));
        comparison.end(altered());
        comparison.end(gone("the snapshot's object"));
    });
    assert_eq!(found, [Some(altered()), Some(altered())]);
}

#[test]
fn tl_04_a_parameter_that_is_no_number_is_a_difference() {
    let found = faults(|comparison| {
        let made = Remade {
            sum_of_squares: 0.0,
            finite: false,
            ..remade(published(1)[1])
        };
        comparison.chunk(1, 1, Some(published(1)[1]), made);
    });
    let difference = Difference::NotFinite { index: 1 };
    assert_eq!(found, [None, Some(Fault::Differs(difference))]);
}

#[test]
fn tl_04_figures_are_compared_and_the_last_bits_of_a_norm_are_not() {
    let spec = kit::run_spec().build();
    let with = |norm: f64, tokens: u64| {
        let mut segment = segment();
        (segment.merges[0].norm, segment.merges[0].tokens) = (norm, Tokens(tokens));
        faults_of(&spec, &segment, |comparison| {
            comparison.beside(0, altered())
        })
    };
    for close in [1.0 + NORM_TOLERANCE / 2.0, 1.0 - NORM_TOLERANCE / 2.0] {
        assert_eq!(with(4.0 * close, 64), [Some(altered()), None]);
    }
    for far in [
        1.0 + 2.0 * NORM_TOLERANCE,
        1.0 - 2.0 * NORM_TOLERANCE,
        f64::NAN,
        0.0,
    ] {
        let found = with(4.0 * far, 64);
        let norm = matches!(
            found[0],
            Some(Fault::Differs(Difference::Norm { got: 4.0, .. }))
        );
        assert!(norm && found[1].is_none(), "{far}: {found:?}");
    }
    let difference = Difference::Tokens {
        expected: Tokens(63),
        got: Tokens(64),
    };
    assert_eq!(with(4.0, 63), [Some(Fault::Differs(difference)), None]);
    // Inputs that are left out of the merge have no weight, and their tokens are not counted.
    let mut outlier = segment();
    outlier.merges[0].record.inputs[1].weight = Weight(0);
    outlier.merges[0].tokens = Tokens(32);
    assert_eq!(faults_of(&spec, &outlier, |_| ()), [None, None]);
    // A norm that is no number is written as the largest number.
    let mut segment = segment();
    segment.merges[0].norm = f64::MAX;
    let found = faults_of(&spec, &segment, |comparison| {
        let endless = Remade {
            sum_of_squares: f64::INFINITY,
            ..remade(published(0)[0])
        };
        comparison.chunk(0, 0, Some(published(0)[0]), endless);
    });
    assert_eq!(found, [None, None]);
}

#[test]
fn tl_04_a_snapshot_that_was_not_read_is_not_said_to_be_compared() {
    let (spec, segment) = (kit::run_spec().build(), segment());
    let compared = |read: bool, broken: bool| -> Vec<bool> {
        let mut comparison = Comparison::new(&spec, &segment, 2);
        if read {
            comparison.end_read();
        }
        if broken {
            comparison.broken(1, gone("a list"));
        }
        let outcomes = comparison.outcomes().into_iter();
        outcomes.map(|outcome| outcome.snapshot_compared).collect()
    };
    assert_eq!(compared(true, false), [false, true]);
    assert_eq!(compared(false, false), [false, false]);
    assert_eq!(compared(true, true), [false, false]);
}

#[test]
fn tl_04_a_norm_that_an_input_does_not_have_is_found() {
    let spec = kit::run_spec().build();
    for (norm, good) in [
        (2.0, true),
        (2.000_000_2, true),
        (2.00001, false),
        (0.0, false),
    ] {
        let mut segment = segment();
        let inputs = &mut segment.merges[1].record.inputs;
        (inputs[0].norm, inputs[1].norm) = (Some(3.0), Some(norm));
        let lease = inputs[1].lease;
        let found = faults_of(&spec, &segment, |comparison| {
            comparison.inputs(1, &[4.0, 1.0]);
            comparison.inputs(1, &[5.0, 3.0]);
        });
        let difference = Difference::InputNorm {
            lease,
            expected: f64::from(norm),
            got: 2.0,
        };
        let expected = (!good).then_some(Fault::Differs(difference));
        assert_eq!(found, [None, expected], "{norm}");
    }
}

#[test]
fn tl_04_a_cosine_that_an_input_does_not_have_is_found() {
    let spec = kit::run_spec().build();
    for (got, good) in [
        (-0.5, true),
        // The next number.
        ((-0.5_f32).next_up(), false),
        ((-0.5_f32).next_down(), false),
        (0.5, false),
        (f32::NAN, false),
    ] {
        let mut segment = segment();
        let inputs = &mut segment.merges[1].record.inputs;
        (inputs[0].cosine, inputs[1].cosine) = (None, Some(-0.5));
        let lease = inputs[1].lease;
        let found = faults_of(&spec, &segment, |all| all.cosines(1, vec![got]));
        assert_eq!(found[0], None);
        match (&found[1], good) {
            (None, true) => {}
            (Some(Fault::Differs(difference)), false) => {
                let named = Difference::Cosine {
                    lease,
                    expected: -0.5,
                    got: 0.0,
                };
                let (text, named) = (difference.to_string(), named.to_string());
                let start = named.split(", the contributions").next().unwrap();
                assert!(text.starts_with(start), "{text}");
            }
            other => panic!("{got}: {other:?}"),
        }
    }
    // One that was not made again is not verified.
    let mut segment = segment();
    segment.merges[1].record.inputs[1].cosine = Some(-0.5);
    let found = faults_of(&spec, &segment, |all| all.cosines(1, Vec::new()));
    assert!(matches!(
        found[1],
        Some(Fault::Differs(Difference::Cosine { .. }))
    ));
}

#[test]
fn tl_04_weights_of_another_form_than_the_settings_say_differ() {
    let spec = kit::run_spec().build();
    let changes: [fn(&mut Weights); 3] = [
        |weights| weights.codec = kit::FP32,
        |weights| weights.chunks = Chunks::Named(published(0)[..1].to_vec()),
        |weights| weights.chunks = Chunks::Listed(Listed::of(&published(0)).0),
    ];
    for change in changes {
        let mut segment = segment();
        change(&mut segment.merges[0].broadcast);
        let found = faults_of(&spec, &segment, |_| ());
        let form = matches!(found[0], Some(Fault::Differs(Difference::Form { .. })));
        assert!(form && found[1] == follows(), "{found:?}");
    }
}

#[test]
fn tl_04_weights_without_their_list_are_compared_by_its_digest() {
    let initial = Chunks::Listed(Listed::of(&published(9)).0);
    let spec = kit::run_spec().initial(initial).build();
    let mut segment = segment();
    for (round, merge) in (0..).zip(&mut segment.merges) {
        merge.broadcast.chunks = Chunks::Listed(Listed::of(&published(round)).0);
    }
    assert_eq!(faults_of(&spec, &segment, |_| ()), [None, None]);
    let other = Listed::of(&published(7)).0;
    segment.merges[0].broadcast.chunks = Chunks::Listed(other);
    let difference = Difference::Weights {
        expected: other.list.digest,
        got: Listed::of(&published(0)).0.list.digest,
    };
    let found = faults_of(&spec, &segment, |_| ());
    assert_eq!(found, [Some(Fault::Differs(difference)), follows()]);
}

#[test]
fn tl_04_a_refusal_says_whose_fault_it_is() {
    let of = |code: Code| {
        let fault = Fault::of(&Refusal::new(code, "an object"));
        (fault.code(), fault.is_evidence())
    };
    for code in [Code::ObjectMismatch, Code::ObjectTooLarge] {
        assert_eq!(of(code), (Code::ObjectAltered, true), "{code}");
    }
    for code in [
        Code::ListInvalid,
        Code::ListMismatch,
        Code::LayoutMismatch,
        Code::SizeMismatch,
        Code::SpecInvalid,
        Code::ReplayDiverged,
    ] {
        assert_eq!(of(code), (Code::RoundDiverged, true), "{code}");
    }
    for code in [
        Code::ObjectMissing,
        Code::StoreUnreachable,
        Code::UrlInvalid,
    ] {
        assert_eq!(of(code), (Code::RoundUnproven, false), "{code}");
    }
    // A store that is away is told apart from an object that is gone.
    let away = Fault::of(&Refusal::new(Code::StoreUnreachable, "an object"));
    assert!(away.to_string().starts_with("DL"), "{away}");
    let snapshot = Difference::Snapshot {
        round: Round(2),
        what: "its weights".to_owned(),
    };
    let snapshot = Fault::Differs(snapshot);
    assert_eq!(snapshot.code(), Code::SnapshotDiverged);
    assert_eq!(snapshot.to_string(), "snapshot 2: its weights");
}

#[test]
fn tl_04_a_difference_names_both_digests() {
    let [expected, got] = published(0);
    let text = |difference: Difference| Fault::Differs(difference).to_string();
    let chunk = text(Difference::Chunk {
        index: 3,
        expected,
        got,
    });
    let (expected, got): (Digest, Digest) = (expected.digest, got.digest);
    let whole = text(Difference::Weights { expected, got });
    for text in [&chunk, &whole] {
        assert!(
            text.contains(&format!("the ledger has {expected}")),
            "{text}"
        );
        assert!(text.contains(&format!("the merge gives {got}")), "{text}");
    }
    assert!(chunk.starts_with("chunk 3: "), "{chunk}");
}
