//! Entropy of tokens under n-gram models, to compare a model's held-out loss with.

use schemas::data::Entropy;

/// Unigram and bigram entropy of `tokens` in nats a token, with frequencies counted in the same
/// tokens. A model that is fitted to the measured text does better than one that has to predict it,
/// so this bound favours the n-gram model: a loss below it is a real gain. The values are rounded
/// to a millionth, which JSON carries without loss.
pub fn entropy(tokens: &[u32]) -> Entropy {
    let mut singles: Vec<u64> = tokens.iter().map(|token| u64::from(*token)).collect();
    singles.sort_unstable();
    let unigram = weighted_logs(&singles) / tokens.len().max(1) as f64;
    let mut pairs: Vec<u64> = tokens
        .windows(2)
        .map(|pair| u64::from(pair[0]) << 32 | u64::from(pair[1]))
        .collect();
    let count = pairs.len().max(1) as f64;
    pairs.sort_unstable();
    let joint = weighted_logs(&pairs) / count;
    // The pair without its second token: by the chain rule, its entropy is subtracted from that of
    // the pair.
    pairs.iter_mut().for_each(|pair| *pair >>= 32);
    let bigram = (joint - weighted_logs(&pairs) / count).max(0.0);
    let [unigram, bigram] = [unigram, bigram].map(|nats| (nats * 1e6).round() / 1e6);
    Entropy { unigram, bigram }
}

/// The sum over sorted values of `-ln` of each one's frequency.
fn weighted_logs(sorted: &[u64]) -> f64 {
    let total = sorted.len() as f64;
    let runs = sorted.chunk_by(|a, b| a == b).map(|run| run.len() as f64);
    runs.map(|count| -count * (count / total).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} and {b}");
        // Alternating tokens: one bit for each token alone, none if the token before is known.
        let alternating: Vec<u32> = (0..10_000).map(|i| i % 2).collect();
        let measured = entropy(&alternating);
        close(measured.unigram, 2_f64.ln());
        close(measured.bigram, 0.0);
        // Random bits: the token before tells nothing.
        let flip = |state: &mut u64| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            Some((*state >> 63) as u32)
        };
        let coins: Vec<u32> = std::iter::repeat_n((), 40_000)
            .scan(1, |state, ()| flip(state))
            .collect();
        close(entropy(&coins).unigram, 2_f64.ln());
        close(entropy(&coins).bigram, 2_f64.ln());
        let constant = entropy(&[7; 100]);
        assert_eq!((constant.unigram, constant.bigram), (0.0, 0.0));
        assert_eq!(
            entropy(&[]),
            Entropy {
                unigram: 0.0,
                bigram: 0.0
            }
        );
    }

    #[test]
    fn bigram_by_hand() {
        // Pairs: ab, bb, bb, ba. After a: b once. After b: b twice, a once.
        let got = entropy(&[0, 1, 1, 1, 0]).bigram;
        let expected = -(2.0 * (2.0_f64 / 3.0).ln() + (1.0_f64 / 3.0).ln()) / 4.0;
        assert!((got - expected).abs() < 1e-6, "{got} and {expected}");
    }
}
