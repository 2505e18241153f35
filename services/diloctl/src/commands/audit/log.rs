//! `audit head`, `prove`, `verify` and `diff`: the log of all events, checked from its files, in a
//! folder or in the store, with the trust bundle, and beside stream `AUDIT`.

use std::path::{Path, PathBuf};

use audit_core::log::{
    Differ, Difference, Differences, Events, Log, LogFault, Place as EventPlace, Proof, Trusted,
    check_events, check_known, replay_events,
};
use diloco_audit::log::{event_of, read_file};
use diloco_audit::{Auditor, Checked, Reader, StreamSequence};
use identity::{TrustBundle, log_manifest};
use runtime::Failure;
use schemas::event::{Event, EventBody};
use schemas::log_manifest::LogManifest;
use schemas::permission::Role;
use schemas::{Code, Digest, Message as _};
use serde::Serialize;
use tlog::Head;

use super::kept::Kept;
use super::pins::Pins;
use super::place::Place;
use super::{owner, witness};
use crate::cli::{self, LoggedEvent};
use crate::context::Context;
use crate::output::Record;

/// A log, and what it is checked against.
pub(super) struct Source {
    place: Place,
    trust: TrustBundle,
    pub(super) trusted: Trusted,
    pins: Pins,
}

/// `audit head`.
pub(super) fn head(context: &Context, from: &cli::Log) -> Result<(), Failure> {
    let source = Source::open(context, from)?;
    let log = source.log(&mut |_, _| {})?;
    let shown = HeadShown {
        cosigned: Some(Kept::of(&source, &log)?),
        ..HeadShown::of(&source, &log)
    };
    source.pin(&log)?;
    context.printer.record(&shown);
    Ok(())
}

/// `audit prove`.
pub(super) fn prove(
    context: &Context,
    event: &LoggedEvent,
    to: Option<&Path>,
    from: &cli::Log,
) -> Result<(), Failure> {
    let source = Source::open(context, from)?;
    let mut found: Option<(u64, Vec<u8>)> = None;
    let log = source.log(&mut |index, entry| {
        if found.is_none() && is_named(event, index, entry) {
            found = Some((index, entry.to_vec()));
        }
    })?;
    let size = log.head().size;
    if found
        .as_ref()
        .is_some_and(|(index, _)| *index < log.before_events())
    {
        let text = "entry 0 of the log is the manifest of its owner, and no event; `audit verify` checks it";
        return Err(Failure::new(Code::EventUnlogged, text));
    }
    let (index, entry) = found.ok_or_else(|| LogFault::Unlogged {
        wanted: event.to_string(),
        size,
    })?;
    let unproven = || LogFault::Proof("the log does not lead to its own root".to_owned());
    let proof = log.prove(index, &entry).ok_or_else(unproven)?;
    let text = proof.text();
    // Read again from its own text: a file that is written has been verified.
    let shown = ProofShown::of(&Proof::read(text.as_bytes())?, &source.trusted)?;
    source.pin(&log)?;
    let file = to.map_or_else(
        || PathBuf::from(format!("event-{index}.tlog-proof")),
        Path::to_owned,
    );
    std::fs::write(&file, text).map_err(|error| {
        Failure::new(
            Code::OutputUnwritten,
            format!("{}: {error}", file.display()),
        )
    })?;
    context.printer.record(&ProofShown {
        file: Some(file.display().to_string()),
        ..shown
    });
    Ok(())
}

/// `audit verify`.
pub(super) fn verify(
    context: &Context,
    proof: Option<&Path>,
    witnessing: &cli::Witnessing,
    from: &cli::Log,
) -> Result<(), Failure> {
    let source = Source::open(context, from)?;
    let proof = proof.map(read_proof).transpose()?;
    if let (Some(proof), false) = (&proof, from.is_named() || witnessing.policy.is_some()) {
        // Without the log nothing says which witnesses its owner has named.
        witness::check_asked(witnessing, false)?;
        let mut shown = ProofShown::of(proof, &source.trusted)?;
        let (head, ..) = proof.verify(&source.trusted)?;
        shown.compared = Some(match Proof::is_pinned(&head, source.pins.newest())? {
            true => "the head is the one that is pinned here",
            false => {
                "the head was not compared with one that is pinned here: name a log with --log-folder or --store-keys for that"
            }
        });
        context.printer.record(&shown);
        return Ok(());
    }
    let proven = proof
        .map(|proof| Ok::<_, LogFault>((proof.open(&source.trusted)?, proof)))
        .transpose()?;
    let cosigned = witness::cosigned(&source, witnessing)?;
    let mut log = source.log(&mut |_, _| {})?;
    let owners = source.manifest(&log)?.and_then(|owner| owner.witnesses);
    let owners = owners.map(|text| witness::of_owner(&source, witnessing, &text));
    let owners = owners.transpose()?;
    witness::check_asked(witnessing, cosigned.is_some() || owners.is_some())?;
    // These could only be read behind the log, which grows.
    if owners
        .as_ref()
        .is_some_and(|owners| owners.is_ahead(&source, &log))
    {
        log = source.log(&mut |_, _| {})?;
    }
    let log = log;
    if let Some(((head, event, body), proof)) = &proven {
        source.holds(&log, head, proof)?;
        proof.is_in_turn(&log, event, body)?;
    }
    let Events { auditor, strangers } =
        check_events(&log, &|path| source.read(path), &source.trusted)?;
    judge(&auditor)?;
    let known = check_known(&log, &|path| source.read(path), &source.trusted)?;
    let owner = owner::owner(&source, &log)?;
    let (witnessed, weaker) = witness::judged(&source, &log, witnessing, cosigned, owners)?;
    let summary = auditor.summary();
    let shown = LogShown {
        head: HeadShown::of(&source, &log),
        checked: format!("entries 0 to {}", log.head().size - 1),
        verified: summary.verified,
        repeated: summary.repeated,
        strangers,
        behind: known.named,
        chains: summary.emitters.len(),
        owner,
        witnessed,
        weaker,
        proof: proven.map(|((head, ..), proof)| {
            format!(
                "event {} under the head over {} events, which this log continues",
                proof.index, head.size
            )
        }),
    };
    source.pin(&log)?;
    context.printer.record(&shown);
    // After the rest: the words of one emitter keep no machine from following the log.
    if let Some(contradicted) = known.contradicted {
        return Err(Failure::new(Code::KnownHeadFalse, contradicted));
    }
    if let Some(owner) = &shown.owner {
        owner.judge()?;
    }
    match auditor.faulty_workers().first() {
        None => Ok(()),
        Some(first) => {
            let all = super::ledger_whole(auditor.faulty_workers().len());
            let detail = format!("{all}; first {}", super::faults(first));
            Err(Failure::new(Code::AuditRejected, detail))
        }
    }
}

/// `audit diff`.
pub(super) async fn diff(context: &Context, from: &cli::Log) -> Result<(), Failure> {
    let source = Source::open(context, from)?;
    let bus = context.bus(Role::Auditor).await?;
    // Before the stream is read, so that an event that comes meanwhile is in the stream only.
    let mut differ = Differ::default();
    let log = source.log(&mut |index, entry| differ.entry(index, entry))?;
    let trusted = &source.trusted;
    let examiner = trusted.auditor().examiner().clone();
    let mut reader = Reader::new(&bus, StreamSequence(1), move |records| {
        let examined = examiner.examine_all(&records);
        let both = records.into_iter().zip(examined);
        let places = both.map(|(record, examined)| {
            let event = event_of(&examiner, &record, &examined);
            let place = event.and_then(|event| EventPlace::of(&event));
            (record.stream_sequence, place)
        });
        places.collect::<Vec<_>>()
    });
    let end = reader.span().await?.last;
    loop {
        let batch = tokio::time::timeout(context.timeout, reader.batch_to(end)).await;
        let stalled = |_| {
            let text = format!("reading the stream stopped before sequence {end}");
            Failure::new(Code::NoVerdict, text)
        };
        let Some(batch) = batch.map_err(stalled)? else {
            break;
        };
        for (at, place) in batch {
            place
                .into_iter()
                .for_each(|place| differ.stream(at.0, place));
        }
    }
    let differences = differ.differences()?;
    context.printer.record(&DiffShown {
        size: log.head().size,
        last: end.0,
        differences: differences.clone(),
    });
    let Differences { count, first, .. } = differences;
    let more = if count > 1 {
        format!(", and {} differences more", count - 1)
    } else {
        String::new()
    };
    match first.first() {
        None => source.pin(&log).map(drop),
        Some(first) => Err(Failure::new(Code::StreamDiffers, format!("{first}{more}"))),
    }
}

impl Source {
    pub(super) fn open(context: &Context, from: &cli::Log) -> Result<Self, Failure> {
        let domain = context.domain()?;
        let (layout, trust) = (domain.layout(), domain.trust());
        let trusted = Trusted {
            domain: trust.domain.to_string(),
            tenants: trust.tenants.clone(),
            coordinators: trust.audit_keys.clone(),
            ended: trust.ends(),
            sentries: trust.sentry_keys.clone(),
            heads: trust.raw_head_keys(),
        };
        let place = Place::open(context, from)?;
        let pins = Pins::open(layout.pinned_head(), place.name(), &trusted)?;
        Ok(Self {
            place,
            trust: trust.clone(),
            trusted,
            pins,
        })
    }

    /// What the owner of the domain says at the beginning of the log; none if an earlier build has
    /// begun it.
    pub(super) fn manifest(&self, log: &Log) -> Result<Option<LogManifest>, Failure> {
        let found = log_manifest::of_log(log.manifest(), &self.trust);
        found.map_err(|fault| Failure::new(fault.code(), format!("{}: {fault}", self.place)))
    }

    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        self.place.read(path)
    }

    /// Checks the first `until` events of the log, or all, with the auditor that `prepare` makes.
    pub(super) fn events(
        &self,
        until: Option<u64>,
        prepare: impl FnOnce(Auditor) -> Auditor,
        each: &mut dyn FnMut(Checked),
    ) -> Result<Auditor, Failure> {
        let log = self.log(&mut |_, _| {})?;
        let size = log.head().size;
        if let Some(wanted) = until.filter(|wanted| *wanted > size || *wanted == 0) {
            let text =
                format!("the log covers events 1 to {size}; there is no state after {wanted}");
            return Err(Failure::new(Code::NoVerdict, text));
        }
        let trusted = &self.trusted;
        let auditor = trusted.auditor();
        let until = until.unwrap_or(size);
        let read = |path: &str| self.read(path);
        let events = replay_events(&log, &read, trusted, prepare(auditor), until, each)?;
        Ok(events.auditor)
    }

    pub(super) fn log(&self, each: &mut dyn FnMut(u64, &[u8])) -> Result<Log, Failure> {
        let log = self
            .pins
            .log(&|path| self.read(path), &self.trusted, each)?;
        self.manifest(&log)?;
        Ok(log)
    }

    /// Checks that a proof's head is one of this log, and that the log has the event there.
    fn holds(&self, log: &Log, head: &Head, proof: &Proof) -> Result<(), LogFault> {
        let size = log.head().size;
        if head.size > size {
            let (found, pinned) = (size, head.size);
            return Err(LogFault::RolledBack { found, pinned });
        }
        if log.root_at(&|path| self.read(path), head.size)? != head.root {
            return Err(LogFault::Forked { size: head.size });
        }
        match log.prove(proof.index, &proof.entry) {
            Some(_) => Ok(()),
            None => Err(LogFault::Proof(
                "the log has another event there".to_owned(),
            )),
        }
    }

    /// Pins the head, as [`Pins::pin`] says.
    pub(super) fn pin(&self, log: &Log) -> Result<bool, Failure> {
        self.pins.pin(log, &|path| self.read(path), &self.trusted)
    }
}

fn read_proof(file: &Path) -> Result<Proof, Failure> {
    if !file.exists() {
        let text = format!("{}, a proof", file.display());
        return Err(Failure::new(Code::NamedFileMissing, text));
    }
    let read = read_file(file).map_err(|error| error.to_string());
    let text = read.and_then(|text| text.ok_or_else(|| "it is not there".to_owned()));
    let text = text
        .map_err(|error| Failure::new(Code::LogUnproven, format!("{}: {error}", file.display())))?;
    Ok(Proof::read(&text)?)
}

fn is_named(event: &LoggedEvent, index: u64, entry: &[u8]) -> bool {
    let body = || chain::of_leaf(entry).map(|event| event.body);
    match event {
        LoggedEvent::Index(wanted) => *wanted == index,
        LoggedEvent::Digest(digest) => body().is_some_and(|body| Digest::of(&body) == *digest),
        LoggedEvent::Number(key, number) => body()
            .and_then(|body| EventBody::decode(&body).ok())
            .is_some_and(|body| body.emitter == *key && body.sequence == *number),
    }
}

/// Findings name positions from 1, as a stream has them; the log counts from 0.
fn judge(auditor: &Auditor) -> Result<(), Failure> {
    match auditor.evidence() {
        None => super::check_successor(auditor),
        Some(found) => {
            let index = found.stream_sequence.0.saturating_sub(1);
            let text = format!("event {index} of the log: {}", found.finding);
            Err(Failure::new(found.code(), text))
        }
    }
}

/// A verified head.
#[derive(Serialize)]
struct HeadShown {
    log: String,
    origin: String,
    events: u64,
    root: String,
    /// The size of the newest head that was pinned before.
    continues: Option<u64>,
    /// The cosignatures of workers that are kept beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cosigned: Option<Kept>,
}

impl HeadShown {
    fn of(source: &Source, log: &Log) -> Self {
        let Head { origin, size, root } = log.head();
        Self {
            log: source.place.to_string(),
            origin: origin.clone(),
            events: *size,
            root: data_encoding::BASE64.encode(root),
            continues: source.pins.newest().map(|pinned| pinned.size),
            cosigned: None,
        }
    }
}

impl Record for HeadShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let continues = match self.continues {
            Some(size) => format!("the head over {size} events, pinned here before"),
            None => "nothing: it is the first head that this machine has seen".to_owned(),
        };
        let mut lines = vec![
            ("verdict", "verified".to_owned()),
            ("log", self.log.clone()),
            ("origin", self.origin.clone()),
            ("events", self.events.to_string()),
            ("root", self.root.clone()),
            ("continues", continues),
        ];
        let cosigned = self.cosigned.iter();
        lines.extend(cosigned.map(|kept| ("cosigned", kept.to_string())));
        lines
    }
}

/// A verified proof.
#[derive(Serialize)]
struct ProofShown {
    file: Option<String>,
    index: u64,
    /// The size of the log under whose head it is.
    events: u64,
    emitter: String,
    sequence: u64,
    kind: &'static str,
    run: Option<String>,
    body: Digest,
    /// What is known of the key that signed it.
    signer: &'static str,
    /// What is known of the head.
    compared: Option<&'static str>,
}

impl ProofShown {
    fn of(proof: &Proof, trusted: &Trusted) -> Result<Self, LogFault> {
        let (head, event, body) = proof.verify(trusted)?;
        Ok(Self {
            file: None,
            index: proof.index,
            events: head.size,
            emitter: body.emitter.to_string(),
            sequence: body.sequence.get(),
            kind: body.event.kind(),
            run: body.run.map(|run| run.to_string()),
            body: Digest::of(&event.body),
            signer: match body.event {
                Event::Ledger(_) => "a coordinator that the trust bundle names",
                Event::Security(_) => "a sentry that the trust bundle names",
                Event::Worker(_) => "its emitter; the key was not checked against a worker's join",
            },
            compared: None,
        })
    }
}

impl Record for ProofShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("verdict", "verified".to_owned()),
            (
                "event",
                format!(
                    "at index {} of the log, counted from 0, under the head over {} events",
                    self.index, self.events
                ),
            ),
            ("kind", self.kind.to_owned()),
            (
                "emitter",
                format!("{}, its event {}", self.emitter, self.sequence),
            ),
            ("signer", self.signer.to_owned()),
            ("body", self.body.to_string()),
        ];
        let compared = self.compared.iter();
        lines.extend(compared.map(|words| ("compared", (*words).to_owned())));
        lines.extend(self.run.iter().map(|run| ("run", run.clone())));
        lines.extend(self.file.iter().map(|file| ("proof", file.clone())));
        lines
    }
}

/// A verified log.
#[derive(Serialize)]
struct LogShown {
    #[serde(flatten)]
    head: HeadShown,
    /// The range of the entries that were checked.
    checked: String,
    verified: u64,
    repeated: u64,
    /// Events of workers that never joined, and of others whose keys nobody named.
    strangers: u64,
    /// Events that name a head which their emitter had seen before; they lie behind it.
    behind: u64,
    chains: usize,
    /// What its owner says; none if an earlier build has begun the log.
    owner: Option<owner::Owner>,
    witnessed: Option<witness::Witnessed>,
    /// What the owner's policy asks for and is not met, where another was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    weaker: Option<String>,
    proof: Option<String>,
}

impl Record for LogShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = self.head.lines();
        let Self {
            checked,
            verified,
            repeated,
            strangers,
            behind,
            chains,
            ..
        } = self;
        lines.push((
            "checked",
            format!(
                "{checked}: head, root, tiles, signatures, {chains} chains; {verified} verified, {repeated} repeated, {strangers} \
                 of strangers"
            ),
        ));
        lines.push((
            "not before",
            format!(
                "{behind} events name a head that their emitters had seen, and stand behind it"
            ),
        ));
        let owner = match &self.owner {
            Some(owner) => owner.to_string(),
            None => "has signed nothing in this log, which an earlier build has begun: its emitters are those of the trust bundle"
                .to_owned(),
        };
        lines.push(("owner", owner));
        let witnessed = self.witnessed.iter();
        for by in witnessed {
            lines.push(("witnessed", by.to_string()));
            let unread = by.unread.iter();
            lines.extend(unread.map(|why| ("counts as missing", why.clone())));
        }
        let code = Code::PolicyWeaker;
        let weaker = self.weaker.iter();
        lines.extend(weaker.map(|why| {
            let text = format!("NOT MET by the policy that its owner signed ({code}): {why}");
            ("owner's witnesses", text)
        }));
        lines.extend(self.proof.iter().map(|proof| ("proof", proof.clone())));
        lines
    }
}

/// The stream beside the log.
#[derive(Serialize)]
struct DiffShown {
    /// Events of the log.
    size: u64,
    /// The last position of the stream.
    last: u64,
    #[serde(flatten)]
    differences: Differences,
}

impl Record for DiffShown {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let Differences {
            same,
            newer,
            count,
            first,
        } = &self.differences;
        let verdict = match count {
            0 if *newer > 0 => {
                format!("verified, except {newer} newer events, which are under no head yet")
            }
            0 => "verified".to_owned(),
            _ => "STREAM DIFFERS".to_owned(),
        };
        let mut lines = vec![
            ("verdict", verdict),
            (
                "compared",
                format!(
                    "entries 0 to {} of the log, stream up to sequence {}",
                    self.size - 1,
                    self.last
                ),
            ),
            ("in both", same.to_string()),
            ("under no head yet", newer.to_string()),
            ("differences", count.to_string()),
        ];
        let difference = |one: &Difference| ("difference", one.to_string());
        lines.extend(first.iter().map(difference));
        lines
    }
}
