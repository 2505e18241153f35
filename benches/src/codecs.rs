//! Every codec of uploads: encode, decode and accumulate. A rate counts the bytes that the work
//! must read or write once, and stands beside that of a copy by all threads in the same turn. So
//! does the clipping and noise of a private run, which comes before the encoding, and the masking
//! of a run with secure aggregation, which comes after it.

use std::hint::black_box;

use anyhow::Result;
use masking::{Cohort, FixedPoint, Keys, Masks, Part};
use merge::{ContributionChunk, Momentum, SeededRounding, codec};
use privacy::{BLOCK_ELEMENTS, Noising, SquaredNorm};
use rayon::prelude::*;
use schemas::masking::{Bytes32, CohortMember, UnitKey};
use schemas::run::{CodecKind, OuterOptimizer, Privacy};
use schemas::{Digest, Epoch, Round, UnitIndex};
use serde_bytes::ByteArray;

use crate::Effort;
use crate::merging::{copy, rate};
use crate::row::Row;

/// Number of contributions that are accumulated.
const CONTRIBUTIONS: usize = 4;
const FP32_BYTES: usize = 4;
/// Noise is measured on one element of so many.
const NOISED_PART: usize = 20;

struct Buffers {
    base: Vec<f32>,
    local: Vec<f32>,
    out: Vec<f32>,
    encoded: Vec<u8>,
}

/// Rates of one codec, one sample for each turn.
#[derive(Default)]
struct Rates {
    encode: Vec<f64>,
    decode: Vec<f64>,
    accumulate: Vec<f64>,
}

/// Measures codecs and copy in turns, so that all see the same machine.
pub(crate) fn measure(effort: Effort) -> Result<Vec<Row>> {
    let (elements, repetitions) = if effort == Effort::Full {
        (50_000_000, 9)
    } else {
        (5_000_000, 3)
    };
    let wave = |phase: usize| {
        (0..elements).map(move |i| ((i * 7919 + phase * 104_729) % 2003) as f32 * 1e-5 - 0.01)
    };
    let mut buffers = Buffers {
        base: wave(0).collect(),
        local: wave(1).collect(),
        out: vec![0.0; elements],
        encoded: Vec::new(),
    };
    let (mut memcpy, mut noised) = (Vec::new(), Vec::new());
    let (mut masked, mut unmasked) = (Vec::new(), Vec::new());
    let mut rates: Vec<(CodecKind, Rates)> = CodecKind::ALL
        .iter()
        .map(|codec| (*codec, Rates::default()))
        .collect();
    for turn in 0..=repetitions {
        let copied = elements * 2 * FP32_BYTES;
        let copied = rate(copied, || copy(black_box(&buffers.base), &mut buffers.out));
        // The first turn touches fresh pages.
        if turn > 0 {
            memcpy.push(copied);
        }
        let noise = buffers.noise()?;
        if turn > 0 {
            noised.push(noise);
        }
        let mask = buffers.mask()?;
        let sum = buffers.unmask()?;
        if turn > 0 {
            masked.push(mask);
            unmasked.push(sum);
        }
        for (codec, rates) in &mut rates {
            let [encode, decode, accumulate] = buffers.turn(*codec)?;
            if turn > 0 {
                rates.encode.push(encode);
                rates.decode.push(decode);
                rates.accumulate.push(accumulate);
            }
        }
    }
    let note = format!(
        "{elements} parameters, {} threads",
        rayon::current_num_threads()
    );
    let mut rows = vec![Row::new("codecs: memcpy, all threads", "GB/s", memcpy).note(&note)];
    rows.push(Row::new("privacy: clip and noise", "GB/s", noised).note(&note));
    let all = format!("{note}; {MASKED_UNITS} units, one thread");
    rows.push(Row::new("secure aggregation: mask", "GB/s", masked).note(&all));
    rows.push(Row::new("secure aggregation: sum and unmask", "GB/s", unmasked).note(&all));
    for (codec, rates) in rates {
        let row = |what: &str, samples| {
            Row::new(format!("{}: {what}", codec.name()), "GB/s", samples).note(&note)
        };
        rows.push(row("encode a difference", rates.encode));
        rows.push(row("decode", rates.decode));
        rows.push(row("accumulate 4", rates.accumulate));
    }
    Ok(rows)
}

/// Units of the round in whose masks the bench masks: a stream for each.
const MASKED_UNITS: u32 = 8;
/// The part of the elements that is masked.
const MASKED_PART: usize = 16;

fn keys(unit: u32) -> Keys {
    Keys::new(&[unit as u8 + 1; 128].into())
}

/// The cohort of a round.
fn cohort() -> Result<Cohort> {
    let member = |unit| CohortMember {
        unit: UnitIndex(unit),
        epoch: Epoch(1),
        worker: kit::worker(unit),
        audit_key: kit::audit_key(unit),
        keys: keys(unit).announced(),
        signature: ByteArray::new([0; 64]),
    };
    let members = (0..MASKED_UNITS).map(member).collect();
    let (run, spec) = (kit::run_id(), Digest::of(b"settings"));
    Ok(Cohort::new(&run, &spec, Round(0), MASKED_UNITS, members)?)
}

/// The masks of the worker of a unit.
fn masks(unit: u32) -> Result<Masks> {
    let lease = kit::lease(kit::train(0, unit), 1);
    let own = (&kit::worker(unit), &kit::audit_key(unit));
    let part = Part::join(cohort()?, keys(unit), &lease, own, |_, _| true)?;
    Ok(part.masks(FixedPoint::new(1.0, MASKED_UNITS))?)
}

impl Buffers {
    /// The rate of fixed point and masks on a part of the elements.
    fn mask(&mut self) -> Result<f64> {
        let masks = masks(0)?;
        let given = self.masked_part();
        let mut chunk = given.clone();
        let mut failed = None;
        let rate = rate(2 * chunk.len(), || {
            chunk.copy_from_slice(&given);
            if let Err(error) = masks.mask(black_box(&mut chunk), 0) {
                failed = Some(error);
            }
        });
        failed.map_or(Ok(rate), |error| Err(error.into()))
    }

    fn masked_part(&self) -> Vec<u8> {
        let elements = self.base.len() / MASKED_PART;
        let values = self.base[..elements].iter().zip(&self.local);
        let values = values.flat_map(|(base, local)| (base - local).to_le_bytes());
        values.collect()
    }

    /// The rate of the sum of a round's contributions without their masks, of which all count: the
    /// bytes of all contributions are read, and those of the mean written.
    fn unmask(&mut self) -> Result<f64> {
        let mut parts = Vec::new();
        for unit in 0..MASKED_UNITS {
            let mut part = self.masked_part();
            masks(unit)?.mask(&mut part, 0)?;
            parts.push(part);
        }
        let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
        let secret = |unit: u32| UnitKey {
            unit: UnitIndex(unit),
            key: Bytes32([unit as u8 + 1; 32]),
        };
        let survivors: Vec<UnitIndex> = (0..MASKED_UNITS).map(UnitIndex).collect();
        let secrets: Vec<UnitKey> = (0..MASKED_UNITS).map(secret).collect();
        let unmasking = cohort()?.unmasking(&survivors, &secrets)?;
        let fixed = FixedPoint::new(1.0, MASKED_UNITS);
        let mut failed = None;
        let moved = parts.iter().map(|part| part.len()).sum::<usize>() + parts[0].len();
        let rate = rate(moved, || {
            if let Err(error) = masking::unmask(&unmasking, &fixed, 0, black_box(&parts)) {
                failed = Some(error);
            }
        });
        failed.map_or(Ok(rate), |error| Err(error.into()))
    }

    /// The rate of clipping and noise on a part of the elements: a draw costs as much as the
    /// encoding of some hundred values.
    fn noise(&mut self) -> Result<f64> {
        let privacy = Privacy {
            clip: 1.0,
            noise_multiplier: 1.0,
            delta: 1e-6,
            epsilon: 8.0,
        };
        let part = self.base.len() / NOISED_PART;
        let (base, local) = (&self.base[..part], &self.local[..part]);
        let mut failed = None;
        let moved = part * 3 * FP32_BYTES;
        let rate = rate(moved, || {
            let mut norm = SquaredNorm::default();
            norm.add(black_box(base), local);
            match Noising::new(&privacy, norm, [1; 32].into()) {
                Ok(noising) => {
                    let given = base.par_chunks(BLOCK_ELEMENTS);
                    let given = given.zip(local.par_chunks(BLOCK_ELEMENTS));
                    let blocks = self.out[..part].par_chunks_mut(BLOCK_ELEMENTS);
                    blocks
                        .zip(given)
                        .enumerate()
                        .for_each(|(block, (out, (base, local)))| {
                            noising.apply(block * BLOCK_ELEMENTS, base, local, out);
                        });
                }
                Err(error) => failed = Some(error),
            }
        });
        failed.map_or(Ok(rate), |error| Err(error.into()))
    }

    /// Measures encode, decode and accumulate, in GB/s.
    fn turn(&mut self, codec: CodecKind) -> Result<[f64; 3]> {
        let elements = self.base.len();
        let (fp32, bytes) = (FP32_BYTES * elements, codec::encoded_bytes(codec, elements));
        self.encoded.resize(bytes, 0);
        let (base, local, encoded) = (black_box(&self.base), &self.local, &mut self.encoded);
        let mut done = Ok(());
        let encode = rate(2 * fp32 + bytes, || {
            done = codec::encode_difference(codec, base, local, SeededRounding::NEAREST, encoded);
        });
        done?;
        let mut done = Ok(());
        let decode = rate(bytes + fp32, || {
            done = codec::decode(codec, black_box(&self.encoded), &mut self.out);
        });
        done?;
        let chunk = ContributionChunk {
            weight: 1000,
            codec,
            bytes: black_box(&self.encoded),
        };
        let chunks = [chunk; CONTRIBUTIONS];
        let mut merged = None;
        let accumulate = rate(CONTRIBUTIONS * bytes + 2 * fp32, || {
            let average = OuterOptimizer::Average;
            merged = Some(merge::merge_chunk(
                &chunks,
                average,
                &mut self.out,
                Momentum::Absent,
            ));
        });
        let merged = merged.expect("the work was done")?;
        assert!(merged.is_finite(), "the wave is bounded");
        Ok([encode, decode, accumulate])
    }
}
