//! Contributions with 4 bits a value: a run with them learns and its record verifies. A coordinator
//! that is killed before it saves a snapshot recomputes the weights from them.

use e2e::Recipe;
use harness::{Cluster, Options};
use schemas::Code;
use schemas::contribution::Contribution;
use schemas::event::LedgerEvent;
use schemas::run::CodecKind;

const ROUNDS: u64 = 3;
const UNITS: u32 = 2;

#[tokio::test]
async fn a_run_with_uploads_of_four_bits_learns_and_is_recomputed_after_a_crash() {
    let mut cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    let recipe = Recipe::reference(ROUNDS, UNITS, 60)
        .set("policy.lease=20s")
        .set("transfer.upload=e3m0")
        .set("transfer.error_feedback=true");
    let weights = ["run", "new", "other", "--set", "transfer.download=e3m0"];
    let refused = cluster.diloctl(&weights).await;
    let code = Code::CodecUnfit.to_string();
    assert!(
        !refused.status.success() && refused.stderr.contains(&code),
        "{}",
        refused.stderr
    );
    // No snapshot is saved before the end, so a new coordinator has only the initial weights and
    // the contributions.
    recipe
        .set("schedule.snapshot_every=3")
        .create(&cluster)
        .await;
    evidence.until_contribution(&run, 1).await;
    cluster.kill9("coordinator");
    cluster.restart("coordinator").await;
    let operator = cluster.operator().await;
    let view = operator.until_complete(&run).await;
    let rounds = operator.rounds(&run).await;
    let first = rounds
        .first()
        .and_then(|round| round.held_out_loss)
        .expect("the initial weights were evaluated");
    let (_, last) = view.held_out_loss.expect("the last snapshot was evaluated");
    assert!(
        last + 1.0 < first,
        "held-out loss went from {first} to {last}"
    );
    let spec = operator.run(&run).await.unwrap().spec;
    assert!(spec.error_feedback, "it comes with this codec");
    cluster.record_verifies().await;
    cluster.end_well(&["worker-0", "worker-1"]).await;
    let recorded = cluster.evidence().await.everything().await;
    let contributions: Vec<&Contribution> = recorded
        .iter()
        .filter_map(|one| match one.ledger() {
            Some(LedgerEvent::ContributionAccepted { contribution, .. }) => {
                Some(contribution.as_ref())
            }
            _ => None,
        })
        .collect();
    assert_eq!(contributions.len() as u64, ROUNDS * u64::from(UNITS));
    for contribution in contributions {
        assert_eq!(contribution.codec.kind, CodecKind::E3m0);
        for (chunk, initial) in contribution
            .chunks
            .objects()
            .iter()
            .zip(spec.model.initial.objects())
        {
            let values = initial.bytes.get() / 4;
            assert_eq!(chunk.bytes.get(), values.div_ceil(256) * 132);
        }
    }
}
