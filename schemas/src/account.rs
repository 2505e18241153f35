//! The accounts of a domain: the streams in each, the messages that cross from one to the other,
//! the copies that the broker itself makes, and the questions that readers ask.
//!
//! The broker publishes an answer wherever the asker wants it, with the answerer's rights; if that
//! subject is an import, the broker follows it into the exporter's account. So the ledger lies in
//! an account where only its writers can ask anything. And no import leads to a stream that takes
//! messages: a process in between checks what it stores. Readers ask from an account without
//! streams, where an empty answer can name none.

use crate::AccountId;
pub use crate::role::Account;
use crate::subject::{AUDIT_STREAM, LEDGER_STREAM, Lane, SECURITY_STREAM, events_stream};

/// A lane that crosses accounts, as its home exports it and other accounts import it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The lane.
    pub lane: Lane,
    /// The account that exports it.
    pub home: Account,
    /// The accounts that import it.
    pub importers: &'static [Account],
    /// True for a service (from the tenant, answered), false for a stream (to the tenant).
    pub service: bool,
}

/// Position (from 1) of the account token in the exporter's form of a crossing subject.
pub const ACCOUNT_TOKEN_POSITION: u8 = 3;

/// Every lane that crosses accounts.
pub const CROSSINGS: [Crossing; 8] = [
    Crossing {
        lane: Lane::Request,
        home: Account::Control,
        importers: &[Account::Tenant],
        service: true,
    },
    Crossing {
        lane: Lane::Event,
        home: Account::Events,
        importers: &[Account::Tenant],
        service: true,
    },
    Crossing {
        lane: Lane::Log,
        home: Account::Events,
        importers: &[Account::Tenant, Account::Control],
        service: true,
    },
    Crossing {
        lane: Lane::Refusal,
        home: Account::Events,
        importers: &[Account::Control, Account::Registrar],
        service: true,
    },
    Crossing {
        lane: Lane::Telemetry,
        home: Account::Control,
        importers: &[Account::Tenant],
        service: true,
    },
    Crossing {
        lane: Lane::Command,
        home: Account::Control,
        importers: &[Account::Tenant],
        service: false,
    },
    // Every account in which a role connects that may be renewed.
    Crossing {
        lane: Lane::Renewal,
        home: Account::Registrar,
        importers: &[
            Account::Control,
            Account::Ledger,
            Account::Events,
            Account::Readers,
            Account::Tenant,
        ],
        service: true,
    },
    Crossing {
        lane: Lane::Enrolment,
        home: Account::Registrar,
        importers: &[Account::Enrolment],
        service: true,
    },
];

impl Crossing {
    /// The subject that the exporter offers: `diloco.request.*.>`.
    pub fn exported(&self) -> String {
        format!("{}.*.>", self.lane.prefix())
    }

    /// The subject that an account imports: `diloco.request.<account>.>`.
    pub fn imported(&self, account: &str) -> String {
        format!("{}.{account}.>", self.lane.prefix())
    }

    /// The subject under which that account sees it: `diloco.request.>`.
    pub fn local(&self) -> String {
        format!("{}.>", self.lane.prefix())
    }
}

/// A stream that the broker copies into stream `AUDIT` across accounts. No client takes part: the
/// broker itself uses the subjects below on behalf of the copying stream, and no role may use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The account in which it lies.
    pub home: Account,
    /// Its name.
    pub stream: String,
}

/// One subject that a copy needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPath {
    /// The subject in the account where the stream lies.
    pub exported: String,
    /// The subject in the audit account.
    pub local: String,
    /// True for a service (from the copy to the stream), false for a stream (to the copy).
    pub service: bool,
}

impl Copied {
    /// The ledger, the security events, and the events of every tenant.
    pub fn all(tenants: &[AccountId]) -> Vec<Self> {
        let ledger = Self {
            home: Account::Ledger,
            stream: LEDGER_STREAM.to_owned(),
        };
        let security = Self {
            home: Account::Events,
            stream: SECURITY_STREAM.to_owned(),
        };
        let events = |tenant| Self {
            home: Account::Events,
            stream: events_stream(tenant),
        };
        [ledger, security]
            .into_iter()
            .chain(tenants.iter().map(events))
            .collect()
    }

    /// The subject that stands in the audit account for `$JS.API` of the account where the stream
    /// lies.
    pub fn api(&self) -> String {
        format!("source.{}", self.stream)
    }

    /// The subject under which the broker delivers its copies.
    pub fn delivery(&self) -> String {
        format!("copy.{}", self.stream)
    }

    /// Every subject that the copy needs. The broker makes its consumer under the one without a
    /// suffix or under the others, as it chooses. If one is missing, the copy stays empty without
    /// any error.
    pub fn paths(&self) -> Vec<CopyPath> {
        let (stream, api, delivery) = (&self.stream, self.api(), self.delivery());
        let flow = format!("$JS.FC.{stream}.>");
        let service = |exported: String, local: String| CopyPath {
            exported,
            local,
            service: true,
        };
        vec![
            service(
                format!("$JS.API.CONSUMER.CREATE.{stream}"),
                format!("{api}.CONSUMER.CREATE.{stream}"),
            ),
            service(
                format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
                format!("{api}.CONSUMER.CREATE.{stream}.>"),
            ),
            service(flow.clone(), flow),
            CopyPath {
                exported: format!("{delivery}.>"),
                local: format!("{delivery}.>"),
                service: false,
            },
        ]
    }
}

/// What the broker itself publishes in an account, and the audit service hears in that of events.
/// These are one-way: nothing that is sent in the account of events goes back. So nobody needs
/// credentials of the system account to hear of refused and ended connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The account in which the broker publishes it.
    pub home: Account,
    /// The subject there.
    pub subject: &'static str,
    /// The subject in the account of events.
    pub local: &'static str,
}

const JETSTREAM_REPORT: &str = "$JS.EVENT.ADVISORY.API";

/// Every report. Each answer of JetStream to a request is one, with the asker's key: that is where
/// changes of streams are seen.
pub const REPORTS: [Report; 7] = [
    system_report("$SYS.SERVER.*.CLIENT.AUTH.ERR"),
    system_report("$SYS.ACCOUNT.*.CONNECT"),
    system_report("$SYS.ACCOUNT.*.DISCONNECT"),
    jetstream_report(Account::Control, "report.control"),
    jetstream_report(Account::Ledger, "report.ledger"),
    jetstream_report(Account::Audit, "report.audit"),
    jetstream_report(Account::Events, JETSTREAM_REPORT),
];

const fn system_report(subject: &'static str) -> Report {
    Report {
        home: Account::System,
        subject,
        local: subject,
    }
}

const fn jetstream_report(home: Account, local: &'static str) -> Report {
    Report {
        home,
        subject: JETSTREAM_REPORT,
        local,
    }
}

/// A question about stream `AUDIT`. The audit account exports exactly this subject, and readers
/// import it under the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The subject, in both accounts.
    pub subject: &'static str,
    /// True if several messages answer it, of which the last is empty.
    pub many: bool,
}

/// Everything that readers may ask.
pub const QUESTIONS: [Question; 3] = [
    Question {
        subject: "$JS.API.STREAM.INFO.AUDIT",
        many: false,
    },
    Question {
        subject: "$JS.API.STREAM.MSG.GET.AUDIT",
        many: false,
    },
    Question {
        subject: "$JS.API.DIRECT.GET.AUDIT",
        many: true,
    },
];

/// The streams that hold events: only a provisioner may alter them.
pub fn event_streams(tenants: &[AccountId]) -> Vec<(Account, String)> {
    let copy = (Account::Audit, AUDIT_STREAM.to_owned());
    Copied::all(tenants)
        .into_iter()
        .map(|copied| (copied.home, copied.stream))
        .chain([copy])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;

    #[test]
    fn copies_keep_apart_what_they_ask_and_what_they_get() {
        let tenant: AccountId = format!("A{}", "B".repeat(55))
            .parse()
            .expect("the form of an account's key");
        let all = Copied::all(std::slice::from_ref(&tenant));
        assert_eq!(all.len(), 3);
        let mut locals: Vec<String> = all
            .iter()
            .flat_map(Copied::paths)
            .map(|path| path.local)
            .collect();
        locals.sort();
        let before = locals.len();
        locals.dedup();
        assert_eq!(
            locals.len(),
            before,
            "no two copies share a subject of the audit account"
        );
        assert_eq!(event_streams(&[tenant]).len(), 4);
    }

    /// The registrar itself asks nobody: it has its own key.
    #[test]
    fn every_account_from_which_renewals_are_asked_imports_their_lane() {
        let crossing = CROSSINGS.iter().find(|one| one.lane == Lane::Renewal);
        let crossing = crossing.expect("it crosses");
        for account in Account::ALL {
            let asks = Role::ALL.iter().any(|role| {
                role.account() == account && role.is_renewable() && *role != Role::Registrar
            });
            assert_eq!(crossing.importers.contains(&account), asks, "{account:?}");
        }
    }

    /// An answer that a newcomer sends to a subject of its account can get no further than to the
    /// registrar.
    #[test]
    fn a_newcomers_account_imports_its_question_alone() {
        let imports = |one: &&Crossing| one.importers.contains(&Account::Enrolment);
        let lanes = CROSSINGS.iter().filter(imports).map(|one| one.lane);
        assert_eq!(lanes.collect::<Vec<_>>(), [Lane::Enrolment]);
        let exports = |one: &&Crossing| one.home == Account::Enrolment;
        assert_eq!(CROSSINGS.iter().find(exports), None);
    }

    /// Two reports under one subject could not be told apart.
    #[test]
    fn every_report_is_heard_under_a_subject_of_its_own() {
        for one in &REPORTS {
            let same = REPORTS.iter().filter(|other| other.local == one.local);
            assert_eq!(same.count(), 1, "{one:?}");
        }
        for account in Account::ALL {
            let of_streams = |one: &&Report| one.home == account && one.home != Account::System;
            let heard = REPORTS.iter().filter(of_streams).count();
            let has_streams = Role::provisioner(account).is_some();
            assert_eq!(heard, usize::from(has_streams), "{account:?}");
        }
    }

    /// Each question is about the one stream, and has no open part.
    #[test]
    fn readers_ask_about_their_stream_only() {
        for Question { subject, .. } in QUESTIONS {
            let (_, stream) = subject.rsplit_once('.').expect("it has tokens");
            assert_eq!(stream, AUDIT_STREAM);
            assert!(!subject.contains(['*', '>']), "{subject}");
        }
        let many: Vec<_> = QUESTIONS.iter().filter(|one| one.many).collect();
        assert_eq!(many.len(), 1);
    }
}
