//! An event as an entry of the log: the one byte form of a signed event that does not depend on the
//! message in which it came.
//!
//! An entry is `0x01`, the emitter's public key (32 bytes), its signature (64 bytes), and the body
//! as it was signed. All that an emitter vouches for is in it, and nothing else. Position in a
//! stream and time of storing are the broker's words; a subject follows from the body, and from
//! the join in the ledger that names a worker's key.
//!
//! One entry is no event: the first one of a log may be the manifest of its owner, `0x02` and the
//! text of the signed document.

use schemas::PublicKey;
use schemas::event::SignedEvent;

use crate::signature::{KEY_BYTES, SIGNATURE_BYTES, public_key, signed, user_key};

/// The version of the form.
const FORM: u8 = 1;
/// The form of a log manifest.
const MANIFEST_FORM: u8 = 2;

/// An event as an entry of the log; none if the text of its key is no key, in which case nobody
/// signed it.
pub fn leaf(event: &SignedEvent) -> Option<Vec<u8>> {
    let key = user_key(event.key.as_str())?;
    Some([&[FORM][..], &key, &*event.signature, &event.body].concat())
}

/// The event in an entry, with the key that it names; nothing in it was checked. None if the entry
/// has another form.
pub fn of_leaf(leaf: &[u8]) -> Option<SignedEvent> {
    let (form, rest) = leaf.split_first()?;
    let (key, rest) = rest.split_first_chunk::<KEY_BYTES>()?;
    let (signature, body) = rest.split_first_chunk::<SIGNATURE_BYTES>()?;
    let key: PublicKey = public_key(key);
    (*form == FORM).then(|| signed(&key, *signature, body.to_vec()))
}

/// A log manifest, as the first entry of a log.
pub fn manifest_leaf(document: &str) -> Vec<u8> {
    [&[MANIFEST_FORM], document.as_bytes()].concat()
}

/// The signed document in an entry that is a log manifest; nothing in it was checked. None if the
/// entry has another form.
pub fn of_manifest_leaf(leaf: &[u8]) -> Option<&str> {
    let (form, document) = leaf.split_first()?;
    (*form == MANIFEST_FORM).then(|| std::str::from_utf8(document).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> SignedEvent {
        signed(
            &public_key(&[7; KEY_BYTES]),
            [9; SIGNATURE_BYTES],
            b"body".to_vec(),
        )
    }

    /// Written by hand from the description of the form.
    #[test]
    fn an_entry_is_form_key_signature_and_body() {
        let expected = [&[1][..], &[7; 32], &[9; 64], b"body"].concat();
        assert_eq!(leaf(&event()), Some(expected));
    }

    #[test]
    fn an_entry_leads_back_to_its_event() {
        let entry = leaf(&event()).unwrap();
        assert_eq!(of_leaf(&entry), Some(event()));
        for short in 0..97 {
            assert_eq!(of_leaf(&entry[..short]), None, "{short} bytes");
        }
        let other = [&[2], &entry[1..]].concat();
        assert_eq!(of_leaf(&other), None, "another form");
    }

    #[test]
    fn a_manifest_is_an_entry_of_a_form_of_its_own() {
        let entry = manifest_leaf("a.b.c");
        assert_eq!(entry, b"\x02a.b.c");
        assert_eq!(of_manifest_leaf(&entry), Some("a.b.c"));
        assert_eq!(of_leaf(&manifest_leaf(&"a".repeat(97))), None);
        assert_eq!(of_manifest_leaf(&leaf(&event()).unwrap()), None);
        assert_eq!(of_manifest_leaf(&[]), None);
        assert_eq!(of_manifest_leaf(b"\x02\xff"), None, "no text");
    }
}
