//! Two workers train a small decoder on libtorch.

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE};
use serde_json::Value;

#[tokio::test]
async fn two_workers_train_a_decoder_and_it_can_be_pulled() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    Recipe::torch(2, 2, 8).create(&cluster).await;
    let run = cluster.run().clone();
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    let first = operator.rounds(&run).await[0]
        .held_out_loss
        .expect("the initial weights were evaluated");
    let (_, last) = view.held_out_loss.expect("the last snapshot was evaluated");
    assert!(
        last + 0.3 < first,
        "held-out loss went from {first} to {last}"
    );
    cluster.end_well(&["worker-0", "worker-1"]).await;
    pulled_by_two_at_once(&cluster).await;
    let json = |name: &str| -> Value {
        let path = cluster.path("model").join(name);
        serde_json::from_slice(&std::fs::read(&path).unwrap())
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let config = json("config.json");
    assert_eq!(
        (&config["vocab_size"], &config["torch_dtype"]),
        (&256.into(), &"float32".into())
    );
    for (name, file) in [
        ("config.json", &config),
        ("generation_config.json", &json("generation_config.json")),
    ] {
        for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            assert_eq!(
                file.get(key),
                Some(&Value::Null),
                "{key} of {name}: a reader takes its own for one that is absent"
            );
        }
    }
    let tokenizer = json("tokenizer_config.json");
    assert_eq!(
        (
            &tokenizer["add_bos_token"],
            &tokenizer["split_special_tokens"]
        ),
        (&false.into(), &true.into())
    );
    assert_eq!(
        json("tokenizer.json")["model"]["vocab"]
            .as_object()
            .unwrap()
            .len(),
        256
    );
    let weights = std::fs::metadata(cluster.path("model/model.safetensors"))
        .unwrap()
        .len();
    assert!(weights > 4 * 200_000, "{weights} bytes of weights");
    let sample = [
        "sample",
        "--model",
        "model",
        "--prompt",
        "the river",
        "--tokens",
        "5",
        "--device",
        "cpu",
    ];
    let said = cluster
        .run_program("diloco-worker", &sample, PATIENCE)
        .await;
    assert!(
        said.status.success() && said.stdout.starts_with("the river"),
        "{}{}",
        said.stdout,
        said.stderr
    );
    read_by_transformers(&cluster).await;
}

/// One of two pulls writes the folder; the other is refused, or finds the folder whole.
async fn pulled_by_two_at_once(cluster: &Cluster) {
    let pull = || cluster.diloctl(&["snapshot", "pull", "demo", "--to", "model"]);
    let (one, other) = tokio::join!(pull(), pull());
    assert!(
        one.status.success() || other.status.success(),
        "{}{}",
        one.stderr,
        other.stderr
    );
    for output in [one, other] {
        assert!(
            output.status.success() || output.stderr.contains("DL0621"),
            "{}",
            output.stderr
        );
    }
}

/// Loads the folder with the library that most people would use, if this machine has it.
#[expect(
    clippy::print_stderr,
    reason = "the test's output must show what was not looked at"
)]
async fn read_by_transformers(cluster: &Cluster) {
    const SCRIPT: &str = r#"
import sys
try: from transformers import AutoConfig, AutoTokenizer, GenerationConfig
except ImportError: sys.exit(77)
text = "the river — carries\n  <s> small </s> boats"
tokenizer, config = AutoTokenizer.from_pretrained("model"), AutoConfig.from_pretrained("model")
assert tokenizer(text).input_ids == list(text.encode()), tokenizer(text).input_ids
assert tokenizer.decode(tokenizer(text).input_ids) == text
assert config.bos_token_id is None and config.eos_token_id is None
assert GenerationConfig.from_pretrained("model").bos_token_id is None
"#;
    std::fs::write(cluster.path("read.py"), SCRIPT).unwrap();
    let python = tokio::process::Command::new("python3")
        .arg("read.py")
        .current_dir(cluster.path(""))
        .output()
        .await;
    match python {
        Ok(output) if output.status.code() == Some(77) => {
            eprintln!("skipped: transformers is not on this machine")
        }
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => eprintln!("skipped: python3 does not run here: {error}"),
    }
}
