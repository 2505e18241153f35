//! The log in the store beside that of the audit service's folder, and the ledger under the heads
//! that the coordinator has verified.

use std::time::Duration;

use diloco_audit::log::read_file;
use identity::AccessKey;
use objects::{Endpoint, LogBucket, ObjectError, TransferLimits};
use runtime::Failure;
use schemas::Code;
use schemas::permission::Role;
use schemas::view::{CoordinatorView, LedgerCover};
use tlog::Head;
use tlog::layout::CHECKPOINT;

use super::{Finding, Report};
use crate::context::Context;

const CHECK: &str = "log in the store";
const LEDGER: &str = "ledger in the log";
/// Time for which an operation is tried again: the doctor tells what is there now.
const PATIENCE: Duration = Duration::from_secs(2);
/// A region that the embedded store and most others accept.
const REGION: &str = "us-east-1";
/// Looks at the store before it counts as behind, and the pause between two: a head that was signed
/// this moment is on its way.
const LOOKS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn look(context: &Context, report: &mut Report) {
    report.add(match compare(context).await {
        Ok(finding) => finding,
        Err(failure) => Finding::fail(CHECK, &failure),
    });
}

/// How far the log covers the ledger, as the coordinator has verified it.
pub(super) fn ledger(view: &CoordinatorView) -> Finding {
    let Some(cover) = &view.log else {
        let reason =
            "the coordinator follows no log: the domain has no key for heads, or its log says why";
        return Finding::skipped(LEDGER, reason);
    };
    let LedgerCover {
        events,
        uncovered,
        head,
        code,
        ..
    } = *cover;
    let under = match head {
        _ if code == Some(Code::HeadUnkept) => {
            "the coordinator cannot read the head of the log that it has kept, and follows no log"
                .to_owned()
        }
        Some(head) => format!(
            "{uncovered} of its {events} events are not under the head over {head} events that the coordinator has verified"
        ),
        None => format!(
            "the coordinator has seen no head of the log, and {events} events are under none"
        ),
    };
    match (code, head) {
        (Some(code), _) => Finding::warn(LEDGER, code, under),
        (None, Some(_)) => Finding::ok(LEDGER, under),
        (None, None) => Finding::skipped(LEDGER, under),
    }
}

async fn compare(context: &Context) -> Result<Finding, Failure> {
    let domain = context.domain()?;
    let (layout, trust) = (domain.layout(), domain.trust());
    let keys = layout.store_auditor_key();
    if !keys.exists() {
        let reason = "an auditor's key to the store is not on this machine";
        return Ok(Finding::skipped(CHECK, reason));
    }
    let origin = audit_core::log::origin(trust.domain.as_str());
    let open = |note: &[u8], of: &str| {
        let opened = Head::open(note, &origin, &trust.raw_head_keys());
        opened.map_err(|error| Failure::new(Code::HeadInvalid, format!("{of}: {error}")))
    };
    let path = layout.audit_log().join(CHECKPOINT);
    let own = || {
        let unread = |error| format!("{}: {error}", path.display());
        let note = read_file(&path).map_err(unread);
        let note = note.map_err(|text| Failure::new(Code::LogUnproven, text))?;
        note.map(|note| open(&note, "the folder's head"))
            .transpose()
    };
    let trusted = context.store_trust(Role::Auditor, std::env::vars_os())?;
    let endpoint = Endpoint::new(&context.endpoints.store, REGION, trusted);
    let endpoint = endpoint.map_err(ObjectError::from)?;
    let limits = TransferLimits {
        connect: PATIENCE,
        ..TransferLimits::default()
    };
    let key = AccessKey::read_auditors(&keys)?;
    let bucket = LogBucket::new(&endpoint, &key, limits, PATIENCE)?;
    let mut looks = 0;
    loop {
        looks += 1;
        let stored = match bucket.get(CHECKPOINT).await {
            Err(ObjectError::Unreachable { .. }) => {
                return Ok(Finding::skipped(CHECK, "the store was not reached"));
            }
            stored => stored?,
        };
        let stored = stored
            .map(|file| open(&file.bytes, "the store's head"))
            .transpose()?;
        // Read after the store's: the service writes its own first, so this is never the older one.
        let finding = judge(own()?.as_ref(), stored.as_ref());
        if finding.code != Some(Code::LogStoreBehind) || looks == LOOKS {
            return Ok(finding);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn judge(own: Option<&Head>, stored: Option<&Head>) -> Finding {
    let size = |head: Option<&Head>| head.map_or(0, |head| head.size);
    let (here, there) = (size(own), size(stored));
    match (own, stored) {
        (Some(own), Some(stored)) if here == there && own.root != stored.root => Finding::fail(
            CHECK,
            &Failure::new(
                Code::HistoryForked,
                format!("the heads over {here} events in the store and in the folder differ"),
            ),
        ),
        _ if there < here => {
            let text = format!("it covers {there} events, and the folder's head {here}");
            Finding::warn(CHECK, Code::LogStoreBehind, text)
        }
        (Some(_), Some(_)) if there > here => {
            let text = format!(
                "it covers {there} events, and the folder's head {here}: the folder went back, or another service writes this log"
            );
            Finding::warn(CHECK, Code::LogTaken, text)
        }
        (_, None) => Finding::skipped(CHECK, "no head was signed yet"),
        (None, Some(_)) => Finding::ok(CHECK, format!("its head covers {there} events")),
        _ => Finding::ok(
            CHECK,
            format!("its head covers {there} events, the folder's {here}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn head(size: u64, root: u8) -> Head {
        Head {
            origin: "diloco/x".to_owned(),
            size,
            root: [root; 32],
        }
    }

    #[test]
    fn ls_04_events_of_the_ledger_that_no_head_covers_are_shown() {
        let found = |log: Option<LedgerCover>| {
            let finding = ledger(&CoordinatorView {
                release: "0.1.0".to_owned(),
                posture: Default::default(),
                now: schemas::UnixMillis(1),
                manifest_key: None,
                log,
            });
            (finding.state, finding.code, finding.found)
        };
        assert_eq!(found(None).0, State::Skipped);
        let mut cover = LedgerCover {
            events: 30,
            uncovered: 4,
            since: None,
            head: None,
            code: None,
        };
        assert_eq!(found(Some(cover)).0, State::Skipped, "there is no head yet");
        cover.code = Some(Code::HeadUnkept);
        let (state, code, text) = found(Some(cover));
        assert_eq!((state, code), (State::Warn, Some(Code::HeadUnkept)));
        assert!(text.contains("cannot read the head"), "{text}");
        cover.code = None;
        cover.head = Some(50);
        let (state, code, text) = found(Some(cover));
        assert_eq!((state, code), (State::Ok, None));
        assert!(text.starts_with("4 of its 30 events"), "{text}");
        for code in [Code::LedgerUncovered, Code::HeadContradicted] {
            cover.code = Some(code);
            let (state, found, _) = found(Some(cover));
            assert_eq!((state, found), (State::Warn, Some(code)));
        }
    }

    #[test]
    fn fg_07_a_store_that_is_behind_or_has_another_history_is_told() {
        let found = |own: Option<Head>, stored: Option<Head>| {
            let finding = judge(own.as_ref(), stored.as_ref());
            (finding.state, finding.code)
        };
        let behind = (State::Warn, Some(Code::LogStoreBehind));
        assert_eq!(found(Some(head(5, 1)), None), behind);
        assert_eq!(found(Some(head(5, 1)), Some(head(4, 1))), behind);
        let forked = (State::Fail, Some(Code::HistoryForked));
        assert_eq!(found(Some(head(5, 1)), Some(head(5, 2))), forked);
        let good = (State::Ok, None);
        assert_eq!(found(Some(head(5, 1)), Some(head(5, 1))), good);
        let ahead = (State::Warn, Some(Code::LogTaken));
        assert_eq!(found(Some(head(5, 1)), Some(head(6, 2))), ahead);
        assert_eq!(found(None, Some(head(6, 2))), good);
        assert_eq!(found(None, None), (State::Skipped, None));
    }
}
