//! A revocation as every command carries it out that revokes somebody: it is kept here, told to the
//! coordinator, which has it in the ledger and takes nothing of the key from then on, and brought
//! into effect at the brokers. What could not be told is kept, and told by the next `auth push` or
//! `up`.

use std::time::Duration;

use identity::{Domain, DomainLock, Revocation};
use runtime::accounts::{self, Revoked};
use runtime::{Failure, clock};
use schemas::call::control as call;
use schemas::hold::Reason;
use schemas::revocation::{REVOKED_NAMED_MAX, RevokeRequest, RevokedKey};
use schemas::{AccountId, Code, PublicKey, V};

use crate::context::Context;

/// Longest wait for the coordinator: the brokers are told after it, and they end the connections.
const TELL_MAX: Duration = Duration::from_secs(5);

/// A revocation that is in effect.
pub(crate) struct Carried {
    /// The keys, in the order in which they were named.
    pub(crate) revoked: Vec<Revoked>,
    /// The reason why the ledger does not have it.
    pub(crate) unrecorded: Option<Failure>,
}

/// Revokes keys. The coordinator is told first: it may be the caller's own credential that is
/// revoked, or the coordinator's.
///
/// # Errors
/// They are not all kept; or [`Code::RevocationKept`]: no broker has confirmed them.
pub(crate) async fn carry_out(
    context: &Context,
    domain: &Domain,
    lock: &DomainLock,
    keys: &[(AccountId, PublicKey)],
    reason: Option<&Reason>,
) -> Result<Carried, Failure> {
    let url = context.accounts_url()?;
    let kept = accounts::keep(domain, lock, keys, reason, clock::now())?;
    let told = tell(context, domain, lock, &kept).await;
    let unrecorded = told.err();
    match accounts::enforce(domain, lock, &url, kept, clock::now()).await {
        Ok(revoked) => Ok(Carried {
            revoked,
            unrecorded,
        }),
        Err(failure) => Err(match &unrecorded {
            Some(other) => failure.and(other),
            None => failure,
        }),
    }
}

/// Has every revocation recorded that the ledger does not have yet; returns their number.
///
/// # Errors
/// [`Code::RevocationUnrecorded`].
pub(crate) async fn tell_rest(
    context: &Context,
    domain: &Domain,
    lock: &DomainLock,
) -> Result<usize, Failure> {
    let mut rest = domain.revocations()?;
    rest.retain(|one| one.unrecorded);
    tell(context, domain, lock, &rest).await?;
    Ok(rest.len())
}

/// Tells the coordinator of revocations, and notes each that it has recorded.
async fn tell(
    context: &Context,
    domain: &Domain,
    _lock: &DomainLock,
    kept: &[Revocation],
) -> Result<(), Failure> {
    if kept.is_empty() {
        return Ok(());
    }
    let context = Context {
        timeout: context.timeout.min(TELL_MAX),
        ..context.clone()
    };
    let told = async {
        let operator = context.operator().await?;
        for some in kept.chunks(REVOKED_NAMED_MAX) {
            let keys = some.iter().map(|one| named(domain, one));
            let request = RevokeRequest {
                v: V,
                keys: keys.collect::<Result<_, _>>()?,
            };
            let _recorded = operator.ask::<call::CredentialRevoke>(&request).await?;
            for one in some {
                domain.note_recorded(one)?;
            }
        }
        Ok::<_, Failure>(())
    };
    told.await.map_err(|failure| {
        let folder = domain.layout().revoked_folder();
        let text = format!("kept in {}: {failure}", folder.display());
        Failure::new(Code::RevocationUnrecorded, text)
    })
}

/// A revocation with the holder that the list of issued credentials names.
fn named(domain: &Domain, one: &Revocation) -> Result<RevokedKey, Failure> {
    let record = domain.layout().issued().find(&one.key);
    let record = record.map_err(identity::domain::DomainError::from)?;
    Ok(RevokedKey {
        key: one.key.clone(),
        role: record.as_ref().map(|record| record.role),
        name: record.map(|record| record.name),
        until: one.until,
        reason: one.reason.clone(),
    })
}
