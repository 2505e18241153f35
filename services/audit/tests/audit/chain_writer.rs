//! Events as the processes of a domain write them, with the keys that the domain issued.

use chain::End;
use identity::AuditKey;
use schemas::event::{Event, LedgerEvent, SignedEvent, WorkerEvent};
use schemas::member::{JoinRequest, Posture, Session};
use schemas::subject::{ledger_subject, record_subject};
use schemas::{AccountId, RunId, WorkerId};

/// One emitter's chain, as it is written.
#[derive(Clone)]
pub(crate) struct ChainWriter {
    domain: String,
    key: AuditKey,
    end: End,
}

/// An event, ready to be sent.
#[derive(Clone)]
pub(crate) struct WrittenEvent {
    pub(crate) subject: String,
    pub(crate) event: SignedEvent,
}

pub(crate) fn run() -> RunId {
    "demo".parse().expect("a name or key")
}

impl ChainWriter {
    pub(crate) fn new(domain: &str, key: AuditKey) -> Self {
        Self {
            domain: domain.to_owned(),
            key,
            end: End::default(),
        }
    }

    pub(crate) fn ledger(&mut self, run: Option<RunId>, event: LedgerEvent) -> WrittenEvent {
        let subject = ledger_subject(run.as_ref(), self.key.public(), event.kind());
        self.say(subject, run, Event::Ledger(event))
    }

    pub(crate) fn worker(
        &mut self,
        account: &AccountId,
        worker: &WorkerId,
        event: WorkerEvent,
    ) -> WrittenEvent {
        let subject = record_subject(account, &run(), worker, event.kind());
        self.say(subject, Some(run()), Event::Worker(event))
    }

    /// An event that the coordinator may emit at any time.
    pub(crate) fn remark(&mut self) -> WrittenEvent {
        let operator = self.key.public().clone();
        self.ledger(
            None,
            LedgerEvent::ControlReceived {
                operator,
                verb: "view".to_owned(),
            },
        )
    }

    /// The start of a ledger: a coordinator, a run, a worker that joins it.
    pub(crate) fn beginning(
        &mut self,
        worker: &WorkerId,
        account: &AccountId,
        audit: &AuditKey,
    ) -> Vec<WrittenEvent> {
        let operator = self.key.public().clone();
        let (release, posture) = ("0.1.0".to_owned(), Posture::default());
        let request = JoinRequest {
            audit_key: audit.public().clone(),
            ..kit::join_request(1)
        };
        let joined = kit::joined(worker.clone(), account.clone(), request);
        vec![
            self.ledger(
                None,
                LedgerEvent::CoordinatorStarted {
                    release,
                    posture,
                    session: Session(2),
                },
            ),
            self.ledger(
                Some(run()),
                LedgerEvent::RunCreated {
                    spec: Box::new(kit::run_spec().build()),
                    operator,
                },
            ),
            self.ledger(Some(run()), joined),
        ]
    }

    fn say(&mut self, subject: String, run: Option<RunId>, event: Event) -> WrittenEvent {
        let draft = self.end.write(
            self.key.public(),
            runtime::clock::now(),
            run.as_ref(),
            event,
        );
        self.end = draft.end();
        let event = self.key.sign_event(&self.domain, draft.body);
        WrittenEvent { subject, event }
    }
}
