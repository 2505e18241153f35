//! What a refusal means to a worker.

use schemas::Code;

/// What to do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask again later; nothing is wrong with this worker.
    Wait,
    /// The lease is another's or nobody's: stop its work.
    LeaseLost,
    /// Join again, then go on.
    Rejoin,
    /// Another process took this worker's place: end at once, without a word in its name.
    Replaced,
    /// The run gives out no more work.
    RunOver,
    /// This process cannot work as it is; a person must change something.
    Fatal,
    /// What was asked or handed in is no good; something else may be.
    Failed,
}

/// True for a refusal which says that the coordinator is away. The worker asks it again soon, since
/// it may be back at any moment.
pub(crate) fn is_absence(code: Code) -> bool {
    matches!(code, Code::NoAnswer | Code::BusUnreachable | Code::Draining)
}

/// True for a failure that no worker causes and no worker can mend: the store is full or away, or
/// the coordinator is away. Workers wait until it is over. If they ended instead, an operator would
/// have to start all of them again.
pub(crate) fn is_elsewhere(code: Code) -> bool {
    is_absence(code) || matches!(code, Code::StoreFull | Code::StoreUnreachable)
}

/// The verdict on a code. Codes that say nothing of these kinds are [`Verdict::Failed`]; so is an
/// object that is not granted. When the lease was lost the release says so, and when it was not,
/// the same lease would come again at once.
pub(crate) fn verdict(code: Code) -> Verdict {
    match code {
        Code::NoAnswer
        | Code::BusUnreachable
        | Code::StoreUnreachable
        | Code::CertificateUntrusted
        | Code::ServerCertificateExpired
        | Code::StoreFull
        | Code::UrlRefused
        | Code::Internal
        | Code::Draining
        | Code::RunUnknown
        | Code::TooFewWorkers
        | Code::AskedTooMuch
        | Code::LedgerFenced
        | Code::LedgerUnwritable => Verdict::Wait,
        Code::LeaseLost | Code::LeaseUnknown | Code::LeaseStalled => Verdict::LeaseLost,
        Code::NotJoined | Code::StatementInvalid => Verdict::Rejoin,
        Code::Replaced => Verdict::Replaced,
        Code::RunClosed => Verdict::RunOver,
        Code::IdentityMismatch
        | Code::AuditKeyRefused
        | Code::BusRefused
        | Code::BusDenied
        | Code::CredentialMissing
        | Code::CredentialMalformed
        | Code::CredentialExpired
        | Code::CredentialUnreadable
        | Code::RoleMismatch
        | Code::LayerOpen
        | Code::PlaintextRefused
        | Code::SpecInvalid
        | Code::ModelInvalid
        | Code::TokenizerInvalid
        | Code::TorchMissing
        | Code::DeviceMissing
        | Code::TrainerMissing
        | Code::WorkerRemoved => Verdict::Fatal,
        _ => Verdict::Failed,
    }
}
