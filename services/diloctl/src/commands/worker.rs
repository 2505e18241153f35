//! `worker`: the machines of a run, and the quarantine of a worker. Invitations are in
//! `invitations`, and the invited machine's side in `enrol`.

mod credential;
mod unreached;

use identity::Credentials;
use runtime::Failure;
use schemas::call::control as call;
use schemas::hold::AtStore;
use schemas::lease::LeaseRef;
use schemas::permission::Role;
use schemas::quarantine::{MergedRounds, QuarantineReply, QuarantineRequest};
use schemas::view::SnapshotView;
use schemas::{Code, Round, RunId, UnixMillis, V, WorkerId};
use serde::Serialize;

use self::credential::Credential;
use super::holds::{UrlsOf, at_store};
use super::{enrol, invitations, lists, reissue, rekey};
use crate::cli::{QuarantineArgs, Worker};
use crate::context::{Context, Operator};
use crate::output::Record;
use crate::table::{or_dash, time};

/// Fewest letters of a key that name a worker: as many as tables show.
const SHORT_MIN: usize = 8;

pub(crate) async fn run(context: &Context, command: Worker) -> Result<(), Failure> {
    match command {
        Worker::Ls { run } => lists::workers(context, run).await,
        Worker::Quarantine {
            order,
            keep_credential,
        } => {
            let revokes = !keep_credential;
            set(context, order, Order::Quarantine { revokes }).await
        }
        Worker::Readmit(args) => set(context, args, Order::Readmit).await,
        Worker::Invite(args) => invitations::invite(context, args).await,
        Worker::Pending => invitations::pending(context),
        Worker::Approve { key } => invitations::approve(context, &key).await,
        Worker::Deny { what } => invitations::deny(context, &what).await,
        Worker::Keys => enrol::keys(context).await,
        Worker::Enrol {
            invitation,
            device,
            threads,
        } => enrol::run(context, &invitation, device, threads).await,
        Worker::Rekey { name } => rekey::run(context, &name).await,
        Worker::Reissue {
            worker,
            lifetime,
            into,
        } => reissue::make(context, &worker, lifetime.millis(), &into).await,
        Worker::Accept { file } => reissue::accept(context, &file).await,
    }
}

/// An order about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Quarantine { revokes: bool },
    Readmit,
}

/// Shuts a worker out or lets it in again, and shows what that ended. What the coordinator did is
/// shown also if the revocation fails, and the credential is revoked also if the coordinator does
/// not answer.
async fn set(context: &Context, args: QuarantineArgs, order: Order) -> Result<(), Failure> {
    let QuarantineArgs {
        worker: text,
        run,
        reason,
    } = args;
    let known = named_here(context, &text)?;
    let place = |worker: Option<WorkerId>| async {
        let operator = context.operator().await?;
        let worker = match worker {
            Some(worker) => worker,
            None => named(&operator, &run, &text).await?,
        };
        let request = QuarantineRequest {
            v: V,
            run: run.clone(),
            worker,
            quarantined: order != Order::Readmit,
            reason: reason.clone(),
        };
        let reply = operator.ask::<call::WorkerQuarantine>(&request).await?;
        Ok((request, reply))
    };
    let (request, reply) = match place(known.clone()).await {
        Err(failure)
            if order == Order::Quarantine { revokes: true }
                && unreached::is_unanswered(&failure) =>
        {
            return unreached::revoke(context, run, &text, known, &reason, failure).await;
        }
        placed => placed?,
    };
    let worker = request.worker.clone();
    if order != Order::Readmit {
        context.finished(format!("{worker} is shut out of run {run}"));
    }
    let (credential, done) = match order {
        Order::Quarantine { revokes: true } => Credential::revoke(context, &worker, &reason).await,
        Order::Quarantine { revokes: false } => (Credential::Kept, Ok(())),
        Order::Readmit => Credential::of(context, &worker),
    };
    let set = Set::from((request, reply, credential));
    context.printer.record(&set);
    done
}

/// The worker that a person means by its key, or by the name of its credentials in the domain's
/// folder; none if only the coordinator can tell.
fn named_here(context: &Context, text: &str) -> Result<Option<WorkerId>, Failure> {
    if let Ok(worker) = text.parse() {
        return Ok(Some(worker));
    }
    let unknown = |detail: String| Failure::new(Code::WorkerUnknown, detail);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !text.bytes().all(is_name) {
        return Err(unknown(format!("{text:?} is neither a key nor a name")));
    }
    let domain = context.domain()?;
    let file = domain.layout().credentials(text);
    if !file.exists() {
        return Ok(None);
    }
    // Without the list of holders the coordinator's record says what the key is.
    let holders = domain.holders_of(text).unwrap_or_default();
    if let Some(other) = holders.iter().find(|one| one.role != Role::Worker) {
        let role = other.role.name();
        return Err(unknown(format!(
            "{text} has the credentials of role {role}"
        )));
    }
    let key = Credentials::read(&file)?.public().to_string();
    let worker = key
        .parse()
        .map_err(|_| unknown(format!("{} holds no worker's key", file.display())))?;
    Ok(Some(worker))
}

/// The worker that a person means by the first letters of its key, as tables show them.
async fn named(operator: &Operator, run: &RunId, text: &str) -> Result<WorkerId, Failure> {
    let workers = operator.workers(run).await?;
    abbreviated(run, text, workers.into_iter().map(|view| view.worker))
}

/// The only worker whose key begins with these letters.
fn abbreviated(
    run: &RunId,
    text: &str,
    workers: impl Iterator<Item = WorkerId>,
) -> Result<WorkerId, Failure> {
    let unknown = |detail: String| Failure::new(Code::WorkerUnknown, detail);
    let begins = |worker: &WorkerId| text.len() >= SHORT_MIN && worker.as_str().starts_with(text);
    let mut found = workers.filter(begins);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(unknown(format!("{text} of run {run}"))),
        (Some(one), Some(two)) => Err(unknown(format!(
            "{text} begins the keys {one} and {two} of run {run}"
        ))),
    }
}

/// A quarantine as it is now.
#[derive(Serialize)]
struct Set {
    run: RunId,
    worker: WorkerId,
    quarantined: bool,
    changed: bool,
    since: Option<UnixMillis>,
    joined: bool,
    lease_ended: Option<LeaseRef>,
    withdrawn: Vec<LeaseRef>,
    withdrawn_more: u32,
    uploads_deleted: Option<u32>,
    sealed: Vec<Round>,
    merged: Option<MergedRounds>,
    clean: Option<SnapshotView>,
    /// Other keys of the same worker that are shut out.
    other_keys: Vec<WorkerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<AtStore>,
    credential: Credential,
}

impl From<(QuarantineRequest, QuarantineReply, Credential)> for Set {
    fn from(
        (request, reply, credential): (QuarantineRequest, QuarantineReply, Credential),
    ) -> Self {
        Self {
            run: request.run,
            worker: request.worker,
            quarantined: request.quarantined,
            credential,
            changed: reply.changed,
            since: reply.since,
            joined: reply.joined,
            lease_ended: reply.lease,
            withdrawn: reply.withdrawn,
            withdrawn_more: reply.withdrawn_more,
            uploads_deleted: reply.uploads,
            sealed: reply.sealed,
            merged: reply.merged,
            clean: reply.clean,
            other_keys: reply.other_keys,
            store: reply.store,
        }
    }
}

impl Set {
    fn state(&self) -> String {
        let since = or_dash(self.since, time);
        match (self.quarantined, self.changed) {
            (true, true) => format!("{}: shut out; this is in the ledger", self.worker),
            (true, false) => format!("{}: is shut out already, since {since}", self.worker),
            (false, true) => format!("{}: may join again; this is in the ledger", self.worker),
            (false, false) => format!("{}: was not shut out", self.worker),
        }
    }

    fn withdrawn(&self) -> String {
        let leases = &self.withdrawn;
        if leases.is_empty() {
            return "none".to_owned();
        }
        let named: Vec<String> = leases.iter().map(ToString::to_string).collect();
        let more = match self.withdrawn_more {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        format!("{}{more}", named.join(", "))
    }

    /// Units that others can take now.
    fn opened(&self) -> u32 {
        let lease = u32::from(self.lease_ended.is_some());
        self.withdrawn.len() as u32 + self.withdrawn_more + lease
    }

    fn sealed(&self) -> String {
        let rounds: Vec<String> = self.sealed.iter().map(ToString::to_string).collect();
        match rounds.is_empty() {
            true => "none".to_owned(),
            false => format!(
                "round {}: it is merged with them when the run is not frozen",
                rounds.join(", ")
            ),
        }
    }

    fn merged(&self) -> String {
        match self.merged {
            None => "none".to_owned(),
            Some(MergedRounds {
                first,
                last,
                rounds,
            }) => format!(
                "{rounds}, from round {first} to round {last}: the weights descend from them"
            ),
        }
    }

    fn clean(&self) -> String {
        match (&self.clean, self.merged) {
            (Some(clean), _) => format!("of round {}, {}", clean.round, clean.manifest.digest),
            (None, Some(_)) => "none; only the initial weights are without it".to_owned(),
            (None, None) => "every one".to_owned(),
        }
    }
}

impl Record for Set {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("run", self.run.to_string()), ("worker", self.state())];
        if !self.joined {
            lines.push((
                "joined",
                "never; look if this is the key you mean".to_owned(),
            ));
        }
        let credential = self.credential.text(&self.worker, &self.run);
        let other_key = !self.other_keys.is_empty();
        let of = UrlsOf::Worker { other_key };
        let urls = self
            .store
            .map(|store| at_store(store, of, self.quarantined));
        let urls = urls.map(|said| ("urls", said.to_owned()));
        if !self.quarantined {
            lines.extend(urls);
            lines.push(("credential", credential));
            lines.extend(self.other_keys.iter().map(|key| {
                let run = &self.run;
                let text = format!(
                    "{key}, another key of this worker: nothing of it is let in before `diloctl worker \
                     readmit {key} --run {run} --reason TEXT`"
                );
                ("still shut out", text)
            }));
            return lines;
        }
        let lease = self.lease_ended.map(|lease| lease.to_string());
        let lease = lease.unwrap_or_else(|| "none".to_owned());
        let uploads = match self.uploads_deleted {
            Some(count) => format!("{count} deleted"),
            None => "not deleted: the store did not do it in time; repeat the command".to_owned(),
        };
        if self.changed {
            lines.extend([
                ("lease ended", lease),
                ("contributions withdrawn", self.withdrawn()),
                ("units open again", self.opened().to_string()),
            ]);
        } else {
            // The answer to that order may have been lost, and "none" would be taken as a fact.
            let run = &self.run;
            let earlier =
                format!("by an earlier order; `diloctl audit replay --run {run}` shows it");
            lines.push(("ended", earlier));
        }
        lines.extend(urls);
        lines.extend([
            ("uploads", uploads),
            ("sealed with it", self.sealed()),
            ("merged rounds with it", self.merged()),
            ("last snapshot without it", self.clean()),
            ("credential", credential),
        ]);
        lines
    }
}

#[cfg(test)]
mod tests {
    use schemas::lease::{UnitId, UnitKind};
    use schemas::{Epoch, ObjectRef, UnitIndex};

    use super::*;

    fn lease(index: u32) -> LeaseRef {
        LeaseRef {
            unit: UnitId {
                round: Round(7),
                kind: UnitKind::Train,
                index: UnitIndex(index),
            },
            epoch: Epoch(1),
        }
    }

    fn worker(end: &str) -> WorkerId {
        let key = format!("U{}{end}", "A".repeat(55 - end.len()));
        key.parse().expect("a key")
    }

    /// An order that changed something and touched nothing.
    fn set(quarantined: bool) -> Set {
        let reply = QuarantineReply {
            v: V,
            changed: true,
            since: quarantined.then_some(UnixMillis(1_700_000_000_000)),
            joined: true,
            lease: None,
            withdrawn: Vec::new(),
            withdrawn_more: 0,
            uploads: Some(0),
            sealed: Vec::new(),
            merged: None,
            clean: None,
            other_keys: Vec::new(),
            store: Some(match quarantined {
                true => AtStore::ShutOut,
                false => AtStore::Taken,
            }),
        };
        let request = QuarantineRequest {
            v: V,
            run: "demo".parse().expect("a name"),
            worker: worker(""),
            quarantined,
            reason: "odd norms".parse().expect("a reason"),
        };
        Set::from((request, reply, Credential::Kept))
    }

    #[test]
    fn a_worker_is_named_by_letters_that_begin_one_key() {
        let run = "demo".parse().expect("a name");
        let (one, two) = (worker("BB"), worker("CC"));
        let found = |text: &str, workers: &[WorkerId]| {
            let found = abbreviated(&run, text, workers.iter().cloned());
            found.map_err(|failure| failure.refusal().to_string())
        };
        let both = [one.clone(), two.clone()];
        assert_eq!(found(one.short(), &both[..1]), Ok(one.clone()));
        assert_eq!(found(&one.as_str()[..55], &both), Ok(one.clone()));
        let several = found(one.short(), &both).expect_err("it begins both");
        for named in ["DL0414", one.as_str(), two.as_str()] {
            assert!(several.contains(named), "{several}");
        }
        for text in ["UBBBBBBB", &one.as_str()[..7]] {
            let unknown = found(text, &both[..1]).expect_err("nobody has it");
            assert!(unknown.contains("DL0414"), "{unknown}");
        }
    }

    #[test]
    fn tl_31_each_other_key_that_is_still_shut_out_has_its_command() {
        let mut order = set(false);
        let named = |order: &Set| {
            let lines = order.lines().into_iter();
            let named = lines.filter(|(name, _)| *name == "still shut out");
            named.map(|(_, text)| text).collect::<Vec<_>>()
        };
        assert!(named(&order).is_empty());
        order.other_keys = vec![worker("BB"), worker("CC")];
        let said = named(&order);
        assert_eq!(said.len(), 2);
        for (said, key) in said.iter().zip(&order.other_keys) {
            let command = format!("`diloctl worker readmit {key} --run demo --reason TEXT`");
            assert!(said.contains(&command), "{said}");
        }
    }

    /// The version of the message is not that of the printed document.
    #[test]
    fn a_document_names_each_value_once() {
        let text = serde_json::to_string(&set(true)).expect("it serialises");
        assert_eq!(text.matches("\"v\"").count(), 0, "{text}");
        assert!(text.contains("\"uploads_deleted\":0"), "{text}");
    }

    fn line(set: &Set, name: &str) -> String {
        let lines = set.lines();
        let found = lines.into_iter().find(|(title, _)| *title == name);
        found.unwrap_or_else(|| panic!("no line {name}")).1
    }

    #[test]
    fn each_line_is_explained_on_the_page_of_runbooks() {
        let page = include_str!("../../../../docs/incidents.md");
        let mut repeated = set(true);
        (repeated.changed, repeated.joined) = (false, false);
        for (name, _) in set(true).lines().into_iter().chain(repeated.lines()) {
            let explained = name == "run" || page.contains(&format!("| `{name}` |"));
            assert!(explained, "{name}");
        }
    }

    #[test]
    fn tl_31_the_lines_say_what_an_order_touched() {
        let nothing = set(true);
        for (name, text) in [
            ("lease ended", "none"),
            ("contributions withdrawn", "none"),
            ("units open again", "0"),
            (
                "urls",
                "the store refuses them; a transfer that began before goes on",
            ),
            ("uploads", "0 deleted"),
            ("sealed with it", "none"),
            ("merged rounds with it", "none"),
            ("last snapshot without it", "every one"),
        ] {
            assert_eq!(line(&nothing, name), text, "{name}");
        }
        let mut much = set(true);
        (much.lease_ended, much.withdrawn) = (Some(lease(0)), vec![lease(1), lease(2)]);
        (much.withdrawn_more, much.uploads_deleted) = (3, None);
        much.sealed = vec![Round(6)];
        much.merged = Some(MergedRounds {
            first: Round(2),
            last: Round(5),
            rounds: 3,
        });
        assert_eq!(line(&much, "lease ended"), lease(0).to_string());
        let withdrawn = format!("{}, {}, and 3 more", lease(1), lease(2));
        assert_eq!(line(&much, "contributions withdrawn"), withdrawn);
        assert_eq!(line(&much, "units open again"), "6");
        assert!(line(&much, "uploads").starts_with("not deleted"));
        much.store = Some(AtStore::Later);
        let urls = line(&much, "urls");
        assert!(urls.contains("the store has not shown yet"), "{urls}");
        much.store = Some(AtStore::Unable);
        let urls = line(&much, "urls");
        assert!(urls.contains("cannot tell whose they are"), "{urls}");
        assert_eq!(line(&set(false), "urls"), "the store takes them");
        let mut kept_out = set(false);
        kept_out.store = Some(AtStore::ShutOut);
        assert!(line(&kept_out, "urls").contains("a later order"));
        kept_out.other_keys = vec![worker("BB")];
        assert!(line(&kept_out, "urls").contains("another key of this worker"));
        assert_eq!(
            line(&much, "sealed with it"),
            "round 6: it is merged with them when the run is not frozen"
        );
        let merged = line(&much, "merged rounds with it");
        assert!(merged.starts_with("3, from round 2 to round 5"), "{merged}");
        let clean = line(&much, "last snapshot without it");
        assert!(clean.starts_with("none; "), "{clean}");
        let manifest = ObjectRef::of(b"manifest");
        much.clean = Some(SnapshotView {
            given_up: None,
            round: Round(2),
            manifest,
            saved_at: UnixMillis(0),
            statement: None,
            pointers: Vec::new(),
            undone: false,
            quarantined: None,
        });
        let clean = line(&much, "last snapshot without it");
        assert_eq!(clean, format!("of round 2, {}", manifest.digest));
    }

    #[test]
    fn the_first_line_says_what_the_order_did() {
        for (quarantined, changed, text) in [
            (true, true, "shut out; this is in the ledger"),
            (true, false, "is shut out already, since 2023-11-14"),
            (false, true, "may join again; this is in the ledger"),
            (false, false, "was not shut out"),
        ] {
            let mut order = set(quarantined);
            order.changed = changed;
            let said = line(&order, "worker");
            assert!(said.contains(text), "{said}");
            let lines = match (quarantined, changed) {
                (true, true) => 11,
                (true, false) => 9,
                (false, _) => 4,
            };
            assert_eq!(order.lines().len(), lines);
        }
        let mut repeated = set(true);
        repeated.changed = false;
        let ended = "by an earlier order; `diloctl audit replay --run demo` shows it";
        assert_eq!(line(&repeated, "ended"), ended);
        let now = [
            "worker",
            "run",
            "ended",
            "urls",
            "uploads",
            "sealed with it",
        ];
        let now = [
            &now[..],
            &["merged rounds with it", "last snapshot without it"],
        ]
        .concat();
        for (name, _) in repeated.lines() {
            assert!(now.contains(&name) || name == "credential", "{name}");
        }
        let mut stranger = set(true);
        stranger.joined = false;
        assert!(line(&stranger, "joined").starts_with("never"));
    }
}
