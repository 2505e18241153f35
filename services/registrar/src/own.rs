//! The registrar's own token. It signs that itself, with the key that it has for this role, so it
//! needs nobody to be online. Who has this process's files has the key, so a short life would
//! protect nothing: a long one lets the registrar come back after days.

use identity::clients::CERTIFICATE_LIFE_MAX;
use identity::domain::LIFETIME_DEFAULT;
use identity::{CredentialSource, IssuedList, Issuer};
use schemas::{Millis, Refusal, UnixMillis};

/// A token with less than this left is replaced: most of its life, so that a registrar that was
/// away for long has a token that is still good.
const LEFT_MIN: Millis = Millis(LIFETIME_DEFAULT.get() / 10 * 9);

/// A certificate with less than this left is replaced: one that lives for a day has more for half
/// of it, and the registrar looks every hour.
const CERTIFICATE_LEFT_MIN: Millis = Millis(CERTIFICATE_LIFE_MAX.get() / 2);

/// Replaces the registrar's own certificate, in a domain with mutual TLS, if it is due. Returns
/// true if it was.
///
/// # Errors
/// A file cannot be used.
pub(crate) fn certify(
    source: &CredentialSource,
    issuer: &Issuer,
    list: &IssuedList,
    now: UnixMillis,
) -> Result<bool, Refusal> {
    let fresh = source.certificate().holder();
    if fresh.is_ok_and(|holder| now.until(holder.ends) >= CERTIFICATE_LEFT_MIN) {
        return Ok(false);
    }
    let record = list.find(source.public()).map_err(refusal)?;
    let Some(record) = record.filter(|record| record.blocked.is_none()) else {
        return Ok(false);
    };
    let ends = source.read().map_err(refusal)?.token().expires;
    let ends = ends.unwrap_or(record.ends);
    let Some(certificate) = issuer.certify(&record, ends, now).map_err(refusal)? else {
        return Ok(false);
    };
    source.certify(&certificate).map_err(refusal)?;
    Ok(true)
}

/// Replaces the registrar's own token, if it is due. Returns the end of the new one.
///
/// # Errors
/// The credentials file or the record of the registrar's key cannot be used.
pub(crate) fn renew(
    source: &CredentialSource,
    issuer: &Issuer,
    list: &IssuedList,
    now: UnixMillis,
) -> Result<Option<UnixMillis>, Refusal> {
    let old = source.read().map_err(refusal)?;
    let due = old
        .token()
        .expires
        .is_some_and(|ends| now.until(ends) < LEFT_MIN);
    let record = list.find(source.public()).map_err(refusal)?;
    let Some(record) = record.filter(|record| due && record.blocked.is_none()) else {
        return Ok(None);
    };
    // After a revocation the token on record is dated ahead, and the broker takes none from before.
    let issued = now.max(record.issued);
    let ends = UnixMillis((issued.after(LIFETIME_DEFAULT).get() / 1000) * 1000);
    let token = issuer.sign(&record, ends, issued).map_err(refusal)?;
    let new = old.renewed(token).map_err(refusal)?;
    source.replace(&new).map_err(refusal)?;
    Ok(Some(ends))
}

fn refusal(error: impl schemas::Coded) -> Refusal {
    Refusal::new(error.code(), error.detail())
}
