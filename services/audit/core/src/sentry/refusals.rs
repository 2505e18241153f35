//! What services report of the requests that they refuse.

use schemas::member::Posture;
use schemas::security::{RefusalReport, Refused, Refuser};
use schemas::subject::Incoming;
use schemas::{Message as _, is_answer};

use super::{Happening, Sighting, cut, user};

/// What a report of a service says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// What was refused, each with its number.
    pub sightings: Vec<(Sighting, u64)>,
    /// The number of refusals that are in no report.
    pub more: u64,
    /// The service, with the layers that it runs with open, if the report says so.
    pub posture: Option<(Refuser, Posture)>,
}

/// The content of a report that was heard under `subject`. None if it is no report: the broker
/// carries answers wherever their askers want them.
pub fn of_refusals(subject: &str, payload: &[u8]) -> Option<Reported> {
    let Ok(Incoming::Refusal { refuser, .. }) = subject.parse() else {
        return None;
    };
    if is_answer(payload) {
        return None;
    }
    let RefusalReport {
        refusals,
        more,
        posture,
        ..
    } = RefusalReport::decode(payload).ok()?;
    let sightings = refusals.into_iter().map(|one| of_refused(refuser, one));
    Some(Reported {
        sightings: sightings.collect(),
        more,
        posture: posture.map(|posture| (refuser, posture)),
    })
}

/// A refusal as a sighting, and its number.
pub fn of_refused(refuser: Refuser, refused: Refused) -> (Sighting, u64) {
    let Refused {
        account,
        user: key,
        subject,
        code,
        count,
    } = refused;
    let sighting = Sighting {
        happening: Happening::RequestRefused(refuser),
        account,
        user: key.and_then(|key| user(key.as_str())),
        name: String::new(),
        address: String::new(),
        subject: cut(&subject),
        reason: format!("{code} {}", code.title()),
    };
    (sighting, count)
}
