//! The subjects to which each role may publish and subscribe: the permission sets that follow from
//! [`TABLE`] and from the plumbing of JetStream. User JWTs, role templates and `docs/bus.md` are
//! all made from here.

use crate::account::REPORTS;
use crate::limits::{MESSAGE_BYTES_MAX, WORKER_MESSAGE_BYTES_MAX};
pub use crate::role::Role;
use crate::subject::{Kind, Lane, TABLE};

/// A subject of the broker that a role needs, and the reason.
#[derive(Clone, Copy, Debug)]
pub struct Plumbing {
    /// The role.
    pub role: Role,
    /// The subject to which it may publish.
    pub subject: &'static str,
    /// The reason.
    pub purpose: &'static str,
}

const fn plumbing(role: Role, subject: &'static str, purpose: &'static str) -> Plumbing {
    Plumbing {
        role,
        subject,
        purpose,
    }
}

/// Every subject of the broker itself to which a role may publish.
///
/// Streams of events are read by single questions and never through consumers. A consumer delivers
/// to any subject that its owner names, including an empty status message, and such a message under
/// `$JS.API.STREAM.DELETE.…` deletes the stream. The answers to these questions are never empty,
/// and cannot be read as an order. A direct get can be answered by an empty message: the end of a
/// batch, or the word that a message is not there. The auditor alone may ask for one, since its
/// account has no stream.
pub const PLUMBING: &[Plumbing] = &[
    plumbing(
        Role::Coordinator,
        "_R_.>",
        "answer requests that crossed accounts",
    ),
    plumbing(Role::Coordinator, "_INBOX.>", "answer operators"),
    plumbing(
        Role::Coordinator,
        "$JS.API.INFO",
        "see whether JetStream is on",
    ),
    plumbing(
        Role::LedgerWriter,
        "$JS.API.STREAM.INFO.LEDGER",
        "see where the ledger ends",
    ),
    plumbing(
        Role::LedgerWriter,
        "$JS.API.STREAM.MSG.GET.LEDGER",
        "read the ledger",
    ),
    plumbing(Role::Coordinator, "$JS.API.STREAM.INFO.WORK", "read offers"),
    plumbing(
        Role::Coordinator,
        "$JS.API.CONSUMER.INFO.WORK.lease",
        "read offers",
    ),
    plumbing(
        Role::Coordinator,
        "$JS.API.CONSUMER.MSG.NEXT.WORK.lease",
        "read offers",
    ),
    plumbing(Role::Coordinator, "$JS.ACK.WORK.lease.>", "settle offers"),
    plumbing(
        Role::Auditor,
        "$JS.API.STREAM.INFO.AUDIT",
        "see where the stream ends",
    ),
    plumbing(
        Role::Auditor,
        "$JS.API.STREAM.MSG.GET.AUDIT",
        "read single events, and find out whether one is missing",
    ),
    plumbing(
        Role::Auditor,
        "$JS.API.DIRECT.GET.AUDIT",
        "read many events together",
    ),
    plumbing(
        Role::Recorder,
        "_R_.>",
        "answer workers and the coordinator",
    ),
    plumbing(
        Role::Registrar,
        "_R_.>",
        "answer questions for a new token and for enrolment",
    ),
    plumbing(
        Role::Recorder,
        "$JS.API.STREAM.MSG.GET.*",
        "find the end of a worker's chain, and of the sentry's own",
    ),
    plumbing(Role::Provisioner, "$JS.API.>", "create and compare streams"),
    plumbing(
        Role::LedgerProvisioner,
        "$JS.API.>",
        "create and compare the ledger's stream",
    ),
    plumbing(
        Role::EventsProvisioner,
        "$JS.API.>",
        "create and compare tenants' streams",
    ),
    plumbing(
        Role::AuditProvisioner,
        "$JS.API.>",
        "create and compare the readers' stream",
    ),
    plumbing(
        Role::AccountWriter,
        "$SYS.REQ.CLAIMS.UPDATE",
        "replace the token of an account",
    ),
    plumbing(
        Role::AccountWriter,
        "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
        "see which token of an account the broker has",
    ),
    plumbing(
        Role::AccountWriter,
        "$SYS.REQ.ACCOUNT.*.CONNZ",
        "see whether a revoked key is still connected",
    ),
];

/// The role that hears the broker's own reports.
pub const HEARER: Role = Role::Recorder;

/// Requests that would change or delete the log. They are denied to the coordinator, which writes
/// it, whatever else it is allowed.
pub const LEDGER_WRITER_DENIED: &[&str] = &[
    "$JS.API.STREAM.DELETE.LEDGER",
    "$JS.API.STREAM.UPDATE.LEDGER",
    "$JS.API.STREAM.PURGE.LEDGER",
    "$JS.API.STREAM.MSG.DELETE.LEDGER",
    "$JS.API.STREAM.RESTORE.LEDGER",
    "$JS.API.STREAM.SNAPSHOT.LEDGER",
];

/// A role's permissions in the template form of scoped signing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish; never empty, since an empty list allows all.
    pub publish_allow: Vec<String>,
    /// Subjects it may not publish.
    pub publish_deny: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe_allow: Vec<String>,
    /// Longest payload it may send.
    pub payload_bytes_max: usize,
    /// Most subscriptions it may hold.
    pub subscriptions_max: i64,
}

/// The subjects on which a client receives answers; nobody else may subscribe to them.
const OWN_INBOX: &str = "_INBOX.{{subject()}}.>";

/// The permissions of `role`: `{{subject()}}` stands for its own nkey, `{{tag(run)}}` for the run
/// it was issued for.
pub fn permissions(role: Role) -> Permissions {
    let rows = || TABLE.iter();
    let mut publish_allow: Vec<String> = rows()
        .filter(|row| row.publishers.contains(&role))
        .map(|row| template(role, row.lane, row.pattern))
        .collect();
    publish_allow.extend(
        PLUMBING
            .iter()
            .filter(|row| row.role == role)
            .map(|row| row.subject.to_owned()),
    );
    // A message to the own inbox shows that a subscription stands.
    publish_allow.push(OWN_INBOX.to_owned());
    let mut subscribe_allow = vec![OWN_INBOX.to_owned()];
    for row in rows().filter(|row| row.subscribers.contains(&role)) {
        let subject = if role.is_tenant() {
            template(role, row.lane, row.pattern)
        } else {
            format!("{}.>", row.lane.prefix())
        };
        if !subscribe_allow.contains(&subject) {
            subscribe_allow.push(subject);
        }
    }
    if role == HEARER {
        subscribe_allow.extend(REPORTS.iter().map(|report| report.local.to_owned()));
    }
    publish_allow.dedup();
    let denied: &[&str] = if role == Role::LedgerWriter {
        LEDGER_WRITER_DENIED
    } else {
        &[]
    };
    Permissions {
        publish_allow,
        publish_deny: denied.iter().map(|subject| (*subject).to_owned()).collect(),
        subscribe_allow,
        payload_bytes_max: if role.is_foreign() {
            WORKER_MESSAGE_BYTES_MAX
        } else {
            MESSAGE_BYTES_MAX
        },
        subscriptions_max: if role.is_foreign() { 64 } else { -1 },
    }
}

/// A row's pattern as `role` may use it: the role's own tokens are fixed, the others are wildcards.
fn template(role: Role, lane: Lane, pattern: &str) -> String {
    let account = if !role.is_tenant() && lane == Lane::Command {
        "*."
    } else {
        ""
    };
    let tokens: Vec<&str> = pattern
        .split('.')
        .map(|token| match token {
            "{run}" if role.is_tenant() => "{{tag(run)}}",
            "{worker}" if role.is_tenant() => "{{subject()}}",
            "{operator}" | "{holder}" => "{{subject()}}",
            token if token.starts_with('{') => "*",
            token => token,
        })
        .collect();
    format!("{}.{account}{}", lane.prefix(), tokens.join("."))
}

/// The reference page of the bus, as Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# The bus\n\nGenerated from `schemas/src/subject.rs` and `schemas/src/permission.rs` by `cargo xtask docs`.\n\n\
         Subjects are in the form in which the sender writes them. When a message crosses to another account, the broker writes\n\
         the sender's account into the subject as third token. Commands go the other way: the coordinator writes the worker's\n\
         account as third token, and the table shows the subject that the worker hears. `{worker}`, `{operator}`, `{holder}`,\n\
         `{emitter}` and `{account}` are public nkeys. Streams are read through JetStream without a subscription, so nothing\n\
         stands under `heard by` there. `recorder` is a role of the audit service, `ledger-writer` a second role of the\n\
         coordinator, and `newcomer` that of an invited machine.\n\n\
         | subject | kind | message | answer | said by | heard by | for |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for row in TABLE {
        let kind = match row.kind {
            Kind::Request => "request",
            Kind::Stream => "stream",
            Kind::Publish => "publish",
        };
        let names = |roles: &[Role]| {
            roles
                .iter()
                .map(|role| role.name())
                .collect::<Vec<_>>()
                .join(", ")
        };
        page.push_str(&format!(
            "| `{}.{}` | {kind} | {} | {} | {} | {} | {} |\n",
            row.lane.prefix(),
            row.pattern,
            row.message,
            row.reply.unwrap_or(""),
            names(row.publishers),
            names(row.subscribers),
            row.purpose,
        ));
    }
    page.push_str(
        "\n## Permissions\n\nTemplates of the scoped signing keys. The broker refuses everything else.\n",
    );
    for role in Role::ALL {
        let set = permissions(role);
        page.push_str(&format!(
            "\n### {}\n\nIn account {}.\n\n",
            role.name(),
            role.account().name()
        ));
        for (title, subjects) in [
            ("publish", &set.publish_allow),
            ("never publish", &set.publish_deny),
            ("subscribe", &set.subscribe_allow),
        ] {
            for subject in subjects {
                page.push_str(&format!("- {title} `{subject}`\n"));
            }
        }
    }
    page.push_str("\n## Plumbing\n\n| role | subject | for |\n| --- | --- | --- |\n");
    for row in PLUMBING {
        page.push_str(&format!(
            "| {} | `{}` | {} |\n",
            row.role.name(),
            row.subject,
            row.purpose
        ));
    }
    page.push_str(&format!(
        "\n## Reports of the broker\n\nThe broker publishes them. They are imported into account {}, where only {} hears them.\n\n\
         | account | subject | subject in account events |\n| --- | --- | --- |\n",
        HEARER.account().name(),
        HEARER.name()
    ));
    for report in &REPORTS {
        page.push_str(&format!(
            "| {} | `{}` | `{}` |\n",
            report.home.name(),
            report.subject,
            report.local
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::QUESTIONS;
    use crate::subject::AUDIT_STREAM;

    #[test]
    fn workers_speak_only_under_their_own_key_and_run() {
        let set = permissions(Role::Worker);
        let own = |subject: &String| {
            subject.contains(".{{tag(run)}}.{{subject()}}.") || subject == OWN_INBOX
        };
        assert!(set.publish_allow.iter().all(own));
        assert!(
            set.publish_allow
                .contains(&"diloco.request.{{tag(run)}}.{{subject()}}.lease.claim".to_owned())
        );
    }

    /// The asker chooses the subject of the answer, and the broker checks no permission for it: a
    /// subject with several workers as listeners would multiply each answer.
    #[test]
    fn what_a_worker_hears_only_that_worker_hears() {
        for role in Role::ALL.iter().filter(|role| role.is_tenant()) {
            let shared =
                |subject: &&String| !subject.split('.').any(|token| token == "{{subject()}}");
            assert_eq!(
                permissions(*role).subscribe_allow.iter().find(shared),
                None,
                "{role:?}"
            );
        }
    }

    #[test]
    fn no_role_has_an_empty_list_or_everything() {
        for role in Role::ALL {
            let set = permissions(role);
            assert!(!set.publish_allow.is_empty() && !set.subscribe_allow.is_empty());
            for subject in set.publish_allow.iter().chain(&set.subscribe_allow) {
                assert!(
                    subject != ">" && subject != "$JS.>" && subject != "diloco.>",
                    "{role:?} {subject}"
                );
            }
        }
    }

    #[test]
    fn who_reads_or_writes_events_has_no_right_to_consumers() {
        for role in [
            Role::LedgerWriter,
            Role::Auditor,
            Role::Recorder,
            Role::Operator,
            Role::Worker,
        ] {
            let set = permissions(role);
            let consumers = |subject: &&String| subject.contains("CONSUMER");
            assert_eq!(set.publish_allow.iter().find(consumers), None, "{role:?}");
        }
    }

    /// The last of several answers is empty, and goes where the asker says.
    #[test]
    fn only_a_role_in_an_account_without_streams_may_ask_for_many_messages() {
        let many = QUESTIONS.iter().filter(|question| question.many);
        let verbs = many.map(|question| question.subject.strip_suffix(AUDIT_STREAM));
        let verbs: Vec<&str> = verbs.map(|verb| verb.expect("its stream")).collect();
        let asks = |role: &Role| {
            let all = permissions(*role).publish_allow;
            all.iter()
                .any(|subject| verbs.iter().any(|verb| subject.starts_with(verb)))
        };
        let askers: Vec<Role> = Role::ALL.into_iter().filter(asks).collect();
        assert_eq!(askers, [Role::Auditor]);
        assert_eq!(
            Role::provisioner(Role::Auditor.account()),
            None,
            "it has no streams"
        );
    }

    /// Who replaces an account's token may give any rights to anybody: with an older token a
    /// revoked key works again.
    #[test]
    fn tl_07_only_the_account_writer_may_ask_the_broker_about_accounts() {
        for role in Role::ALL {
            let all = permissions(role).publish_allow;
            let asks = all.iter().any(|subject| subject.starts_with("$SYS."));
            assert_eq!(asks, role == Role::AccountWriter, "{role:?}");
        }
    }

    /// They tell who connects from where, in every account.
    #[test]
    fn tl_29_only_the_audit_service_hears_the_brokers_reports() {
        for role in Role::ALL {
            let set = permissions(role);
            for report in &REPORTS {
                let hears = set.subscribe_allow.iter().any(|one| one == report.local);
                assert_eq!(hears, role == Role::Recorder, "{role:?} {report:?}");
            }
            let says = |subject: &&String| {
                subject.starts_with("report.") || subject.starts_with("$JS.EVENT")
            };
            assert_eq!(set.publish_allow.iter().find(says), None, "{role:?}");
            let writes = |one: &String| one.starts_with("diloco.security.");
            let writes = set.publish_allow.iter().any(writes);
            assert_eq!(writes, role == Role::Recorder, "{role:?}");
        }
    }

    /// A report of refusals does not say who sent it: the broker holds each service to its subject.
    #[test]
    fn tl_29_only_coordinator_and_registrar_report_refusals_each_under_its_own_subject() {
        let of_lane = |subjects: &[String]| -> Vec<String> {
            let ours = subjects
                .iter()
                .filter(|one| one.starts_with("diloco.refusal"));
            ours.cloned().collect()
        };
        for role in Role::ALL {
            let set = permissions(role);
            let expected: &[&str] = match role {
                Role::Coordinator => &["diloco.refusal.coordinator"],
                Role::Registrar => &["diloco.refusal.registrar"],
                _ => &[],
            };
            assert_eq!(of_lane(&set.publish_allow), expected, "{role:?}");
            let expected: &[&str] = match role {
                Role::Recorder => &["diloco.refusal.>"],
                _ => &[],
            };
            assert_eq!(of_lane(&set.subscribe_allow), expected, "{role:?}");
        }
    }

    /// A stolen invitation is worth one question.
    #[test]
    fn fg_03_a_newcomer_may_ask_one_question_under_its_own_key_and_hear_the_answer() {
        let set = permissions(Role::Newcomer);
        let question = "diloco.enrolment.{{subject()}}.ask";
        assert_eq!(set.publish_allow, [question, OWN_INBOX]);
        assert_eq!(set.subscribe_allow, [OWN_INBOX]);
        assert_eq!(set.payload_bytes_max, WORKER_MESSAGE_BYTES_MAX);
        assert!(set.subscriptions_max > 0, "an unlimited number is -1");
        let others = Role::ALL.iter().filter(|role| **role != Role::Newcomer);
        for role in others {
            let asks = |subject: &String| subject.starts_with("diloco.enrolment");
            assert!(
                !permissions(*role).publish_allow.iter().any(asks),
                "{role:?}"
            );
        }
    }

    /// Readers may ask exactly what is answered in their account, and for a new token.
    #[test]
    fn the_auditor_may_publish_the_questions_of_readers_and_nothing_else() {
        let mut expected = vec!["diloco.renewal.cluster.{{subject()}}.token"];
        expected.extend(QUESTIONS.iter().map(|one| one.subject));
        expected.push(OWN_INBOX);
        assert_eq!(permissions(Role::Auditor).publish_allow, expected);
    }

    #[test]
    fn tl_15_only_the_coordinator_writes_the_ledger_and_commands() {
        for role in Role::ALL {
            let set = permissions(role);
            let writes = |prefix: &str| {
                set.publish_allow
                    .iter()
                    .any(|subject| subject.starts_with(prefix))
            };
            assert_eq!(writes("diloco.ledger."), role == Role::LedgerWriter);
            assert_eq!(writes("diloco.record."), role == Role::Recorder);
            assert_eq!(writes("diloco.command."), role == Role::Coordinator);
            assert_eq!(writes("diloco.control."), role == Role::Operator);
        }
    }
}
