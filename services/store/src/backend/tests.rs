//! Tests of reading, removing and claiming.

use std::path::Path;

use futures::{StreamExt as _, TryStreamExt as _};

use super::*;
use crate::config::Durability;

/// More pieces than any object here has.
const PIECES_MAX: usize = 8;

fn named() -> Place {
    Place::parse("blobs", "named").unwrap()
}

/// A client replaces the version that the tag names. With the tag of another version it would
/// replace what it has never read.
#[tokio::test]
async fn the_tag_of_a_checkpoint_is_that_of_the_bytes_that_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (path, newer) = (folder.path().join("one"), folder.path().join("two"));
    fs::write(&path, b"one").unwrap();
    fs::write(&newer, b"two").unwrap();
    let place = Place::parse("log", "checkpoint").unwrap();
    let tag = |bytes: &[u8]| ETag::Strong(Digest::of(bytes).hex());
    let opened = open(&place, &path, None).unwrap();
    fs::rename(&newer, &path).unwrap();
    assert_eq!(opened.tag, tag(b"one"));
    let sent: Vec<Bytes> = stream(opened, None).try_collect().await.unwrap();
    assert_eq!(sent, ["one"]);
    assert_eq!(find(&place, &path).unwrap().tag, tag(b"two"));
}

/// The lengths of the pieces in which the bytes of a file come.
async fn pieces(path: &Path, range: Option<Range>) -> io::Result<Vec<usize>> {
    let opened = open(&named(), path, range.as_ref()).unwrap();
    let pieces = stream(opened, None).take(PIECES_MAX);
    pieces.map_ok(|piece| piece.len()).try_collect().await
}

/// The length was announced, so a short body must end with an error: otherwise a client would
/// take the part for the whole.
#[test]
fn an_object_that_became_shorter_is_an_error_and_not_a_short_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object");
    fs::write(&path, b"0123456789").unwrap();
    let at_hand = |left| read(File::open(&path).unwrap(), left).map(|(_, piece)| piece);
    assert_eq!(at_hand(10).unwrap(), "0123456789");
    assert_eq!(at_hand(4).unwrap(), "0123");
    assert_eq!(
        at_hand(11).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[tokio::test]
async fn the_bytes_of_an_object_come_in_pieces_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object");
    let (piece, few) = (usize::try_from(READ_BYTES).unwrap(), 5);
    for (length, expected) in [
        (0, vec![]),
        (few, vec![few]),
        (piece, vec![piece]),
        (2 * piece, vec![piece, piece]),
        (2 * piece + few, vec![piece, piece, few]),
    ] {
        fs::write(&path, vec![7_u8; length]).unwrap();
        assert_eq!(pieces(&path, None).await.unwrap(), expected, "{length}");
    }
    let after = |first| Some(Range::Int { first, last: None });
    let got = pieces(&path, after(READ_BYTES - 1)).await.unwrap();
    assert_eq!(got, [piece, few + 1]);
    let got = pieces(&path, after(2 * READ_BYTES)).await.unwrap();
    assert_eq!(got, [few]);
}

#[tokio::test]
async fn an_object_that_becomes_shorter_while_it_is_sent_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("object");
    fs::write(&path, vec![7_u8; 3 << 20]).unwrap();
    let opened = open(&named(), &path, None).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(READ_BYTES + 1)
        .unwrap();
    let sent: Vec<_> = stream(opened, None).take(PIECES_MAX).collect().await;
    assert!(sent[0].is_ok() && sent[1].is_err(), "{} pieces", sent.len());
    assert_eq!(sent.len(), 2);
}

/// S3 answers the deletion of an absent object like that of any other.
#[test]
fn only_a_file_that_cannot_be_removed_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
    let of = |name: &str| folder.path().join(name);
    fs::write(of("file"), b"x").unwrap();
    fs::create_dir(of("folder")).unwrap();
    for no_object in ["absent", "absent/either", "file/below", "folder"] {
        assert!(remove(&root, &of(no_object)).is_ok(), "{no_object}");
    }
    assert!(of("file").exists() && of("folder").exists());
    remove(&root, &of("file")).unwrap();
    assert!(!of("file").exists());
    let no_name = remove(&root, &of(&"a".repeat(300))).unwrap_err();
    assert_eq!(no_name.code(), &S3ErrorCode::InternalError);
}

#[test]
fn no_object_is_told_apart_from_a_disk_that_fails() {
    for (kind, code) in [
        (io::ErrorKind::NotFound, S3ErrorCode::NoSuchKey),
        (io::ErrorKind::NotADirectory, S3ErrorCode::NoSuchKey),
        (io::ErrorKind::IsADirectory, S3ErrorCode::NoSuchKey),
        (io::ErrorKind::PermissionDenied, S3ErrorCode::InternalError),
    ] {
        assert_eq!(no_key(kind.into()).code(), &code, "{kind}");
    }
}

/// Two uploads of a name that is given once: the second is told to wait, or that it is done.
#[test]
fn a_name_that_is_given_once_is_claimed_and_another_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::open(folder.path(), Durability::Kernel, 0).unwrap();
    let backend = Backend {
        root: Arc::new(root),
        budgets: Budgets::default(),
        refusals: Refusals::new(),
    };
    let place = Place::parse("blobs", "notes/one").unwrap();
    let claim = |how| backend.claim(&place, how);
    let refused = |how| claim(how).unwrap_err().code().clone();
    let first = claim(Publish::Once).unwrap();
    assert!(first.is_some());
    assert_eq!(
        refused(Publish::Once),
        S3ErrorCode::ConditionalRequestConflict
    );
    assert!(claim(Publish::Replace).unwrap().is_none(), "it needs none");
    drop(first);
    assert!(claim(Publish::Once).unwrap().is_some());
    let path = place.path(folder.path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"x").unwrap();
    assert_eq!(refused(Publish::Once), S3ErrorCode::PreconditionFailed);
    assert!(claim(Publish::Replace).unwrap().is_none());
}
