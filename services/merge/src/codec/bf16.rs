//! bf16: the upper half of an fp32, little endian. Rounding to nearest takes the even one of two
//! equally near values; [`crate::rounding`] defines both roundings.

use schemas::run::Rounding;

use super::examine::{Examined, Fault, examine_each, first_not_finite};
use super::{Codec, Part};
use crate::SeededRounding;
use crate::rounding::{
    NOISE_LANES, narrow_nearest, narrow_stochastic, noise_key, noise_word, widen,
};
use crate::vectors::{Vectors, vectorised};

pub(super) struct Bf16;

impl Codec for Bf16 {
    fn encode(&self, vectors: Vectors, values: &[f32], rounding: SeededRounding, out: &mut [u8]) {
        match rounding.rule {
            Rounding::Nearest => write_nearest(vectors, values, out),
            Rounding::Stochastic => {
                let key = noise_key(rounding.seed);
                write_stochastic(vectors, values, key, rounding.first_element, out);
            }
        }
    }

    fn decode(&self, vectors: Vectors, bytes: &[u8], out: &mut [f32]) {
        read(vectors, bytes, out);
    }

    fn start(&self, vectors: Vectors, Part { bytes, weight }: Part<'_>, mean: &mut [f32]) {
        start(vectors, bytes, weight, mean);
    }

    fn add(&self, vectors: Vectors, Part { bytes, weight }: Part<'_>, mean: &mut [f32]) {
        add(vectors, bytes, weight, mean);
    }

    fn start_four(&self, vectors: Vectors, parts: [Part<'_>; 4], mean: &mut [f32]) {
        start_four(
            vectors,
            parts.map(|part| part.bytes),
            parts.map(|part| part.weight),
            mean,
        );
    }

    fn add_four(&self, vectors: Vectors, parts: [Part<'_>; 4], mean: &mut [f32]) {
        add_four(
            vectors,
            parts.map(|part| part.bytes),
            parts.map(|part| part.weight),
            mean,
        );
    }

    fn examine(&self, vectors: Vectors, bytes: &[u8], _: usize) -> Examined {
        examine(vectors, bytes)
    }

    fn fault(&self, bytes: &[u8], _: usize) -> Option<Fault> {
        first_not_finite(bytes.as_chunks::<2>().0, value)
    }
}

vectorised!(fn write_nearest(values: &[f32], out: &mut [u8]) = write_nearest_body);
vectorised!(fn write_stochastic(values: &[f32], key: u64, first: u64, out: &mut [u8]) = write_stochastic_body);
vectorised!(fn read(bytes: &[u8], out: &mut [f32]) = read_body);
vectorised!(fn start(bytes: &[u8], weight: f32, mean: &mut [f32]) = start_body);
vectorised!(fn add(bytes: &[u8], weight: f32, mean: &mut [f32]) = add_body);
vectorised!(fn start_four(parts: [&[u8]; 4], weights: [f32; 4], mean: &mut [f32]) = start_four_body);
vectorised!(fn add_four(parts: [&[u8]; 4], weights: [f32; 4], mean: &mut [f32]) = add_four_body);
vectorised!(fn examine(bytes: &[u8]) -> Examined = examine_body);

#[inline(always)]
fn value(bytes: [u8; 2]) -> f32 {
    widen(u16::from_le_bytes(bytes))
}

#[inline(always)]
fn write_nearest_body(values: &[f32], out: &mut [u8]) {
    for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *out = narrow_nearest(*value).to_le_bytes();
    }
}

/// One word of noise serves four elements. The few before the first whole group of four are done
/// one by one, so that a slice may start anywhere.
#[inline(always)]
fn write_stochastic_body(values: &[f32], key: u64, first: u64, out: &mut [u8]) {
    let lanes = NOISE_LANES as u64;
    let out = out.as_chunks_mut::<2>().0;
    let one = |value: f32, index: u64| {
        let noise = noise_word(key, index / lanes) >> (16 * (index % lanes));
        narrow_stochastic(value, noise as u16).to_le_bytes()
    };
    let head = ((lanes - first % lanes) % lanes).min(values.len() as u64) as usize;
    let (head_values, values) = values.split_at(head);
    let (head_out, out) = out.split_at_mut(head);
    for (place, (out, value)) in head_out.iter_mut().zip(head_values).enumerate() {
        *out = one(*value, first.wrapping_add(place as u64));
    }
    let first = first.wrapping_add(head as u64);
    let (groups, tail_values) = values.as_chunks::<NOISE_LANES>();
    let (group_outs, tail_out) = out.as_chunks_mut::<NOISE_LANES>();
    for (group, (out, values)) in group_outs.iter_mut().zip(groups).enumerate() {
        let word = noise_word(key, first / lanes + group as u64);
        for lane in 0..NOISE_LANES {
            out[lane] = narrow_stochastic(values[lane], (word >> (16 * lane)) as u16).to_le_bytes();
        }
    }
    let first = first.wrapping_add((groups.len() * NOISE_LANES) as u64);
    for (place, (out, value)) in tail_out.iter_mut().zip(tail_values).enumerate() {
        *out = one(*value, first.wrapping_add(place as u64));
    }
}

#[inline(always)]
fn read_body(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = value(*bytes);
    }
}

#[inline(always)]
fn start_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    for (mean, bytes) in mean.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *mean = weight * value(*bytes);
    }
}

#[inline(always)]
fn add_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    for (mean, bytes) in mean.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *mean += weight * value(*bytes);
    }
}

#[inline(always)]
fn start_four_body(parts: [&[u8]; 4], weights: [f32; 4], mean: &mut [f32]) {
    let count = mean.len();
    let [a, b, c, d] = parts.map(|part| &part.as_chunks::<2>().0[..count]);
    let [u, v, w, x] = weights;
    for index in 0..count {
        let first = u * value(a[index]);
        mean[index] = ((first + v * value(b[index])) + w * value(c[index])) + x * value(d[index]);
    }
}

#[inline(always)]
fn add_four_body(parts: [&[u8]; 4], weights: [f32; 4], mean: &mut [f32]) {
    let count = mean.len();
    let [a, b, c, d] = parts.map(|part| &part.as_chunks::<2>().0[..count]);
    let [u, v, w, x] = weights;
    for index in 0..count {
        let first = mean[index] + u * value(a[index]);
        mean[index] = ((first + v * value(b[index])) + w * value(c[index])) + x * value(d[index]);
    }
}

#[inline(always)]
fn examine_body(bytes: &[u8]) -> Examined {
    examine_each(bytes.as_chunks::<2>().0, value)
}
