//! The rule about the pairs of runs.

use std::sync::atomic::Ordering;

use identity::UrlsOf;
use schemas::lease::{LeaseRef, UnitId, UnitKind};
use schemas::{Epoch, Round, UnitIndex};

use super::answer::Answer;
use super::report::Rule;
use super::tried::Tried;
use super::{Probe, Sample};
use crate::key::IncomingKey;

impl Probe {
    /// Uploads with the pair of a run, to places of another run, of an operator, and of this run.
    pub(super) async fn pairs(&self, report: &mut Tried<'_>) {
        let runs = ["store-check", "store-check-2"].map(|name| {
            let run = name.parse().expect("a name of a run");
            let sample = self.sample(name);
            let worker = self.operator.as_str().parse().expect("a key");
            let unit = UnitId {
                round: Round(0),
                kind: UnitKind::Train,
                index: UnitIndex(self.number.load(Ordering::Relaxed)),
            };
            let lease = LeaseRef {
                unit,
                epoch: Epoch(1),
            };
            let key = IncomingKey::worker(&run, lease, &worker, sample.digest);
            let path = key.to_string();
            (
                UrlsOf::Run(run),
                Sample {
                    key,
                    path,
                    ..sample
                },
            )
        });
        let [(urls, own), (_, others)] = runs;
        let operators = self.sample("an operator's");
        let pair = self.put.of(&urls);
        let mut seen = Vec::new();
        for sample in [&others, &operators, &own] {
            seen.push(self.upload(&pair, sample, &sample.bytes).await);
        }
        let holds = seen[..2].iter().all(Answer::refused)
            && seen[2].accepted()
            && self.has(&own).await
            && !self.has(&others).await
            && !self.has(&operators).await;
        let seen: Vec<String> = seen.iter().map(ToString::to_string).collect();
        report.note(Rule::RunsHavePairs, holds, seen.join(", "));
        self.forget(&[own, others, operators]).await;
    }
}
