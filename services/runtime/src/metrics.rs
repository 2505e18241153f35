//! Metrics of a process: counted where things happen, off unless an address is configured, and
//! then served on loopback. `/metrics` gives them in the text form of Prometheus, `/ready` answers
//! 200 while the service can be used and 503 before.
//!
//! [`TABLE`] declares every number once. A label has few values and is never free text. All values
//! are fixed in the code, except names of runs and keys of workers: the protocol checks their form,
//! and a fixed number of them is shown at most.

mod http;
mod samples;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use schemas::Code;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::Failure;

pub use samples::{Samples, also};

/// Upper bounds of the buckets of every histogram, in seconds: from a message in memory to a merge
/// of a large model.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0,
];
/// Time between two cleanings of the samples that histograms collect between scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// The present value.
    Gauge,
    /// Counts of durations, by duration.
    Histogram,
}

/// One number.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// The services that have it.
    pub services: &'static str,
    /// Its description.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($(#[$doc:meta])* $constant:ident = $name:literal, $kind:ident, $labels:expr, $services:literal, $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+

        /// Every number that a service gives.
        pub const TABLE: &[Metric] = &[$(Metric {
            name: $name,
            kind: Kind::$kind,
            labels: $labels,
            services: $services,
            help: $help,
        },)+];
    };
}

metrics_table! {
    REQUESTS = "diloco_requests_total", Counter, &["request", "outcome"], "coordinator", "Requests that were answered, by verb and by outcome: `done`, or the class of the refusal's code.";
    REQUEST_SECONDS = "diloco_request_seconds", Histogram, &["request"], "coordinator", "Time from a request's arrival to its answer, in seconds; a claim is held open until there is work.";
    EFFECTS = "diloco_effects_total", Counter, &["effect"], "coordinator", "Effects that the core asked for, by kind.";
    EFFECT_SECONDS = "diloco_effect_seconds", Histogram, &["effect"], "coordinator", "Time that an effect held the decision loop, in seconds. Work beside the loop is not counted.";
    DECISION_SECONDS = "diloco_decision_seconds", Histogram, &["input"], "coordinator", "Time that the core took to decide about one input, in seconds.";
    APPEND_SECONDS = "diloco_ledger_append_seconds", Histogram, &[], "coordinator", "Time until the broker acknowledged an append to the ledger, in seconds.";
    LEDGER_UNCOVERED = "diloco_ledger_uncovered_events", Gauge, &[], "coordinator", "Events at the end of the ledger that no head of the log covers which the coordinator has verified; absent where the trust bundle names no key for heads.";
    LEDGER_UNCOVERED_SECONDS = "diloco_ledger_uncovered_oldest_seconds", Gauge, &[], "coordinator", "Time since which the oldest of these waits, in seconds, by the coordinator's process; 0 without one.";
    ARRIVALS_WAITING = "diloco_arrivals_waiting", Gauge, &[], "coordinator", "Messages and results that wait for the decision loop.";
    WORKER_TOKENS = "diloco_worker_tokens_total", Counter, &["run", "worker"], "coordinator", "Tokens that a worker's process has trained on. Like all metrics of workers, this comes from the worker's last heartbeat.";
    WORKER_SPEED = "diloco_worker_tokens_per_second", Gauge, &["run", "worker"], "coordinator", "A worker's recent speed.";
    WORKER_LOSS = "diloco_worker_loss", Gauge, &["run", "worker"], "coordinator", "The loss of a worker's last inner step, in nats a token.";
    WORKER_STEPS = "diloco_worker_steps", Gauge, &["run", "worker"], "coordinator", "Inner steps done on the lease that a worker holds.";
    WORKER_BYTES = "diloco_worker_bytes_total", Counter, &["run", "worker", "way"], "coordinator", "Bytes of objects that a worker's process has moved, `up` and `down`.";
    WORKER_LANE_SECONDS = "diloco_worker_lane_seconds_total", Counter, &["run", "worker", "lane"], "coordinator", "Time that a worker's process has spent, in seconds, by lane: `fetch`, `train`, `encode`, `upload`. Lanes may run beside each other.";
    WORKER_TRANSFER_FAILURES = "diloco_worker_transfer_failures_total", Counter, &["run", "worker"], "coordinator", "Attempts at a transfer that failed in a worker's process; most transfers are then tried again.";
    WORKER_DEVICE_MEMORY = "diloco_worker_device_memory_bytes", Gauge, &["run", "worker"], "coordinator", "Memory of a worker's CUDA device that its trainer holds; absent where it computes on the processor.";
    WORKERS_NOT_SHOWN = "diloco_workers_not_shown", Gauge, &[], "coordinator", "Workers whose metrics are not shown, since 512 others are shown already; at most 512 such workers are counted.";
    STORE_REQUESTS = "diloco_store_requests_total", Counter, &["method", "status"], "store", "Requests that were answered, by HTTP method and status.";
    STORE_REQUEST_SECONDS = "diloco_store_request_seconds", Histogram, &["method"], "store", "Time from a request's head to the head of its answer, in seconds.";
    STORE_CONNECTIONS = "diloco_store_connections", Gauge, &[], "store", "Connections that are open.";
    AUDIT_EVENTS = "diloco_audit_events_total", Counter, &["outcome"], "audit", "Events that workers handed in, by outcome: `done`, or the class of the refusal's code.";
    REGISTRAR_QUESTIONS = "diloco_registrar_questions_total", Counter, &["outcome"], "registrar", "Questions for a new token, by outcome: `done`, or the class of the refusal's code.";
    REGISTRAR_QUESTION_SECONDS = "diloco_registrar_question_seconds", Histogram, &[], "registrar", "Time from a question's arrival to its answer, in seconds.";
    AUDIT_EVENT_SECONDS = "diloco_audit_event_seconds", Histogram, &[], "audit", "Time from an event's arrival to its answer, in seconds.";
    AUDIT_KEPT = "diloco_audit_kept_messages", Gauge, &[], "audit", "Messages of stream AUDIT that were checked and are in the audit files.";
    AUDIT_LOG_EVENTS = "diloco_audit_log_events", Gauge, &[], "audit", "Events under the newest head of the log in the service's folder.";
    AUDIT_LOG_BEHIND = "diloco_audit_log_behind_events", Gauge, &[], "audit", "Events under that head which the log in the store does not have yet.";
    AUDIT_LOG_STOPPED = "diloco_audit_log_stopped", Gauge, &[], "audit", "1 while no head of the log is signed, since the store has other bytes than were written there (DL0744); otherwise 0.";
    AUDIT_SECURITY = "diloco_audit_security_events_total", Counter, &["kind"], "audit", "Security events that were recorded, by kind, as in `diloctl audit tail --kind`.";
    AUDIT_PENDING = "diloco_audit_pending_messages", Gauge, &[], "audit", "Messages of stream AUDIT that wait to be checked.";
}

/// The section `metrics`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Loopback address for `/metrics` and `/ready`, such as `127.0.0.1:9464`; off when empty.
    pub listen: String,
}

impl MetricsConfig {
    /// The address to listen on; none when no metrics are served.
    ///
    /// # Errors
    /// The text is no address, or one that other machines can reach.
    pub fn address(&self) -> Result<Option<SocketAddr>, Failure> {
        if self.listen.is_empty() {
            return Ok(None);
        }
        let invalid = |why: &str| {
            let text = format!("metrics.listen {:?}: {why}", self.listen);
            Failure::new(Code::ConfigInvalid, text)
        };
        let address: SocketAddr = self
            .listen
            .parse()
            .map_err(|_| invalid("not an address with a port, such as 127.0.0.1:9464"))?;
        match address.ip().is_loopback() {
            true => Ok(Some(address)),
            false => Err(invalid(
                "metrics are served on loopback only; let a collector on this machine pass them on",
            )),
        }
    }
}

/// The metrics of this process, while they are served.
#[derive(Clone, Debug)]
pub struct Served {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
}

impl Served {
    /// Starts counting and serving. To be called once, inside the runtime.
    ///
    /// # Errors
    /// [`Code::MetricsUnserved`]: the address is in use, or does not belong to this machine.
    pub async fn start(address: SocketAddr) -> Result<Self, Failure> {
        let taken = |error: std::io::Error| {
            let detail = format!("metrics.listen {address}: {error}");
            Failure::new(Code::MetricsUnserved, detail)
        };
        let listener = TcpListener::bind(address).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        let ready = Arc::new(AtomicBool::new(false));
        let handle = count()?;
        tokio::spawn(upkeep(handle.clone()));
        tokio::spawn(http::serve(listener, handle, Arc::clone(&ready)));
        Ok(Self { address, ready })
    }

    /// The address it took.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what `/ready` answers: true when the service can be used.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// Starts counting. Before this, and in a process that never calls it, counting does nothing.
fn count() -> Result<PrometheusHandle, Failure> {
    let internal = |error: &dyn std::fmt::Display| Failure::new(Code::Internal, error);
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .map_err(|error| internal(&error))?;
    let handle = builder
        .install_recorder()
        .map_err(|error| internal(&error))?;
    for metric in TABLE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    Ok(handle)
}

async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        handle.run_upkeep();
    }
}

/// The label for the result of a request: `done`, or the class of the refusal's code.
pub fn outcome(refused: Option<Code>) -> &'static str {
    refused.map_or("done", |code| code.class().label())
}

/// The page about all metrics, as Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# Metrics of running services\n\nGenerated from `services/runtime/src/metrics.rs` by `cargo xtask docs`.\n\n\
         Coordinator, store, audit service and registrar count when `metrics.listen` names a loopback address (`--set\n\
         metrics.listen=127.0.0.1:9464`, or `DILOCO_METRICS__LISTEN`); the systemd units of `deploy/` set one. There\n\
         `/metrics` gives the metrics below in the text form of Prometheus, and `/ready` answers 200 while the service can\n\
         be used, else 503. Workers listen nowhere: their metrics come with their heartbeats, and the coordinator gives those of\n\
         the workers that it heard within a minute; `diloctl run watch` shows what they come to.\n\n\
         | name | kind | labels | service | what it says |\n| --- | --- | --- | --- | --- |\n",
    );
    for metric in TABLE {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        page.push_str(&format!(
            "| `{}` | {kind} | {} | {} | {} |\n",
            metric.name,
            labels.join(", "),
            metric.services,
            metric.help
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_their_unit_and_are_there_once() {
        for (index, metric) in TABLE.iter().enumerate() {
            let fits = match metric.kind {
                Kind::Counter => metric.name.ends_with("_total"),
                Kind::Histogram => metric.name.ends_with("_seconds"),
                Kind::Gauge => true,
            };
            assert!(
                fits && metric.name.starts_with("diloco_"),
                "{}",
                metric.name
            );
            assert!(
                TABLE[index + 1..]
                    .iter()
                    .all(|other| other.name != metric.name)
            );
        }
    }

    #[test]
    fn only_loopback_addresses_are_taken() {
        let address = |listen: &str| {
            MetricsConfig {
                listen: listen.to_owned(),
            }
            .address()
        };
        assert_eq!(address(""), Ok(None));
        for good in ["127.0.0.1:0", "[::1]:9464"] {
            assert!(matches!(address(good), Ok(Some(_))), "{good}");
        }
        for bad in [
            "0.0.0.0:9464",
            "192.0.2.1:1",
            "[::]:1",
            "9464",
            "localhost:1",
        ] {
            let refused = address(bad).expect_err("refused");
            assert_eq!(refused.code(), Code::ConfigInvalid, "{bad}");
        }
    }
}
