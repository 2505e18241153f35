//! `lineage show`: what an object was made from, verified link by link; and the same check for a
//! promotion.

use std::sync::Arc;

use diloco_audit::ancestry::{Ancestry, Draw, Handed, History, SavedSnapshot, Subject};
use diloco_audit::provenance::{Attested, Verifier};
use diloco_audit::{Auditor, DigestPrefix};
use runtime::Failure;
use schemas::snapshot::MergeRecord;
use schemas::text::Time;
use schemas::{Chunks, Code, Digest, ObjectRef, PublicKey, Refusal, Round, RunId, Weight};
use serde::Serialize;

use super::sources::Source;
use super::{lineage, record};
use crate::cli::{AncestrySource, ShowLineage};
use crate::commands::watch;
use crate::context::Context;
use crate::output::Format;

/// A fact about the object, and the facts that it rests on.
#[derive(Debug, Serialize)]
struct Node {
    what: &'static str,
    /// The round, the lease or the key that it is of.
    #[serde(skip_serializing_if = "String::is_empty")]
    of: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    about: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    /// What was checked, in words; none where the ledger alone says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    from: Vec<Node>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Verified,
    Refused { code: Code, detail: String },
}

/// The lineage of one object.
#[derive(Serialize)]
struct Shown {
    run: RunId,
    verified: bool,
    lineage: Node,
    /// The full snapshots that it rests on, the newest first.
    rests_on: Vec<Node>,
}

/// A snapshot that was verified up to the run's beginning.
pub(crate) struct VerifiedSnapshot {
    pub(crate) run: RunId,
    pub(crate) round: Round,
    pub(crate) manifest: ObjectRef,
    /// The key that signed its statement.
    pub(crate) key: PublicKey,
    /// The full snapshots that it rests on.
    pub(crate) before: u64,
    pub(crate) signed: Signed,
    /// Objects that were read back.
    pub(crate) objects: u64,
}

/// Contributions to a snapshot and to those that it rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Signed {
    /// Those whose makers' signatures were verified.
    pub(crate) verified: u64,
    /// Those whose signed bytes cannot be made again, as with a client that encodes in another way.
    /// The coordinator has checked their signatures when it accepted them.
    pub(crate) unproven: u64,
}

impl Signed {
    /// Counts a contribution. Only evidence stands in the way of a promotion: otherwise a worker of
    /// another make would keep its run from ever being promoted.
    fn count(&mut self, checked: Result<(), Refusal>) -> Result<(), Refusal> {
        match checked {
            Ok(()) => self.verified += 1,
            Err(refusal) if refusal.code == Code::LineageUnproven => self.unproven += 1,
            Err(refusal) => return Err(refusal),
        }
        Ok(())
    }
}

/// The snapshot, contribution or data set with this digest.
///
/// # Errors
/// There is none, or there are several.
pub(super) fn subject<'a>(
    ancestry: &'a Ancestry,
    wanted: &DigestPrefix,
) -> Result<(&'a RunId, &'a History, Subject<'a>), Failure> {
    let none = "no snapshot, no contribution and no data set is";
    let digest = lineage::only(wanted, ancestry.found(), none)?;
    let found = ancestry.find();
    found.ok_or_else(|| Failure::new(Code::DigestUnknown, format!("{none} {digest}")))
}

/// Shows what an object was made from.
pub(crate) async fn show(context: &Context, command: &ShowLineage) -> Result<(), Failure> {
    let wanted = &command.digest;
    let ancestry = collect(context, wanted.clone(), &command.from).await?;
    let (run, history, subject) = subject(&ancestry, wanted)?;
    let source = Source::open(context, &command.from.objects).await?;
    let trust = context.domain()?.trust().clone();
    let verifier = Verifier {
        trust: &trust,
        objects: &source,
        run,
        history,
    };
    let mut tree = Tree {
        verifier,
        draw: None,
        worst: None,
    };
    let (lineage, rests_on) = match subject {
        Subject::Snapshot(snapshot) => tree.snapshots(snapshot).await,
        Subject::Contribution(handed) => (tree.contribution(handed, None).await, Vec::new()),
        Subject::Data => (tree.data_set().await, Vec::new()),
    };
    let shown = Shown {
        run: run.clone(),
        verified: tree.worst.is_none(),
        lineage,
        rests_on,
    };
    match context.printer.format() {
        Format::Table => context.printer.text(&shown.text()),
        Format::Json | Format::Jsonl => context.printer.document(&shown),
    }
    tree.worst.map_or(Ok(()), |refusal| Err(refusal.into()))
}

/// Verifies a snapshot and everything that it rests on, and reads every object of it back.
pub(crate) async fn verified(
    context: &Context,
    digest: Digest,
    from: &AncestrySource,
) -> Result<VerifiedSnapshot, Failure> {
    let ancestry = collect(context, digest.into(), from).await?;
    let snapshot = match ancestry.find() {
        Some((run, history, Subject::Snapshot(snapshot))) if snapshot.manifest.digest == digest => {
            Some((run, history, snapshot))
        }
        Some(_) | None => None,
    };
    let Some((run, history, snapshot)) = snapshot else {
        let detail = format!("the record has no full snapshot with the manifest {digest}");
        return Err(Failure::new(Code::SnapshotMissing, detail));
    };
    if let Some(event) = history.given_up(snapshot) {
        let round = snapshot.round;
        let detail = format!(
            "the snapshot of round {round} of run {run} was given up by gc at event {event} of the ledger"
        );
        return Err(Failure::new(Code::ObjectsGivenUp, detail));
    }
    let source = Source::open(context, &from.objects).await?;
    let trust = context.domain()?.trust().clone();
    let verifier = Verifier {
        trust: &trust,
        objects: &source,
        run,
        history,
    };
    let Attested { manifest, key, .. } = verifier.snapshot(snapshot).await?;
    let line = history.line(snapshot);
    for before in &line[1..] {
        verifier.snapshot(before).await?;
    }
    let mut signed = Signed::default();
    let data = verifier.data().await?;
    verifier.data_envelope(&data).await?;
    let draw = Draw::new(&history.spec, Arc::new(data));
    for merge in line.iter().flat_map(|one| &one.merges) {
        for (handed, _) in inputs(history, merge) {
            signed.count(verifier.contribution(handed))?;
            verifier.envelope(handed, &draw)?;
        }
    }
    let total = manifest.weights.total() + manifest.broadcast.chunks.total();
    let slots = manifest.slots.values().map(Chunks::total);
    let total = slots.fold(total, |sum, slot| sum + slot);
    let bar = watch::bytes_bar(context.printer, "read back", total.get());
    let done = |object: ObjectRef| bar.inc(object.bytes.get());
    let objects = verifier.read_back(&manifest, &done).await;
    bar.finish_and_clear();
    Ok(VerifiedSnapshot {
        run: run.clone(),
        round: snapshot.round,
        manifest: snapshot.manifest,
        key,
        before: line.len() as u64 - 1,
        signed,
        objects: objects?,
    })
}

/// Reads the record for the ancestry of an object.
pub(super) async fn collect(
    context: &Context,
    digest: DigestPrefix,
    from: &AncestrySource,
) -> Result<Ancestry, Failure> {
    let collecting = |auditor: Auditor| auditor.tracing_back(Ancestry::new(digest));
    let mut auditor = record::read(context, from.ledger.as_deref(), collecting).await?;
    Ok(auditor.take_ancestry().expect("it was collected"))
}

/// The contributions of a merge, each with its weight. All of them were accepted: the fold refuses
/// a seal of others.
fn inputs<'a>(
    history: &'a History,
    merge: &'a MergeRecord,
) -> impl Iterator<Item = (&'a Handed, Weight)> {
    let inputs = merge.inputs.iter();
    inputs.filter_map(|input| Some((history.handed.get(&input.lease)?, input.weight)))
}

/// The tree in the making.
struct Tree<'a> {
    verifier: Verifier<'a>,
    /// The order in which units take the run's data, once it was asked for.
    draw: Option<Result<Arc<Draw>, Refusal>>,
    /// The worst of what was found: evidence before something that could not be checked.
    worst: Option<Refusal>,
}

impl Tree<'_> {
    fn judge<T>(&mut self, checked: Result<T, Refusal>) -> (Option<T>, Option<Verdict>) {
        match checked {
            Ok(value) => (Some(value), Some(Verdict::Verified)),
            Err(refusal) => {
                let proves = |refusal: &Refusal| refusal.code != Code::LineageUnproven;
                let worse = |worst: &Refusal| proves(&refusal) && !proves(worst);
                if self.worst.as_ref().is_none_or(worse) {
                    self.worst = Some(refusal.clone());
                }
                let Refusal { code, detail, .. } = refusal;
                (None, Some(Verdict::Refused { code, detail }))
            }
        }
    }

    /// The snapshot with its rounds, and those that it rests on, the newest first.
    async fn snapshots(&mut self, snapshot: &SavedSnapshot) -> (Node, Vec<Node>) {
        let history = self.verifier.history;
        let line = history.line(snapshot);
        let mut before = Vec::with_capacity(line.len());
        for one in line.iter().skip(1) {
            before.push(self.snapshot(one).await);
        }
        let mut node = self.snapshot(snapshot).await;
        for promotion in &history.promotions {
            if promotion.manifest == snapshot.manifest.digest {
                let (pointer, time) = (&promotion.pointer, Time(promotion.time));
                let (operator, reason) = (&promotion.operator, &promotion.reason);
                let about = format!("by {operator} at {time}: {reason}");
                let mut promoted = Node::of("promoted as", about, None).named(pointer);
                promoted
                    .from
                    .extend(promotion.accepted.iter().map(|worker| {
                        let what = "contributions of a worker in quarantine accepted";
                        Node::of(what, String::new(), None).named(worker)
                    }));
                node.from.push(promoted);
            }
        }
        node.from.extend(self.origins().await);
        for merge in &snapshot.merges {
            let round = self.round(merge).await;
            node.from.push(round);
        }
        (node, before)
    }

    /// A snapshot with its statement.
    async fn snapshot(&mut self, snapshot: &SavedSnapshot) -> Node {
        let checked = self.verifier.snapshot(snapshot).await;
        let (attested, verdict) = self.judge(checked);
        let by = attested.map_or_else(String::new, |one| format!("signed by {}", one.key));
        let (at, release) = (snapshot.at.0, &snapshot.release);
        let mut statement = Node::of("statement", by, None);
        statement.digest = snapshot.statement.map(|object| object.digest);
        let about = format!("event {at}, saved by release {release}");
        let mut node = Node::of("snapshot", about, Some(snapshot.manifest.digest));
        node.of = snapshot.round.to_string();
        node.verdict = verdict;
        node.from.push(statement);
        if snapshot.parent.is_none() {
            let initial = self.verifier.history.spec.model.initial.digest();
            node.from
                .push(Node::of("initial weights", String::new(), Some(initial)));
        }
        node
    }

    /// Settings, model and data of the run.
    async fn origins(&mut self) -> Vec<Node> {
        let history = self.verifier.history;
        let by = format!(
            "of run {}, created by {}",
            self.verifier.run, history.operator
        );
        let data = self.data_set().await;
        let model = &history.spec.model;
        vec![
            Node::of("settings", by, Some(history.spec_digest)),
            Node::of("configuration", String::new(), Some(model.config.digest)),
            Node::of("layout", String::new(), Some(model.layout.digest)),
            data,
        ]
    }

    /// The data set with the statement about it and its shards.
    async fn data_set(&mut self) -> Node {
        let spec = &self.verifier.history.spec;
        let set = "every unit draws its sequences from some of its shards, in their turn";
        let mut node = Node::of("data set", set.to_owned(), Some(spec.data.digest));
        let data = self.verifier.data().await;
        let (data, verdict) = self.judge(data);
        node.verdict = verdict;
        let Some(data) = data else {
            return node;
        };
        let mut statement = Node::of("provenance", String::new(), None);
        statement.digest = spec.data_provenance.map(|statement| statement.digest);
        let checked = self.verifier.data_envelope(&data).await;
        let (checked, verdict) = self.judge(checked);
        statement.about = match &checked {
            Some(None) => "none: the run's settings name none".to_owned(),
            Some(Some((_, key))) => format!("signed by {key}"),
            None => String::new(),
        };
        statement.verdict = verdict.filter(|_| spec.data_provenance.is_some());
        node.from.push(statement);
        let shard = |shard: schemas::data::Shard| {
            let about = format!("{} tokens to train on", shard.tokens);
            Node::of("shard", about, Some(shard.object.digest))
        };
        node.from.extend(data.train.into_iter().map(shard));
        node
    }

    /// A merged round with its contributions.
    async fn round(&mut self, merge: &MergeRecord) -> Node {
        let (round, history) = (merge.round, self.verifier.history);
        let merged = history.merged.get(&round);
        let about = merged.map_or_else(String::new, |merged| {
            let (at, release) = (merged.at.0, &merged.release);
            format!("event {at}, merged by release {release}")
        });
        let digest = merged.map(|merged| merged.broadcast.digest());
        let mut node = Node::of("round", about, digest).named(round);
        for (handed, weight) in inputs(history, merge) {
            let child = self.contribution(handed, Some(weight)).await;
            node.from.push(child);
        }
        node
    }

    /// A contribution with its lease, its maker and the weights that it starts from.
    async fn contribution(&mut self, handed: &Handed, weight: Option<Weight>) -> Node {
        let checked = self.verifier.contribution(handed);
        let (_, verdict) = self.judge(checked);
        let (lease, at) = (handed.lease, handed.at.0);
        let weight = weight.map_or_else(String::new, |weight| format!(", weight {weight}"));
        let (worker, key) = (&handed.worker, &handed.audit_key);
        let release = &handed.release;
        let maker = format!("signs with {key}, release {release}");
        let mut node = Node {
            verdict,
            ..Node::of(
                "contribution",
                format!("event {at}{weight}"),
                Some(handed.contribution.chunks.digest()),
            )
            .named(lease)
        };
        let statement = Node::of("signed statement", String::new(), Some(handed.statement));
        node.from.push(statement);
        node.from.push(self.provenance(handed).await);
        node.from
            .push(Node::of("worker", maker, None).named(worker));
        if weight.is_empty() {
            node.from.extend(self.origins().await);
        }
        node
    }
}

impl Tree<'_> {
    /// The provenance of a contribution, by the digest of its envelope.
    async fn provenance(&mut self, handed: &Handed) -> Node {
        const WHAT: &str = "provenance";
        if handed.provenance.is_none() {
            let about = "none: an earlier release accepted the contribution";
            return Node::of(WHAT, about.to_owned(), None);
        }
        let draw = match &self.draw {
            Some(draw) => draw.clone(),
            None => {
                let draw = self.verifier.draw().await.map(Arc::new);
                self.draw.insert(draw).clone()
            }
        };
        let checked = draw.and_then(|draw| self.verifier.envelope(handed, &draw));
        let (envelope, verdict) = self.judge(checked);
        let digest = envelope.flatten().map(|envelope| Digest::of(&envelope));
        Node {
            verdict,
            ..Node::of(WHAT, format!("signed by {}", handed.audit_key), digest)
        }
    }
}

impl Node {
    fn of(what: &'static str, about: String, digest: Option<Digest>) -> Self {
        Self {
            what,
            of: String::new(),
            about,
            digest,
            verdict: None,
            from: Vec::new(),
        }
    }

    fn named(self, of: impl ToString) -> Self {
        let of = of.to_string();
        Self { of, ..self }
    }

    fn line(&self) -> String {
        let digest = self.digest.map(|digest| format!(" {digest}"));
        let of = match self.of.is_empty() {
            true => String::new(),
            false => format!(" {}", self.of),
        };
        let about = match self.about.is_empty() {
            true => String::new(),
            false => format!(" ({})", self.about),
        };
        let verdict = match &self.verdict {
            None => String::new(),
            Some(Verdict::Verified) => ": verified".to_owned(),
            Some(Verdict::Refused { code, detail }) => format!(": REFUSED {code} {detail}"),
        };
        format!(
            "{}{of}{}{about}{verdict}",
            self.what,
            digest.unwrap_or_default()
        )
    }

    fn lines(&self, indent: usize, into: &mut Vec<String>) {
        into.push(format!("{:indent$}{}", "", self.line()));
        for node in &self.from {
            node.lines(indent + 2, into);
        }
    }
}

impl Shown {
    fn text(&self) -> String {
        let mut lines = vec![format!("run {}", self.run)];
        self.lineage.lines(0, &mut lines);
        if !self.rests_on.is_empty() {
            lines.push("rests on".to_owned());
        }
        self.rests_on
            .iter()
            .for_each(|node| node.lines(0, &mut lines));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_19_evidence_ends_a_promotion_and_a_missing_verdict_is_counted() {
        let mut signed = Signed::default();
        let refusal = |code| Err(Refusal::new(code, "2/train-0@1"));
        assert!(signed.count(Ok(())).is_ok());
        assert!(signed.count(refusal(Code::LineageUnproven)).is_ok());
        let counted = (signed.verified, signed.unproven);
        assert_eq!(counted, (1, 1));
        assert!(signed.count(refusal(Code::LineageDiffers)).is_err());
    }

    #[test]
    fn the_snapshots_that_one_rests_on_stand_below_each_other() {
        let of = |round: u64| {
            let mut node = Node::of("snapshot", String::new(), None).named(round);
            node.from.push(Node::of("statement", String::new(), None));
            node
        };
        let shown = Shown {
            run: "demo".parse().expect("a name"),
            verified: true,
            lineage: of(300),
            rests_on: (1..300).rev().map(of).collect(),
        };
        let text = shown.text();
        assert_eq!(text.lines().count(), 2 + 300 * 2);
        let indented = text.lines().filter(|line| line.starts_with("   ")).count();
        assert_eq!(indented, 0, "{text}");
        let json = serde_json::to_string(&shown).expect("it serialises");
        assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
    }

    #[test]
    fn a_tree_has_a_line_for_each_node_and_says_what_was_refused() {
        let digest = Digest::of(b"x");
        let mut node = Node::of("round", "event 7".to_owned(), Some(digest)).named(2);
        let (code, detail) = (Code::LineageDiffers, "why".to_owned());
        let mut child = Node::of("contribution", String::new(), None).named("2/train-0@1");
        child.verdict = Some(Verdict::Refused { code, detail });
        node.from.push(child);
        node.verdict = Some(Verdict::Verified);
        let mut lines = Vec::new();
        node.lines(0, &mut lines);
        let first = format!("round 2 {digest} (event 7): verified");
        assert_eq!(
            lines,
            [
                first,
                "  contribution 2/train-0@1: REFUSED DL0738 why".to_owned()
            ]
        );
    }
}
