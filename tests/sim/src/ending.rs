//! An operator who ends the leases that workers hold, as after a leak of keys.

use coordinator_core::ControlRequest;
use schemas::V;
use schemas::ending::LeasesEndRequest;
use schemas::lease::LeaseRef;

use crate::plan::run_id;
use crate::world::World;

impl World {
    /// Orders the end of every lease that the ledger has. The order is said twice, as after an
    /// answer that was lost: the second time it ends nothing.
    pub(crate) fn end_leases(&mut self) {
        let run = self.site.shadow.run(&run_id());
        let leases: Vec<LeaseRef> = run
            .map(|run| run.leases().map(|(lease, ..)| lease).collect())
            .unwrap_or_default();
        if leases.is_empty() {
            return;
        }
        for _ in 0..2 {
            self.ask_as_operator(ControlRequest::LeasesEnd(LeasesEndRequest {
                v: V,
                run: run_id(),
                leases: leases.clone(),
                reason: "keys leaked".parse().expect("a reason"),
            }));
        }
    }
}
