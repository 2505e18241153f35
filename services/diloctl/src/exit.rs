//! Exit statuses, and the last words of a command that failed.

use std::io::Write as _;
use std::process::ExitCode;

use runtime::Failure;
use schemas::Code;
use schemas::text::ShownJson;
use serde_json::json;

use crate::output::Format;

/// What `--help` says about them.
pub(crate) const HELP: &str = "\
Exit status: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 conflict; 5 bus or store unreachable; 6 not allowed; \
7 timed out; 10 evidence of tampering; 11 no verdict; 12 the ledger is whole, events of workers are not.
Documentation of error codes: docs/errors/.";

/// The status that a code stands for.
pub(crate) const fn status(code: Code) -> u8 {
    match code {
        Code::RunUnknown
        | Code::SnapshotMissing
        | Code::ObjectMissing
        | Code::DomainMissing
        | Code::StreamMissing => 3,
        Code::RunExists
        | Code::DomainExists
        | Code::DomainBusy
        | Code::DomainMoved
        | Code::PortTaken
        | Code::StoreBusy
        | Code::FolderBusy
        | Code::AuditFolderBusy
        | Code::LedgerFenced => 4,
        Code::BusUnreachable | Code::StoreUnreachable => 5,
        Code::BusRefused
        | Code::BusDenied
        | Code::ObjectForbidden
        | Code::CredentialMissing
        | Code::CredentialExpired
        | Code::CertificateExpired
        | Code::CertificateUntrusted
        | Code::ServerCertificateExpired
        | Code::RoleMismatch => 6,
        Code::NoAnswer => 7,
        Code::LedgerBroken
        | Code::LedgerLost
        | Code::RecordContradicted
        | Code::ReplayDiverged
        | Code::SignatureInvalid => 10,
        Code::NoVerdict => 11,
        Code::AuditRejected => 12,
        _ => 1,
    }
}

/// Prints a failure to stderr in the format of the command and gives its status.
pub(crate) fn report(format: Format, failure: &Failure) -> ExitCode {
    let refusal = failure.refusal();
    let code = refusal.code;
    let text = match format {
        Format::Table => runtime::exit::render(refusal),
        Format::Json | Format::Jsonl => {
            let error = json!({
                "v": 1,
                "error": code.to_string(),
                "title": code.title(),
                "detail": refusal.detail,
                "next": code.next_step(),
            });
            ShownJson(&error.to_string()).to_string()
        }
    };
    // The status tells a script the same where the terminal has gone.
    let _gone = writeln!(std::io::stderr().lock(), "{text}");
    ExitCode::from(status(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_exits_with_zero_or_with_the_status_of_wrong_usage() {
        for code in Code::ALL {
            assert!(![0, 2].contains(&status(*code)), "{code}");
        }
    }
}
