//! Notices of certificates and credentials that expire within a week, at every start and once a
//! day. An expired certificate stops everything at once, and nobody looks at its date unasked.

use std::path::Path;
use std::time::Duration;

use identity::tls;
use schemas::text::Time;
use schemas::{Code, Millis, Refusal, UnixMillis};

use crate::clock;
use crate::exit::Failure;
use crate::materials::Materials;

/// Time before the end at which notices begin: every week contains a working day.
pub const NOTICE: Millis = Millis::from_secs(7 * 24 * 3600);
/// Time between two notices.
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// The end of a certificate or credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Its name, with the file.
    pub what: String,
    /// The time of the end.
    pub at: UnixMillis,
}

impl Ending {
    /// A notice, if the end is near or has passed.
    pub fn notice(&self, now: UnixMillis) -> Option<Refusal> {
        let Self { what, at } = self;
        if now.after(NOTICE) < *at {
            return None;
        }
        let verb = if now < *at { "ends" } else { "ended" };
        Some(Refusal::new(
            Code::EndsSoon,
            format!("{what} {verb} at {}", Time(*at)),
        ))
    }
}

/// The ends of the certificates in a file. A file that cannot be read is reported elsewhere.
pub fn certificates(path: &Path) -> Vec<Ending> {
    let found = tls::lifetimes(path).unwrap_or_default().into_iter();
    let what = |names: String| format!("the certificate of {names} in {}", path.display());
    found
        .map(|facts| Ending {
            what: what(facts.shown_names()),
            at: facts.ends,
        })
        .collect()
}

/// Logs what ends soon.
pub fn warn(materials: &Materials, now: UnixMillis) {
    notices(materials, now).iter().for_each(log);
}

/// Notices that are due now. The files are read each time, so that a renewed one is not announced
/// again.
fn notices(materials: &Materials, now: UnixMillis) -> Vec<Refusal> {
    materials
        .endings()
        .iter()
        .filter_map(|ending| ending.notice(now))
        .collect()
}

fn log(Refusal { code, detail, .. }: &Refusal) {
    tracing::warn!(%code, "{detail}; renew it");
}

/// Logs once a day what expires soon, for as long as the process lives. To be called inside the
/// runtime. The first notice comes after a day, since [`crate::validate`] has logged one already.
pub fn watch(materials: Materials) {
    let day = || tokio::time::sleep(LOOK_EVERY);
    tokio::spawn(async move { daily(&materials, clock::now, day, |notice| log(&notice)).await });
}

/// Calls `tell` with the due notices after each `day`, by the clock `now`.
async fn daily<F: Future<Output = ()>>(
    materials: &Materials,
    now: impl Fn() -> UnixMillis,
    day: impl Fn() -> F,
    mut tell: impl FnMut(Refusal),
) {
    loop {
        day().await;
        notices(materials, now()).into_iter().for_each(&mut tell);
    }
}

/// Checks the certificate that broker and store of a domain on this machine show. A missing one is
/// on another machine, and passes.
///
/// # Errors
/// The certificate has expired, is not valid yet, or cannot be read.
pub fn check_served(key: &str, path: &Path, now: UnixMillis) -> Result<(), Failure> {
    if !path.exists() {
        return Ok(());
    }
    tls::check_lifetime(path, now)
        .map_err(|error| Failure::new(error.code(), format!("{key}: {error}")))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::future::{pending, ready};

    use futures::FutureExt as _;
    use futures::future::Either;
    use identity::{Domain, InitOptions};
    use schemas::permission::Role;

    use super::*;
    use crate::Material;

    /// The test gives out the days, so that nothing waits.
    #[test]
    fn what_ends_is_told_once_a_day_from_a_week_before_until_it_is_renewed() {
        const LIFE_DAYS: u64 = 30;
        let began = UnixMillis(1_798_675_199_000);
        let day_ms = 24 * 3_600_000;
        let at = |day: u64| UnixMillis(began.get() + day * day_ms);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = Domain::init(&scratch.path().join("d"), &InitOptions::default(), began)
            .expect("a fresh name");
        let issue = |day| {
            let lifetime = Millis(LIFE_DAYS * day_ms);
            domain
                .issue(Role::Coordinator, "c", None, lifetime, at(day))
                .expect("the folder takes files")
                .credentials
        };
        let items = vec![Material::Credentials {
            key: "bus.credentials",
            path: issue(0),
        }];
        let materials = Materials { items, now: began };
        let (today, told) = (Cell::new(0), RefCell::new(Vec::new()));
        let day = || {
            today.set(today.get() + 1);
            if today.get() == 28 {
                issue(28);
            }
            if today.get() <= 57 {
                Either::Left(ready(()))
            } else {
                Either::Right(pending())
            }
        };
        let tell = |notice: Refusal| told.borrow_mut().push((today.get(), notice));
        assert_eq!(
            daily(&materials, || at(today.get()), day, tell).now_or_never(),
            None,
            "it looks for ever"
        );
        let told = told.into_inner();
        let days: Vec<u64> = told.iter().map(|(day, _)| *day).collect();
        assert_eq!(
            days,
            [23, 24, 25, 26, 27, 51, 52, 53, 54, 55, 56, 57],
            "a week before each of its two ends"
        );
        for (day, notice) in told {
            let ends = Time(at(if day < 28 { LIFE_DAYS } else { 28 + LIFE_DAYS })).to_string();
            let named = notice.detail.contains("c.creds") && notice.detail.contains(&ends[..10]);
            assert!(notice.code == Code::EndsSoon && named, "{notice}");
        }
    }

    /// A token of an hour would be told of at every start, and is renewed instead.
    #[test]
    fn a_credential_that_never_had_a_week_is_not_told_of() {
        let now = UnixMillis(1_798_675_199_000);
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let domain = Domain::init(&scratch.path().join("d"), &InitOptions::default(), now)
            .expect("a fresh name");
        let second = Millis::from_secs(1);
        for (lifetime, told) in [
            (Millis::from_secs(3600), 0),
            (NOTICE, 0),
            (Millis(NOTICE.get() + second.get()), 1),
        ] {
            let issued = domain.issue(Role::Coordinator, "c", None, lifetime, now);
            let items = vec![Material::Credentials {
                key: "bus.credentials",
                path: issued.expect("the folder takes files").credentials,
            }];
            let materials = Materials { items, now };
            let soon = UnixMillis(now.get() + 2000);
            assert_eq!(notices(&materials, soon).len(), told, "{lifetime}");
        }
    }

    #[test]
    fn what_ends_is_told_a_week_before() {
        let at = UnixMillis(1_798_675_199_000);
        let ending = Ending {
            what: "the certificate of x in y".to_owned(),
            at,
        };
        assert_eq!(ending.notice(UnixMillis(at.get() - NOTICE.get() - 1)), None);
        for (now, words) in [
            (at.get() - NOTICE.get(), "ends at 2026-12-30T23:59:59Z"),
            (at.get(), "ended at 2026"),
        ] {
            let notice = ending.notice(UnixMillis(now)).expect("it is soon");
            assert!(
                notice.code == Code::EndsSoon && notice.detail.contains(words),
                "{notice}"
            );
        }
    }
}
