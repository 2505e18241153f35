//! The decoder against the same architecture in scalar loops, fp64, written from the papers'
//! formulas.

use model::{LlamaConfig, ModelConfig};
use schemas::layout::Layout;
use schemas::run::{Precision, TrainerKind};
use torch::{DeviceChoice, TorchOptions, TorchTrainer};
use trainer::{Batch, Trainer};

fn config(tied: bool, key_value_heads: u32) -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "llama", "vocab_size": 19, "hidden_size": 12, "intermediate_size": 20,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": {key_value_heads}, "head_dim": 6,
            "rms_norm_eps": 1e-5, "rope_theta": 100.0, "max_position_embeddings": 16, "initializer_range": 0.4,
            "tie_word_embeddings": {tied}}}"#
    );
    ModelConfig::parse(TrainerKind::Torch, json.as_bytes()).expect("valid")
}

/// Row-major matrices by name.
struct Weights {
    layout: Layout,
    values: Vec<f32>,
}

impl Weights {
    /// `matrix * input` for the named matrix.
    fn apply(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let (spec, span) = self
            .layout
            .spans()
            .find(|(spec, _)| spec.name == name)
            .expect("in the layout");
        let values = &self.values[span.start as usize..span.end as usize];
        assert_eq!(spec.shape[1] as usize, input.len());
        let row = |row: &[f32]| row.iter().zip(input).map(|(w, x)| f64::from(*w) * x).sum();
        values.chunks_exact(input.len()).map(row).collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        let (_, span) = self
            .layout
            .spans()
            .find(|(spec, _)| spec.name == name)
            .expect("in the layout");
        self.values[span.start as usize..span.end as usize]
            .iter()
            .map(|value| f64::from(*value))
            .collect()
    }

    fn norm(&self, name: &str, input: &[f64], epsilon: f64) -> Vec<f64> {
        let mean = input.iter().map(|x| x * x).sum::<f64>() / input.len() as f64;
        let scale = 1.0 / (mean + epsilon).sqrt();
        input
            .iter()
            .zip(self.vector(name))
            .map(|(x, weight)| x * scale * weight)
            .collect()
    }
}

fn rotate(head: &mut [f64], position: usize, theta: f64) {
    let half = head.len() / 2;
    for pair in 0..half {
        let angle = position as f64 / theta.powf(pair as f64 / half as f64);
        let (a, b) = (head[pair], head[pair + half]);
        head[pair] = a * angle.cos() - b * angle.sin();
        head[pair + half] = b * angle.cos() + a * angle.sin();
    }
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::MIN, f64::max);
    let powers: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f64 = powers.iter().sum();
    powers.iter().map(|power| power / total).collect()
}

fn attention(
    config: &LlamaConfig,
    weights: &Weights,
    layer: usize,
    inputs: &[Vec<f64>],
) -> Vec<Vec<f64>> {
    let head = config.head as usize;
    let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}_proj.weight");
    let turned = |part: &str, turn: bool| -> Vec<Vec<f64>> {
        let rows = inputs.iter().enumerate().map(|(position, input)| {
            let mut row = weights.apply(&name(part), input);
            if turn {
                row.chunks_exact_mut(head)
                    .for_each(|head| rotate(head, position, config.rope_theta));
            }
            row
        });
        rows.collect()
    };
    let (queries, keys, values) = (turned("q", true), turned("k", true), turned("v", false));
    let group = (config.heads / config.key_value_heads) as usize;
    let mixed = (0..inputs.len()).map(|at| {
        let mut all = Vec::new();
        for query in 0..config.heads as usize {
            let own = &queries[at][query * head..(query + 1) * head];
            let shared = (query / group) * head..(query / group + 1) * head;
            let score = |key: &Vec<f64>| {
                key[shared.clone()]
                    .iter()
                    .zip(own)
                    .map(|(k, q)| k * q)
                    .sum::<f64>()
                    / (head as f64).sqrt()
            };
            let shares = softmax(&keys[..=at].iter().map(score).collect::<Vec<_>>());
            all.extend(shared.clone().map(|slot| {
                shares
                    .iter()
                    .zip(&values)
                    .map(|(s, v)| s * v[slot])
                    .sum::<f64>()
            }));
        }
        weights.apply(&name("o"), &all)
    });
    mixed.collect()
}

fn mean_loss(config: &LlamaConfig, weights: &Weights, tokens: &[u32]) -> f64 {
    let width = config.hidden as usize;
    let embedding = weights.vector("model.embed_tokens.weight");
    let inputs = &tokens[..tokens.len() - 1];
    let mut stream: Vec<Vec<f64>> = inputs
        .iter()
        .map(|token| embedding[*token as usize * width..][..width].to_vec())
        .collect();
    let add = |stream: &mut [Vec<f64>], more: Vec<Vec<f64>>| {
        for (row, more) in stream.iter_mut().zip(more) {
            row.iter_mut().zip(more).for_each(|(x, y)| *x += y);
        }
    };
    for layer in 0..config.layers as usize {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let normed = |stream: &[Vec<f64>], part: &str| -> Vec<Vec<f64>> {
            stream
                .iter()
                .map(|row| weights.norm(&name(part), row, config.norm_epsilon))
                .collect()
        };
        let more = attention(config, weights, layer, &normed(&stream, "input_layernorm"));
        add(&mut stream, more);
        let inputs = normed(&stream, "post_attention_layernorm");
        let more = inputs.iter().map(|row| {
            let (gate, up) = (
                weights.apply(&name("mlp.gate_proj"), row),
                weights.apply(&name("mlp.up_proj"), row),
            );
            let inner: Vec<f64> = gate
                .iter()
                .zip(up)
                .map(|(g, u)| g / (1.0 + (-g).exp()) * u)
                .collect();
            weights.apply(&name("mlp.down_proj"), &inner)
        });
        let more = more.collect();
        add(&mut stream, more);
    }
    let output = if config.tied {
        "model.embed_tokens.weight"
    } else {
        "lm_head.weight"
    };
    let losses = stream.iter().zip(&tokens[1..]).map(|(row, target)| {
        let logits = weights.apply(
            output,
            &weights.norm("model.norm.weight", row, config.norm_epsilon),
        );
        -softmax(&logits)[*target as usize].ln()
    });
    losses.sum::<f64>() / inputs.len() as f64
}

#[test]
fn agrees_with_scalar_loops() {
    for (tied, key_value_heads) in [(true, 4), (false, 2), (true, 1)] {
        let config = config(tied, key_value_heads);
        let layout = config.layout();
        let mut values = vec![0.0; layout.elements() as usize];
        config.initial(3).fill(0, &mut values);
        // Norm weights other than one, so that each is seen to be used.
        for (index, value) in values
            .iter_mut()
            .enumerate()
            .filter(|(_, value)| **value == 1.0)
        {
            *value = 0.5 + (index % 7) as f32 / 5.0;
        }
        let ModelConfig::Llama(llama) = &config else {
            panic!("a llama")
        };
        let options = TorchOptions {
            device: DeviceChoice::Cpu,
            precision: Precision::Fp32,
            threads: 1,
        };
        let mut trainer = TorchTrainer::new(llama, options).expect("a trainer");
        trainer.set_parameters(0, &values).expect("fits");
        let tokens = [4, 18, 0, 7, 7, 3, 11, 2, 9, 1, 16];
        let got = trainer
            .evaluate(&Batch::new(&tokens, 1, 10).expect("fits"))
            .expect("evaluates")
            .mean();
        let expected = mean_loss(llama, &Weights { layout, values }, &tokens);
        let got = got.expect("tokens");
        assert!(
            (got - expected).abs() < 1e-5,
            "tied {tied}, {key_value_heads} key heads: {got} and {expected}"
        );
        assert!(
            (got - 19_f64.ln()).abs() > 0.05,
            "far from a guess, or a wrong model would pass: {got}"
        );
    }
}
