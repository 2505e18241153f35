//! A private run: contributions are clipped and noised, nothing else of the data is told, and the
//! run ends with its budget.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::event::LedgerEvent;
use schemas::run::Privacy;

const UNITS: u32 = 2;
/// Rounds that the budget lasts for, of five.
const ROUNDS: u64 = 3;
/// Noise that a small model with two workers can learn under, and a budget of three times what a
/// disclosure at it costs. Such a budget promises nothing: noise that promises something needs many
/// more workers than a test has.
const PRIVACY: Privacy = Privacy {
    clip: 4.0,
    noise_multiplier: 0.005,
    delta: 1e-6,
    epsilon: 250_000.0,
};

/// What `run new` says when it refuses private settings.
async fn refused(cluster: &Cluster, settings: &[&str]) -> String {
    let mut arguments = vec!["run", "new", "other", "--privacy"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let output = cluster.diloctl(&arguments).await;
    assert!(!output.status.success(), "{settings:?}: {}", output.stdout);
    output.stderr
}

#[tokio::test]
async fn tl_16_a_private_run_trains_on_noised_contributions_and_ends_with_its_budget() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    for (settings, code) in [
        (&["transfer.error_feedback=true"][..], Code::PrivacyUnfit),
        (&["privacy.noise_multiplier=0"], Code::SpecInvalid),
        (&["privacy.delta=1"], Code::SpecInvalid),
        (&["privacy.epsilon=0.5"], Code::PrivacyUnfit),
    ] {
        let said = refused(&cluster, settings).await;
        assert!(said.contains(&code.to_string()), "{settings:?}: {said}");
    }
    let said = Recipe::reference(5, UNITS, 60)
        .shards_of(20_000)
        .set("policy.workers_min=2")
        .set("policy.lease=60s")
        .set("schedule.snapshot_every=5")
        .set("privacy.enabled=true")
        .set("privacy.clip=4")
        .set("privacy.noise_multiplier=0.005")
        .set("privacy.delta=1e-6")
        .set("privacy.epsilon=250000")
        .create(&cluster)
        .await;
    assert!(said.contains("lasts for 3 rounds of the 5"), "{said}");
    assert!(said.contains("promises next to nothing"), "{said}");
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    let privacy = view.privacy.expect("it is private");
    assert_eq!((view.round.get(), view.rounds), (ROUNDS, 5));
    assert_eq!(
        (privacy.disclosures, privacy.disclosures_max, privacy.over),
        (3, 3, true)
    );
    assert!(privacy.epsilon_spent <= privacy.epsilon);
    assert!(privacy.epsilon_spent > 0.9 * privacy.epsilon, "{privacy:?}");
    assert_eq!(view.train_loss, None);

    let rounds = operator.rounds(&run).await;
    let first = rounds.first().and_then(|round| round.held_out_loss);
    let first = first.expect("the initial weights were evaluated");
    let (version, last) = view.held_out_loss.expect("the last weights were evaluated");
    assert_eq!(version.get(), ROUNDS);
    assert!(
        last + 0.5 < first,
        "held-out loss went from {first} to {last}"
    );

    let waited = cluster
        .diloctl(&["run", "wait", run.as_str(), "--for", "complete"])
        .await;
    assert!(!waited.status.success());
    let code = Code::PrivacySpent.to_string();
    assert!(waited.stderr.contains(&code), "{}", waited.stderr);
    let reached = ["run", "wait", run.as_str(), "--for", "round=3"];
    cluster.diloctl_ok(&reached).await;
    let shown = cluster.diloctl_ok(&["run", "get", run.as_str()]).await;
    assert!(
        shown.contains("3 of 3 contributions") && shown.contains(&code),
        "{shown}"
    );

    cluster.record_verifies().await;
    // What is merged are the noised contributions, so an auditor comes to the same weights.
    let text = cluster.diloctl_ok(&["audit", "recompute", "--all"]).await;
    assert_eq!(text.matches("verified").count() as u64, ROUNDS, "{text}");
    cluster.end_well(&["worker-0", "worker-1"]).await;
    let spec = operator.run(&run).await.unwrap().spec;
    assert_eq!(spec.privacy, Some(PRIVACY));
    let noise = PRIVACY.clip * PRIVACY.noise_multiplier * (spec.parameters() as f64).sqrt();
    let (_, most) = PRIVACY.norms(spec.parameters());
    let recorded = cluster.evidence().await.everything().await;
    let mut contributions = 0;
    for event in recorded.iter().filter_map(|one| one.ledger()) {
        if let LedgerEvent::ContributionAccepted {
            contribution, norm, ..
        } = event
        {
            contributions += 1;
            assert_eq!(contribution.privacy, Some(PRIVACY.applied()));
            assert_eq!(contribution.loss, 0.0);
            // The clipped part and the noise are nearly at right angles.
            let longest = (PRIVACY.clip.powi(2) + noise.powi(2)).sqrt() * 1.05;
            assert!(
                *norm > 0.9 * noise && *norm < longest.min(most),
                "{norm} {longest}"
            );
        }
    }
    assert_eq!(contributions, ROUNDS * u64::from(UNITS));
    let replay = ["audit", "replay", "--run", run.as_str()];
    let timeline = cluster.diloctl_ok(&replay).await;
    assert!(timeline.contains("privacy-spent"), "{timeline}");
}
