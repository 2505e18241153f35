//! The file of a key. A key is parsed into segments that are safe as file names before it becomes a
//! path.
//!
//! An object of `blobs` lies in folders that its key names. All uploads lie in one folder: an
//! upload lives for minutes, and folders of its own would be made and removed in each round, for
//! each worker.

use std::path::{Path, PathBuf};

use objects::key::KEY_BYTES_MAX;
use objects::{BlobKey, BucketName, IncomingKey};
use s3s::{S3Result, s3_error};
use schemas::Digest;
use tlog::layout::Lasting;

/// Longest segment of a named file's key.
const SEGMENT_BYTES_MAX: usize = 128;
/// Joins the segments of a key in the name of an upload's file. No segment has this character.
const JOINT: &str = ",";

/// A key that this store accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) bucket: BucketName,
    pub(crate) key: String,
    /// The digest that the bytes must have; none for the named files of `blobs`.
    pub(crate) digest: Option<Digest>,
}

impl Place {
    /// Parses a bucket's name and a key.
    pub(crate) fn parse(bucket: &str, key: &str) -> S3Result<Self> {
        let bucket = parse_bucket(bucket)?;
        let refused = || s3_error!(InvalidArgument, "not a key of bucket {bucket}");
        let digest = match bucket {
            BucketName::Log => {
                Lasting::of(key).ok_or_else(refused)?;
                None
            }
            BucketName::Incoming => {
                Some(key.parse::<IncomingKey>().map_err(|_| refused())?.digest())
            }
            BucketName::Blobs if key.starts_with("sha256/") => {
                Some(key.parse::<BlobKey>().map_err(|_| refused())?.0)
            }
            BucketName::Blobs if is_named(key) => None,
            BucketName::Blobs => return Err(refused()),
        };
        Ok(Self {
            bucket,
            key: key.to_owned(),
            digest,
        })
    }

    /// The upload whose file has this name; none for a file that somebody put there by hand.
    pub(crate) fn of_upload(name: &str) -> Option<Self> {
        if name.contains('/') {
            return None;
        }
        Self::parse(BucketName::Incoming.as_str(), &name.replace(JOINT, "/")).ok()
    }

    /// What may happen to the object once it is there, if it is a file of the log.
    pub(crate) fn lasting(&self) -> Option<Lasting> {
        match self.bucket {
            BucketName::Log => Lasting::of(&self.key),
            BucketName::Incoming | BucketName::Blobs => None,
        }
    }

    /// The file under `root`.
    pub(crate) fn path(&self, root: &Path) -> PathBuf {
        let folder = root.join(self.bucket.as_str());
        match self.bucket {
            BucketName::Incoming => folder.join(self.key.replace('/', JOINT)),
            BucketName::Blobs | BucketName::Log => folder.join(&self.key),
        }
    }
}

pub(crate) fn parse_bucket(name: &str) -> S3Result<BucketName> {
    name.parse()
        .map_err(|_| s3_error!(NoSuchBucket, "there are incoming, blobs and log"))
}

fn is_named(key: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._=-".contains(c);
    let segment = |text: &str| {
        !text.is_empty()
            && text.len() <= SEGMENT_BYTES_MAX
            && !text.starts_with('.')
            && text.chars().all(safe)
    };
    key.len() <= KEY_BYTES_MAX && key.split('/').all(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_keys_have_no_place() {
        let hex = Digest::of(b"").hex();
        for key in [
            "",
            "/",
            "..",
            "../blobs/x",
            "/etc/passwd",
            "a/../b",
            "a//b",
            "a/./b",
            "a/.hidden",
            "a/",
            "ä",
            "a b",
            "a\\b",
            "a\0b",
            "a%2e",
            &"a".repeat(SEGMENT_BYTES_MAX + 1),
            &format!("{}a", "a/".repeat(KEY_BYTES_MAX / 2)),
            &format!("sha256/{hex}"),
            "sha256/x",
        ] {
            assert!(Place::parse("blobs", key).is_err(), "{key}");
            assert!(Place::parse("incoming", key).is_err(), "{key}");
            assert!(Place::parse("log", key).is_err(), "{key}");
        }
        assert!(Place::parse("other", "a").is_err());
        assert!(Place::parse("..", "a").is_err());
    }

    #[test]
    fn files_of_the_log_lie_where_their_names_say_and_nothing_else_does() {
        for (key, lasting) in [
            ("checkpoint", Lasting::Newest),
            ("heads/7", Lasting::Final),
            ("tile/0/x001/067", Lasting::Final),
            ("tile/entries/000.p/3", Lasting::Partial),
        ] {
            let place = Place::parse("log", key).unwrap();
            assert_eq!(place.lasting(), Some(lasting), "{key}");
            assert_eq!(place.path(Path::new("/r")), Path::new("/r/log").join(key));
        }
        assert!(Place::parse("log", "named").is_err());
        assert!(Place::parse("log", &BlobKey(Digest::of(b"x")).to_string()).is_err());
        assert_eq!(Place::parse("blobs", "checkpoint").unwrap().lasting(), None);
    }

    #[test]
    fn an_upload_is_found_by_the_name_of_its_file() {
        let (longest, hex) = ("r".repeat(32), Digest::of(b"x").hex());
        let worker = format!("U{}", "A".repeat(55));
        let (number, unit) = (u64::MAX, u32::MAX);
        for key in [
            format!("operator/UDKTV7HZVYJFJN64LLMYQBUR6MTNNYCDC3LAZH4VHURW3GZLL3FULBXV/{hex}"),
            format!("{longest}/{number}/{worker}/evaluate-{unit}-{number}/{hex}"),
        ] {
            let place = Place::parse("incoming", &key).unwrap();
            let path = place.path(Path::new("/r"));
            assert_eq!(path.parent(), Some(Path::new("/r/incoming")));
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(name.len() <= 255, "the longest name of a file in Linux");
            assert_eq!(Place::of_upload(name), Some(place));
        }
        for name in [
            "",
            "lock",
            &*hex,
            "demo,1",
            &*format!("demo/1/{worker}/train-0-1/{hex}"),
        ] {
            assert_eq!(Place::of_upload(name), None, "{name}");
        }
    }

    #[test]
    fn tl_18_good_keys_keep_their_promise() {
        let digest = Digest::of(b"x");
        let place = Place::parse("blobs", &BlobKey(digest).to_string()).unwrap();
        assert_eq!(place.digest, Some(digest));
        assert!(place.path(Path::new("/r")).starts_with("/r/blobs/sha256"));
        assert_eq!(
            Place::parse("blobs", "audit/tile/0/x001/067")
                .unwrap()
                .digest,
            None
        );
        let longest = [
            "a".repeat(SEGMENT_BYTES_MAX),
            "a".repeat(KEY_BYTES_MAX - SEGMENT_BYTES_MAX - 1),
        ]
        .join("/");
        assert_eq!(Place::parse("blobs", &longest).unwrap().key, longest);
    }
}
