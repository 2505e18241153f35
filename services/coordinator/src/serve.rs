//! From the bus to the decision loop: each message is read, and refused at once when its form or sender is wrong.

use coordinator_core::{Input, Peer};
use runtime::throttle::{INTERVAL_FIRST, Throttle};
use runtime::{Bus, BusConfig, Delivery, Failure, Listener, clock};
use schemas::subject::{COORDINATOR_FILTERS, Incoming, Lane};
use schemas::{Code, Refusal, is_answer};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use crate::allowance::{Allowances, MESSAGE_COST, cost};
use crate::answer::ReplyTo;
use crate::arrival::Arrival;
use crate::incoming::{self, Heard, Identity, Rejected};

/// Listens to everything that is said to the coordinator. Strangers say it, so it is heard over a connection on which
/// nothing that they do to a message can end what the coordinator itself does on the bus.
///
/// # Errors
/// The bus refuses.
pub(crate) async fn listen(config: &BusConfig) -> Result<Vec<Listener>, Failure> {
    let listening = Listener::connect("diloco-coordinator-listener", config, &COORDINATOR_FILTERS, clock::now()).await;
    listening.map_err(|error| error.into_refusal().into())
}

/// Passes messages on for as long as they may be heard.
pub(crate) async fn forward(bus: Bus, mut listener: Listener, identity: Identity, arrivals: mpsc::Sender<Arrival>) {
    let mut refusals = Refusals::new();
    let mut allowances = Allowances::default();
    let mut forgetting = tokio::time::interval(INTERVAL_FIRST);
    forgetting.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            next = listener.next() => next,
            _ = forgetting.tick() => {
                refusals.forget();
                continue;
            }
        };
        let message = match next {
            Ok(message) => message,
            Err(error) => {
                // When the loop has ended nobody needs to know.
                let _ = arrivals.send(Arrival::Failed(error.into_refusal().into())).await;
                return;
            }
        };
        if is_nobodys(&message) {
            // Not even the one whose name the subject carries is known to have said it: nothing is held against it.
            tracing::warn!(code = %Code::AnswerForeign, lane = listener.filter(), "neither a request nor a heartbeat: an answer that was sent here, or what wants none");
            continue;
        }
        let reply = ReplyTo::read(&message);
        let heard = affordable(incoming::read(&message, identity), &mut allowances);
        let arrival = match (heard, reply) {
            (Ok(Heard::Heartbeat { peer, heartbeat }), _) => Arrival::Input(Input::Heartbeat { peer, heartbeat }),
            (Ok(Heard::Worker { peer, request }), Some(reply)) => Arrival::Worker { peer, request, reply },
            (Ok(Heard::Operator { operator, request }), Some(reply)) => Arrival::Operator { operator, request, reply },
            (Ok(Heard::Worker { .. } | Heard::Operator { .. }), None) => continue,
            (Err(rejected), reply) => match refuse(&bus, &message, reply, *rejected, &mut refusals).await {
                Some(arrival) => arrival,
                None => continue,
            },
        };
        if arrivals.send(arrival).await.is_err() {
            return;
        }
    }
}

/// Whether a message is an answer that its asker let the broker carry here, under the name of whomever it chose: by its
/// form, or because it wants no answer itself where every request does.
fn is_nobodys(message: &Delivery) -> bool {
    let asks = !message.subject.starts_with(Lane::Telemetry.prefix());
    is_answer(&message.payload) || asks && message.reply.is_none()
}

/// Refuses a worker that has asked more than any worker needs, be it right or wrong.
fn affordable(heard: Result<Heard, Box<Rejected>>, allowances: &mut Allowances) -> Result<Heard, Box<Rejected>> {
    let (peer, verb, cost) = match &heard {
        Ok(Heard::Worker { peer, request }) => (peer, request.verb().token(), cost(request)),
        Ok(Heard::Heartbeat { peer, .. }) => (peer, "heartbeat", MESSAGE_COST),
        Err(rejected) => match &rejected.peer {
            Some(peer) => (peer, rejected.verb.as_str(), MESSAGE_COST),
            None => return heard,
        },
        Ok(Heard::Operator { .. }) => return heard,
    };
    if allowances.admit(peer, cost, Instant::now()) {
        return heard;
    }
    let refusal = Refusal::new(Code::AskedTooMuch, format!("{} asks more than a worker needs", peer.worker));
    Err(Box::new(Rejected { peer: Some(peer.clone()), verb: verb.to_owned(), refusal }))
}

/// Refuses a message, unless answering it would be what an attacker wants, and gives what is to be recorded.
async fn refuse(
    bus: &Bus,
    message: &Delivery,
    reply: Option<ReplyTo>,
    rejected: Rejected,
    refusals: &mut Refusals,
) -> Option<Arrival> {
    let Rejected { peer, verb, refusal } = rejected;
    let (sender, code) = (sender(&message.subject, peer.as_ref()), refusal.code);
    let noted = refusals.note(&sender);
    tracing::warn!(sender, %code, subject = %message.subject, detail = refusal.detail, "message refused");
    if let Some(reply) = reply.filter(|_| refusal.code != Code::IdentityMismatch) {
        reply.send(bus, Err(refusal.clone())).await;
    }
    // Who asks too much is recorded as often as it would be logged, so that not even its refusals fill the loop.
    let peer = peer.filter(|_| noted || refusal.code != Code::AskedTooMuch);
    peer.map(|peer| Arrival::Input(Input::Denied { peer, verb, refusal }))
}

/// Who is refused, for the log: a peer by its names, an operator by its key, all else by the lane on which it spoke.
fn sender(subject: &str, peer: Option<&Peer>) -> String {
    match (peer, subject.parse::<Incoming>()) {
        (Some(Peer { account, run, worker }), _) => format!("{worker} of {run} in {account}"),
        (None, Ok(Incoming::Control { operator, .. })) => operator.to_string(),
        (None, _) => subject.split('.').take(2).collect::<Vec<_>>().join("."),
    }
}

/// What was refused lately, by sender; the log holds its lines back by the same rule, by sender and code.
struct Refusals {
    throttle: Throttle,
    started: Instant,
}

impl Refusals {
    fn new() -> Self {
        Self { throttle: Throttle::default(), started: Instant::now() }
    }

    /// Notes a refusal; whether it is one of the first of its sender.
    fn note(&mut self, sender: &str) -> bool {
        self.throttle.note("refused", sender, self.started.elapsed(), String::new)
    }

    /// Forgets who was quiet. The sums are the log's to tell.
    fn forget(&mut self) {
        let _sums = self.throttle.due(self.started.elapsed());
    }
}
