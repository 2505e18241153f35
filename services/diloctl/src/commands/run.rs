//! `run`: create training jobs, look at them, wait for them, freeze them.

use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use merge::{SeededRounding, codec};
use model::check_private_data;
use runtime::{Failure, clock};
use schemas::call::control as call;
use schemas::control::{Query, RunNew, View};
use schemas::hold::Hold;
use schemas::layout::Chunk;
use schemas::run::{CodecKind, ModelSpec, RunSpec};
use schemas::view::{PrivacyView, RunDetail, RunPhase, RunView};
use schemas::{Chunks, Code, Digest, ObjectRef, RunId, V};
use serde::Serialize;

use crate::cli::Run;
use crate::commands::settings::{RunArgs, RunSettings, SettingsUse};
use crate::commands::{collection, data, holds, watch};
use crate::context::{Context, unexpected};
use crate::objects::OperatorObjectsClient;
use crate::output::{Record, Row};
use crate::table::{bytes, count, or_dash, time};

/// The event that `run wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Complete,
    /// This many rounds are closed.
    Round(u64),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "complete" => Ok(Self::Complete),
            Some(("round", number)) => number
                .parse()
                .map(Self::Round)
                .map_err(|error| error.to_string()),
            _ => Err("`complete` or `round=N`".to_owned()),
        }
    }
}

impl Target {
    /// Fails for a run that its privacy budget ended before the event that was waited for.
    fn ended_before(self, view: &RunView) -> Result<(), Failure> {
        let Some(privacy) = view.privacy.filter(|privacy| privacy.over) else {
            return Ok(());
        };
        if matches!(self, Self::Round(round) if view.round.get() >= round) {
            return Ok(());
        }
        let detail = format!(
            "run {} ended after {} of {} rounds: {} contributions cost an epsilon of {:.3}, the budget is {}",
            view.run,
            view.round,
            view.rounds,
            privacy.disclosures,
            privacy.epsilon_spent,
            privacy.epsilon
        );
        Err(Failure::new(Code::PrivacySpent, detail))
    }

    fn is_reached(self, view: &RunView) -> bool {
        match self {
            Self::Complete => view.phase == RunPhase::Complete,
            Self::Round(round) => view.round.get() >= round || view.phase == RunPhase::Complete,
        }
    }
}

pub(crate) async fn run(context: &Context, command: Run) -> Result<(), Failure> {
    match command {
        Run::New(args) => new(context, &args).await,
        Run::Ls { tenant } => match context.operator().await?.view(Query::Runs).await? {
            View::Runs(mut rows) => {
                if let Some(tenant) = tenant {
                    rows.retain(|row| tenant.has(&row.run));
                }
                context.printer.rows(&rows);
                Ok(())
            }
            other => Err(unexpected(&other)),
        },
        Run::Get { run } => {
            let detail = context.operator().await?.run(&run).await?;
            context.printer.record(&detail);
            Ok(())
        }
        Run::Freeze(args) => holds::set(context, args, Hold::Merges, true).await,
        Run::Unfreeze(args) => holds::set(context, args, Hold::Merges, false).await,
        Run::StopUrls(args) => holds::set(context, args, Hold::Urls, true).await,
        Run::AllowUrls(args) => holds::set(context, args, Hold::Urls, false).await,
        Run::Gc(args) => collection::run(context, args).await,
        Run::Watch { run } => watch::watch(context, &run).await,
        Run::Wait {
            run,
            target,
            within,
            nobody_for,
        } => {
            let mut patience = WorkerAbsence::new(nobody_for.0);
            let waited = watch::until(context, &run, |view| {
                // A round that is closed stays closed.
                if target.is_reached(view) {
                    return Ok(true);
                }
                not_halted(view)?;
                if let Some(news) = patience.look(view, Instant::now())? {
                    context.printer.talk(&news);
                }
                Ok(false)
            });
            let view = tokio::time::timeout(within.0, waited).await.map_err(|_| {
                Failure::new(
                    Code::NoAnswer,
                    format!("run {run} did not get there within {within}"),
                )
            })??;
            let early = target.ended_before(&view);
            context.printer.rows(&[view]);
            early
        }
    }
}

/// Time that a wait has gone on without workers, and the limit.
struct WorkerAbsence {
    nobody_for: Duration,
    /// Since when the run has had no workers.
    nobody_since: Option<Instant>,
    /// The trouble that was printed last.
    told: Option<Code>,
}

impl WorkerAbsence {
    const fn new(nobody_for: Duration) -> Self {
        Self {
            nobody_for,
            nobody_since: None,
            told: None,
        }
    }

    /// Returns the reason why the run is held up, when it is a new one. Fails when the run has had
    /// no worker for too long.
    fn look(&mut self, view: &RunView, now: Instant) -> Result<Option<String>, Failure> {
        let why = view.trouble.as_ref();
        match why.filter(|why| why.code == Code::NoWorkerLeft) {
            Some(why) if now - *self.nobody_since.get_or_insert(now) >= self.nobody_for => {
                return Err(Failure::new(
                    why.code,
                    format!("run {}: {}", view.run, why.detail),
                ));
            }
            Some(_) => {}
            None => self.nobody_since = None,
        }
        let code = why.map(|why| why.code);
        let changed = std::mem::replace(&mut self.told, code) != code;
        Ok(why
            .filter(|_| changed)
            .map(|why| format!("run {} is held up: {why}", view.run)))
    }
}

async fn new(context: &Context, args: &RunArgs) -> Result<(), Failure> {
    let settings = match args.settings()? {
        SettingsUse::Run(settings) => settings,
        SettingsUse::Check(settings) => {
            let text =
                data::check_known(context, args.data, &settings.model()?, &settings.schedule)?;
            context.printer.text(&text);
            return Ok(());
        }
        SettingsUse::Print(text) => {
            context.printer.text(&text);
            return Ok(());
        }
    };
    if let Some(words) = settings.combination().weakened(settings.schedule.units) {
        context.printer.talk(&format!("warning: {words}"));
    }
    if let Some(words) = settings.privacy_words() {
        context.printer.talk(&words);
    }
    let operator = context.operator().await?;
    let objects = OperatorObjectsClient::new(context, operator.clone())?;
    let (data, data_provenance) = data::resolve(context, args.data)?;
    check_data(&objects, &settings, data).await?;
    let spec = RunSpec {
        data_provenance,
        ..build(context, &objects, &args.run, &settings, data).await?
    };
    spec.validate()?;
    let reply = operator.ask::<call::RunNew>(&RunNew { v: V, spec }).await?;
    context.printer.record(&Created {
        run: args.run.clone(),
        created: reply.created,
        spec: reply.spec_digest,
    });
    Ok(())
}

/// Makes the coordinator's checks of the data here, before gigabytes of weights are uploaded for a
/// run that it would refuse.
async fn check_data(
    objects: &OperatorObjectsClient,
    settings: &RunSettings,
    object: ObjectRef,
) -> Result<(), Failure> {
    let named =
        |code, found: &dyn Display| Failure::new(code, format!("data {}: {found}", object.digest));
    let manifest = ::data::parse_manifest(&objects.get(object).await?)
        .map_err(|error| named(error.code(), &error))?;
    let schedule = &settings.schedule;
    let fits = settings.model()?.check_data(&manifest, schedule);
    let fits = fits.and_then(|()| match settings.privacy() {
        Some(_) => check_private_data(&manifest, schedule),
        None => Ok(()),
    });
    fits.map_err(|refusal| named(refusal.code, &refusal.detail))
}

/// Uploads everything that the run starts from, and names it in the run's settings.
async fn build(
    context: &Context,
    objects: &OperatorObjectsClient,
    run: &RunId,
    settings: &RunSettings,
    data: ObjectRef,
) -> Result<RunSpec, Failure> {
    let model = settings.model()?;
    let layout = model.layout();
    let invalid = |error: schemas::layout::LayoutError| Failure::new(Code::ModelInvalid, error);
    layout.validate().map_err(invalid)?;
    let chunks = layout
        .chunks(settings.model.chunk_elements)
        .map_err(invalid)?;
    let (layout, _) = layout.to_object();
    let small = objects
        .put(&[Bytes::from(model.to_json()), Bytes::from(layout)], |_| ())
        .await?;
    let bytes = CodecKind::Fp32.encoded_bytes(model.parameters());
    let bar = watch::bytes_bar(context.printer, "initial weights", bytes);
    let weights = model.initial(settings.seed);
    let mut initial = Vec::with_capacity(chunks.len());
    // A few chunks at a time: a large model need not fit in memory here.
    for group in chunks.chunks(CHUNKS_IN_MEMORY) {
        let bodies: Vec<Bytes> = group.iter().map(|chunk| encoded(&weights, chunk)).collect();
        initial.extend(objects.put(&bodies, |bytes| bar.inc(bytes)).await?);
    }
    let (initial, list) = Chunks::of_new_run(initial);
    if let Some(list) = list {
        objects.put(&[Bytes::from(list)], |_| ()).await?;
    }
    bar.finish_and_clear();
    Ok(RunSpec {
        v: V,
        run: run.clone(),
        model: ModelSpec {
            trainer: model.trainer(),
            config: small[0],
            layout: small[1],
            chunk_elements: settings.model.chunk_elements,
            initial,
            precision: settings.model.precision,
        },
        data,
        data_provenance: None,
        schedule: settings.schedule.clone(),
        inner: settings.inner.clone(),
        outer: settings.outer(),
        combination: settings.combination(),
        upload: settings.upload(),
        download: settings.download(),
        error_feedback: settings.transfer.error_feedback,
        privacy: settings.privacy(),
        secure_aggregation: settings.secure_aggregation(),
        policy: settings.policy(),
        seed: settings.seed,
    })
}

/// Chunks of initial weights that are made and uploaded together.
const CHUNKS_IN_MEMORY: usize = 8;

fn encoded(weights: &model::InitialWeights, chunk: &Chunk) -> Bytes {
    let mut values = vec![0.0; chunk.range().len()];
    weights.fill(chunk.start, &mut values);
    let mut out = vec![0; codec::encoded_bytes(CodecKind::Fp32, values.len())];
    codec::encode(CodecKind::Fp32, &values, SeededRounding::NEAREST, &mut out)
        .expect("the buffer has the codec's size");
    Bytes::from(out)
}

#[derive(Serialize)]
struct Created {
    run: RunId,
    created: bool,
    spec: Digest,
}

impl Record for Created {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let verb = if self.created {
            "created"
        } else {
            "exists with the same settings"
        };
        vec![
            ("run", format!("{} {verb}", self.run)),
            ("settings", self.spec.to_string()),
        ]
    }
}

impl Row for RunView {
    const TITLES: &'static [&'static str] = &[
        "run",
        "phase",
        "round",
        "units",
        "workers",
        "leases",
        "tokens/s",
        "train loss",
        "held-out loss",
        "up",
        "down since start",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.run.to_string(),
            phase(self),
            format!("{}/{}", self.round, self.rounds),
            format!("{}/{}", self.units_done, self.units),
            match self.phase {
                RunPhase::Waiting => format!("{} of {}", self.workers, self.workers_min),
                _ => self.workers.to_string(),
            },
            self.leases.to_string(),
            count(self.tokens_per_second),
            or_dash(self.train_loss, |loss| format!("{loss:.4}")),
            or_dash(self.held_out_loss, |(round, loss)| {
                format!("{loss:.4} @{round}")
            }),
            bytes(self.bytes_up.get()),
            bytes(self.bytes_down.get()),
        ]
    }
}

/// The phase in one word, with the reason where the phase is an undesired one.
pub(crate) fn phase(view: &RunView) -> String {
    let mut phase = format!("{:?}", view.phase).to_lowercase();
    for held in &view.holds {
        phase.push_str(&format!(", {} on hold", held.hold));
    }
    if view.privacy.is_some_and(|privacy| privacy.over) {
        let code = Code::PrivacySpent;
        phase.push_str(&format!(": {code} {}", code.title()));
    }
    match view.halted.as_ref().or(view.trouble.as_ref()) {
        Some(why) => format!("{phase}: {} {}", why.code, why.code.title()),
        None => phase,
    }
}

/// Fails when the run is halted: it makes no progress until its coordinator is started again.
pub(crate) fn not_halted(view: &RunView) -> Result<(), Failure> {
    match &view.halted {
        Some(why) => Err(Failure::new(
            why.code,
            format!("run {} is halted: {}", view.run, why.detail),
        )),
        None => Ok(()),
    }
}

impl Record for RunDetail {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let (view, spec) = (&self.view, &self.spec);
        let tokens = view
            .tokens
            .iter()
            .map(|(fate, tokens)| format!("{fate:?} {tokens}").to_lowercase());
        let mut lines: Vec<(&'static str, String)> =
            RunView::TITLES.iter().copied().zip(view.cells()).collect();
        lines.extend(
            view.halted
                .iter()
                .map(|why| ("halted because", why.to_string())),
        );
        lines.extend(
            view.trouble
                .iter()
                .map(|why| ("held up by", why.to_string())),
        );
        lines.extend(view.privacy.iter().map(|privacy| {
            let PrivacyView {
                epsilon,
                epsilon_spent,
                delta,
                disclosures,
                disclosures_max,
                ..
            } = privacy;
            let text = format!(
                "epsilon {epsilon_spent:.3} of {epsilon} at delta {delta:e}, {disclosures} of {disclosures_max} contributions"
            );
            ("privacy spent", text)
        }));
        lines.extend(view.left_out.iter().map(|one| {
            let (worker, code) = (one.worker.short(), one.code);
            let text = format!("unit {} of {worker}: {code} {}", one.unit, code.title());
            ("left out", text)
        }));
        lines.extend([
            ("tokens", tokens.collect::<Vec<_>>().join(", ")),
            ("created", time(view.created_at)),
            ("completed", or_dash(view.completed_at, time)),
            (
                "snapshot",
                or_dash(view.snapshot, |(round, object)| {
                    format!("{} of round {round}", object.digest)
                }),
            ),
            ("settings", self.spec_digest.to_string()),
            (
                "trainer",
                format!("{:?}", spec.model.trainer).to_lowercase(),
            ),
            ("data", spec.data.digest.to_string()),
            (
                "inner steps",
                format!(
                    "{} of {} sequences",
                    spec.schedule.inner_steps, spec.schedule.batch_sequences
                ),
            ),
            ("outer", format!("{:?}", spec.outer)),
            (
                "running for",
                crate::table::span(
                    view.created_at
                        .until(view.completed_at.unwrap_or_else(clock::now))
                        .get(),
                ),
            ),
        ]);
        lines
    }
}
