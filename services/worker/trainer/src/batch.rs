//! A batch of token sequences, checked where it is made.

use std::ops::Range;

use crate::TrainerError;

/// Sequences of equal length, row-major `[sequences, sequence_tokens + 1]`: every token but a row's
/// last is an input, and the one after it is what the model should predict.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    tokens: &'a [u32],
    sequences: usize,
    sequence_tokens: usize,
}

impl<'a> Batch<'a> {
    /// A batch over `tokens`.
    ///
    /// # Errors
    /// It is empty, or the number of tokens is not `sequences * (sequence_tokens + 1)`.
    pub fn new(
        tokens: &'a [u32],
        sequences: usize,
        sequence_tokens: usize,
    ) -> Result<Self, TrainerError> {
        let expected = sequence_tokens
            .checked_add(1)
            .and_then(|row| row.checked_mul(sequences));
        if sequences == 0 || sequence_tokens == 0 || expected != Some(tokens.len()) {
            return Err(TrainerError::Input(format!(
                "{} tokens are no {sequences} sequences of {sequence_tokens} tokens and one",
                tokens.len()
            )));
        }
        Ok(Self {
            tokens,
            sequences,
            sequence_tokens,
        })
    }

    /// All tokens, row-major.
    pub const fn tokens(&self) -> &'a [u32] {
        self.tokens
    }

    /// Number of rows.
    pub const fn sequences(&self) -> usize {
        self.sequences
    }

    /// Predicted tokens of a row.
    pub const fn sequence_tokens(&self) -> usize {
        self.sequence_tokens
    }

    /// Predicted tokens of all rows.
    pub const fn predicted(&self) -> usize {
        self.sequences * self.sequence_tokens
    }

    /// The rows, each of `sequence_tokens + 1` tokens.
    pub fn rows(&self) -> impl Iterator<Item = &'a [u32]> {
        self.tokens.chunks_exact(self.sequence_tokens + 1)
    }

    /// Some of the rows as a batch of their own.
    ///
    /// # Panics
    /// When `rows` is empty or out of bounds.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        assert!(!rows.is_empty(), "an empty part of a batch");
        let row = self.sequence_tokens + 1;
        Self {
            tokens: &self.tokens[rows.start * row..rows.end * row],
            sequences: rows.len(),
            ..*self
        }
    }

    /// Sequences of one of `accumulation` micro-batches of equal size.
    ///
    /// # Errors
    /// `accumulation` does not divide the number of sequences.
    pub fn micro_sequences(&self, accumulation: u32) -> Result<usize, TrainerError> {
        let (sequences, count) = (self.sequences, accumulation as usize);
        if count == 0 || !sequences.is_multiple_of(count) {
            let reason =
                format!("accumulation is {count}, which does not divide {sequences} sequences");
            return Err(TrainerError::Input(reason));
        }
        Ok(sequences / count)
    }

    /// Cuts the batch into `accumulation` micro-batches of equal size.
    ///
    /// # Errors
    /// `accumulation` does not divide the number of sequences.
    pub fn micro(
        &self,
        accumulation: u32,
    ) -> Result<impl Iterator<Item = Self> + use<'a>, TrainerError> {
        let size = self.micro_sequences(accumulation)?;
        let whole = *self;
        Ok((0..accumulation as usize)
            .map(move |index| whole.part(index * size..(index + 1) * size)))
    }

    /// Checks the tokens against a model.
    ///
    /// # Errors
    /// A token is not below `vocabulary`, or a row is longer than `sequence_tokens_max`.
    pub fn check(&self, vocabulary: u32, sequence_tokens_max: u32) -> Result<(), TrainerError> {
        if self.sequence_tokens > sequence_tokens_max as usize {
            let tokens = self.sequence_tokens;
            return Err(TrainerError::Input(format!(
                "sequences of {tokens} tokens, the model takes {sequence_tokens_max}"
            )));
        }
        check_tokens(self.tokens, vocabulary)
    }
}

pub(crate) fn check_tokens(tokens: &[u32], vocabulary: u32) -> Result<(), TrainerError> {
    match tokens.iter().find(|token| **token >= vocabulary) {
        Some(token) => Err(TrainerError::Input(format!(
            "token {token} is outside the vocabulary of {vocabulary}"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_must_fit() {
        let tokens: Vec<u32> = (0..12).collect();
        assert!(Batch::new(&tokens, 4, 2).is_ok());
        for (sequences, sequence_tokens) in
            [(0, 2), (4, 0), (4, 3), (3, 2), (usize::MAX, usize::MAX)]
        {
            assert!(Batch::new(&tokens, sequences, sequence_tokens).is_err());
        }
        let batch = Batch::new(&tokens, 4, 2).expect("fits");
        let micro: Vec<_> = batch
            .micro(2)
            .expect("divides")
            .map(|part| part.tokens().to_vec())
            .collect();
        assert_eq!(micro, [tokens[..6].to_vec(), tokens[6..].to_vec()]);
        assert!(batch.micro(3).is_err() && batch.micro(0).is_err());
        assert!(batch.check(12, 2).is_ok());
        assert!(batch.check(11, 2).is_err() && batch.check(12, 1).is_err());
    }
}
