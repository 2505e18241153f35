//! Examples of security events, and of what services report.

use schemas::event::Event;
use schemas::member::{Layer, OpenLayer, Posture};
use schemas::security::{RefusalReport, Refused, Refuser, SecurityEvent, Seen};
use schemas::{Code, UnixMillis, V};

use super::{Example, event, example, public};

fn seen() -> Seen {
    Seen {
        count: 3,
        first: UnixMillis(1_700_000_000_000),
        account: Some(kit::account(1)),
        user: Some(public()),
        name: "worker-0".to_owned(),
        address: "10.0.0.7".to_owned(),
        subject: "diloco.control.x".to_owned(),
        reason: "publish".to_owned(),
    }
}

fn posture() -> Posture {
    Posture {
        open: vec![OpenLayer {
            layer: Layer::Bulk,
            reason: "a measurement".to_owned(),
        }],
    }
}

pub(super) fn all() -> Vec<Example> {
    let refused = Seen {
        name: String::new(),
        address: String::new(),
        reason: "DL0208 sender is not who it says".to_owned(),
        ..seen()
    };
    vec![
        Example {
            name: "event of the sentry",
            ..example(&event(Event::Security(SecurityEvent::PermissionDenied {
                seen: seen(),
            })))
        },
        Example {
            name: "event of a refused request",
            ..example(&event(Event::Security(SecurityEvent::RequestRefused {
                by: Refuser::Coordinator,
                seen: refused,
            })))
        },
        Example {
            name: "event of a sentry that did not hear",
            ..example(&event(Event::Security(SecurityEvent::SentryInterrupted {
                unheard: "reports of the broker".to_owned(),
                from: UnixMillis(1_700_000_000_000),
                until: UnixMillis(1_700_000_007_000),
                times: 2,
            })))
        },
        example(&RefusalReport {
            v: V,
            refusals: vec![Refused {
                account: Some(kit::account(1)),
                user: Some(public()),
                subject: "diloco.request.demo.x.lease.claim".to_owned(),
                code: Code::LeaseUnknown,
                count: 7,
            }],
            more: 2,
            posture: None,
        }),
        Example {
            name: "refusal-report of a posture",
            ..example(&RefusalReport {
                v: V,
                refusals: Vec::new(),
                more: 0,
                posture: Some(posture()),
            })
        },
        Example {
            name: "event of a sentry's start",
            ..example(&event(Event::Security(SecurityEvent::SentryStarted {
                release: "0.1.0".to_owned(),
                broker_log: true,
                unheard: Vec::new(),
                posture: posture(),
            })))
        },
        Example {
            name: "event of a posture",
            ..example(&event(Event::Security(SecurityEvent::PostureStated {
                by: Refuser::Store,
                posture: posture(),
            })))
        },
    ]
}
