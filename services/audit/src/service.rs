//! The audit service: it reads, checks, keeps, and logs its findings, until it is stopped or the
//! stream contradicts what was kept. The intake runs beside it, and learns from here which keys the
//! ledger names.

use std::time::Duration;

use audit_core::{Notice, PlacedFinding, Record, StreamSequence};
use identity::{HeadKey, TrustBundle};
use metrics::gauge;
use runtime::metrics::{AUDIT_KEPT, AUDIT_LOG_STOPPED, AUDIT_PENDING};
use runtime::{Bus, Failure, StreamError, clock};
use schemas::Code;
use schemas::member::Posture;
use tlog::Head;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::copying::{Copying, Found, Turn};
use crate::intake::Intake;
use crate::ledger_keys::LedgerKeys;
use crate::log::{LogError, LogSigner};
use crate::mirror::{Mirror, MirrorError};
use crate::reader::{Reader, Span};
use crate::recorder::{Recorder, RecorderError};
use crate::sentry::Watch;

/// Time between two comparisons of the stream's end with the kept records.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// Time between two looks whether a head of the log is due. It is short beside the wait of a head.
const HEAD_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most findings of one batch that are logged one by one; the files have all of them.
const FINDINGS_LOGGED_MAX: usize = 20;

/// The service, connected.
pub struct Service {
    /// The connection on which the stream is read.
    bus: Bus,
    /// The keys of the ledger at the start.
    keys: LedgerKeys,
    reader: Reader<Record>,
    recorder: Recorder,
    intake: Intake,
    /// The sentry; none where it cannot hear or sign.
    watch: Option<Watch>,
    /// The channel on which the intake learns which workers may speak.
    notices: mpsc::Sender<Notice>,
    /// The copy of the log in the store, if there is to be one, and what the store has.
    mirror: Option<(Mirror, Found)>,
    /// What the log is written with; none where no head is signed. It is in use while the store has
    /// what was written there.
    signer: Option<Signer>,
}

/// What the log is written with, and the bundle that names it.
type Signer = Box<(TrustBundle, LogSigner)>;

impl Service {
    /// Opens the files, checks them, connects, and compares the files with the stream's first and
    /// last position.
    ///
    /// # Errors
    /// The trust bundle or the files cannot be used, no broker answers, the stream `AUDIT` is
    /// missing, or it is not the one that was kept.
    pub async fn build(config: &Config, posture: Posture) -> Result<Self, Failure> {
        let trust = TrustBundle::read(&config.audit.trust)
            .map_err(|error| Failure::new(error.code(), format!("audit.trust: {error}")))?;
        let keys = LedgerKeys::of(&config.audit.trust, &trust);
        let (folder, known) = (config.audit.folder.clone(), trust.clone());
        let mut mirror = None;
        let mut signer = None;
        let recorder = match log_signer(config, &trust)? {
            Some(own) => {
                gauge!(AUDIT_LOG_STOPPED).set(0.0);
                signer = Some(Box::new((trust.clone(), own.clone())));
                let mut head = Some(None);
                if let Some(opened) = Mirror::open(config, &trust)? {
                    let found = ask(&opened).await?;
                    head = match &found {
                        Found::Has(stored) => {
                            Some(stored.as_ref().map(|stored| stored.head.clone()))
                        }
                        Found::Away | Found::Wrong => None,
                    };
                    mirror = Some((opened, found));
                }
                let now = clock::now();
                match head {
                    None => blocking(move || Recorder::open(&folder, &trust)).await?,
                    Some(head) => {
                        blocking(move || {
                            Recorder::open_signing(&folder, &trust, own, head.as_ref(), now)
                        })
                        .await?
                    }
                }
            }
            None => blocking(move || Recorder::open(&folder, &trust)).await?,
        };
        let connected = Bus::connect("diloco-audit", &config.bus, clock::now()).await;
        let bus = connected?;
        // Reads from the first message on, so that the whole stream is compared with the kept
        // records.
        let reader = Reader::new(&bus, StreamSequence(1), |records| records);
        let ends = Ends::ask(&reader, &recorder).await?;
        let stream = ends.span;
        let recorder = compare(recorder, ends).await?;
        let (mut intake, notices) = Intake::connect(config, &known).await?;
        let watch = Watch::connect(config, posture, &known, intake.bus()).await;
        if let Some(watch) = &watch {
            intake.tell(watch.outlet().clone());
        }
        tracing::info!(
            kept = recorder.files().len(),
            stream = stream.messages,
            last = stream.last.0,
            "auditing"
        );
        if let Some(found) = recorder.auditor().evidence() {
            tracing::warn!(code = %found.code(), "the audit files show evidence of tampering: {found}");
        }
        Ok(Self {
            bus,
            keys,
            reader,
            recorder,
            intake,
            watch,
            notices,
            mirror,
            signer,
        })
    }

    /// Its connections to the two accounts that it uses.
    pub fn connections(&self) -> Vec<Bus> {
        vec![self.bus.clone(), self.intake.bus().clone()]
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// The stream contradicts the kept records, the files cannot be written, or the broker takes a
    /// right away.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Failure> {
        let Self {
            bus: _,
            keys,
            mut reader,
            mut recorder,
            intake,
            watch,
            notices,
            mirror,
            signer,
        } = self;
        // It has its own pace, and its end ends nothing else.
        let watching = tokio::spawn(watch_until(watch, stop.clone()));
        let mut copying = mirror.map(|(mirror, found)| Copying::begin(mirror, found));
        let mut intake = tokio::spawn(intake.run(stop.clone()));
        tell_all(&mut recorder, &notices).await;
        let mut look = tokio::time::interval(COMPARE_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut heads = tokio::time::interval(HEAD_LOOK_EVERY);
        heads.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut publishing = Publishing::default();
        let mut level = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                records = reader.batch_behind(recorder.read()) => {
                    if keys.are_others() {
                        // The frame ends this process, which reads them again with the other keys.
                        tokio::select! {
                            () = stop.cancelled() => break,
                            () = keys.are_known_again() => {}
                        }
                    }
                    recorder = take(recorder, records).await?;
                    tell_all(&mut recorder, &notices).await;
                    publishing.begin_if_due(&mut recorder);
                    tracing::debug!(kept = recorder.files().len(), last = recorder.files().last().0, "a batch is kept");
                    gauge!(AUDIT_KEPT).set(recorder.files().len() as f64);
                    gauge!(AUDIT_PENDING).set(reader.pending() as f64);
                    let now_level = reader.pending() == 0;
                    if now_level && !level {
                        tracing::info!(last = recorder.auditor().last().0, "all that the stream holds is checked and kept");
                        say_if_missing(&recorder);
                    }
                    level = now_level;
                }
                ended = &mut intake => {
                    ended.map_err(|error| Failure::new(Code::Internal, error))??;
                    break;
                }
                _ = heads.tick() => publishing.begin_if_due(&mut recorder),
                head = publishing.ended() => {
                    let head = head?;
                    recorder.head_published(&head);
                    if let Some(copying) = &copying {
                        copying.wake(&head);
                    }
                }
                turn = turn_of(&mut copying) => match turn {
                    Turn::Whole(stored) => {
                        // What was begun before the store had other bytes is on the disk first.
                        if publishing.0.is_some() {
                            recorder.head_published(&publishing.ended().await?);
                        }
                        tell_all(&mut recorder, &notices).await;
                        recorder = begin_signing(recorder, signer.as_deref(), stored).await?;
                        gauge!(AUDIT_LOG_STOPPED).set(0.0);
                        say_if_missing(&recorder);
                    }
                    Turn::Wrong(failure) => {
                        say_stopped(&failure);
                        recorder.stop_signing();
                    }
                    Turn::Ended(ended) => {
                        ended?;
                        copying = None;
                    }
                },
                _ = look.tick() => match Ends::ask(&reader, &recorder).await {
                    Ok(ends) => recorder = compare(recorder, ends).await?,
                    Err(error) => tracing::warn!(code = %error.code(), %error, "the end of the stream is not known"),
                }
            }
        }
        // What was kept last is covered too.
        if publishing.0.is_some() {
            recorder.head_published(&publishing.ended().await?);
        }
        publishing.begin(&mut recorder);
        if publishing.0.is_some() {
            publishing.ended().await?;
        }
        if let Some(copying) = copying {
            copying.end().await?;
        }
        let _ = watching.await;
        tracing::info!(
            kept = recorder.files().len(),
            last = recorder.auditor().last().0,
            "the audit has ended"
        );
        Ok(())
    }
}

async fn watch_until(watch: Option<Watch>, stop: CancellationToken) {
    if let Some(watch) = watch {
        watch.run(stop).await;
    }
}

/// Asks the store for its head.
async fn ask(mirror: &Mirror) -> Result<Found, Failure> {
    match mirror.stored().await {
        Ok(stored) => Ok(Found::Has(stored)),
        Err(error @ MirrorError::Store(_)) => {
            let code = error.code();
            tracing::warn!(%code, next = code.next_step(), "no head is signed before the store has said which head it has: \
                           {error}");
            Ok(Found::Away)
        }
        Err(error) if error.code() == Code::LogStoreAltered => {
            say_stopped(&error.into());
            Ok(Found::Wrong)
        }
        Err(error) => Err(error.into()),
    }
}

/// Other bytes in the store are evidence. They stop the signing of heads, and not the recording:
/// who writes to the store's disk must not be able to stop that.
fn say_stopped(failure: &Failure) {
    let code = failure.code();
    gauge!(AUDIT_LOG_STOPPED).set(1.0);
    tracing::error!(%code, next = code.next_step(), "no head is signed or copied until the store has what was written there, \
                    and events are recorded all the same: {failure}");
}

/// Waits for a turn of the copying; for ever if the log is not copied.
async fn turn_of(copying: &mut Option<Copying>) -> Turn {
    match copying {
        Some(copying) => copying.turn().await,
        None => std::future::pending().await,
    }
}

/// Signs heads from now on, unless it does already.
async fn begin_signing(
    recorder: Recorder,
    signer: Option<&(TrustBundle, LogSigner)>,
    stored: Option<Head>,
) -> Result<Recorder, Failure> {
    let Some((trust, own)) = signer.filter(|_| !recorder.is_signing()).cloned() else {
        return Ok(recorder);
    };
    let now = clock::now();
    blocking(move || recorder.begin_signing(&trust, own, stored.as_ref(), now)).await
}

/// Says that the store has a head over events that neither the files nor the stream have.
fn say_if_missing(recorder: &Recorder) {
    if let Some(size) = recorder.missing_up_to() {
        let code = Code::LogContradicted;
        tracing::warn!(%code, size, "the head of the log in the store covers events that are not here; no head is signed \
                       before they come from the stream");
    }
}

/// What the log is written with; none in a domain of an earlier release.
fn log_signer(config: &Config, trust: &TrustBundle) -> Result<Option<LogSigner>, Failure> {
    if trust.head_keys.is_empty() {
        let code = Code::LogUnproven;
        tracing::warn!(%code, "the trust bundle names no key for tree heads, so no log is written; `diloctl up` or \
                       `diloctl auth config` makes one");
        return Ok(None);
    }
    let path = &config.audit.head_key;
    if !path.exists() {
        let text = format!(
            "audit.head_key: {} is not there, but the trust bundle names a key for tree heads; copy it from `keys` of the \
             domain's folder",
            path.display()
        );
        return Err(Failure::new(Code::CredentialMissing, text));
    }
    let key = HeadKey::read(path)
        .map_err(|error| Failure::new(error.code(), format!("audit.head_key: {error}")))?;
    let manifest = log_manifest(config, trust)?;
    Ok(Some(LogSigner { key, manifest }))
}

/// The owner's statement with which the log begins, checked; none in a domain whose log an earlier
/// build has begun.
fn log_manifest(config: &Config, trust: &TrustBundle) -> Result<Option<String>, Failure> {
    let path = &config.audit.log_manifest;
    let named = |text: String| format!("audit.log_manifest: {}: {text}", path.display());
    match trust.log_manifest {
        None => {
            tracing::info!(
                "the trust bundle names no log manifest: an earlier build has begun the log, and its owner has signed nothing \
                 in it"
            );
            Ok(None)
        }
        Some(digest) if !path.exists() => {
            let text =
                format!("it is not there, and the trust bundle names one with digest {digest}");
            Err(Failure::new(Code::LogManifestMissing, named(text)))
        }
        Some(_) => identity::log_manifest::read(path, trust)
            .map(Some)
            .map_err(|fault| Failure::new(Code::LogManifestMissing, named(fault.to_string()))),
    }
}

/// The head that is being written, beside the loop: its files take a disk's time, and workers'
/// events are waiting meanwhile.
#[derive(Default)]
struct Publishing(Option<JoinHandle<Result<Head, LogError>>>);

impl Publishing {
    fn begin_if_due(&mut self, recorder: &mut Recorder) {
        if self.0.is_none() && recorder.is_head_due(clock::now()) {
            self.begin(recorder);
        }
    }

    fn begin(&mut self, recorder: &mut Recorder) {
        let publication = recorder.publication();
        self.0 = publication.map(|one| tokio::task::spawn_blocking(|| one.write()));
    }

    /// Waits until a head that was begun is published. If none was, it waits for ever.
    async fn ended(&mut self) -> Result<Head, Failure> {
        let Some(writing) = &mut self.0 else {
            return std::future::pending().await;
        };
        let written = writing.await;
        self.0 = None;
        let head = written.map_err(|error| Failure::new(Code::Internal, error))??;
        tracing::debug!(size = head.size, "a head of the log is published");
        Ok(head)
    }
}

/// The first and last position of the stream, and a record, from two questions.
struct Ends {
    span: Span,
    /// The record that the stream has at the newest kept position.
    newest: Option<Record>,
}

impl Ends {
    async fn ask(reader: &Reader<Record>, recorder: &Recorder) -> Result<Self, StreamError> {
        let kept = recorder.files().last();
        let span = match reader.span().await {
            // A stream that is gone has lost all messages.
            Err(StreamError::Missing(_)) if kept > StreamSequence(0) => Span::EMPTY,
            span => span?,
        };
        let newest = if kept > StreamSequence(0) && span.last >= kept {
            reader.record(kept).await?
        } else {
            None
        };
        Ok(Self { span, newest })
    }
}

/// Passes the recorder's new notices to the intake.
async fn tell_all(recorder: &mut Recorder, notices: &mpsc::Sender<Notice>) {
    for notice in recorder.take_notices() {
        // If the intake has ended, its own task reports that.
        let _ = notices.send(notice).await;
    }
}

async fn take(mut recorder: Recorder, records: Vec<Record>) -> Result<Recorder, Failure> {
    let (mut recorder, findings) = blocking(move || {
        let findings = recorder.take_behind(&records, clock::now())?;
        Ok::<_, RecorderError>((recorder, findings))
    })
    .await?;
    log(&findings);
    let again = recorder.take_again();
    if again > 0 {
        tracing::warn!(
            count = again,
            "the broker has stored messages again, byte for byte what was kept of them"
        );
    }
    Ok(recorder)
}

async fn compare(mut recorder: Recorder, ends: Ends) -> Result<Recorder, Failure> {
    blocking(move || {
        recorder.compare(ends.span, ends.newest.as_ref(), clock::now())?;
        Ok::<_, RecorderError>(recorder)
    })
    .await
}

/// Checking and syncing take milliseconds, during which connections must be served.
async fn blocking<T: Send + 'static, E: Into<RecorderError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(Code::Internal, error))?;
    done.map_err(|error| {
        let error: RecorderError = error.into();
        if let RecorderError::Contradicted { found, .. } = &error {
            log(std::slice::from_ref(found));
        }
        error.into()
    })
}

fn log(findings: &[PlacedFinding]) {
    for found in findings.iter().take(FINDINGS_LOGGED_MAX) {
        let (code, finding) = (found.code(), found.finding.name());
        if code == Code::LedgerBroken {
            tracing::error!(%code, finding, sequence = found.stream_sequence.0, "{found}");
        } else {
            tracing::warn!(%code, finding, sequence = found.stream_sequence.0, "{found}");
        }
    }
    if let Some(more) = findings
        .len()
        .checked_sub(FINDINGS_LOGGED_MAX)
        .filter(|more| *more > 0)
    {
        tracing::warn!(more, "further findings are in the audit files");
    }
}
