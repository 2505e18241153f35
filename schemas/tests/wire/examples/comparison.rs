//! Seals, those that leave out contributions, and the comparison of directions before them.

use schemas::event::{Event, LedgerEvent};
use schemas::foundry::{self, FoundryAnswer, FoundryOrder};
use schemas::member::Session;
use schemas::snapshot::MergeInput;
use schemas::sync::{ComparedInput, SealedInput};
use schemas::{Code, Epoch, Fragment, Round, Tokens, UnitIndex, V, Weight};

use super::{Example, event, example, lease, object, run, worker};

/// A seal of `inputs` inputs, each with the largest numbers.
pub(crate) fn sealed(inputs: usize) -> LedgerEvent {
    let input = SealedInput {
        unit: UnitIndex(u32::MAX),
        epoch: Epoch(u64::MAX),
        weight: Weight(u64::MAX),
    };
    LedgerEvent::RoundSealed {
        round: Round(u64::MAX),
        fragment: Fragment(u32::MAX),
        inputs: vec![input; inputs],
        left_out: Vec::new(),
        rest: u32::MAX,
    }
}

/// A seal that leaves out all of its `inputs`, with the largest numbers that a run can have.
pub(crate) fn sealed_without(inputs: usize) -> LedgerEvent {
    let unit = UnitIndex(schemas::limits::UNITS_MAX - 1);
    let input = SealedInput {
        unit,
        epoch: Epoch(u32::MAX.into()),
        weight: Weight(0),
    };
    LedgerEvent::RoundSealed {
        round: Round(u64::MAX),
        fragment: Fragment(u32::MAX),
        inputs: vec![input; inputs],
        left_out: vec![(unit, Code::DirectionOutlier); inputs],
        rest: u32::MAX,
    }
}

/// A comparison of `inputs` contributions, each with the largest numbers.
pub(crate) fn compared(inputs: usize) -> LedgerEvent {
    let input = ComparedInput {
        unit: UnitIndex(u32::MAX),
        epoch: Epoch(u64::MAX),
        cosine: -0.3,
    };
    LedgerEvent::RoundCompared {
        round: Round(u64::MAX),
        cosines: vec![input; inputs],
    }
}

pub(super) fn all() -> Vec<Example> {
    vec![
        Example {
            name: "event of a seal that leaves out",
            ..example(&event(Event::Ledger(sealed_without(3))))
        },
        Example {
            name: "event of a comparison",
            ..example(&event(Event::Ledger(compared(2))))
        },
        Example {
            name: "foundry order to compare",
            ..example(&FoundryOrder {
                v: V,
                run: run(),
                session: Session(7),
                order: foundry::Order::Compare {
                    round: Round(3),
                    inputs: vec![MergeInput {
                        lease: lease(),
                        worker: worker(),
                        tokens: Tokens(32),
                        weight: Weight(32),
                        norm: Some(1.5),
                        cosine: Some(-0.25),
                        chunks: vec![object()].into(),
                    }],
                },
            })
        },
        Example {
            name: "foundry answer of a comparison",
            ..example(&FoundryAnswer {
                v: V,
                run: run(),
                session: Session(7),
                answer: foundry::Answer::Compared {
                    round: Round(3),
                    outcome: Ok(vec![ComparedInput {
                        unit: UnitIndex(1),
                        epoch: Epoch(2),
                        cosine: -0.25,
                    }]),
                },
            })
        },
    ]
}
