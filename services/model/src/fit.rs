//! Checks that the model, data and settings of a run fit together. Workers depend on these checks,
//! and three programs make them: `diloctl` before it uploads anything, the coordinator before it
//! creates the run, and a worker before it allocates memory. They share this code, so that none
//! accepts settings which another refuses.

use std::collections::BTreeSet;
use std::fmt::Display;

use schemas::data::{DataManifest, Shard};
use schemas::layout::{Layout, TensorSpec};
use schemas::run::Schedule;
use schemas::{Code, Digest, Refusal, Tokens};

use crate::ModelConfig;

impl ModelConfig {
    /// Checks that the layout is the model's, tensor by tensor. The run may cut it into fragments
    /// as it likes.
    ///
    /// # Errors
    /// [`Code::LayoutMismatch`], naming the first difference.
    pub fn check_layout(&self, layout: &Layout) -> Result<(), Refusal> {
        let mismatch = |detail: String| Err(Refusal::new(Code::LayoutMismatch, detail));
        let own = self.layout();
        let (expected, got) = (own.tensors.len(), layout.tensors.len());
        if expected != got {
            return mismatch(format!(
                "model.layout has {got} tensors, model.config gives {expected}"
            ));
        }
        let shown = |tensor: &TensorSpec| format!("{} {:?}", tensor.name, tensor.shape);
        let mut pairs = own.tensors.iter().zip(&layout.tensors);
        match pairs.find(|(own, given)| own.name != given.name || own.shape != given.shape) {
            Some((own, given)) => mismatch(format!(
                "model.layout has tensor {}, model.config gives {}",
                shown(given),
                shown(own)
            )),
            None => Ok(()),
        }
    }

    /// Checks that sequences are not longer than the model has positions.
    ///
    /// # Errors
    /// [`Code::SequenceTooLong`]
    pub fn check_sequence(&self, schedule: &Schedule) -> Result<(), Refusal> {
        let (wanted, positions) = (schedule.sequence_tokens, self.sequence_tokens_max());
        if wanted <= positions {
            return Ok(());
        }
        let detail =
            format!("schedule.sequence_tokens is {wanted}, the model has {positions} positions");
        Err(Refusal::new(Code::SequenceTooLong, detail))
    }

    /// Checks that every token of the data has a row in the model's embedding.
    ///
    /// # Errors
    /// [`Code::VocabularyTooLarge`]
    pub fn check_vocabulary(&self, vocabulary: u32) -> Result<(), Refusal> {
        let rows = self.vocabulary();
        if vocabulary <= rows {
            return Ok(());
        }
        let detail = format!(
            "the data set has a vocabulary of {vocabulary} tokens, the model one of {rows}"
        );
        Err(Refusal::new(Code::VocabularyTooLarge, detail))
    }

    /// Checks everything that a run requires of its data: the manifest is consistent, its tokens
    /// have rows in the embedding, and every shard is long enough for a sequence.
    ///
    /// # Errors
    /// The first requirement that does not hold, with its code.
    pub fn check_data(&self, data: &DataManifest, schedule: &Schedule) -> Result<(), Refusal> {
        data.validate()?;
        self.check_sequence(schedule)?;
        self.check_vocabulary(data.vocabulary)?;
        check_shards("training", &data.train, schedule)?;
        // A run that never evaluates reads no held-out text.
        if schedule.evaluation_every == 0 {
            Ok(())
        } else {
            check_shards("held-out", &data.held_out, schedule)
        }
    }
}

/// Checks what a private run requires of its data beyond that: the units of a round read different
/// shards, so that a shard is in one contribution of a round, and none is held out, where its loss
/// would be told.
///
/// # Errors
/// [`Code::PrivacyUnfit`]
pub fn check_private_data(data: &DataManifest, schedule: &Schedule) -> Result<(), Refusal> {
    let (of_unit, all) = (
        data.shards_of_unit(schedule.unit_tokens()),
        data.train.len(),
    );
    let mut seen: BTreeSet<Digest> = data.held_out.iter().map(digest_of).collect();
    let mut train = data.train.iter().map(digest_of);
    if let Some(twice) = train.find(|shard| !seen.insert(*shard)) {
        let detail = format!("the data has the shard {twice} twice");
        return Err(Refusal::new(Code::PrivacyUnfit, detail));
    }
    let needed = of_unit.saturating_mul(schedule.units.into());
    if needed <= all as u64 {
        return Ok(());
    }
    let detail = format!(
        "the {} units of a round read {of_unit} shards each, and the data has {all} training shards: some would be in two contributions",
        schedule.units
    );
    Err(Refusal::new(Code::PrivacyUnfit, detail))
}

const fn digest_of(shard: &Shard) -> Digest {
    shard.object.digest
}

/// Checks that a text is long enough for a sequence, since a shorter one cannot be used. `what`
/// names the text.
///
/// # Errors
/// [`Code::ShardTooShort`]
pub fn check_length(
    what: impl Display,
    tokens: Tokens,
    schedule: &Schedule,
) -> Result<(), Refusal> {
    // A sequence needs one token more than it has, since its last token is only predicted.
    let (sequence, needed) = (
        schedule.sequence_tokens,
        u64::from(schedule.sequence_tokens) + 1,
    );
    if tokens.get() >= needed {
        return Ok(());
    }
    let detail = format!(
        "{what} has {tokens} tokens, a sequence takes {needed} (schedule.sequence_tokens is {sequence})"
    );
    Err(Refusal::new(Code::ShardTooShort, detail))
}

/// Checks each shard by itself: a unit may read a single shard, and text that is shorter than a
/// sequence would never be read.
fn check_shards(part: &str, shards: &[Shard], schedule: &Schedule) -> Result<(), Refusal> {
    let (numbered, count) = (shards.iter().zip(1..), shards.len());
    match numbered.min_by_key(|(shard, _)| shard.tokens) {
        Some((shard, number)) => {
            let what = format!("{part} shard {} ({number} of {count})", shard.object.digest);
            check_length(what, shard.tokens, schedule)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use schemas::data::Tokenizer;
    use schemas::{ObjectRef, Steps};

    use super::*;
    use crate::Preset;

    fn schedule(sequence_tokens: u32) -> Schedule {
        Schedule {
            rounds: 1,
            units: 1,
            inner_steps: Steps(1),
            batch_sequences: 1,
            accumulation: 1,
            sequence_tokens,
            evaluation_every: 1,
            evaluation_sequences: 1,
            snapshot_every: 1,
        }
    }

    fn shards(lengths: &[usize]) -> Vec<Shard> {
        let shard = |tokens: &usize| Shard {
            object: ObjectRef::of(&vec![7; *tokens]),
            tokens: Tokens(*tokens as u64),
        };
        lengths.iter().map(shard).collect()
    }

    fn data(train: &[usize], held_out: &[usize]) -> DataManifest {
        kit::data()
            .train(shards(train))
            .held_out(shards(held_out))
            .build()
    }

    #[test]
    fn tl_16_a_shard_is_in_one_place_of_a_private_runs_data() {
        let schedule = schedule(256);
        let mut data = data(&[300, 301], &[302]);
        assert_eq!(check_private_data(&data, &schedule), Ok(()));
        let shard = data.train[0];
        let refused = |data: &DataManifest| {
            let refused = check_private_data(data, &schedule).expect_err("it is there twice");
            assert_eq!(refused.code, Code::PrivacyUnfit);
            assert!(refused.detail.contains(&shard.object.digest.to_string()));
        };
        data.train.push(shard);
        refused(&data);
        data.train.pop();
        data.held_out.push(shard);
        refused(&data);
    }

    #[test]
    fn what_no_worker_could_do_is_refused_with_names_and_numbers() {
        let model = Preset::named("tiny").expect("a preset").config;
        let refused = |data: &DataManifest, sequence| {
            model
                .check_data(data, &schedule(sequence))
                .expect_err("refused")
        };
        assert_eq!(
            model.check_data(&data(&[257, 300], &[257]), &schedule(256)),
            Ok(())
        );
        let short = data(&[1 << 20, 256, 50], &[600]);
        let refusal = refused(&short, 256);
        assert_eq!(refusal.code, Code::ShardTooShort);
        let digest = short.train[2].object.digest.to_string();
        for part in ["training", &digest, "3 of 3", "50 tokens", "257", "256"] {
            assert!(
                refusal.detail.contains(part),
                "{part} in {}",
                refusal.detail
            );
        }
        let held_out = data(&[5000], &[5000, 400]);
        assert!(refused(&held_out, 400).detail.contains("held-out shard"));
        let never = Schedule {
            evaluation_every: 0,
            ..schedule(400)
        };
        assert_eq!(
            model.check_data(&held_out, &never),
            Ok(()),
            "what is not read need not be long"
        );
        assert_eq!(
            refused(&data(&[5000], &[5000]), 513).code,
            Code::SequenceTooLong
        );
        let wide = DataManifest {
            vocabulary: 257,
            token_bytes: 2,
            tokenizer: Tokenizer::HuggingFace(ObjectRef::of(b"x")),
            train: vec![Shard {
                object: ObjectRef::of(&[0; 2000]),
                tokens: Tokens(1000),
            }],
            held_out: vec![Shard {
                object: ObjectRef::of(&[1; 2000]),
                tokens: Tokens(1000),
            }],
            ..data(&[], &[])
        };
        assert_eq!(refused(&wide, 256).code, Code::VocabularyTooLarge);
        assert_eq!(
            refused(
                &DataManifest {
                    token_bytes: 4,
                    ..wide
                },
                256
            )
            .code,
            Code::DataInvalid
        );
        assert_eq!(refused(&data(&[1000], &[]), 256).code, Code::DataInvalid);
    }

    #[test]
    fn the_layout_must_be_the_models() {
        let model = Preset::named("reference").expect("a preset").config;
        let layout = model.layout();
        let check = |layout: &Layout| model.check_layout(layout).map_err(|found| found.code);
        assert_eq!(check(&layout), Ok(()));
        let mut fragments = layout.clone();
        fragments.tensors.last_mut().expect("tensors").fragment = 1;
        assert_eq!(check(&fragments), Ok(()), "fragments are the run's choice");
        type Change = fn(&mut Layout);
        let changes: [Change; 4] = [
            |layout| layout.tensors[0].name.push('x'),
            |layout| layout.tensors[0].shape[0] += 1,
            |layout| layout.tensors.swap(0, 1),
            |layout| drop(layout.tensors.pop()),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut other = layout.clone();
            change(&mut other);
            assert_eq!(check(&other), Err(Code::LayoutMismatch), "change {number}");
        }
    }
}
