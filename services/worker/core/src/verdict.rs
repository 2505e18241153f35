//! The meaning of a refusal for a worker.

use schemas::{Class, Code};

/// The worker's reaction to a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Ask again later; nothing is wrong with this worker.
    Wait,
    /// The lease is another's or nobody's: stop its work.
    LeaseLost,
    /// Join again, then go on.
    Rejoin,
    /// Another process took this worker's place, or an operator shut the worker out: end at once,
    /// and send nothing in its name.
    Out,
    /// The run gives out no more work.
    RunOver,
    /// This process cannot work as it is; an operator must change something.
    Fatal,
    /// The object that was asked for, or the result that was handed in, is no good; another may be.
    Failed,
}

/// True for a refusal that says that the coordinator is away. The worker repeats such a request
/// soon, since the coordinator may be back at any moment.
pub(crate) fn is_absence(code: Code) -> bool {
    matches!(code.class(), Class::Away)
}

/// The verdict on a code. A few codes are steps of the conversation; the class of all others
/// decides.
pub(crate) fn verdict(code: Code) -> Verdict {
    match code {
        Code::Replaced | Code::WorkerQuarantined => return Verdict::Out,
        Code::RunClosed => return Verdict::RunOver,
        // The coordinator met a bug of its own; the request may be repeated.
        Code::Internal => return Verdict::Wait,
        // The coordinator's copy of the record may come later than this worker, or be mended.
        Code::RecordMissing | Code::RegistrationInvalid => return Verdict::Wait,
        _ => {}
    }
    match code.class() {
        Class::Away | Class::Busy | Class::NotNow => Verdict::Wait,
        Class::LostLease => Verdict::LeaseLost,
        Class::NotMember => Verdict::Rejoin,
        Class::Operator => Verdict::Fatal,
        Class::Evidence | Class::Final => Verdict::Failed,
    }
}
