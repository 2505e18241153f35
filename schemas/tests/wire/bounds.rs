//! Every limit that the rest of the program assumes, from both sides: the last valid value, and the
//! first invalid one.

use schemas::data::{BYTE_VOCABULARY, DataManifest, Shard};
use schemas::event::{Event, LedgerEvent};
use schemas::layout::{Layout, TensorSpec};
use schemas::lease::Done;
use schemas::limits::{
    DIMENSIONS_MAX, EVENT_BYTES_MAX, LEASE_MAX, LEASE_MIN, NAMED_CHUNKS_MAX, OBJECT_BYTES_MAX,
    SEQUENCE_TOKENS_MAX, SHARDS_MAX, TENSORS_MAX, TEXT_BYTES_MAX, UNITS_MAX, WORKERS_MAX,
};
use schemas::run::{CodecKind, Combination, Comparison, OuterOptimizer, RunSpec};
use schemas::subject::Incoming;
use schemas::{
    Answer, Bytes, Code, Digest, Message, Millis, ObjectRef, Refusal, Reply, Round, Steps, Tokens,
    V,
};
use serde_bytes::ByteArray;

use crate::examples;

fn shard(tokens: u64, width: u64) -> Shard {
    Shard {
        object: ObjectRef {
            digest: Digest::of(b"shard"),
            bytes: Bytes(tokens * width),
        },
        tokens: Tokens(tokens),
    }
}

fn manifest() -> DataManifest {
    kit::data()
        .train(vec![shard(100, 1)])
        .held_out(vec![shard(10, 1)])
        .build()
}

/// A data set of another tokenizer, with tokens of `width` bytes.
fn of_vocabulary(vocabulary: u32, width: u8) -> DataManifest {
    let shards = vec![shard(100, width.into())];
    let words = kit::data().words(shard(1, 1).object, vocabulary);
    let mut manifest = words.train(shards.clone()).held_out(shards).build();
    manifest.token_bytes = width;
    manifest
}

/// A contribution that names its chunks, with all that an accepted one may have.
#[test]
fn the_largest_contribution_fits_into_its_event() {
    let mut accepted = examples::accepted();
    let LedgerEvent::ContributionAccepted {
        contribution,
        provenance,
        ..
    } = &mut accepted
    else {
        panic!("the example of an accepted contribution")
    };
    let chunk = ObjectRef {
        digest: Digest::of(b"chunk"),
        bytes: OBJECT_BYTES_MAX,
    };
    contribution.chunks = vec![chunk; NAMED_CHUNKS_MAX].into();
    (contribution.tokens, contribution.steps) = (Tokens(u64::MAX), Steps(u64::MAX));
    contribution.privacy = Some(kit::privacy().applied());
    contribution.cohort = Some(Digest::of(b"cohort"));
    *provenance = Some(ByteArray::new([8; 64]));
    let bytes = examples::event(Event::Ledger(accepted)).encode().len();
    assert!(bytes > EVENT_BYTES_MAX / 2, "{bytes}");
    assert!(bytes <= EVENT_BYTES_MAX, "{bytes}");
}

#[test]
fn a_manifest_of_data_agrees_with_itself_and_with_the_limits() {
    manifest().validate().expect("it agrees");
    for (vocabulary, width) in [
        (2, 1),
        (0x100, 1),
        (0x101, 2),
        (0x1_0000, 2),
        (0x1_0001, 4),
        (u32::MAX, 4),
    ] {
        of_vocabulary(vocabulary, width)
            .validate()
            .unwrap_or_else(|refusal| panic!("{vocabulary}: {refusal}"));
    }
    let largest = shard(OBJECT_BYTES_MAX.get(), 1);
    DataManifest {
        train: vec![largest],
        ..manifest()
    }
    .validate()
    .expect("the largest object");
    let byte = |change: &dyn Fn(&mut DataManifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        manifest
    };
    let wrong = [
        ("one token", of_vocabulary(1, 1)),
        ("no token", of_vocabulary(0, 1)),
        (
            "bytes that are more than bytes",
            byte(&|manifest| manifest.vocabulary = BYTE_VOCABULARY - 1),
        ),
        ("wide tokens of a small vocabulary", of_vocabulary(0x100, 2)),
        ("narrow tokens of a large one", of_vocabulary(0x101, 1)),
        (
            "nothing to train on",
            byte(&|manifest| manifest.train.clear()),
        ),
        (
            "nothing held out",
            byte(&|manifest| manifest.held_out.clear()),
        ),
        (
            "too many shards",
            byte(&|manifest| manifest.train = vec![shard(1, 1); SHARDS_MAX + 1]),
        ),
        (
            "an empty shard",
            byte(&|manifest| manifest.held_out.push(shard(0, 1))),
        ),
        (
            "a token too many",
            byte(&|manifest| manifest.train[0].tokens = Tokens(101)),
        ),
        (
            "a byte too many",
            byte(&|manifest| manifest.train[0].object.bytes = Bytes(101)),
        ),
        (
            "tokens without end",
            byte(&|manifest| manifest.train[0].tokens = Tokens(u64::MAX)),
        ),
        (
            "too large an object",
            byte(&|manifest| manifest.train[0] = shard(OBJECT_BYTES_MAX.get() + 1, 1)),
        ),
    ];
    for (name, manifest) in wrong {
        assert_eq!(
            manifest.validate().expect_err(name).code,
            Code::DataInvalid,
            "{name}"
        );
    }
    byte(&|manifest| manifest.train = vec![shard(1, 1); SHARDS_MAX])
        .validate()
        .expect("as many as are allowed");
}

#[test]
fn fg_11_a_layout_has_names_and_a_size_that_can_be() {
    let layout = |tensors: Vec<(String, Vec<u64>)>| {
        let spec = |(name, shape)| TensorSpec {
            name,
            shape,
            fragment: 0,
        };
        Layout {
            v: V,
            tensors: tensors.into_iter().map(spec).collect(),
        }
        .validate()
    };
    let many = |count: usize| layout((0..count).map(|n| (n.to_string(), vec![1])).collect());
    assert!(many(TENSORS_MAX).is_ok() && many(TENSORS_MAX + 1).is_err());
    assert!(
        layout(vec![(String::new(), vec![1])]).is_err(),
        "a name is not empty"
    );
    let named = |shapes: &[&[u64]]| {
        layout(
            shapes
                .iter()
                .enumerate()
                .map(|(n, shape)| (n.to_string(), shape.to_vec()))
                .collect(),
        )
    };
    let most = 1 << 40;
    assert!(
        named(&[&[most]]).is_ok() && named(&[&[most + 1]]).is_err(),
        "one tensor"
    );
    assert!(
        named(&[&[most - 1], &[1]]).is_ok() && named(&[&[most], &[1]]).is_err(),
        "all together"
    );
    assert!(named(&[&[1; DIMENSIONS_MAX]]).is_ok() && named(&[&[1; DIMENSIONS_MAX + 1]]).is_err());
}

type Set<T> = fn(&mut RunSpec, T);

/// Field, least value, largest value, and a function that sets the field.
fn whole_numbers() -> Vec<(&'static str, u64, u64, Set<u64>)> {
    vec![
        ("schedule.rounds", 1, 1_000_000, |spec, value| {
            spec.schedule.rounds = value
        }),
        ("schedule.units", 1, UNITS_MAX.into(), |spec, value| {
            spec.schedule.units = value as u32
        }),
        ("schedule.inner_steps", 1, 1_000_000, |spec, value| {
            spec.schedule.inner_steps = Steps(value)
        }),
        ("schedule.batch_sequences", 1, 65_536, |spec, value| {
            (spec.schedule.batch_sequences, spec.schedule.accumulation) = (value as u32, 1);
        }),
        ("schedule.accumulation", 1, 8, |spec, value| {
            spec.schedule.accumulation = value as u32
        }),
        (
            "schedule.sequence_tokens",
            1,
            SEQUENCE_TOKENS_MAX.into(),
            |spec, value| {
                spec.schedule.sequence_tokens = value as u32;
            },
        ),
        ("schedule.evaluation_sequences", 1, 65_536, |spec, value| {
            spec.schedule.evaluation_sequences = value as u32;
        }),
        ("schedule.snapshot_every", 1, 1_000_000, |spec, value| {
            spec.schedule.snapshot_every = value as u32
        }),
        ("model.chunk_elements", 1, 1 << 26, |spec, value| {
            spec.model.chunk_elements = value
        }),
        ("model.initial", 1, 256, |spec, value| {
            let chunks = vec![spec.data; usize::try_from(value).expect("few")];
            spec.model.initial = chunks.into();
        }),
        (
            "policy.workers_min",
            1,
            WORKERS_MAX as u64,
            |spec, value| spec.policy.workers_min = value as u32,
        ),
        (
            "policy.lease",
            LEASE_MIN.get(),
            LEASE_MAX.get(),
            |spec, value| spec.policy.lease = Millis(value),
        ),
        (
            "policy.silence_max",
            LEASE_MIN.get(),
            LEASE_MAX.get(),
            |spec, value| {
                spec.policy.silence_max = Millis(value);
            },
        ),
        (
            "combination.each_end",
            1,
            UNITS_MAX.into(),
            |spec, value| {
                let each_end = value as u32;
                spec.combination = Combination::Trimmed { each_end };
            },
        ),
        ("policy.pace_ratio_max", 2, 1_000_000, |spec, value| {
            spec.policy.pace_ratio_max = value as u32
        }),
        ("policy.strikes_max", 1, 1_000_000, |spec, value| {
            spec.policy.strikes_max = value as u32
        }),
    ]
}

fn reals() -> Vec<(&'static str, f64, f64, Set<f64>)> {
    let momentum = |spec: &mut RunSpec, value: f64| {
        spec.outer = OuterOptimizer::Nesterov {
            learning_rate: 0.7,
            momentum: value as f32,
        };
    };
    vec![
        ("inner.learning_rate", 0.0, 10.0, |spec, value| {
            spec.inner.learning_rate = value
        }),
        ("inner.final_ratio", 0.0, 1.0, |spec, value| {
            spec.inner.final_ratio = value
        }),
        ("inner.beta1", 0.0, 0.999_999, |spec, value| {
            spec.inner.beta1 = value
        }),
        ("inner.beta2", 0.0, 0.999_999, |spec, value| {
            spec.inner.beta2 = value
        }),
        ("inner.epsilon", 1e-30, 1.0, |spec, value| {
            spec.inner.epsilon = value
        }),
        ("inner.weight_decay", 0.0, 10.0, |spec, value| {
            spec.inner.weight_decay = value
        }),
        ("inner.clip_norm", 0.0, 1e9, |spec, value| {
            spec.inner.clip_norm = value
        }),
        ("outer.learning_rate", 0.0, 10.0, |spec, value| {
            spec.outer = OuterOptimizer::Sgd {
                learning_rate: value as f32,
            };
        }),
        ("outer.learning_rate", 0.0, 10.0, |spec, value| {
            spec.outer = OuterOptimizer::Nesterov {
                learning_rate: value as f32,
                momentum: 0.9,
            };
        }),
        ("outer.momentum", 0.0, 0.998, momentum),
        ("combination.norm_ratio", 1.0, 1e6, |spec, value| {
            spec.combination = Combination::Clipped {
                norm_ratio: value as f32,
            };
        }),
        ("policy.norm_ratio_max", 1.0, 1e6, |spec, value| {
            spec.policy.comparison = Comparison::of_norms(value);
        }),
        ("policy.loss_ratio_max", 1.0, 1e6, |spec, value| {
            spec.policy.comparison = Comparison::Others {
                norm_ratio_max: 4.0,
                cosine_min: None,
                loss_ratio_max: Some(value),
            };
        }),
        ("policy.norm_max", 0.0, f64::MAX, |spec, value| {
            spec.policy.norm_max = value
        }),
    ]
}

#[test]
fn every_number_of_a_run_has_its_bounds_and_its_name_in_the_refusal() {
    let judged = |change: &dyn Fn(&mut RunSpec)| {
        let mut spec = examples::spec();
        change(&mut spec);
        spec.validate()
    };
    let refused = |name: &str, change: &dyn Fn(&mut RunSpec)| {
        let refusal = judged(change).expect_err(name);
        assert!(
            refusal.code == Code::SpecInvalid && refusal.detail.starts_with(name),
            "{name}: {refusal}"
        );
    };
    for (name, min, max, set) in whole_numbers() {
        for good in [min, max] {
            judged(&|spec| set(spec, good))
                .unwrap_or_else(|refusal| panic!("{name} {good}: {refusal}"));
        }
        for bad in [min - 1, max + 1] {
            refused(name, &|spec| set(spec, bad));
        }
    }
    for (name, min, max, set) in reals() {
        for good in [min, max] {
            judged(&|spec| set(spec, good))
                .unwrap_or_else(|refusal| panic!("{name} {good}: {refusal}"));
        }
        for bad in [-1.0, max * 2.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            refused(name, &|spec| set(spec, bad));
        }
    }
    refused("inner.epsilon", &|spec| spec.inner.epsilon = 0.0);
    let compared = |spec: &mut RunSpec, least: f64| {
        spec.policy.comparison = Comparison::Others {
            norm_ratio_max: 4.0,
            cosine_min: Some(least),
            loss_ratio_max: None,
        };
    };
    for bad in [-1.01, 1.01, f64::NAN, f64::INFINITY] {
        refused("policy.cosine_min", &|spec| compared(spec, bad));
    }
    for good in [-1.0, -0.1, 0.0, 1.0] {
        assert!(judged(&|spec| compared(spec, good)).is_ok(), "{good}");
    }
    assert!(judged(&|spec| spec.outer = OuterOptimizer::Average).is_ok());
}

#[test]
fn a_run_says_which_rounds_are_evaluated_and_saved_and_which_lengths_its_chunks_have() {
    let mut spec = examples::spec();
    spec.schedule.rounds = 10;
    (spec.schedule.evaluation_every, spec.schedule.snapshot_every) = (4, 3);
    let rounds = |holds: &dyn Fn(Round) -> bool| {
        (0..=11)
            .filter(|round| holds(Round(*round)))
            .collect::<Vec<_>>()
    };
    assert_eq!(rounds(&|round| spec.evaluates(round)), [0, 4, 8, 10]);
    assert_eq!(rounds(&|round| spec.saves(round)), [0, 3, 6, 9, 10]);
    spec.schedule.evaluation_every = 0;
    assert_eq!(
        rounds(&|round| spec.evaluates(round)),
        [0; 0],
        "evaluations can be left out altogether"
    );
    spec.upload.kind = CodecKind::Bf16;
    spec.model.initial = vec![shard(400, 1).object, shard(40, 1).object].into();
    let lengths: Vec<u64> = (0..=500)
        .filter(|length| spec.is_upload_length(Bytes(*length)))
        .collect();
    assert_eq!(
        lengths,
        [20, 200],
        "two bytes for four of each initial chunk"
    );
    spec.upload.kind = CodecKind::E3m0;
    spec.model.initial = vec![shard(4 * 256, 1).object, shard(4 * 257, 1).object].into();
    let lengths: Vec<u64> = (0..=500)
        .filter(|length| spec.is_upload_length(Bytes(*length)))
        .collect();
    assert_eq!(
        lengths,
        [132, 264],
        "a block that is not full is a whole one"
    );
}

#[test]
fn a_refusal_is_cut_between_two_characters() {
    for shift in 0..4 {
        let detail = format!(
            "{}{}",
            "x".repeat(shift),
            "\u{1f600}".repeat(TEXT_BYTES_MAX)
        );
        let refusal = Refusal::new(Code::Internal, detail.clone());
        let length = refusal.detail.len();
        assert!(
            length <= TEXT_BYTES_MAX
                && length > TEXT_BYTES_MAX - 4
                && detail.starts_with(&refusal.detail)
        );
        assert!(Refusal::decode(&refusal.encode()).is_ok());
    }
    let whole = "x".repeat(TEXT_BYTES_MAX);
    assert_eq!(Refusal::new(Code::Internal, whole.clone()).detail, whole);
}

#[test]
fn an_answer_is_bounded_and_marked() {
    let mut bytes = Answer::new(&examples::asked(), Reply::Ok(Done::default())).encode();
    assert!(Answer::<Done>::decode(&bytes).is_ok());
    bytes.push(0);
    assert!(Answer::<Done>::decode(&bytes).is_err(), "bytes follow");
    let long = [vec![bytes[0]], vec![0; Answer::<Done>::BYTES_MAX]].concat();
    let error = Answer::<Done>::decode(&long)
        .expect_err("too long")
        .to_string();
    assert!(error.contains("bytes"), "{error}");
    assert!(Answer::<Done>::decode(&[]).is_err());
    let nested = [vec![bytes[0]], vec![0x91; 40]].concat();
    assert!(Answer::<Done>::decode(&nested).is_err());
}

#[test]
fn the_last_word_of_a_subject_is_short_and_plain() {
    let account = format!("A{}", "B".repeat(55));
    let key = format!("U{}", "B".repeat(55));
    let parses = |lane: &str, kind: &str| {
        format!("diloco.{lane}.{account}.demo.{key}.{kind}")
            .parse::<Incoming>()
            .is_ok()
    };
    let (longest, longer) = ("a".repeat(64), "a".repeat(65));
    for lane in ["event", "record"] {
        assert!(
            parses(lane, "joined") && parses(lane, "a-1") && parses(lane, &longest),
            "{lane}"
        );
        for kind in ["", "a.b", "a_b", "a b", "\u{e9}", &longer] {
            assert!(!parses(lane, kind), "{lane} {kind:?}");
        }
    }
    assert!(
        parses("telemetry", "heartbeat")
            && !parses("telemetry", "heartbeats")
            && !parses("telemetry", "")
    );
    let offer = |rest: &str| format!("diloco.work.{rest}").parse::<Incoming>().is_ok();
    assert!(offer("demo.3.train-1"));
    for rest in [
        "demo.3",
        "demo.x.train-1",
        "demo.3.train-1.more",
        "demo.3.",
        "De mo.3.train-1",
    ] {
        assert!(!offer(rest), "{rest}");
    }
    for (rest, good) in [
        ("demo", true),
        ("cluster", true),
        ("De mo", false),
        ("", false),
    ] {
        assert_eq!(
            format!("diloco.ledger.{rest}.{key}.joined")
                .parse::<Incoming>()
                .is_ok(),
            good,
            "{rest}"
        );
    }
    assert!(
        format!("other.event.{account}.demo.{key}.joined")
            .parse::<Incoming>()
            .is_err()
    );
}

#[test]
fn a_codec_for_contributions_carries_no_weights() {
    let mut spec = examples::spec();
    spec.upload.kind = CodecKind::E3m0;
    spec.error_feedback = true;
    assert_eq!(spec.validate(), Ok(()));
    spec.download.kind = CodecKind::E3m0;
    let refused = spec
        .validate()
        .expect_err("the weights would keep its errors");
    assert_eq!(refused.code, Code::CodecUnfit);
    spec.download.kind = CodecKind::Bf16;
    spec.upload.kind = CodecKind::Fp32;
    let refused = spec.validate().expect_err("nothing to bring back");
    assert_eq!(refused.code, Code::CodecUnfit);
}

/// Older settings keep their bytes, and so their digest.
#[test]
fn error_feedback_is_in_the_message_only_when_it_is_on() {
    let mut spec = examples::spec();
    let off = spec.encode();
    spec.error_feedback = true;
    let on = spec.encode();
    assert!(off.len() < on.len());
    assert_eq!(RunSpec::decode(&on).expect("it reads back"), spec);
    assert!(!RunSpec::decode(&off).expect("it reads back").error_feedback);
}
