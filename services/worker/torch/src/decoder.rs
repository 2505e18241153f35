//! The decoder: Llama's architecture (Touvron et al., arXiv 2302.13971, section 2.2; grouped
//! queries as in Llama 2).

use model::LlamaConfig;
use tch::{Device, Kind, Tensor};

use crate::error::TorchError;

/// The decoder's weights, as views of the flat vector, and its rotary tables. Queries, keys and
/// values lie side by side in the flat vector and are one matrix here, as are gate and up.
#[derive(Debug)]
pub(crate) struct Decoder {
    config: LlamaConfig,
    weights: Vec<Tensor>,
    rotary: Option<Rotary>,
}

/// Cosines and signed sines `[positions, 1, head]`, in the type that queries and keys have.
#[derive(Debug)]
struct Rotary {
    positions: i64,
    kind: Kind,
    cosines: Tensor,
    sines: Tensor,
}

/// Weights of a layer, in order: norm, QKV, output, norm, gate and up, down.
const LAYER_WEIGHTS: usize = 6;

/// The shapes of [`Decoder`]'s weights, in the order of the flat vector.
pub(crate) fn shapes(config: &LlamaConfig) -> Vec<Vec<i64>> {
    let [vocabulary, hidden, intermediate, head] = [
        config.vocabulary,
        config.hidden,
        config.intermediate,
        config.head,
    ]
    .map(i64::from);
    let (queries, all) = (
        i64::from(config.heads) * head,
        i64::from(config.heads + 2 * config.key_value_heads) * head,
    );
    let layer = [
        vec![hidden],
        vec![all, hidden],
        vec![hidden, queries],
        vec![hidden],
        vec![2 * intermediate, hidden],
        vec![hidden, intermediate],
    ];
    let mut shapes = vec![vec![vocabulary, hidden]];
    (0..config.layers).for_each(|_| shapes.extend(layer.iter().cloned()));
    shapes.push(vec![hidden]);
    if !config.tied {
        shapes.push(vec![vocabulary, hidden]);
    }
    shapes
}

impl Decoder {
    /// A decoder over weights of [`shapes`].
    pub(crate) fn new(config: &LlamaConfig, weights: Vec<Tensor>) -> Self {
        Self {
            config: config.clone(),
            weights,
            rotary: None,
        }
    }

    /// All weights, in the order of the flat vector.
    pub(crate) fn weights(&self) -> &[Tensor] {
        &self.weights
    }

    /// The last layer's output after its norm, `[sequences, tokens, hidden]`, for token ids
    /// `[sequences, tokens]`.
    pub(crate) fn hidden(&mut self, tokens: &Tensor) -> Result<Tensor, TorchError> {
        let (_, length) = tokens.size2()?;
        let mut stream = Tensor::f_embedding(&self.weights[0], tokens, -1, false, false)?;
        for layer in 0..self.config.layers as usize {
            let first = 1 + layer * LAYER_WEIGHTS;
            stream = stream.f_add(&self.attention(first, &stream, length)?)?;
            stream = stream.f_add(&self.feed_forward(first + 3, &stream)?)?;
        }
        self.norm(1 + self.config.layers as usize * LAYER_WEIGHTS, &stream)
    }

    /// Logits `[.., vocabulary]` of [`Self::hidden`]'s output.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TorchError> {
        let matrix = if self.config.tied {
            self.weights.first()
        } else {
            self.weights.last()
        };
        linear(hidden, matrix.expect("a decoder has weights"))
    }

    fn attention(
        &mut self,
        first: usize,
        stream: &Tensor,
        length: i64,
    ) -> Result<Tensor, TorchError> {
        let [heads, key_value_heads, head] = [
            self.config.heads,
            self.config.key_value_heads,
            self.config.head,
        ]
        .map(i64::from);
        let normed = self.norm(first, stream)?;
        let all = linear(&normed, &self.weights[first + 1])?;
        let all = all.f_view([-1, length, heads + 2 * key_value_heads, head])?;
        // Split, not narrow: one backward step writes all parts, where each narrow would fill the
        // whole with zeros.
        let [turning, values] =
            parts(all.f_split_with_sizes([heads + key_value_heads, key_value_heads], 2)?);
        let turned = self.rotate(&turning, length)?;
        let [queries, keys] = parts(turned.f_split_with_sizes([heads, key_value_heads], 2)?);
        let queries = queries.f_transpose(1, 2)?;
        let (keys, values) = (self.repeat(keys)?, self.repeat(values)?);
        let none = None::<&Tensor>;
        let mixed = Tensor::f_scaled_dot_product_attention(
            &queries, &keys, &values, none, 0.0, true, None, false,
        )?;
        let mixed = mixed
            .f_transpose(1, 2)?
            .f_reshape([-1, length, heads * head])?;
        linear(&mixed, &self.weights[first + 2])
    }

    fn feed_forward(&self, first: usize, stream: &Tensor) -> Result<Tensor, TorchError> {
        let both = linear(&self.norm(first, stream)?, &self.weights[first + 1])?;
        let [gate, up] = parts(both.f_chunk(2, -1)?);
        let inner = gate.f_silu()?.f_mul(&up)?;
        linear(&inner, &self.weights[first + 2])
    }

    fn norm(&self, weight: usize, stream: &Tensor) -> Result<Tensor, TorchError> {
        let hidden = i64::from(self.config.hidden);
        Ok(stream.f_rms_norm(
            [hidden],
            Some(&self.weights[weight]),
            self.config.norm_epsilon,
        )?)
    }

    /// Keys or values `[sequences, tokens, heads, head]`, once for every query head that shares
    /// them, heads before tokens.
    fn repeat(&self, shared: Tensor) -> Result<Tensor, TorchError> {
        let times = i64::from(self.config.heads / self.config.key_value_heads);
        let repeated = if times == 1 {
            shared
        } else {
            shared.f_repeat_interleave_self_int(times, 2, None)?
        };
        Ok(repeated.f_transpose(1, 2)?)
    }

    /// Rotary positions: `(a, b)` becomes `(a cos - b sin, b cos + a sin)`, where `a` and `b` are
    /// the halves of a head.
    fn rotate(&mut self, heads: &Tensor, length: i64) -> Result<Tensor, TorchError> {
        let half = i64::from(self.config.head / 2);
        let table = self.table(length, heads.f_kind()?, heads.device())?;
        let (cosines, sines) = (
            table.cosines.f_narrow(0, 0, length)?,
            table.sines.f_narrow(0, 0, length)?,
        );
        let swapped = heads.f_roll([half], [-1])?;
        Ok(heads.f_mul(&cosines)?.f_addcmul(&swapped, &sines)?)
    }

    fn table(&mut self, length: i64, kind: Kind, device: Device) -> Result<&Rotary, TorchError> {
        let fits = self
            .rotary
            .as_ref()
            .is_some_and(|table| table.positions >= length && table.kind == kind);
        if !fits {
            self.rotary = Some(Rotary::new(&self.config, length, kind, device)?);
        }
        Ok(self.rotary.as_ref().expect("made just now"))
    }
}

impl Rotary {
    fn new(
        config: &LlamaConfig,
        positions: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self, TorchError> {
        let head = config.head as usize;
        let frequency = |pair: usize| config.rope_theta.powf(-((2 * pair) as f64) / head as f64);
        let mut cosines = Vec::with_capacity(positions as usize * head);
        let mut sines = Vec::with_capacity(positions as usize * head);
        for position in 0..positions {
            for slot in 0..head {
                let angle = position as f64 * frequency(slot % (head / 2));
                cosines.push(angle.cos() as f32);
                sines.push(if slot < head / 2 {
                    -angle.sin()
                } else {
                    angle.sin()
                } as f32);
            }
        }
        let table = |values: &[f32]| -> Result<Tensor, TorchError> {
            let flat = Tensor::f_from_slice(values)?.f_view([positions, 1, head as i64])?;
            Ok(flat.f_to_dtype(kind, false, false)?.f_to(device)?)
        };
        Ok(Self {
            positions,
            kind,
            cosines: table(&cosines)?,
            sines: table(&sines)?,
        })
    }
}

fn linear(input: &Tensor, weight: &Tensor) -> Result<Tensor, TorchError> {
    Ok(input.f_linear(weight, None::<&Tensor>)?)
}

fn parts(tensors: Vec<Tensor>) -> [Tensor; 2] {
    tensors.try_into().expect("a split into two")
}
