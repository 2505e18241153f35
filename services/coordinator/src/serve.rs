//! From the bus to the decision loop: each message is read here, and refused at once if its form or
//! sender is wrong.

use coordinator_core::{Input, Peer};
use runtime::throttle::{INTERVAL_FIRST, Throttle};
use runtime::{Bus, BusConfig, Delivery, Failure, Listener, Refusals, clock};
use schemas::subject::{COORDINATOR_FILTERS, Incoming, Lane};
use schemas::{Code, Refusal, is_answer};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::allowance::{Allowances, MESSAGE_COST, Sender, control_cost, cost};
use crate::answer::ReplyTo;
use crate::arrival::Arrival;
use crate::incoming::{self, Identity, Rejected, ValidMessage};

/// Listens on every subject that the coordinator serves. Strangers send these messages, so they
/// come over separate connections: no bytes of a sender can end the coordinator's own work on the
/// bus.
///
/// # Errors
/// The bus refuses.
pub(crate) async fn listen(config: &BusConfig) -> Result<Vec<Listener>, Failure> {
    let listening = Listener::connect(
        "diloco-coordinator-listener",
        config,
        &COORDINATOR_FILTERS,
        clock::now(),
    )
    .await;
    listening.map_err(Failure::from)
}

/// Passes messages on, until the server takes the right to listen away.
pub(crate) async fn forward(
    bus: Bus,
    mut listener: Listener,
    identity: Identity,
    arrivals: mpsc::Sender<Arrival>,
    refused: Refusals,
) {
    let mut recent = RecentRefusals::new();
    let mut allowances = Allowances::default();
    let mut forgetting = tokio::time::interval(INTERVAL_FIRST);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            next = listener.next() => next,
            _ = forgetting.tick() => {
                recent.forget();
                continue;
            }
        };
        let message = match next {
            Ok(message) => message,
            Err(error) => {
                // If the loop has ended, nobody needs to know.
                let _ = arrivals.send(Arrival::Failed(error.into())).await;
                return;
            }
        };
        // The request of a sender without credit is not even decoded.
        let broke = overdrawn(&message, &mut allowances).map(Err);
        let read = broke.unwrap_or_else(|| incoming::read(&message, identity));
        if is_nobodys(&message, &read) {
            // Nobody knows who sent this, not even if its subject carries a name, so nothing is
            // held against anybody.
            tracing::warn!(code = %Code::AnswerForeign, lane = listener.filter(), "neither a request nor a heartbeat: an answer that was sent here, or a message that wants no answer");
            continue;
        }
        // A refusal, too, goes nowhere but to its asker.
        let reply = ReplyTo::read(&message, &refused)
            .filter(|_| incoming::is_for_asker(&message, identity));
        let read = affordable(read, &mut allowances);
        let arrival = match (read, reply) {
            (Ok(ValidMessage::Heartbeat { peer, heartbeat }), _) => {
                Arrival::Input(Input::Heartbeat { peer, heartbeat })
            }
            (Ok(ValidMessage::Worker { peer, request }), Some(reply)) => Arrival::Worker {
                peer,
                request,
                reply,
            },
            (Ok(ValidMessage::Operator { operator, request }), Some(reply)) => Arrival::Operator {
                operator,
                request,
                reply,
            },
            (Ok(ValidMessage::Worker { .. } | ValidMessage::Operator { .. }), None) => continue,
            (Err(rejected), reply) => {
                let noted = (&refused, &mut recent);
                match refuse(&bus, &message, reply, *rejected, noted).await {
                    Some(arrival) => arrival,
                    None => continue,
                }
            }
        };
        if arrivals.send(arrival).await.is_err() {
            return;
        }
    }
}

/// True if a message may be an answer, from one of our programs or from the broker, to a request
/// whose sender chose this subject for the answer. It may be one if it has the form of an answer,
/// if it wants no answer (every request wants one), or if it is no heartbeat on a subject for
/// heartbeats.
fn is_nobodys(message: &Delivery, read: &Result<ValidMessage, Box<Rejected>>) -> bool {
    let beats = message.subject.starts_with(Lane::Telemetry.prefix());
    is_answer(&message.payload)
        || if beats {
            read.is_err()
        } else {
            message.reply.is_none()
        }
}

/// Takes the basic cost of a message from its sender's credit, before any part of the message is
/// read. Returns the refusal if no credit is left. Answers do not count as messages of the sender
/// that the subject names.
fn overdrawn(message: &Delivery, allowances: &mut Allowances) -> Option<Box<Rejected>> {
    let (sender, verb) = match message.subject.parse().ok()? {
        Incoming::Request {
            account,
            run,
            worker,
            verb,
        } => (
            Sender::Worker(Peer {
                account,
                run,
                worker,
            }),
            verb.token(),
        ),
        Incoming::Heartbeat {
            account,
            run,
            worker,
        } => (
            Sender::Worker(Peer {
                account,
                run,
                worker,
            }),
            "heartbeat",
        ),
        Incoming::Control { operator, verb } => (Sender::Operator(operator), verb.token()),
        _ => return None,
    };
    let counts = !is_answer(&message.payload) && (verb == "heartbeat" || message.reply.is_some());
    (counts && !allowances.admit(&sender, MESSAGE_COST, Instant::now()))
        .then(|| too_much(sender, verb))
}

fn too_much(sender: Sender, verb: &str) -> Box<Rejected> {
    let (who, peer) = match sender {
        Sender::Worker(peer) => (
            format!("{} asks more than a worker needs", peer.worker),
            Some(peer),
        ),
        Sender::Operator(operator) => {
            (format!("{operator} asks more than an operator needs"), None)
        }
    };
    Box::new(Rejected {
        peer,
        verb: verb.to_owned(),
        refusal: Refusal::new(Code::AskedTooMuch, who),
    })
}

/// Refuses a sender whose request costs more than its credit. This cost comes in addition to the
/// basic cost of every message.
fn affordable(
    read: Result<ValidMessage, Box<Rejected>>,
    allowances: &mut Allowances,
) -> Result<ValidMessage, Box<Rejected>> {
    let (sender, verb, cost) = match &read {
        Ok(ValidMessage::Worker { peer, request }) => (
            Sender::Worker(peer.clone()),
            request.verb().token(),
            cost(request) - MESSAGE_COST,
        ),
        Ok(ValidMessage::Operator { operator, request }) => (
            Sender::Operator(operator.clone()),
            request.verb().token(),
            control_cost(request) - MESSAGE_COST,
        ),
        Ok(ValidMessage::Heartbeat { .. }) | Err(_) => return read,
    };
    if allowances.admit(&sender, cost, Instant::now()) {
        return read;
    }
    Err(too_much(sender, verb))
}

/// Refuses a message, unless an answer would help an attacker. Returns the refusal to record.
async fn refuse(
    bus: &Bus,
    message: &Delivery,
    reply: Option<ReplyTo>,
    rejected: Rejected,
    (refused, recent): (&Refusals, &mut RecentRefusals),
) -> Option<Arrival> {
    let Rejected {
        peer,
        verb,
        refusal,
    } = rejected;
    let (sender, code) = (sender(&message.subject, peer.as_ref()), refusal.code);
    let noted = recent.note(&sender);
    tracing::warn!(sender, %code, subject = %message.subject, detail = refusal.detail, "message refused");
    match reply.filter(|_| refusal.code != Code::IdentityMismatch) {
        // It notes the refusal too.
        Some(reply) => reply.send(bus, Err(refusal.clone())).await,
        None => refused.note(&message.subject, refusal.code),
    }
    // The refusal of a sender that asks too much is recorded only as often as it is logged, so that
    // such refusals do not fill the loop.
    let peer = peer.filter(|_| noted || refusal.code != Code::AskedTooMuch);
    peer.map(|peer| {
        Arrival::Input(Input::Denied {
            peer,
            verb,
            refusal,
        })
    })
}

/// Names the refused sender for the log: a peer by its names, an operator by its key, any other
/// sender by the lane.
fn sender(subject: &str, peer: Option<&Peer>) -> String {
    match (peer, subject.parse::<Incoming>()) {
        (
            Some(Peer {
                account,
                run,
                worker,
            }),
            _,
        ) => format!("{worker} of {run} in {account}"),
        (None, Ok(Incoming::Control { operator, .. })) => operator.to_string(),
        (None, _) => subject.split('.').take(2).collect::<Vec<_>>().join("."),
    }
}

/// The recent refusals, by sender. The log holds its lines back by the same rule, by sender and
/// code.
struct RecentRefusals {
    throttle: Throttle,
    started: Instant,
}

impl RecentRefusals {
    fn new() -> Self {
        Self {
            throttle: Throttle::default(),
            started: Instant::now(),
        }
    }

    /// Notes a refusal. Returns true if it is one of the first of its sender.
    fn note(&mut self, sender: &str) -> bool {
        self.throttle
            .note("refused", sender, self.started.elapsed(), String::new)
    }

    /// Forgets senders that were quiet. The log prints the sums.
    fn forget(&mut self) {
        let _sums = self.throttle.due(self.started.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use schemas::lease::ClaimRequest;
    use schemas::telemetry::{Heartbeat, Phase, WorkerMetrics};
    use schemas::{Bytes, Message as _, Millis, Steps, Tokens, V};

    use schemas::member::Session;

    use super::*;

    fn is_held_against_nobody(lane: &str, reply: Option<&str>, payload: &[u8]) -> bool {
        let (account, worker) = (
            format!("A{}", "B".repeat(55)),
            format!("U{}", "A".repeat(55)),
        );
        let verb = if lane == "telemetry" {
            "heartbeat"
        } else {
            "lease.claim"
        };
        let message = Delivery {
            subject: format!("diloco.{lane}.{account}.demo.{worker}.{verb}"),
            reply: reply.map(str::to_owned),
            payload: payload.to_vec().into(),
        };
        is_nobodys(&message, &incoming::read(&message, Identity::ByBroker))
    }

    #[test]
    fn what_the_broker_may_have_carried_here_is_held_against_nobody() {
        let heartbeat = Heartbeat {
            v: V,
            session: Session(1),
            phase: Phase::Claiming,
            lease: None,
            steps_done: Steps(0),
            tokens: Tokens(0),
            tokens_per_second: 0.0,
            loss: None,
            bytes_up: Bytes(0),
            bytes_down: Bytes(0),
            metrics: WorkerMetrics::default(),
        };
        let (claim, heartbeat) = (
            ClaimRequest {
                v: V,
                session: Session(1),
                wait: Millis(5),
            }
            .encode(),
            heartbeat.encode(),
        );
        let stored = b"{\"stream\":\"EVENTS\",\"seq\":1}";
        for (lane, reply, payload) in [
            ("request", Some("_R_.x"), &b"\xc1\x84"[..]),
            ("request", None, &claim),
            ("request", None, stored),
            ("telemetry", None, b"\xc1\x84"),
            ("telemetry", None, stored),
            ("telemetry", Some("_R_.x"), stored),
        ] {
            assert!(
                is_held_against_nobody(lane, reply, payload),
                "{lane} {reply:?} {payload:?}"
            );
        }
        // These messages have a sender, right or wrong.
        for (lane, reply, payload) in [
            ("request", Some("_R_.x"), &claim[..]),
            ("request", Some("_R_.x"), b"nonsense"),
            ("telemetry", None, &heartbeat),
            ("telemetry", Some("_R_.x"), &heartbeat),
        ] {
            assert!(
                !is_held_against_nobody(lane, reply, payload),
                "{lane} {reply:?} {payload:?}"
            );
        }
    }
}
