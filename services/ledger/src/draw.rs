//! The choice of the data that a unit reads.
//!
//! The run's seed fixes one order of its training shards. Units are numbered through the run
//! (`round * units + index`), and each takes the next `k` shards of that order, around and around:
//! so every shard is read equally often, give or take one, and neighbouring units read different
//! text. `k` is how many shards of mean size hold the tokens of a unit; at least 1, at most as many
//! as there are and [`UNIT_SHARDS_MAX`]. Which sequences within its shards a unit reads follows
//! from the unit's own seed. A unit that is issued again reads the same data.

use std::sync::Arc;

use schemas::data::DataManifest;
use schemas::lease::{UnitId, UnitKind, Work};
use schemas::limits::UNIT_SHARDS_MAX;
use schemas::run::RunSpec;
use schemas::{ObjectRef, Steps, Tokens};

/// A run's data and the order in which units take it.
#[derive(Clone, Debug)]
pub struct Draw {
    manifest: Arc<DataManifest>,
    /// Positions of the training shards, in the order of the draw.
    order: Vec<usize>,
}

impl Draw {
    /// The order in which a run with these settings takes its data.
    pub fn new(spec: &RunSpec, manifest: Arc<DataManifest>) -> Self {
        let mut order: Vec<usize> = (0..manifest.train.len()).collect();
        // Fisher and Yates. The bias of the remainder is below 2^-47 for 65,536 shards.
        let mut stream = mix(spec.seed);
        for last in (1..order.len()).rev() {
            stream = mix(stream);
            order.swap(last, (stream % (last as u64 + 1)) as usize);
        }
        Self { manifest, order }
    }

    /// The work that a lease of `unit` asks for.
    pub fn work(&self, spec: &RunSpec, unit: &UnitId, steps_before: Steps) -> Work {
        match unit.kind {
            UnitKind::Train => Work::Train {
                shards: self.train_shards(spec, unit),
                seed: unit_seed(spec.seed, unit),
                steps: spec.schedule.inner_steps,
                steps_before,
            },
            UnitKind::Evaluate => Work::Evaluate {
                shards: self
                    .manifest
                    .held_out
                    .iter()
                    .take(UNIT_SHARDS_MAX)
                    .map(|shard| shard.object)
                    .collect(),
                sequences: spec.schedule.evaluation_sequences,
            },
        }
    }

    /// The tokens that an evaluation predicts: those of as many sequences as it asks for, or as its
    /// shards hold. A sequence needs one token more than it predicts, and may share it with the
    /// next one.
    pub fn evaluation_tokens(&self, spec: &RunSpec) -> Tokens {
        let length = u64::from(spec.schedule.sequence_tokens.max(1));
        let shards = self.manifest.held_out.iter().take(UNIT_SHARDS_MAX);
        let sequences = shards.fold(0_u64, |sum, shard| {
            sum.saturating_add((shard.tokens - Tokens(1)).get() / length)
        });
        Tokens(sequences.min(spec.schedule.evaluation_sequences.into()) * length)
    }

    /// The shards that a training unit reads, in the order in which its lease names them.
    pub fn train_shards(&self, spec: &RunSpec, unit: &UnitId) -> Vec<ObjectRef> {
        let count = self.order.len() as u64;
        if count == 0 {
            return Vec::new();
        }
        let taken = self.manifest.shards_of_unit(spec.unit_tokens());
        let number = unit
            .round
            .get()
            .wrapping_mul(spec.schedule.units.into())
            .wrapping_add(unit.index.get().into());
        let first = number.wrapping_mul(taken);
        let at = |offset: u64| self.order[(first.wrapping_add(offset) % count) as usize];
        (0..taken)
            .map(|offset| self.manifest.train[at(offset)].object)
            .collect()
    }
}

fn unit_seed(seed: u64, unit: &UnitId) -> u64 {
    mix(mix(mix(seed) ^ unit.round.get()) ^ u64::from(unit.index.get()))
}

/// The output function of `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014) after one step from `value`: a fixed bijection of 64 bits in which every input
/// bit moves about half of the output bits.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use schemas::data::Shard;
    use schemas::{Round, UnitIndex};

    use super::*;

    fn spec() -> RunSpec {
        kit::run_spec().build()
    }

    fn data(shards: usize, shard_tokens: u64) -> DataManifest {
        kit::data().named(shards, shard_tokens).build()
    }

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of the published generator for seed 0: states are multiples of the
        // golden gamma.
        let gamma = 0x9e37_79b9_7f4a_7c15_u64;
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(gamma), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(mix(gamma.wrapping_mul(2)), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn rounds_cover_all_shards_evenly_and_a_unit_reads_the_same_twice() {
        let (mut spec, data) = (spec(), data(7, 40));
        spec.schedule.units = 3;
        let draw = Draw::new(&spec, Arc::new(data));
        let mut seen: BTreeMap<ObjectRef, u32> = BTreeMap::new();
        for round in 0..14 {
            for index in 0..3 {
                let unit = UnitId {
                    round: Round(round),
                    kind: UnitKind::Train,
                    index: UnitIndex(index),
                };
                let work = draw.work(&spec, &unit, Steps(0));
                assert_eq!(work, draw.work(&spec, &unit, Steps(0)));
                let Work::Train { shards, .. } = work else {
                    panic!("a training unit has training work")
                };
                shards
                    .into_iter()
                    .for_each(|shard| *seen.entry(shard).or_default() += 1);
            }
        }
        let (least, most) = (seen.values().min().unwrap(), seen.values().max().unwrap());
        assert!(seen.len() == 7 && most - least <= 1, "{seen:?}");
    }

    #[test]
    fn each_unit_of_each_run_has_a_seed_of_its_own() {
        let unit = |round, index| UnitId {
            round: Round(round),
            kind: UnitKind::Train,
            index: UnitIndex(index),
        };
        let units = (0..32).flat_map(|round| (0..32).map(move |index| unit(round, index)));
        let seeds: BTreeSet<u64> = units
            .flat_map(|unit| [7, 8].map(|seed| unit_seed(seed, &unit)))
            .collect();
        assert_eq!(seeds.len(), 2 * 32 * 32);
        assert_eq!(unit_seed(7, &unit(0, 0)), mix(mix(mix(7))));
    }

    #[test]
    fn an_evaluation_predicts_what_it_asks_for_or_what_there_is() {
        let mut spec = spec();
        for (shards, tokens, sequences, expected) in [
            (1, 20, 4, 16),
            (1, 16, 4, 12),
            (1, 17, 4, 16),
            (2, 9, 100, 16),
            (1, 4, 3, 0),
            (100, 5, 1000, 64 * 4),
        ] {
            spec.schedule.evaluation_sequences = sequences;
            let mut manifest = data(1, 40);
            manifest.held_out = vec![
                Shard {
                    tokens: Tokens(tokens),
                    ..manifest.held_out[0]
                };
                shards
            ];
            let found = Draw::new(&spec, Arc::new(manifest)).evaluation_tokens(&spec);
            assert_eq!(
                found,
                Tokens(expected),
                "{sequences} sequences of 4 from {shards} shards of {tokens}"
            );
        }
    }

    #[test]
    fn a_unit_takes_as_many_shards_as_hold_its_tokens() {
        let mut spec = spec();
        for (inner_steps, shard_tokens, expected) in
            [(1, 1_000_000, 1), (10, 32, 3), (10_000, 1, 7)]
        {
            spec.schedule.inner_steps = Steps(inner_steps);
            let manifest = data(7, shard_tokens);
            assert_eq!(
                manifest.shards_of_unit(spec.unit_tokens()),
                expected,
                "{inner_steps} steps"
            );
        }
    }
}
