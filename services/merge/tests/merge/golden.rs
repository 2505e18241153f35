//! Two replicas and two fragments of one value, computed by hand: the published vectors of the
//! streaming schedule. They fix the signs of gradient and step, the moment at which a gradient is
//! captured, and the meaning of alpha.

use merge::{ContributionChunk, Momentum, SeededRounding, blend, codec};
use schemas::run::{CodecKind, OuterOptimizer};

/// Steps between two syncs of a fragment.
const INTERVAL_STEPS: usize = 6;
const FRAGMENTS: usize = 2;
const REPLICAS: usize = 2;
const OUTER: OuterOptimizer = OuterOptimizer::Sgd { learning_rate: 2.0 };

/// The values at each of the five syncs: the two fragments of a replica, and the synced fragment's
/// global value.
type Trace = Vec<((f32, f32), f32)>;

/// Every inner step subtracts 2 from every value. The gradient of a sync is captured `delay_steps`
/// before it.
fn train(delay_steps: usize, alpha: f32) -> Trace {
    let mut global = [[1.0_f32]; FRAGMENTS];
    let mut replicas = [[[1.0_f32]; FRAGMENTS]; REPLICAS];
    let mut captured: [[Vec<u8>; REPLICAS]; FRAGMENTS] = Default::default();
    let mut trace = Trace::new();
    for step in 1..=15 {
        replicas
            .as_flattened_mut()
            .as_flattened_mut()
            .iter_mut()
            .for_each(|value| *value -= 2.0);
        for fragment in 0..FRAGMENTS {
            let offset = (fragment + 1) * INTERVAL_STEPS / FRAGMENTS;
            let syncs_at =
                |step: usize| step >= offset && (step - offset).is_multiple_of(INTERVAL_STEPS);
            if syncs_at(step + delay_steps) {
                captured[fragment] =
                    replicas.map(|replica| difference(&global[fragment], &replica[fragment]));
            }
            if syncs_at(step) {
                let chunk = |bytes| ContributionChunk {
                    weight: 10,
                    codec: CodecKind::Fp32,
                    bytes,
                };
                let chunks: Vec<_> = captured[fragment]
                    .iter()
                    .map(|bytes| chunk(bytes.as_slice()))
                    .collect();
                let merged =
                    merge::merge_chunk(&chunks, OUTER, &mut global[fragment], Momentum::Absent)
                        .unwrap();
                assert!(merged.is_finite());
                for replica in &mut replicas {
                    blend(&mut replica[fragment], &global[fragment], alpha);
                }
                trace.push(((replicas[0][0][0], replicas[0][1][0]), global[fragment][0]));
            }
        }
        assert_eq!(replicas[0], replicas[1]);
    }
    trace
}

fn difference(base: &[f32], local: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    codec::encode_difference(
        CodecKind::Fp32,
        base,
        local,
        SeededRounding::NEAREST,
        &mut bytes,
    )
    .unwrap();
    bytes
}

#[test]
fn streaming_schedule_golden_vectors() {
    let cases = [
        (
            0,
            0.0,
            [
                (-11.0, -5.0),
                (-17.0, -23.0),
                (-35.0, -29.0),
                (-41.0, -47.0),
                (-59.0, -53.0),
            ],
            [-11.0, -23.0, -35.0, -47.0],
        ),
        (
            0,
            0.5,
            [
                (-8.0, -5.0),
                (-14.0, -17.0),
                (-24.5, -23.0),
                (-30.5, -32.0),
                (-40.25, -38.0),
            ],
            [-11.0, -23.0, -29.0, -35.0],
        ),
        (
            0,
            1.0,
            [
                (-5.0, -5.0),
                (-11.0, -11.0),
                (-17.0, -17.0),
                (-23.0, -23.0),
                (-29.0, -29.0),
            ],
            [-11.0, -23.0, -23.0, -23.0],
        ),
        (
            1,
            0.0,
            [
                (-7.0, -5.0),
                (-13.0, -19.0),
                (-27.0, -25.0),
                (-33.0, -39.0),
                (-47.0, -45.0),
            ],
            [-7.0, -19.0, -27.0, -39.0],
        ),
        (
            1,
            0.5,
            [
                (-6.0, -5.0),
                (-12.0, -15.0),
                (-21.5, -21.0),
                (-27.5, -29.0),
                (-35.75, -35.0),
            ],
            [-7.0, -19.0, -25.0, -31.0],
        ),
        (
            1,
            1.0,
            [
                (-5.0, -5.0),
                (-11.0, -11.0),
                (-17.0, -17.0),
                (-23.0, -23.0),
                (-29.0, -29.0),
            ],
            [-7.0, -19.0, -23.0, -23.0],
        ),
    ];
    for (delay_steps, alpha, locals, globals) in cases {
        let trace = train(delay_steps, alpha);
        let found: Vec<_> = trace.iter().map(|(local, _)| *local).collect();
        assert_eq!(
            found, locals,
            "local weights at delay {delay_steps}, alpha {alpha}"
        );
        let found: Vec<_> = trace.iter().take(4).map(|(_, global)| *global).collect();
        assert_eq!(
            found, globals,
            "global weights at delay {delay_steps}, alpha {alpha}"
        );
    }
}
