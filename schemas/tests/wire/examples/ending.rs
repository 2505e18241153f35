//! Examples about leases that an operator ends.

use schemas::ending::{LeasesEndReply, LeasesEndRequest};
use schemas::event::{Event, LeaseEnd, LedgerEvent};
use schemas::{Epoch, Tokens, V};

use super::{Example, event, example, lease, public, run, worker};

pub(super) fn all() -> Vec<Example> {
    let mut before = lease();
    before.epoch = Epoch(1);
    vec![
        example(&LeasesEndRequest {
            v: V,
            run: run(),
            leases: vec![before, lease()],
            reason: "keys leaked".parse().expect("a reason"),
        }),
        example(&LeasesEndReply {
            v: V,
            ended: vec![lease()],
            over: vec![before],
        }),
        Example {
            name: "event of an order that ends leases",
            ..example(&event(Event::Ledger(LedgerEvent::LeasesEnded {
                operator: public(),
                reason: "keys leaked".parse().expect("a reason"),
                leases: 1,
            })))
        },
        Example {
            name: "event of a lease that an operator ended",
            ..example(&event(Event::Ledger(LedgerEvent::LeaseEnded {
                lease: lease(),
                worker: worker(),
                cause: LeaseEnd::Ordered,
                tokens: Tokens(4096),
            })))
        },
    ]
}
