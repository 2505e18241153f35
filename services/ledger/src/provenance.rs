//! What a contribution was made from, by the ledger and the run's data.

use schemas::WorkerId;
use schemas::lease::UnitId;
use schemas::provenance::MadeFrom;

use crate::draw::Draw;
use crate::state::Run;

impl Run {
    /// What a contribution of `worker` to `unit` was made from; none if the worker never joined, or
    /// the weights that the unit starts from are not kept any more. This is what the lease said,
    /// and it is the same before and after the contribution is accepted.
    pub fn made_from(&self, worker: &WorkerId, unit: &UnitId, draw: &Draw) -> Option<MadeFrom> {
        Some(MadeFrom {
            base: self.base(unit).next()?.clone(),
            shards: draw.train_shards(&self.spec, unit),
            release: self.members.get(worker)?.release.clone(),
        })
    }
}
