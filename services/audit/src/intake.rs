//! Workers' events and their questions about the log. Events are received, checked, recorded in the
//! stream of their tenant, and only then answered. Only this service writes those streams, so a
//! stranger's message reaches them in no other way.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use audit_core::sentry::of_refused;
use audit_core::{Candidate, ChainCheck, MessageCheck, Notice, QuestionCheck, Tail};
use bytes::Bytes;
use identity::TrustBundle;
use metrics::{counter, histogram};
use runtime::metrics::{AUDIT_EVENT_SECONDS, AUDIT_EVENTS, outcome};
use runtime::{Bus, BusError, Delivery, Failure, Listener, StreamError, StreamReader, clock};
use schemas::lease::Done;
use schemas::security::{Refused, Refuser};
use schemas::subject::{EVENTS_FILTER, events_stream, record_filter, record_subject};
use schemas::{Code, Refusal, Reply, WorkerId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::heads::{Answered, Heads};
use crate::hearing::Outlet;
use crate::questions::Questions;
use crate::recorder::LOG_FOLDER;

/// Longest wait for one answer of the broker; a stream that waits for a new leader takes 6 s.
const ASK_MAX: Duration = Duration::from_secs(8);
/// Time between two log lines about dropped messages: one for a flood, not one for each message.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Most notices that wait. Joins come one by one; at a start they come all at once, and can wait.
const NOTICES_MAX: usize = 256;
/// Header that names the subjects of an expected sequence.
pub(crate) const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The intake with its connection.
pub(crate) struct Intake {
    bus: Bus,
    listener: Listener,
    /// Questions about the log.
    questions: Questions,
    /// Where its refusals go; none without a sentry.
    outlet: Option<Outlet>,
    heads: Heads,
    notices: mpsc::Receiver<Notice>,
    core: audit_core::Intake,
    tally: Tally,
}

/// Events that were not recorded since the last report.
#[derive(Debug, Default)]
struct Tally {
    over: u64,
    /// The worker whose event came last.
    whose: Option<WorkerId>,
    refused: u64,
    reason: Option<Refusal>,
    /// Events that could not be recorded at the moment, and will be sent again.
    waiting: u64,
    /// The reason; a loss wins over others.
    cause: Option<Refusal>,
    nobody: u64,
}

impl Intake {
    /// Connects, and receives workers' events from then on. Notices of which workers may speak come
    /// in through the returned sender.
    ///
    /// # Errors
    /// The broker is away, or does not accept the credentials for this.
    pub(crate) async fn connect(
        config: &Config,
        trust: &TrustBundle,
    ) -> Result<(Self, mpsc::Sender<Notice>), Failure> {
        let settings = config.recorder_bus();
        let refused = |error: BusError| Failure::from(error);
        let bus = Bus::connect("diloco-audit-recorder", &settings, clock::now())
            .await
            .map_err(refused)?;
        let heard = Listener::connect(
            "diloco-audit-intake",
            &settings,
            &[EVENTS_FILTER],
            clock::now(),
        )
        .await;
        let mut heard = heard.map_err(refused)?.into_iter();
        let listener = heard.next().expect("one for each filter");
        let questions = Questions::connect(settings).await.map_err(refused)?;
        let (sender, notices) = mpsc::channel(NOTICES_MAX);
        let core = audit_core::Intake::new(trust.domain.as_str());
        let heads = Heads::new(config.audit.folder.join(LOG_FOLDER), trust);
        Ok((
            Self {
                bus,
                listener,
                questions,
                outlet: None,
                heads,
                notices,
                core,
                tally: Tally::default(),
            },
            sender,
        ))
    }

    /// The connection on which it records.
    pub(crate) const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Tells the sentry of its refusals from now on.
    pub(crate) fn tell(&mut self, outlet: Outlet) {
        self.outlet = Some(outlet);
    }

    /// Notes a refusal for the sentry, if its code is about security.
    fn note(&self, delivery: &Delivery, code: Code) {
        if let Some(outlet) = &self.outlet
            && let Some(refused) = Refused::of(&delivery.subject, code)
        {
            let (sighting, times) = of_refused(Refuser::Audit, refused);
            outlet.put(sighting, times);
        }
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The broker took the right to listen away.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> Result<(), Failure> {
        let mut reports = tokio::time::interval(REPORT_EVERY);
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                notice = self.notices.recv() => match notice {
                    Some(notice) => self.core.learn(notice),
                    // The reader of the ledger has ended, and so the intake ends.
                    None => return Ok(()),
                },
                _ = reports.tick() => self.tally.report(),
                heard = next_of(&mut self.listener, &mut self.questions) => match heard {
                    Heard::Event(delivery) => self.take(&delivery?).await,
                    Heard::Question(delivery) => self.answer(delivery).await?,
                },
            }
        }
    }

    /// Answers a question about the log.
    async fn answer(&mut self, delivery: Delivery) -> Result<(), Failure> {
        let (now, subject) = (clock::now(), &delivery.subject);
        match self.core.check_question(now, subject, &delivery.payload) {
            QuestionCheck::Answer => {}
            QuestionCheck::Nobody => self.tally.nobody += 1,
            QuestionCheck::Over(worker) => {
                self.tally.over += 1;
                self.tally.whose = Some(worker);
            }
            QuestionCheck::Refused(refusal) => {
                self.note(&delivery, refusal.code);
                delivery
                    .answer(&self.bus, Reply::<Done>::Refused(refusal))
                    .await;
            }
            QuestionCheck::Question(worker, question) => {
                let heads = self.heads.clone();
                let answer = move || heads.answer(&worker, &question);
                let answered = tokio::task::spawn_blocking(answer).await;
                match answered.map_err(|error| Failure::new(Code::Internal, error))? {
                    Answered::Head(head) => delivery.answer(&self.bus, reply(head)).await,
                    Answered::Cosigned(done) => {
                        if let Err(refusal) = &done {
                            self.tally.refused += 1;
                            self.tally.reason = Some(refusal.clone());
                            self.note(&delivery, refusal.code);
                        }
                        delivery.answer(&self.bus, reply(done)).await;
                    }
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, delivery: &Delivery) {
        let since = Instant::now();
        let answer =
            match self
                .core
                .check_message(clock::now(), &delivery.subject, &delivery.payload)
            {
                MessageCheck::Answer => return,
                MessageCheck::Nobody => {
                    self.tally.nobody += 1;
                    return;
                }
                MessageCheck::Over(worker) => {
                    self.tally.over += 1;
                    self.tally.whose = Some(worker);
                    return;
                }
                MessageCheck::Refused(refusal) => Reply::Refused(refusal),
                MessageCheck::Candidate(candidate) => {
                    self.record(&candidate, &delivery.payload).await
                }
            };
        let refused = match &answer {
            Reply::Ok(_) => None,
            Reply::Refused(refusal) => Some(refusal.code),
        };
        counter!(AUDIT_EVENTS, "outcome" => outcome(refused)).increment(1);
        histogram!(AUDIT_EVENT_SECONDS).record(since.elapsed());
        if let Reply::Refused(refusal) = &answer
            && !refusal.code.passes()
        {
            self.tally.refused += 1;
            self.tally.reason = Some(refusal.clone());
            self.note(delivery, refusal.code);
        }
        delivery.answer(&self.bus, answer).await;
    }

    /// Records an event that follows the end of its chain.
    async fn record(&mut self, candidate: &Candidate, payload: &Bytes) -> Reply<Done> {
        if self.core.is_logged(candidate) {
            return Reply::Ok(Done::default());
        }
        let was_known = self.core.tail(candidate).is_some();
        let mut compared = self.compare(candidate).await;
        if was_known && !matches!(compared, Ok((ChainCheck::Follows, _))) {
            // A broker can lose what it has acknowledged. So the stream says what is recorded, and
            // not the memory of this process: an event that was lost is recorded again.
            self.core.forget(candidate);
            compared = self.compare(candidate).await;
        }
        let expected = match compared {
            Ok((ChainCheck::Follows, expected)) => expected,
            Ok((ChainCheck::Known, _)) => return Reply::Ok(Done::default()),
            Ok((ChainCheck::Refused(refusal), _)) => return Reply::Refused(refusal),
            Err(cause) => return self.later(cause),
        };
        match self.append(candidate, expected, payload).await {
            Ok(stream) => {
                self.core
                    .remember(candidate, Some(candidate.as_tail(stream)));
                Reply::Ok(Done::default())
            }
            Err(reason) => {
                // The event may be stored nevertheless; the stream shows that when it comes again.
                self.core.forget(candidate);
                self.later(Refusal::new(Code::EventLater, reason))
            }
        }
    }

    /// Compares an event with the end of its chain, which is fetched if it is not remembered.
    /// Returns the end's position in the stream too, 0 for none.
    async fn compare(&mut self, candidate: &Candidate) -> Result<(ChainCheck, u64), Refusal> {
        if self.core.tail(candidate).is_none() {
            let tail = self.fetch(candidate).await?;
            self.core.remember(candidate, tail);
        }
        let tail = self
            .core
            .tail(candidate)
            .expect("it was just remembered")
            .as_ref();
        if let Some(lost) = self.core.lost(candidate, tail) {
            // The end is fetched again when the event comes again: by then somebody may have put
            // the stream back.
            self.core.forget(candidate);
            return Err(lost);
        }
        Ok((
            candidate.check_chain(tail),
            tail.map_or(0, |tail| tail.stream),
        ))
    }

    /// Answers that the event cannot be recorded now: the worker keeps it, sends it again, and
    /// learns why. It works on meanwhile and tells nobody else, so the reason is logged here.
    fn later(&mut self, cause: Refusal) -> Reply<Done> {
        let answer = Refusal::new(Code::EventLater, cause.detail.clone());
        self.tally.waiting += 1;
        if self
            .tally
            .cause
            .as_ref()
            .is_none_or(|known| known.code != Code::EventsLost)
        {
            self.tally.cause = Some(cause);
        }
        Reply::Refused(answer)
    }

    /// Fetches the end of a worker's chain from the stream of its tenant.
    async fn fetch(&self, candidate: &Candidate) -> Result<Option<Tail>, Refusal> {
        let stream = StreamReader::new(self.bus.clone(), events_stream(&candidate.account));
        let filter = record_filter(&candidate.account, &candidate.run, &candidate.worker);
        let last = stream.last_under(&filter).await;
        // A stream that is gone has lost every chain.
        let gone = matches!(last, Err(StreamError::Missing(_)))
            .then(|| self.core.lost(candidate, None))
            .flatten();
        if let Some(lost) = gone {
            return Err(lost);
        }
        let last = last.map_err(|error| Refusal::new(error.code(), error.to_string()))?;
        let tail = last.map(|last| {
            let unreadable = || format!("message {} under {filter} is no event", last.sequence);
            let tail = Tail::read(last.sequence, &last.payload);
            tail.ok_or_else(|| Refusal::new(Code::StreamUnreadable, unreadable()))
        });
        tail.transpose()
    }

    async fn append(
        &self,
        candidate: &Candidate,
        expected: u64,
        payload: &Bytes,
    ) -> Result<u64, String> {
        let Candidate {
            account,
            run,
            worker,
            kind,
            ..
        } = candidate;
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
        headers.insert(
            EXPECTED_FILTER,
            record_filter(account, run, worker).as_str(),
        );
        let subject = record_subject(account, run, worker, kind);
        let answer = self
            .bus
            .request_raw(&subject, headers, payload.clone(), ASK_MAX)
            .await;
        let answer = answer.map_err(|error| error.to_string())?;
        let stream = events_stream(account);
        match serde_json::from_slice::<Response<PublishAck>>(&answer) {
            Ok(Response::Ok(ack)) if ack.sequence > expected => Ok(ack.sequence),
            Ok(Response::Err { error })
                if error.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE =>
            {
                Err(format!("{stream} has another end of this chain"))
            }
            Ok(Response::Err { error }) => Err(format!("{stream}: {error}")),
            Ok(Response::Ok(_)) | Err(_) => {
                Err(format!("{stream}: the answer is no acknowledgement"))
            }
        }
    }
}

/// A message of a worker.
enum Heard {
    Event(Result<Delivery, Failure>),
    Question(Delivery),
}

/// The next message of either kind: a flood of one kind holds the other up by half.
async fn next_of(events: &mut Listener, questions: &mut Questions) -> Heard {
    tokio::select! {
        event = events.next() => Heard::Event(event.map_err(Failure::from)),
        question = questions.next() => Heard::Question(question),
    }
}

fn reply<T>(result: Result<T, Refusal>) -> Reply<T> {
    match result {
        Ok(answer) => Reply::Ok(answer),
        Err(refusal) => Reply::Refused(refusal),
    }
}

impl Tally {
    fn report(&mut self) {
        let Self {
            over,
            whose,
            refused,
            reason,
            waiting,
            cause,
            nobody,
        } = std::mem::take(self);
        if let Some(worker) = whose {
            let code = Code::EventsDropped;
            tracing::warn!(%code, count = over, last = %worker, "events of workers that send too many were dropped");
        }
        if let Some(reason) = reason {
            tracing::warn!(code = %reason.code, count = refused, last = %reason, "events or cosignatures of workers were refused");
        }
        if let Some(cause) = cause {
            let code = cause.code;
            if code == Code::EventsLost {
                let next = code.next_step();
                tracing::warn!(%code, count = waiting, last = %cause, next, "recorded events of workers were lost");
            } else {
                tracing::warn!(%code, count = waiting, last = %cause, "events of workers cannot be recorded now");
            }
        }
        if nobody > 0 {
            tracing::warn!(code = %Code::MessageInvalid, count = nobody, "messages under no worker's subject were dropped");
        }
    }
}
