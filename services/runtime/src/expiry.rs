//! What ends soon is told a week before, at every start and once a day: a certificate that ends stops everything at once,
//! and nobody looks at its date by himself.

use std::path::Path;
use std::time::Duration;

use identity::tls;
use schemas::text::Time;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::clock;
use crate::exit::Failure;
use crate::materials::Materials;

/// How long before its end something is told: a week has a working day in it everywhere.
pub const NOTICE: Millis = Millis::from_secs(7 * 24 * 3600);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Something that ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What, with its file.
    pub what: String,
    /// When.
    pub at: UnixMillis,
}

impl Ending {
    /// What is to be said about it, if anything is.
    pub fn notice(&self, now: UnixMillis) -> Option<Refusal> {
        let Self { what, at } = self;
        if now.after(NOTICE) < *at {
            return None;
        }
        let verb = if now < *at { "ends" } else { "ended" };
        Some(Refusal::new(Code::EndsSoon, format!("{what} {verb} at {}", Time(*at))))
    }
}

/// The ends of the certificates in a file. A file that cannot be read is told about elsewhere.
pub fn certificates(path: &Path) -> Vec<Ending> {
    let found = tls::lifetimes(path).unwrap_or_default().into_iter();
    let what = |names: String| format!("the certificate of {names} in {}", path.display());
    found.map(|facts| Ending { what: what(facts.shown_names()), at: facts.ends }).collect()
}

/// Logs what ends soon.
pub fn warn(materials: &Materials, now: UnixMillis) {
    for Refusal { code, detail, .. } in materials.endings().iter().filter_map(|ending| ending.notice(now)) {
        tracing::warn!(%code, "{detail}; renew it");
    }
}

/// Logs what ends soon once a day, for as long as the process lives. To be called inside the runtime; the first look is a
/// day ahead, since [`crate::validate`] has looked already.
pub fn watch(materials: Materials) {
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            warn(&materials, clock::now());
        }
    });
}

/// Checks the certificate with which broker and store of a domain on this machine serve; one that is not there is on another
/// machine.
///
/// # Errors
/// Its time is over or has not begun, or it cannot be read.
pub fn check_served(key: &str, path: &Path, now: UnixMillis) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    tls::check_lifetime(path, now).map_err(|error| Failure::new(error.code(), format!("{key}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_told_a_week_before() {
        let at = UnixMillis(1_798_675_199_000);
        let ending = Ending { what: "the certificate of x in y".to_owned(), at };
        assert_eq!(ending.notice(UnixMillis(at.get() - NOTICE.get() - 1)), None);
        for (now, words) in [(at.get() - NOTICE.get(), "ends at 2026-12-30T23:59:59Z"), (at.get(), "ended at 2026")] {
            let notice = ending.notice(UnixMillis(now)).expect("it is soon");
            assert!(notice.code == Code::EndsSoon && notice.detail.contains(words), "{notice}");
        }
    }
}
