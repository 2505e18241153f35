//! The registrar: a question in, a look into the lists, a signature, an answer out.

use std::path::PathBuf;
use std::time::Duration;

use identity::heir::verify_succession;
use identity::{CredentialSource, IssuedList, Issuer};
use metrics::{counter, histogram};
use registrar_core::{Asked, Heard, Heritage, Registrar, Validity};
use runtime::metrics::{REGISTRAR_QUESTION_SECONDS, REGISTRAR_QUESTIONS, outcome};
use runtime::{Bus, Delivery, Failure, Listener, Refusals, clock};
use schemas::member::Posture;
use schemas::renewal::{RenewalReply, Successor};
use schemas::security::Refuser;
use schemas::subject::{ENROLMENTS_FILTER, RENEWALS_FILTER};
use schemas::text::Time;
use schemas::{Code, Coded as _, Message, PublicKey, Refusal, Reply, V};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::enrolment::Desk;
use crate::own;

/// Time between two log lines about dropped messages: one for a flood, not one for each message.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Time between two looks at the registrar's own token, which lives for weeks.
const OWN_EVERY: Duration = Duration::from_secs(3600);

/// The registrar, connected.
pub struct Service {
    bus: Bus,
    renewals: Listener,
    enrolments: Listener,
    core: Registrar,
    /// The folder of the signing keys. They are read each time, since they may be replaced.
    issuer: PathBuf,
    issued: IssuedList,
    desk: Desk,
    own: CredentialSource,
    tally: Tally,
    refusals: Refusals,
}

/// Messages that were dropped since the last report.
#[derive(Debug, Default)]
struct Tally {
    over: u64,
    /// The holder whose message came last.
    whose: Option<PublicKey>,
    nobody: u64,
}

impl Service {
    /// Connects, and listens from then on.
    ///
    /// # Errors
    /// The broker is away, or does not accept the credentials for this.
    pub async fn build(
        config: &Config,
        issuer: Issuer,
        core: Registrar,
        posture: Posture,
    ) -> Result<Self, Failure> {
        let own = CredentialSource::open(&config.bus.credentials, clock::now())?;
        let issued = IssuedList::at(&config.registrar.issued);
        keep_own(&own, &issuer, &issued);
        let bus = Bus::connect("diloco-registrar", &config.bus, clock::now()).await?;
        let heard = Listener::connect(
            "diloco-registrar-questions",
            &config.bus,
            &[RENEWALS_FILTER, ENROLMENTS_FILTER],
            clock::now(),
        )
        .await?;
        let [renewals, enrolments] = heard.try_into().map_err(|_| {
            Failure::new(Code::Internal, "two listeners were asked for and not given")
        })?;
        Ok(Self {
            bus,
            renewals,
            enrolments,
            core,
            issuer: config.registrar.issuer.clone(),
            desk: Desk::new(&config.registrar, issued.clone()),
            issued,
            own,
            tally: Tally::default(),
            refusals: Refusals::of(Refuser::Registrar).stating(posture),
        })
    }

    /// Its connection.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The broker took the right to listen away.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        let (bus, refusals) = (self.bus.clone(), self.refusals.clone());
        let reports = tokio::spawn(refusals.clone().report(bus.clone()));
        let ended = self.hear(stop).await;
        reports.abort();
        refusals.last(&bus).await;
        ended
    }

    /// Answers questions.
    async fn hear(mut self, stop: CancellationToken) -> Result<(), Failure> {
        let (mut reports, mut looks) = (interval(REPORT_EVERY), interval(OWN_EVERY));
        reports.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = looks.tick() => match Issuer::open(&self.issuer) {
                    Ok(issuer) => keep_own(&self.own, &issuer, &self.issued),
                    Err(error) => tracing::warn!(code = %error.code(), "the registrar's own token is not renewed: {error}"),
                },
                _ = reports.tick() => self.tally.report(),
                heard = self.renewals.next() => {
                    let delivery = heard?;
                    self.take(&delivery).await;
                }
                heard = self.enrolments.next() => {
                    let delivery = heard?;
                    self.take(&delivery).await;
                }
            }
        }
    }

    async fn take(&mut self, delivery: &Delivery) {
        let since = Instant::now();
        let heard = self
            .core
            .hear(clock::now(), &delivery.subject, &delivery.payload);
        match heard {
            Heard::Answer => {}
            Heard::Nobody => self.tally.nobody += 1,
            Heard::TooOften(holder) => {
                self.tally.over += 1;
                self.tally.whose = Some(holder);
            }
            Heard::Asked(asked) => {
                let reply = self.renew(&asked);
                self.answer(delivery, since, reply, "no new token").await;
            }
            Heard::Heir(asked, wish) => {
                let reply = self.succeed(&asked, &wish);
                self.answer(delivery, since, reply, "no other key").await;
            }
            Heard::Newcomer(asked) => {
                let reply = self.desk.enrol(&self.core, &self.issuer, &asked);
                self.answer(delivery, since, reply, "a machine is not enrolled")
                    .await;
            }
        }
    }

    async fn answer<M: Message>(
        &self,
        delivery: &Delivery,
        since: Instant,
        reply: Result<M, Refusal>,
        refused: &str,
    ) {
        if let Err(refusal) = &reply
            && refusal.code != Code::EnrolmentPending
        {
            let (code, cause) = (refusal.code, delivery.subject.as_str());
            tracing::warn!(%code, cause, next = code.next_step(), "{refused}: {refusal}");
        }
        let code = reply.as_ref().err().map(|refusal| refusal.code);
        if let Some(code) = code {
            self.refusals.note(&delivery.subject, code);
        }
        counter!(REGISTRAR_QUESTIONS, "outcome" => outcome(code)).increment(1);
        histogram!(REGISTRAR_QUESTION_SECONDS).record(since.elapsed());
        let reply = match reply {
            Ok(reply) => Reply::Ok(reply),
            Err(refusal) => Reply::Refused(refusal),
        };
        delivery.answer(&self.bus, reply).await;
    }

    /// A token for the key that is to succeed the asker's. Its record is on the disk before the
    /// asker is told.
    fn succeed(&self, asked: &Asked, wish: &Successor) -> Result<RenewalReply, Refusal> {
        let now = clock::now();
        let record = self.issued.find(&asked.holder).map_err(refusal)?;
        // Who may not ask makes nobody read all records.
        self.core.may_change(now, asked, record.as_ref())?;
        let successor = self.issued.successor_of(&asked.holder).map_err(refusal)?;
        let wanted = self.issued.find(&wish.worker).map_err(refusal)?;
        let issuer = Issuer::open(&self.issuer).map_err(refusal)?;
        let domain = issuer.domain().as_str();
        let present = record.as_ref().and_then(|record| record.audit_key.as_ref());
        let proven = present
            .is_some_and(|present| verify_succession(domain, &asked.holder, present, wish).is_ok());
        let known = Heritage {
            record: record.as_ref(),
            successor: successor.as_ref(),
            wanted: wanted.as_ref(),
            proven,
        };
        let (new, Validity { issued, ends }) = self.core.succeed(now, asked, wish, known)?;
        if wanted.is_none() {
            self.issued.record(&new).map_err(refusal)?;
        }
        let token = issuer.sign(&new, ends, issued).map_err(refusal)?;
        let certificate = issuer.certify(&new, ends, now).map_err(refusal)?;
        let name = &new.name;
        tracing::info!(name, old = %asked.holder, new = %new.public, "a worker gets another key");
        Ok(RenewalReply {
            v: V,
            token,
            ends,
            certificate,
        })
    }

    /// A new token for the asker. The record is read each time, so that a key that was just blocked
    /// gets none.
    fn renew(&self, asked: &Asked) -> Result<RenewalReply, Refusal> {
        let now = clock::now();
        let record = self.issued.find(&asked.holder);
        let record = record.map_err(|error| Refusal::new(error.code(), error.detail()))?;
        let Validity { issued, ends } = self.core.decide(now, asked, record.as_ref())?;
        let holder = record.ok_or_else(|| {
            Refusal::new(
                Code::HolderUnknown,
                format!("{} has no record", asked.holder),
            )
        })?;
        let issuer = Issuer::open(&self.issuer);
        let issuer = issuer.map_err(|error| Refusal::new(error.code(), error.detail()))?;
        let token = issuer.sign(&holder, ends, issued);
        let token = token.map_err(|error| Refusal::new(error.code(), error.detail()))?;
        let certificate = issuer.certify(&holder, ends, now);
        let certificate =
            certificate.map_err(|error| Refusal::new(error.code(), error.detail()))?;
        let (name, role) = (&holder.name, holder.role.name());
        tracing::info!(name, role, holder = %holder.public, until = %Time(ends), "a token is renewed");
        Ok(RenewalReply {
            v: V,
            token,
            ends,
            certificate,
        })
    }
}

fn refusal(error: impl schemas::Coded) -> Refusal {
    Refusal::new(error.code(), error.detail())
}

/// Renews the registrar's own token and certificate where that is due; until their end a failure is
/// only logged.
fn keep_own(own: &CredentialSource, issuer: &Issuer, issued: &IssuedList) {
    let now = clock::now();
    match own::certify(own, issuer, issued, now) {
        Ok(false) => {}
        Ok(true) => tracing::info!("the registrar's own certificate is renewed"),
        Err(refusal) => {
            let code = refusal.code;
            tracing::warn!(%code, next = code.next_step(), "the registrar's own certificate is not renewed: {refusal}");
        }
    }
    match own::renew(own, issuer, issued, now) {
        Ok(None) => {}
        Ok(Some(ends)) => {
            tracing::info!(until = %Time(ends), "the registrar's own token is renewed")
        }
        Err(refusal) => {
            let code = refusal.code;
            tracing::warn!(%code, next = code.next_step(), "the registrar's own token is not renewed: {refusal}");
        }
    }
}

impl Tally {
    fn report(&mut self) {
        let Self {
            over,
            whose,
            nobody,
        } = std::mem::take(self);
        if let Some(holder) = whose {
            let code = Code::RenewalTooOften;
            tracing::warn!(%code, count = over, last = %holder, "questions of holders that ask too often were dropped");
        }
        if nobody > 0 {
            tracing::warn!(code = %Code::MessageInvalid, count = nobody, "messages that are no holder's question were dropped");
        }
    }
}
