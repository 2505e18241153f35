//! Traces and metrics of a running coordinator: a span around each input and each effect, with its
//! run, round, unit and lease, and the metrics of [`runtime::metrics::TABLE`].

use std::time::Duration;

use coordinator_core::{Effect, Input};
use metrics::{counter, gauge, histogram};
use runtime::metrics::{
    APPEND_SECONDS, ARRIVALS_WAITING, DECISION_SECONDS, EFFECT_SECONDS, EFFECTS, REQUEST_SECONDS,
    REQUESTS, outcome,
};
use schemas::foundry::{Answer, Order};
use schemas::subject::ControlVerb;
use schemas::{Refusal, RunId};
use tracing::{Span, field, info_span};

/// The label of an operator's request. It differs from that of a worker's verb with the same name.
pub(crate) const fn control_label(verb: ControlVerb) -> &'static str {
    match verb {
        ControlVerb::BlobPut => "operator blob.put",
        ControlVerb::BlobGet => "operator blob.get",
        ControlVerb::Keys => "operator keys",
        verb => verb.token(),
    }
}

/// Counts a request that was answered.
pub(crate) fn answered(request: &'static str, took: Duration, refused: Option<&Refusal>) {
    let outcome = outcome(refused.map(|refusal| refusal.code));
    counter!(REQUESTS, "request" => request, "outcome" => outcome).increment(1);
    histogram!(REQUEST_SECONDS, "request" => request).record(took);
}

/// Shows the number of arrivals that wait for the loop.
pub(crate) fn waiting(arrivals: usize) {
    gauge!(ARRIVALS_WAITING).set(arrivals as f64);
}

/// Counts an input that the core has decided on.
pub(crate) fn decided(input: &'static str, took: Duration) {
    histogram!(DECISION_SECONDS, "input" => input).record(took);
}

/// Counts an effect that has left the loop.
pub(crate) fn carried_out(effect: &'static str, took: Duration) {
    counter!(EFFECTS, "effect" => effect).increment(1);
    histogram!(EFFECT_SECONDS, "effect" => effect).record(took);
}

/// Counts an append of this many events, which the broker has acknowledged.
pub(crate) fn appended(events: u64, took: Duration) {
    counter!(EFFECTS, "effect" => "append").increment(events);
    histogram!(APPEND_SECONDS).record(took);
}

/// The span around everything that one input causes in the core.
pub(crate) fn input_span(input: &Input) -> Span {
    let span = span_of("input", input.kind());
    match input {
        Input::Request { peer, request, .. } => {
            about(&span, &peer.run);
            if let Some(lease) = request.lease() {
                span.record("lease", field::display(lease));
            }
        }
        Input::Heartbeat { peer, .. }
        | Input::Denied { peer, .. }
        | Input::Refused { peer, .. } => about(&span, &peer.run),
        Input::Offered { run, unit, .. } => {
            about(&span, run);
            span.record("unit", field::display(unit));
        }
        Input::Foundry { run, answer } => {
            about(&span, run);
            match answer {
                Answer::Merged { sync, .. } => {
                    span.record("round", field::display(sync.round));
                }
                Answer::Saved { round, .. } | Answer::Compared { round, .. } => {
                    span.record("round", field::display(round));
                }
                Answer::DataLoaded { .. }
                | Answer::Restored { .. }
                | Answer::Screened { .. }
                | Answer::ListRead { .. } => {}
            }
        }
        _ => {}
    }
    span
}

/// The span of an effect: of its work in the loop, and of the work that it starts beside it.
pub(crate) fn effect_span(effect: &Effect) -> Span {
    let span = span_of("effect", effect.kind());
    match effect {
        Effect::Command { run, .. } => about(&span, run),
        Effect::Lease { manifest, .. } => {
            span.record("lease", field::display(&manifest.lease));
        }
        Effect::Offer { run, unit } => {
            about(&span, run);
            span.record("unit", field::display(unit));
        }
        Effect::Foundry { run, order } => {
            about(&span, run);
            match order {
                Order::Stage { lease, .. } | Order::Unstage { lease } => {
                    span.record("lease", field::display(lease));
                }
                Order::Merge { sync, .. } => {
                    span.record("round", field::display(sync.round));
                }
                Order::Save { round, .. } | Order::Compare { round, .. } => {
                    span.record("round", field::display(round));
                }
                Order::Restore { .. }
                | Order::Screen { .. }
                | Order::ReadList { .. }
                | Order::Forget => {}
            }
        }
        _ => {}
    }
    span
}

fn span_of(door: &'static str, kind: &'static str) -> Span {
    info_span!(
        "door",
        door,
        kind,
        run = field::Empty,
        round = field::Empty,
        unit = field::Empty,
        lease = field::Empty
    )
}

fn about(span: &Span, run: &RunId) {
    span.record("run", field::display(run));
}
