//! What a contribution was made from. Its worker signs that, and the foundry checks the signature.

use schemas::foundry::SignedProvenance;
use schemas::lease::{UnitId, UnitKind};
use schemas::provenance::MadeFrom;
use schemas::{Code, Refusal, WorkerId};
use serde_bytes::ByteArray;

use crate::input::Submission;
use crate::run::RunRoom;
use crate::run::members::replaced;

impl RunRoom<'_> {
    /// What the contribution was made from; none for an evaluation. After a restart it is unknown
    /// until the data manifest is here.
    pub(crate) fn made_from(
        &self,
        worker: &WorkerId,
        unit: &UnitId,
    ) -> Result<Option<Box<MadeFrom>>, Refusal> {
        if unit.kind == UnitKind::Evaluate {
            return Ok(None);
        }
        let later = || {
            let detail = "the run's data is not loaded yet; submit again";
            Refusal::new(Code::NoAnswer, detail)
        };
        let draw = self.live.data.as_ref().ok_or_else(later)?;
        let from = self.run.made_from(worker, unit, draw);
        let from = from.expect("the weights of every unit that can be held are kept");
        Ok(Some(Box::new(from)))
    }

    /// Refuses a result that was checked as that of another release. A newer process of its worker
    /// joined meanwhile, so readers of the ledger would make another statement than the one that
    /// was signed.
    ///
    /// # Errors
    /// [`Code::Replaced`].
    pub(crate) fn check_made_from(
        &self,
        worker: &WorkerId,
        unit: &UnitId,
        checked: Option<&MadeFrom>,
    ) -> Result<(), Refusal> {
        let now = self.made_from(worker, unit)?;
        let member = self.run.members.get(worker);
        match now.as_deref() == checked {
            true => Ok(()),
            false => Err(replaced(member.expect("its result was checked"))),
        }
    }
}

/// The provenance for the foundry to check.
///
/// # Errors
/// [`Code::ProvenanceInvalid`]: a contribution has none, or an evaluation has one.
pub(crate) fn signed(
    submission: &Submission,
    from: Option<&MadeFrom>,
) -> Result<Option<Box<SignedProvenance>>, Refusal> {
    let none = |detail: &str| Err(Refusal::new(Code::ProvenanceInvalid, detail));
    match (from, submission.provenance) {
        (Some(from), Some(signature)) => Ok(Some(Box::new(SignedProvenance {
            from: from.clone(),
            signature: ByteArray::new(signature),
        }))),
        (None, None) => Ok(None),
        (Some(_), None) => none("the contribution comes without a signature over its provenance"),
        (None, Some(_)) => none("an evaluation is no artifact, and has no provenance"),
    }
}
