//! What services report of the requests that they refuse.

use schemas::security::{RefusalReport, Refused, Refuser};
use schemas::subject::Incoming;
use schemas::{Message as _, is_answer};

use super::{Happening, Sighting, cut, user};

/// The sightings in a report that was heard under `subject`, each with its number, and the number
/// of refusals that are in no report. None if it is no report: the broker carries answers wherever
/// their askers want them.
pub fn of_refusals(subject: &str, payload: &[u8]) -> Option<(Vec<(Sighting, u64)>, u64)> {
    let Ok(Incoming::Refusal { refuser, .. }) = subject.parse() else {
        return None;
    };
    if is_answer(payload) {
        return None;
    }
    let RefusalReport { refusals, more, .. } = RefusalReport::decode(payload).ok()?;
    let sightings = refusals.into_iter().map(|one| of_refused(refuser, one));
    Some((sightings.collect(), more))
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
