//! What happened in a simulation.

use schemas::event::LeaseEnd;

/// Counts of the things that happened: a simulation in which nothing went wrong proves little.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events in the ledger.
    pub events: u64,
    /// Coordinators that took the lead.
    pub starts: u64,
    /// Leases granted.
    pub granted: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Leases given back.
    pub released: u64,
    /// Leases of workers that were no longer members.
    pub orphaned: u64,
    /// Leases that were granted to a group.
    pub grouped: u64,
    /// Leases that were renewed without progress.
    pub stalled: u64,
    /// Leases that an operator ended.
    pub ordered: u64,
    /// Results refused.
    pub rejected: u64,
    /// Contributions that count.
    pub accepted: u64,
    /// Held-out losses.
    pub evaluated: u64,
    /// Full snapshots.
    pub saved: u64,
    /// Pointers that were moved to a full snapshot.
    pub promoted: u64,
    /// Refused requests that were recorded.
    pub denied: u64,
    /// Parts of seals, without the last part of each.
    pub parts: u64,
    /// Times that directions were compared.
    pub compared: u64,
    /// Contributions that were left out of a merge because of that.
    pub left_out: u64,
    /// Times that the run was frozen.
    pub frozen: u64,
    /// Times that its URLs were stopped.
    pub stopped: u64,
    /// Workers that came into quarantine.
    pub quarantined: u64,
    /// Leases that ended with that.
    pub shut: u64,
    /// Keys that were revoked.
    pub revoked: u64,
    /// Keys of these that were issued anew.
    pub reissued: u64,
    /// Contributions that were withdrawn with that.
    pub withdrawn: u64,
    /// Snapshots that were restored.
    pub restored: u64,
    /// Leases that ended with that.
    pub fenced: u64,
    /// Contributions that were dropped with that.
    pub dropped: u64,
    /// Merged rounds by which the run went back.
    pub undone: u64,
    /// Collections of old objects.
    pub collections: u64,
    /// Contributions and snapshots that the store lost with these.
    pub lost: u64,
    /// Runs whose privacy budget ended between two rounds.
    pub spent: u64,
    /// Runs whose privacy budget ended in a round.
    pub spent_within: u64,
    /// Cohorts of masked rounds that were sealed.
    pub cohorts: u64,
    /// Workers that were gone after the agreement, and left out of a sum.
    pub gone_after_sealing: u64,
    /// Masked rounds whose sum could not be had.
    pub dissolved: u64,
    /// Sums for which a worker revealed nothing, since it had for another of the round.
    pub refused_sums: u64,
    /// Times that a run was halted for that, and its operator started the workers again.
    pub sums_lost: u64,
    /// Times that another key went on with the ledger.
    pub succeeded: u64,
    /// Times that a worker was asked to hand its sealed shares in again.
    pub handed_again: u64,
}

impl Counts {
    /// Counts the end of a lease without a result. True if it was an operator's.
    pub(crate) fn ended(&mut self, cause: LeaseEnd) -> bool {
        let count = match cause {
            LeaseEnd::Expired => &mut self.expired,
            LeaseEnd::Released => &mut self.released,
            LeaseEnd::Orphaned => &mut self.orphaned,
            LeaseEnd::Stalled => &mut self.stalled,
            LeaseEnd::Ordered => &mut self.ordered,
        };
        *count += 1;
        cause == LeaseEnd::Ordered
    }
}
