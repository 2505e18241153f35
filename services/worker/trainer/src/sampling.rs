//! Drawing tokens from a model's output.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::TrainerError;
use crate::batch::check_tokens;

/// Draws tokens; the same seed and logits give the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    random: ChaCha8Rng,
}

/// Most tokens that one call generates: a person reads them.
const COUNT_MAX: usize = 1 << 16;

impl Sampler {
    /// A sampler, made after a check of the prompt.
    ///
    /// # Errors
    /// The prompt is empty or holds a token outside the vocabulary, the count is too large, or the
    /// temperature is negative or not finite.
    pub fn new(
        prompt: &[u32],
        vocabulary: u32,
        count: usize,
        temperature: f64,
        seed: u64,
    ) -> Result<Self, TrainerError> {
        check_tokens(prompt, vocabulary)?;
        if prompt.is_empty() {
            return Err(TrainerError::Input(
                "the prompt is empty, expected one token or more".to_owned(),
            ));
        }
        if count > COUNT_MAX {
            return Err(TrainerError::Input(format!(
                "{count} tokens to generate, at most {COUNT_MAX} are allowed"
            )));
        }
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(TrainerError::Input(format!(
                "temperature is {temperature}, expected 0 or more"
            )));
        }
        Ok(Self {
            temperature,
            random: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// The next token for these logits, one per token of the vocabulary.
    ///
    /// # Errors
    /// A logit is not finite.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32, TrainerError> {
        if let Some(value) = logits.iter().find(|value| !value.is_finite()) {
            return Err(TrainerError::Output(*value));
        }
        let likeliest = (0..)
            .zip(logits)
            .fold((0, f32::MIN), |best, (token, logit)| {
                if *logit > best.1 {
                    (token, *logit)
                } else {
                    best
                }
            });
        if self.temperature == 0.0 {
            return Ok(likeliest.0);
        }
        let weight = |logit: &f32| (f64::from(logit - likeliest.1) / self.temperature).exp();
        let total: f64 = logits.iter().map(weight).sum();
        // 53 random bits: a uniform number below 1.
        let uniform = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        let mut rest = uniform * total;
        for (token, logit) in (0..).zip(logits) {
            rest -= weight(logit);
            if rest < 0.0 {
                return Ok(token);
            }
        }
        Ok(likeliest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_by_probability_and_repeats() {
        let logits = [0.0, 3.0_f32.ln(), f32::MIN];
        let draw = |seed| {
            let mut sampler = Sampler::new(&[0], 3, 1000, 1.0, seed).expect("valid");
            (0..10_000)
                .map(|_| sampler.draw(&logits).expect("finite"))
                .collect::<Vec<_>>()
        };
        let tokens = draw(4);
        let share = tokens.iter().filter(|token| **token == 1).count() as f64 / tokens.len() as f64;
        assert!((share - 0.75).abs() < 0.02, "{share}");
        assert!(!tokens.contains(&2));
        assert_eq!(draw(4), tokens);
        assert_ne!(draw(5), tokens);
        let mut greedy = Sampler::new(&[0], 3, 1, 0.0, 0).expect("valid");
        assert_eq!(greedy.draw(&logits).expect("finite"), 1);
        assert!(greedy.draw(&[f32::NAN, 0.0, 0.0]).is_err());
    }

    #[test]
    fn senseless_questions_are_refused() {
        assert!(Sampler::new(&[], 3, 1, 1.0, 0).is_err());
        assert!(Sampler::new(&[3], 3, 1, 1.0, 0).is_err());
        assert!(Sampler::new(&[0], 3, usize::MAX, 1.0, 0).is_err());
        assert!(Sampler::new(&[0], 3, 1, -1.0, 0).is_err());
        assert!(Sampler::new(&[0], 3, 1, f64::NAN, 0).is_err());
    }
}
