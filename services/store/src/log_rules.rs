//! The rules of the bucket `log`, which hold with every key: what was written once stays as it was
//! written. That is what S3 calls Object Lock in compliance mode, without an end.
//!
//! | object | written | deleted |
//! | --- | --- | --- |
//! | a head, a full tile, a full bundle | once | never |
//! | a partial tile or bundle | once | when the full one is there |
//! | the head that a witness cosigned | whenever it cosigns, over the one before | never |
//! | the checkpoint | first with `if-none-match: *`, then with `if-match` on the one before, and over no fewer events | never |

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use objects::BucketName;
use s3s::dto::{ETag, ETagCondition};
use s3s::{S3Result, s3_error};
use schemas::Digest;
use tlog::layout::Lasting;

use crate::place::Place;
use crate::root::Publish;

/// Longest checkpoint: the text of a head, which readers bound too.
pub(crate) const CHECKPOINT_BYTES_MAX: u64 = tlog::note::NOTE_BYTES_MAX as u64;

/// The way in which an upload gets its name, by the conditions that the request makes.
pub(crate) fn publish(
    place: &Place,
    once: bool,
    over: Option<&ETagCondition>,
) -> S3Result<Publish> {
    let Some(lasting) = place.lasting() else {
        return match (once, over) {
            (_, Some(_)) => Err(s3_error!(
                NotImplemented,
                "if-match is for the checkpoint of the log only"
            )),
            (true, None) => Ok(Publish::Once),
            (false, None) => Ok(Publish::Replace),
        };
    };
    match (lasting, over) {
        (Lasting::Newest, Some(tag)) => {
            let digest = tag.as_etag().and_then(|tag| tag.as_strong());
            // A tag that this store never gave is that of no object.
            let digest = digest.and_then(|hex| format!("sha256:{hex}").parse().ok());
            digest
                .map(Publish::Over)
                .ok_or_else(|| s3_error!(PreconditionFailed, "the checkpoint is another by now"))
        }
        (Lasting::Newest, None) if once => Ok(Publish::Once),
        (Lasting::Newest, None) => Err(s3_error!(
            AccessDenied,
            "the checkpoint is replaced with if-match only"
        )),
        (Lasting::Cosigned, None) if !once => Ok(Publish::Replace),
        (Lasting::Cosigned, None) => Ok(Publish::Once),
        (Lasting::Final | Lasting::Partial | Lasting::Cosigned, Some(_)) => Err(s3_error!(
            AccessDenied,
            "only the checkpoint of the log is replaced with if-match"
        )),
        (Lasting::Final | Lasting::Partial, None) => Ok(Publish::Once),
    }
}

/// Refuses the deletion of what has to stay.
pub(crate) fn delete(place: &Place, root: &Path) -> S3Result<()> {
    let refused = |words| Err(s3_error!(AccessDenied, "{words}"));
    match place.lasting() {
        None => Ok(()),
        Some(Lasting::Final | Lasting::Newest | Lasting::Cosigned) => {
            refused("a file of the log is never deleted")
        }
        Some(Lasting::Partial) => {
            let full = place.key.rsplit_once(".p/").map(|(full, _)| full);
            let full = full.and_then(|key| Place::parse(place.bucket.as_str(), key).ok());
            match full.is_some_and(|full| full.path(root).is_file()) {
                true => Ok(()),
                false => refused("a partial file of the log stays until the full one is there"),
            }
        }
    }
}

/// The tag of the checkpoint, from the file that is sent: the digest of its bytes, since two may
/// have one length and one time. None for other objects.
pub(crate) fn e_tag(place: &Place, file: &File) -> io::Result<Option<ETag>> {
    if place.bucket != BucketName::Log || place.lasting() != Some(Lasting::Newest) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(CHECKPOINT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    Ok(Some(ETag::Strong(Digest::of(&bytes).hex())))
}

/// The reason why a checkpoint does not take the place of another.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint would go back")]
pub(crate) struct GoesBack;

/// Says if a checkpoint may take the place of another: it names as many events under the same root,
/// or more. The store knows no key, so it does not know who signed either; but what it keeps does
/// not go back, also at the word of the one who may write it.
pub(crate) fn goes_on(before: &[u8], after: &[u8]) -> Result<(), GoesBack> {
    // What is no checkpoint stands in nobody's way.
    let Some((size, root)) = stated(before) else {
        return Ok(());
    };
    match stated(after) {
        Some((more, _)) if more > size => Ok(()),
        Some((same, again)) if same == size && again == root => Ok(()),
        _ => Err(GoesBack),
    }
}

/// The events and the root that the text of a checkpoint names.
fn stated(note: &[u8]) -> Option<(u64, &str)> {
    let mut lines = std::str::from_utf8(note).ok()?.lines().skip(1);
    Some((lines.next()?.parse().ok()?, lines.next()?))
}
