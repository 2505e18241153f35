//! The end of a process that failed: one coded error on stderr with the next step, and an exit
//! status that scripts can branch on.

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use schemas::text::ShownLines;
use schemas::{Class, Code, Coded, Refusal};

/// Exit status of bad configuration or credentials (EX_USAGE), before anything is connected or
/// bound; of bad usage of a service; and of a worker that may not come back under its name.
pub const EXIT_USAGE: u8 = 64;
/// Exit status of any other coded failure.
pub const EXIT_FAILED: u8 = 1;
/// Exit status when what was named does not exist.
pub const EXIT_NOT_FOUND: u8 = 3;
/// Exit status when another process leads or holds what this one needs, or the name is taken.
pub const EXIT_CONFLICT: u8 = 4;
/// Exit status when bus or store cannot be reached.
pub const EXIT_UNREACHABLE: u8 = 5;
/// Exit status when a peer refused this process.
pub const EXIT_DENIED: u8 = 6;
/// Exit status when a request was not answered in time.
pub const EXIT_NO_ANSWER: u8 = 7;
/// Exit status when something is kept, but not in effect yet.
pub const EXIT_KEPT: u8 = 8;
/// Exit status when a record or a signature says something else than it should.
pub const EXIT_TAMPERED: u8 = 10;
/// Exit status when a record could not be read to its end, so that nothing is said about it.
pub const EXIT_NO_VERDICT: u8 = 11;
/// Exit status when the ledger is whole and events of workers are not.
pub const EXIT_WORKERS_EVENTS: u8 = 12;
/// Exit status of a command that was stopped by a signal, or that nobody confirmed: that which
/// shells give a program that Ctrl-C ends.
pub const EXIT_INTERRUPTED: u8 = 130;

/// The text of `diloctl --help` about exit statuses.
pub const EXIT_HELP: &str = "\
Exit status: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 conflict; 5 bus or store unreachable; 6 not allowed; \
7 timed out; 8 kept, but not in effect yet; 10 evidence of tampering; 11 no verdict; 12 the ledger is whole, events of workers are not; \
64 configuration or credentials not usable; 130 interrupted.
Documentation of error codes: docs/errors/.";

/// A coded failure of a whole process, with further faults that were found at the same time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Failure {
    refusals: Vec<Refusal>,
}

impl Failure {
    /// A failure with this code; `detail` names thing and value.
    pub fn new(code: Code, detail: impl Display) -> Self {
        Refusal::new(code, detail.to_string()).into()
    }

    /// Several at once, as [`crate::validate`] finds them; there is at least one.
    pub fn all(refusals: Vec<Refusal>) -> Self {
        assert!(!refusals.is_empty(), "a failure has a reason");
        Self { refusals }
    }

    /// Both, this one first.
    pub fn and(mut self, other: &Self) -> Self {
        self.refusals.extend_from_slice(&other.refusals);
        self
    }

    /// The same with more about its first refusal.
    pub fn with_more(mut self, more: impl Display) -> Self {
        let first = &mut self.refusals[0];
        first.detail = format!("{}; {more}", first.detail);
        self
    }

    /// The code of the first refusal, which decides the exit status.
    pub fn code(&self) -> Code {
        self.refusals[0].code
    }

    /// The first refusal.
    pub fn refusal(&self) -> &Refusal {
        &self.refusals[0]
    }

    /// The exit status of a command that ends with this failure.
    pub fn exit_status(&self) -> u8 {
        exit_status(self.code())
    }
}

/// `?` makes a failure of every error with a code.
impl<E: Coded> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            refusals: vec![Refusal::new(error.code(), error.detail())],
        }
    }
}

/// The exit status that a code stands for, in services and in `diloctl`.
pub const fn exit_status(code: Code) -> u8 {
    match code {
        Code::RunUnknown
        | Code::SnapshotMissing
        | Code::SnapshotUnknown
        | Code::SnapshotGone
        | Code::ObjectMissing
        | Code::DomainMissing
        | Code::StreamMissing
        | Code::WorkerUnknown
        | Code::DataUnknown
        | Code::DigestUnknown
        | Code::DigestAmbiguous
        | Code::HolderMissing
        | Code::TenantUnknown
        | Code::RoundNotMerged
        | Code::PointerUnknown
        | Code::NamedFileMissing
        | Code::EventUnlogged => EXIT_NOT_FOUND,
        Code::RunExists
        | Code::DomainExists
        | Code::DomainBusy
        | Code::DomainMoved
        | Code::PortTaken
        | Code::StoreBusy
        | Code::FolderBusy
        | Code::AuditFolderBusy
        | Code::LedgerFenced
        | Code::LogTaken
        | Code::TenantBusy
        | Code::TenantExists
        // The coordinator signs with the key that should end.
        | Code::ManifestKeyInUse
        | Code::Replaced => EXIT_CONFLICT,
        Code::BusUnreachable | Code::StoreUnreachable => EXIT_UNREACHABLE,
        Code::BusRefused | Code::BusDenied | Code::ObjectForbidden => EXIT_DENIED,
        // The state of the run forbids it, until an operator changes that.
        Code::SnapshotDescends | Code::RunFrozen => EXIT_DENIED,
        Code::Interrupted => EXIT_INTERRUPTED,
        // Like other credentials that are not usable.
        Code::HolderBlocked | Code::VaultMissing => EXIT_USAGE,
        // When this process is started again, the server may have another certificate.
        Code::ServerCertificateExpired | Code::CertificateUntrusted => EXIT_DENIED,
        Code::NoAnswer => EXIT_NO_ANSWER,
        Code::NoVerdict
        | Code::RoundUnproven
        | Code::ObjectsGivenUp
        | Code::RecordUnproven
        | Code::LogUnproven
        | Code::LogUnwitnessed
        | Code::EmitterUnnamed
        | Code::LogStoreBehind
        | Code::LineageUnproven => EXIT_NO_VERDICT,
        Code::RevocationKept | Code::RevocationUnrecorded | Code::RotationKept => EXIT_KEPT,
        Code::AccountsBehind => EXIT_DENIED,
        // When it is started again, the process has the credentials that the file holds by then.
        Code::CredentialReplaced | Code::AccountNotTaken => EXIT_FAILED,
        Code::SuccessorWaiting => EXIT_NO_ANSWER,
        // No process ends with it.
        Code::EventKeyUnknown => EXIT_FAILED,
        Code::AuditRejected => EXIT_WORKERS_EVENTS,
        // The name cannot be used any more: a service manager must not start this process again.
        Code::WorkerRemoved | Code::WorkerQuarantined | Code::TenantEnded => EXIT_USAGE,
        code if matches!(code.class(), Class::Evidence) => EXIT_TAMPERED,
        code if code.number() < 200 => EXIT_USAGE,
        _ => EXIT_FAILED,
    }
}

/// The exit status of a service. If its operator must mend something before it can run, the status
/// is [`EXIT_USAGE`], whatever the code gives elsewhere, so that a service manager does not restart
/// it every few seconds.
pub fn service_status(code: Code) -> u8 {
    let status = exit_status(code);
    let waits = matches!(status, EXIT_FAILED | EXIT_NOT_FOUND)
        && matches!(code.class(), Class::Operator)
        && !MENDED_BESIDE.contains(&code);
    if waits { EXIT_USAGE } else { status }
}

/// Codes whose cause an operator mends outside of the service, at the broker or by freeing disk
/// space. Meanwhile a service manager may restart the service again and again: it works as soon as
/// the cause is mended.
const MENDED_BESIDE: [Code; 6] = [
    Code::StreamMissing,
    Code::StreamDrift,
    Code::AuditFolderInvalid,
    Code::LedgerMarkInvalid,
    Code::WorkerChainInvalid,
    Code::OutputUnwritten,
];

/// Prints a command's failure in the form that `render` gives, and returns the exit status. `main`
/// calls this last.
pub fn report(result: Result<(), Failure>, render: impl Fn(&Refusal) -> String) -> ExitCode {
    end(result, render, exit_status)
}

/// Prints a service's failure and returns its exit status. `main` calls this last.
pub fn report_service(result: Result<(), Failure>) -> ExitCode {
    end(result, render, service_status)
}

fn end(
    result: Result<(), Failure>,
    render: impl Fn(&Refusal) -> String,
    status: fn(Code) -> u8,
) -> ExitCode {
    crate::log::flush();
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    for refusal in &failure.refusals {
        // A closed terminal must not turn the exit status into that of a panic.
        let _gone = writeln!(std::io::stderr().lock(), "{}", render(refusal));
    }
    ExitCode::from(status(failure.code()))
}

/// Parses the command line of a service. `--help` and `--version` end with success, bad usage with
/// [`EXIT_USAGE`].
///
/// # Errors
/// The exit status to end with; the message was printed.
pub fn parse<A: clap::Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| {
        // If the terminal is closed there is nobody left to tell.
        let _ = error.print();
        if error.use_stderr() {
            ExitCode::from(EXIT_USAGE)
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Writes requested output to stdout. A reader that has closed the pipe is no error.
///
/// # Errors
/// The output cannot be written, most often because a disk is full: a reader would take the part
/// for the whole.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::OutputUnwritten, error))
        }
        _ => Ok(()),
    }
}

/// `error DL0102 credential missing: …` and the next step on a line of its own.
pub fn render(refusal: &Refusal) -> String {
    let Refusal { code, detail, .. } = refusal;
    format!(
        "error {code} {}: {}\n  next: {}",
        code.title(),
        ShownLines(detail),
        code.next_step()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coded_error_names_its_next_step() {
        let text = render(&Refusal::new(
            Code::CredentialMissing,
            "bus.credentials is not set",
        ));
        assert!(
            text.starts_with(
                "error DL0102 credential missing: bus.credentials is not set\n  next: "
            ),
            "{text}"
        );
    }

    /// The detail of a refusal may come from a peer, and may contain anything.
    #[test]
    fn what_others_wrote_cannot_pass_for_a_line_of_ours() {
        let text = render(&Refusal::new(
            Code::RunUnknown,
            "x\u{1b}[2J\nerror DL0000 all is well",
        ));
        assert!(text.contains("x\\u{1b}[2J\n  | error DL0000"), "{text}");
    }

    #[test]
    fn statuses_follow_the_code() {
        assert_eq!(exit_status(Code::ConfigInvalid), 64);
        assert_eq!(exit_status(Code::PlaintextRefused), 64);
        for code in [
            Code::LedgerFenced,
            Code::StoreBusy,
            Code::AuditFolderBusy,
            Code::Replaced,
        ] {
            assert_eq!(exit_status(code), EXIT_CONFLICT, "{code}");
        }
        assert_eq!(exit_status(Code::StoreUnreachable), 5);
        assert_eq!(exit_status(Code::NoAnswer), 7);
        assert_eq!(exit_status(Code::TenantUnknown), EXIT_NOT_FOUND);
        assert_eq!(exit_status(Code::TenantBusy), EXIT_CONFLICT);
        // A worker of such a tenant stays down.
        assert_eq!(exit_status(Code::TenantEnded), EXIT_USAGE);
        // It may have room again, or another quota.
        assert_eq!(exit_status(Code::TenantFull), EXIT_FAILED);
        assert_eq!(exit_status(Code::SignatureInvalid), 10);
        assert_eq!(exit_status(Code::AuditRejected), 12);
        for code in [
            Code::RoundUnproven,
            Code::RecordUnproven,
            Code::NoVerdict,
            Code::LineageUnproven,
            Code::LogStoreBehind,
            Code::EmitterUnnamed,
        ] {
            assert_eq!(exit_status(code), EXIT_NO_VERDICT, "{code}");
        }
        for code in [
            Code::RoundDiverged,
            Code::SnapshotDiverged,
            Code::ObjectAltered,
            Code::StatementForged,
            Code::LineageDiffers,
            Code::KnownHeadFalse,
            Code::LogManifestFalse,
        ] {
            assert_eq!(exit_status(code), EXIT_TAMPERED, "{code}");
        }
        assert_eq!(exit_status(Code::RoundNotMerged), EXIT_NOT_FOUND);
        assert_eq!(exit_status(Code::ManifestKeyInUse), EXIT_CONFLICT);
        for code in [Code::SnapshotDescends, Code::RunFrozen] {
            assert_eq!(exit_status(code), EXIT_DENIED, "{code}");
        }
        for code in [Code::HolderBlocked, Code::VaultMissing] {
            assert_eq!(exit_status(code), EXIT_USAGE, "{code}");
        }
        assert_eq!(exit_status(Code::Interrupted), 130);
        assert_eq!(exit_status(Code::Internal), 1);
    }

    #[test]
    fn no_error_exits_with_zero_or_with_the_status_of_wrong_usage() {
        for code in Code::ALL {
            assert!(![0, 2].contains(&exit_status(*code)), "{code}");
        }
    }

    /// A service manager restarts after failures that pass by themselves, and after no others.
    #[test]
    fn what_passes_is_started_again_by_the_service_manager_and_what_an_operator_mends_is_not() {
        for unit in [
            include_str!("../../../deploy/systemd/diloco-audit.service"),
            include_str!("../../../deploy/systemd/diloco-coordinator.service"),
            include_str!("../../../deploy/systemd/diloco-registrar.service"),
            include_str!("../../../deploy/systemd/diloco-store.service"),
            include_str!("../../../deploy/systemd/diloco-worker@.service"),
        ] {
            let line = unit
                .lines()
                .find_map(|line| line.strip_prefix("RestartPreventExitStatus="))
                .expect("the unit names them");
            let prevented: Vec<u8> = line
                .split(' ')
                .map(|status| status.parse().expect("a status"))
                .collect();
            for code in Code::ALL {
                let prevents = prevented.contains(&service_status(*code));
                if code.passes() {
                    assert!(*code == Code::LedgerFenced || !prevents, "{code}");
                } else if matches!(code.class(), Class::Operator) {
                    let beside = MENDED_BESIDE.contains(code)
                        // The operator of the broker may mend these.
                        || exit_status(*code) == EXIT_DENIED;
                    assert_ne!(prevents, beside, "{code}");
                }
            }
        }
    }
}
