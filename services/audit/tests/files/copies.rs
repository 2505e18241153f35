//! The cosigned heads of workers, on their way into the store.

use std::path::Path;
use std::time::Duration;

use diloco_audit::heads::Heads;
use diloco_audit::mirror::Copies;
use diloco_audit::recorder::LOG_FOLDER;
use identity::{TrustBundle, WitnessKey};
use schemas::head::CosignRequest;
use schemas::{Code, V, WorkerId};
use serde_bytes::ByteArray;

use crate::NOW;
use crate::log::signing;
use crate::mirror::{Running, files, keep, scratch, to_stub};
use crate::stub::Stub;

/// The workers A, B and C cosign the newest head.
fn cosign(folder: &Path, trust: &TrustBundle, witness: &WitnessKey) {
    let heads = Heads::new(folder.join(LOG_FOLDER), trust);
    let reply = heads.newest(0, &[]).expect("there is a head");
    let origin = format!("diloco/{}", trust.domain);
    let head = tlog::Head::open(reply.note.as_bytes(), &origin, &trust.raw_head_keys());
    let head = head.expect("it is signed");
    for letter in 'A'..='C' {
        let name = format!("U{}", letter.to_string().repeat(55));
        let name: WorkerId = name.parse().expect("the form of a key");
        let cosigned = CosignRequest {
            v: V,
            key: witness.public().clone(),
            size: head.size,
            time: NOW,
            signature: ByteArray::new(witness.cosign_raw(&head, NOW.get() / 1000)),
        };
        heads.keep(&name, &cosigned).expect("it is true");
    }
}

/// One that the store refuses keeps no other from being copied, and a look is bounded.
#[tokio::test]
async fn fg_07_a_cosigned_head_that_is_not_copied_is_in_nobodys_way() {
    let (trust, records, key) = signing(20);
    let (stub, scratch) = (Stub::start().await, scratch());
    keep(scratch.path(), &trust, &key, &records);
    let mirror = to_stub(&stub, scratch.path(), &trust);
    mirror.copy(None).await.expect("it is copied");
    cosign(scratch.path(), &trust, &WitnessKey::generate());
    let name = |letter: &str| format!("cosigned/u{}", letter.repeat(55));
    let has = || ["a", "b", "c"].map(|letter| stub.has(&name(letter)));
    let refuse = |letter: &str| {
        let refused = name(letter);
        stub.instead(move |method, name| {
            (method == "put" && name == refused).then_some((403, "AccessDenied"))
        });
    };
    let look = async |copies: &mut Copies| {
        let copied = mirror.copy_cosigned(20, copies).await;
        copied.map_err(|error| error.code())
    };
    let refused = Err(Code::LogStoreBehind);
    refuse("b");
    assert_eq!(look(&mut Copies::default()).await, refused);
    assert_eq!(has(), [true, false, true], "in one look");
    // Looks without time take one each, and a refused one has its turn after all others.
    let mut copies = Copies::within(Duration::ZERO);
    refuse("a");
    assert_eq!(look(&mut copies).await, refused);
    assert!(!stub.has(&name("b")), "the look is over");
    assert_eq!(look(&mut copies).await, Ok(()), "b");
    assert_eq!(has(), [true; 3]);
    assert_eq!(look(&mut copies).await, Ok(()), "c");
    assert_eq!(look(&mut copies).await, refused, "a again");
}

/// A reader of the store never finds a cosigned head that the log there does not cover.
#[tokio::test]
async fn fg_07_cosigned_heads_follow_the_log_into_the_store() {
    let (trust, records, key) = signing(20);
    let (running, scratch) = (Running::start().await, scratch());
    let mirror = running.mirror(scratch.path(), &trust);
    let mut copies = Copies::default();
    assert!(mirror.copy_cosigned(0, &mut copies).await.is_ok());
    let witness = WitnessKey::generate();
    let mut known = None;
    for end in [5, 20] {
        keep(scratch.path(), &trust, &key, &records[..end]);
        cosign(scratch.path(), &trust, &witness);
        let before = files(&running.file(""));
        let early = mirror.copy_cosigned(end as u64 - 1, &mut copies).await;
        early.expect("nothing is copied yet");
        assert_eq!(
            files(&running.file("")),
            before,
            "the head is not there yet"
        );
        known = mirror.copy(known.as_ref()).await.expect("it is copied");
        assert!(mirror.copy_cosigned(end as u64, &mut copies).await.is_ok());
        let (here, there) = (scratch.path().join(LOG_FOLDER), running.file(""));
        assert_eq!(files(&here), files(&there), "{end}");
    }
    // What is there already is not written again: the store may be away.
    let (_root, ..) = running.end().await;
    let again = mirror.copy_cosigned(20, &mut copies).await;
    again.expect("nothing is new");
}
