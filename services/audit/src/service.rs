//! The audit service: reads, checks, keeps, and says what it finds, until it is stopped. Beside it runs the intake, which
//! learns from here whose keys the ledger names.

use std::time::Duration;

use audit_core::{Found, Notice, Record, StreamSequence};
use identity::TrustBundle;
use runtime::{Bus, Failure, clock};
use schemas::Code;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::desk::Desk;
use crate::intake::Intake;
use crate::keep::KeepError;
use crate::reader::Reader;

/// How often the end of the stream is compared with what was kept.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// Most findings of one batch that are logged one by one; the files have all of them.
const FINDINGS_LOGGED_MAX: usize = 20;

/// The service, connected.
pub struct Service {
    reader: Reader,
    desk: Desk,
    intake: Intake,
    /// Where the intake learns who may speak.
    notices: mpsc::Sender<Notice>,
}

impl Service {
    /// Opens the files, checks them, and connects.
    ///
    /// # Errors
    /// The trust bundle or the files cannot be used, no broker answers, or it has no stream `AUDIT`.
    pub async fn build(config: &Config) -> Result<Self, Failure> {
        let trust = TrustBundle::read(&config.audit.trust)
            .map_err(|error| Failure::new(error.code(), format!("audit.trust: {error}")))?;
        let (folder, domain) = (config.audit.folder.clone(), trust.domain.to_string());
        let desk = blocking(move || Desk::open(&folder, &trust)).await?;
        let connected = Bus::connect("diloco-audit", &config.bus, clock::now()).await;
        let bus = connected.map_err(|error| Failure::from(error.into_refusal()))?;
        let (intake, notices) = Intake::connect(config, &domain).await?;
        // From the first message on, so that the whole stream is compared with what was kept.
        let reader = Reader::new(&bus, StreamSequence(1));
        let span = reader.span().await.map_err(|error| Failure::new(error.code(), error))?;
        tracing::info!(kept = desk.keep().len(), stream = span.messages, last = span.last.0, "auditing");
        if let Some(found) = desk.auditor().evidence() {
            tracing::warn!(code = %found.code(), "what was kept has evidence of tampering: {found}");
        }
        Ok(Self { reader, desk, intake, notices })
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The files cannot be written, or the broker takes a right away.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        let Self { mut reader, mut desk, intake, notices } = self;
        let mut intake = tokio::spawn(intake.run(stop.clone()));
        tell_all(&mut desk, &notices).await;
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut level = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                records = reader.batch() => {
                    desk = take(desk, records).await?;
                    tell_all(&mut desk, &notices).await;
                    tracing::debug!(kept = desk.keep().len(), last = desk.keep().last().0, "a batch is kept");
                    let now_level = reader.pending() == 0;
                    if now_level && !level {
                        tracing::info!(last = desk.auditor().last().0, "all that the stream holds is checked and kept");
                    }
                    level = now_level;
                }
                ended = &mut intake => {
                    ended.map_err(|error| Failure::new(Code::Internal, error))??;
                    break;
                }
                _ = compare.tick() => desk = compare_ends(&mut reader, desk).await?,
            }
        }
        tracing::info!(kept = desk.keep().len(), last = desk.auditor().last().0, "the audit has ended");
        Ok(())
    }
}

/// Tells the intake what the ledger has said since the last time of who may speak.
async fn tell_all(desk: &mut Desk, notices: &mpsc::Sender<Notice>) {
    for notice in desk.take_notices() {
        // An intake that has ended is noticed where its end is waited for.
        let _ = notices.send(notice).await;
    }
}

async fn take(mut desk: Desk, records: Vec<Record>) -> Result<Desk, Failure> {
    let (desk, findings) = blocking(move || {
        let findings = desk.take(&records, clock::now())?;
        Ok((desk, findings))
    })
    .await?;
    log(&findings);
    Ok(desk)
}

/// A stream that ends before what was kept was replaced, or lost its tail: it is read again from its start.
async fn compare_ends(reader: &mut Reader, mut desk: Desk) -> Result<Desk, Failure> {
    let span = match reader.span().await {
        Ok(span) => span,
        Err(error) => {
            tracing::warn!(code = %error.code(), %error, "the end of the stream is not known");
            return Ok(desk);
        }
    };
    let (desk, found) = blocking(move || {
        let found = desk.stream_ends(span.last, clock::now())?;
        Ok((desk, found))
    })
    .await?;
    if let Some(found) = found {
        log(&[found]);
        reader.rewind();
    }
    Ok(desk)
}

/// Checking and syncing take milliseconds; connections are served meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeepError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| Failure::new(Code::Internal, error))?;
    done.map_err(|error| Failure::new(error.code(), error))
}

fn log(findings: &[Found]) {
    for found in findings.iter().take(FINDINGS_LOGGED_MAX) {
        let (code, finding) = (found.code(), found.finding.name());
        if code == Code::LedgerBroken {
            tracing::error!(%code, finding, sequence = found.stream_sequence.0, "{found}");
        } else {
            tracing::warn!(%code, finding, sequence = found.stream_sequence.0, "{found}");
        }
    }
    if let Some(more) = findings.len().checked_sub(FINDINGS_LOGGED_MAX).filter(|more| *more > 0) {
        tracing::warn!(more, "further findings are in the audit files");
    }
}
