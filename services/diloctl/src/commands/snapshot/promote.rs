//! `snapshot promote`: a snapshot is verified from the ledger to its last byte, and then a pointer
//! is moved to it.

use runtime::Failure;
use schemas::call::control as call;
use schemas::promotion::{ACCEPTED_MAX, PromoteReply, PromoteRequest};
use schemas::{Code, Digest, PublicKey, Round, RunId, V, WorkerId};
use serde::Serialize;

use crate::cli::PromoteArgs;
use crate::commands::audit::ancestry::{self, Signed, VerifiedSnapshot};
use crate::context::Context;
use crate::output::Record;

/// Moves a pointer to a snapshot that was verified here. The credentials that the command line
/// names read the ledger; the order is the operator's. What the coordinator will not do is known
/// before anything is verified, which takes long.
pub(super) async fn run(context: &Context, command: &PromoteArgs) -> Result<(), Failure> {
    let own = Context {
        credentials: None,
        ..context.clone()
    };
    let question = PromoteRequest {
        v: V,
        run: None,
        snapshot: command.digest,
        pointer: command.pointer.clone(),
        accept: accepted(&command.accept_quarantined)?,
        check_only: true,
        reason: command.reason.clone(),
    };
    let operator = own.operator().await?;
    let may = operator.ask::<call::SnapshotPromote>(&question).await?;
    confirms(&question, &may)?;
    let verified = ancestry::verified(context, command.digest, &command.from).await?;
    let request = PromoteRequest {
        run: Some(verified.run.clone()),
        snapshot: verified.manifest.digest,
        check_only: false,
        ..question
    };
    let reply = operator.ask::<call::SnapshotPromote>(&request).await?;
    confirms(&request, &reply)?;
    context.printer.record(&Promoted::of(verified, reply));
    Ok(())
}

/// The workers that the command line names, each once. More than a promotion accepts would not even
/// fit into the request.
fn accepted(named: &[WorkerId]) -> Result<Vec<WorkerId>, Failure> {
    let mut accept = named.to_vec();
    accept.sort_unstable();
    accept.dedup();
    if accept.len() > ACCEPTED_MAX {
        let number = accept.len();
        let text =
            format!("--accept-quarantined names {number} workers, of at most {ACCEPTED_MAX}");
        return Err(Failure::new(Code::AcceptedTooMany, text));
    }
    Ok(accept)
}

/// The answer must be about this pointer and this snapshot.
fn confirms(request: &PromoteRequest, reply: &PromoteReply) -> Result<(), Failure> {
    let (asked, told) = (
        (&request.pointer, request.snapshot),
        (&reply.pointer, reply.manifest.digest),
    );
    let unasked = reply
        .accepted
        .iter()
        .find(|one| !request.accept.contains(one));
    if let Some(worker) = unasked {
        let text = format!("the coordinator accepted worker {worker}, which was not named");
        return Err(Failure::new(Code::MessageInvalid, text));
    }
    if asked == told {
        return Ok(());
    }
    let detail = format!(
        "asked to move {} to {}, the coordinator answered about {} and {}",
        asked.0, asked.1, told.0, told.1
    );
    Err(Failure::new(Code::MessageInvalid, detail))
}

/// A pointer as it is now.
#[derive(Serialize)]
struct Promoted {
    run: RunId,
    pointer: String,
    changed: bool,
    round: u64,
    manifest: Digest,
    /// The round to whose snapshot the pointer led before.
    before: Option<u64>,
    /// True if a restore has undone the snapshot.
    undone: bool,
    /// The workers in quarantine whose contributions were accepted with this move.
    accepted: Vec<WorkerId>,
    /// The key that signed the statement about the snapshot.
    signed_by: PublicKey,
    /// Objects of the snapshot that were read back and hashed.
    objects: u64,
    /// Full snapshots that it rests on, verified as well.
    rests_on: u64,
    /// The contributions to all of these.
    contributions: Signed,
}

impl Promoted {
    fn of(verified: VerifiedSnapshot, reply: PromoteReply) -> Self {
        Self {
            run: verified.run,
            pointer: reply.pointer.to_string(),
            changed: reply.changed,
            round: verified.round.get(),
            manifest: reply.manifest.digest,
            before: reply.before.map(Round::get),
            undone: reply.undone,
            accepted: reply.accepted,
            signed_by: verified.key,
            objects: verified.objects,
            rests_on: verified.before,
            contributions: verified.signed,
        }
    }
}

impl Record for Promoted {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let state = match (self.changed, self.before) {
            (false, _) => "leads there already".to_owned(),
            (true, None) => "is new; this is in the ledger".to_owned(),
            (true, Some(round)) => format!("moved from round {round}; this is in the ledger"),
        };
        let (objects, before, by) = (self.objects, self.rests_on, self.contributions);
        let unproven = match by.unproven {
            0 => String::new(),
            more => format!("; {more} more cannot be checked again"),
        };
        let signatures = format!("{} signatures of workers{unproven}", by.verified);
        let mut lines = vec![
            ("run", self.run.to_string()),
            ("pointer", format!("{}: {state}", self.pointer)),
            ("round", self.round.to_string()),
            ("snapshot", super::of_what(self.manifest, self.undone)),
        ];
        let accepted = self.accepted.iter();
        lines.extend(accepted.map(|worker| {
            let text = format!("contributions of {worker}, which is in quarantine");
            ("accepted", text)
        }));
        lines.extend([
            ("signed by", self.signed_by.to_string()),
            ("read back", format!("{objects} objects")),
            (
                "verified",
                format!("{before} snapshots before it, {signatures}"),
            ),
        ]);
        lines
    }
}

#[cfg(test)]
mod tests {
    use schemas::ObjectRef;

    use super::*;

    #[test]
    fn tl_19_as_many_workers_are_accepted_as_an_event_names() {
        let worker = |number: usize| {
            let letter =
                |place: u32| char::from(b'A' + (number as u32 / 26_u32.pow(place) % 26) as u8);
            let text = format!("U{}{}{}", letter(1), letter(0), "A".repeat(53));
            text.parse().expect("a key")
        };
        let workers: Vec<WorkerId> = (0..=ACCEPTED_MAX).map(worker).collect();
        let most = &workers[1..];
        let twice = [most, most].concat();
        assert_eq!(accepted(&twice).expect("each is named once"), most);
        let failure = accepted(&workers).expect_err("one more");
        assert_eq!(failure.code(), Code::AcceptedTooMany);
        assert!(failure.to_string().contains("33 workers"), "{failure}");
    }

    #[test]
    fn tl_19_an_answer_about_something_else_is_no_success() {
        let manifest = ObjectRef::of(b"manifest");
        let request = PromoteRequest {
            v: V,
            run: Some("demo".parse().expect("a name")),
            snapshot: manifest.digest,
            pointer: "release".parse().expect("a name"),
            accept: Vec::new(),
            check_only: false,
            reason: "a reason".parse().expect("a reason"),
        };
        let reply = PromoteReply {
            v: V,
            changed: true,
            pointer: request.pointer.clone(),
            round: Round(2),
            manifest,
            before: None,
            undone: false,
            accepted: Vec::new(),
        };
        assert!(confirms(&request, &reply).is_ok());
        let other = PromoteReply {
            manifest: ObjectRef::of(b"another"),
            ..reply.clone()
        };
        assert!(confirms(&request, &other).is_err());
        let other = PromoteReply {
            pointer: "latest-good".parse().expect("a name"),
            ..reply
        };
        assert!(confirms(&request, &other).is_err());
    }
}
