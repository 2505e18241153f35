//! Small runs: text that can be learned in seconds, and settings that keep rounds short.

use harness::{Cluster, Output};

/// Bytes of the training text.
const CORPUS_BYTES: usize = 512 << 10;

/// Settings of a small run of the trainer in plain Rust.
pub(crate) const REFERENCE: [&str; 8] = [
    "model.precision=fp32",
    "schedule.batch_sequences=8",
    "schedule.sequence_tokens=32",
    "schedule.evaluation_sequences=32",
    "inner.learning_rate=0.01",
    "inner.warmup_steps=10",
    "policy.workers_min=1",
    "policy.lease=5s",
];

/// A run that `diloctl` creates.
#[derive(Clone, Debug)]
pub struct Recipe {
    model: String,
    rounds: u64,
    units: u32,
    steps: u64,
    shard_tokens: Option<u64>,
    settings: Vec<String>,
    run: Option<String>,
}

impl Recipe {
    /// A run of the trainer in plain Rust. A unit of 100 steps takes about a second on a busy core.
    pub fn reference(rounds: u64, units: u32, steps: u64) -> Self {
        let settings = REFERENCE;
        Self {
            model: "reference".to_owned(),
            rounds,
            units,
            steps,
            shard_tokens: None,
            settings: settings.map(str::to_owned).to_vec(),
            run: None,
        }
    }

    /// A run whose units a test does by hand: contributions in fp32, no evaluation, and leases that
    /// outlast a test's words.
    pub fn scripted(rounds: u64, units: u32) -> Self {
        Self::reference(rounds, units, 5)
            .set("schedule.evaluation_every=0")
            .set("transfer.upload=fp32")
            .set("policy.lease=60s")
    }

    /// A run of a small decoder on libtorch.
    pub fn torch(rounds: u64, units: u32, steps: u64) -> Self {
        let settings = [
            "model.precision=fp32",
            "schedule.batch_sequences=4",
            "schedule.sequence_tokens=64",
            "schedule.evaluation_sequences=8",
            "inner.warmup_steps=4",
            "policy.workers_min=2",
            "policy.lease=20s",
        ];
        Self {
            model: "tiny".to_owned(),
            rounds,
            units,
            steps,
            shard_tokens: None,
            settings: settings.map(str::to_owned).to_vec(),
            run: None,
        }
    }

    /// The same run with another model of the trainer in plain Rust, from a file.
    #[must_use]
    pub fn model(mut self, config: &std::path::Path) -> Self {
        self.model = config.display().to_string();
        self.set("model.trainer=reference")
    }

    /// The same run under another name than the cluster's.
    #[must_use]
    pub fn named(mut self, run: &str) -> Self {
        self.run = Some(run.to_owned());
        self
    }

    /// The same run with one more setting.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Self {
        self.settings.push(setting.to_owned());
        self
    }

    /// The same run on text that is cut into shards of this length.
    #[must_use]
    pub fn shards_of(mut self, tokens: u64) -> Self {
        self.shard_tokens = Some(tokens);
        self
    }

    /// Imports the text and creates the run. Returns what `run new` says beside its result.
    ///
    /// # Panics
    /// `diloctl` fails.
    pub async fn create(&self, cluster: &Cluster) -> String {
        let output = self.try_to_create(cluster).await;
        assert!(
            output.status.success(),
            "{}{}",
            output.stdout,
            output.stderr
        );
        output.stderr
    }

    /// As [`Recipe::create`], for a `run new` that may be refused.
    ///
    /// # Panics
    /// The text cannot be imported.
    pub async fn try_to_create(&self, cluster: &Cluster) -> Output {
        let path = cluster.path("corpus.txt");
        std::fs::write(&path, corpus())
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let shards = self.shard_tokens.map(|tokens| tokens.to_string());
        let mut import = vec![
            "data",
            "import",
            "--text",
            "corpus.txt",
            "--limit",
            "512KiB",
        ];
        import.extend(shards.iter().flat_map(|tokens| ["--shard-tokens", tokens]));
        cluster.diloctl_ok(&import).await;
        let own = || cluster.run().to_string();
        let run = self.run.clone().unwrap_or_else(own);
        let (rounds, units, steps) = (
            self.rounds.to_string(),
            self.units.to_string(),
            self.steps.to_string(),
        );
        let mut arguments = vec![
            "run",
            "new",
            &run,
            "--model",
            &self.model,
            "--rounds",
            &rounds,
        ];
        arguments.extend(["--units", &units, "--steps", &steps]);
        for setting in &self.settings {
            arguments.extend(["--set", setting]);
        }
        cluster.diloctl(&arguments).await
    }
}

/// Sentences of few words in a fixed, irregular order.
pub(crate) fn corpus() -> String {
    const WORDS: [&str; 24] = [
        "the", "river", "carries", "small", "boats", "past", "old", "mills", "and", "every",
        "evening", "someone", "lights", "a", "lamp", "beside", "water", "while", "children",
        "count", "stones", "under", "bridge", "quietly",
    ];
    let mut text = String::with_capacity(CORPUS_BYTES + 64);
    let mut state: u32 = 1;
    let mut words = 0;
    while text.len() < CORPUS_BYTES {
        // Numerical Recipes' generator; its upper bits are good enough for word order.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(WORDS[(state >> 16) as usize % WORDS.len()]);
        words += 1;
        text.push_str(match words % 12 {
            0 => ".\n",
            _ => " ",
        });
        if words % 120 == 0 {
            text.push('\n');
        }
    }
    text
}
