//! fp32: the bits of each value, little endian. The codec is exact, so it does not use the
//! rounding.

use super::examine::{Examined, Fault, examine_each, first_not_finite};
use super::{Codec, Part};
use crate::SeededRounding;
use crate::vectors::{Vectors, vectorised};

pub(super) struct Fp32;

impl Codec for Fp32 {
    fn encode(&self, vectors: Vectors, values: &[f32], _: SeededRounding, out: &mut [u8]) {
        write(vectors, values, out);
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

    fn examine(&self, vectors: Vectors, bytes: &[u8], _: usize) -> Examined {
        examine(vectors, bytes)
    }

    fn fault(&self, bytes: &[u8], _: usize) -> Option<Fault> {
        first_not_finite(bytes.as_chunks::<4>().0, value)
    }
}

vectorised!(fn write(values: &[f32], out: &mut [u8]) = write_body);
vectorised!(fn read(bytes: &[u8], out: &mut [f32]) = read_body);
vectorised!(fn start(bytes: &[u8], weight: f32, mean: &mut [f32]) = start_body);
vectorised!(fn add(bytes: &[u8], weight: f32, mean: &mut [f32]) = add_body);
vectorised!(fn examine(bytes: &[u8]) -> Examined = examine_body);

#[inline(always)]
fn value(bytes: [u8; 4]) -> f32 {
    f32::from_le_bytes(bytes)
}

#[inline(always)]
fn write_body(values: &[f32], out: &mut [u8]) {
    for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *out = value.to_le_bytes();
    }
}

#[inline(always)]
fn read_body(bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *out = value(*bytes);
    }
}

#[inline(always)]
fn start_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    for (mean, bytes) in mean.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *mean = weight * value(*bytes);
    }
}

#[inline(always)]
fn add_body(bytes: &[u8], weight: f32, mean: &mut [f32]) {
    for (mean, bytes) in mean.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *mean += weight * value(*bytes);
    }
}

#[inline(always)]
fn examine_body(bytes: &[u8]) -> Examined {
    examine_each(bytes.as_chunks::<4>().0, value)
}
