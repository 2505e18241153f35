//! Destinations of downloaded bytes, which are hashed on the way.

use bytes::Bytes;
use schemas::{Digest, Hasher};

use crate::error::ObjectError;

pub(crate) struct Sink {
    digest: Digest,
    bytes_max: u64,
    /// The length that the first answer announced.
    total: Option<u64>,
    buffer: Vec<u8>,
    hasher: Hasher,
}

impl Sink {
    pub(crate) fn new(digest: Digest, bytes_max: schemas::Bytes) -> Self {
        Self {
            digest,
            bytes_max: bytes_max.get(),
            total: None,
            buffer: Vec::new(),
            hasher: Hasher::default(),
        }
    }

    /// Bytes taken so far.
    pub(crate) const fn len(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Bytes taken since there were `before` of them.
    pub(crate) const fn since(&self, before: u64) -> u64 {
        self.len() - before
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.total == Some(self.len())
    }

    /// Takes the object's length as an answer states it; it must be acceptable and must not change.
    pub(crate) fn expect(&mut self, total: u64) -> Result<(), ObjectError> {
        if total > self.bytes_max {
            return Err(ObjectError::TooLarge {
                digest: self.digest,
                bytes: total,
                bytes_max: self.bytes_max,
            });
        }
        if let Some(before) = self.total.filter(|before| *before != total) {
            return Err(self.mismatch(format!("its length was {before} and is now {total}")));
        }
        self.total = Some(total);
        let missing = usize::try_from(total - self.len()).unwrap_or(usize::MAX);
        self.buffer.reserve_exact(missing);
        Ok(())
    }

    pub(crate) fn take(&mut self, piece: &Bytes) -> Result<(), ObjectError> {
        let length = self.len() + piece.len() as u64;
        if self.total.is_none_or(|total| length > total) {
            return Err(self.mismatch("more bytes than announced".to_owned()));
        }
        self.hasher.update(piece);
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// The bytes, if they have the right length and digest.
    pub(crate) fn into_bytes(self) -> Result<Bytes, ObjectError> {
        let got = self.hasher.finish();
        if got == self.digest {
            return Ok(self.buffer.into());
        }
        let reason = format!("they hash to {got}");
        Err(ObjectError::Mismatch {
            digest: self.digest,
            reason,
        })
    }

    const fn mismatch(&self, reason: String) -> ObjectError {
        ObjectError::Mismatch {
            digest: self.digest,
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"ten bytes.";

    fn sink(bytes_max: u64) -> Sink {
        Sink::new(Digest::of(BYTES), schemas::Bytes(bytes_max))
    }

    #[test]
    fn a_length_is_announced_acceptable_and_stays() {
        let mut sink = sink(10);
        assert!(
            matches!(
                sink.take(&Bytes::from_static(BYTES)),
                Err(ObjectError::Mismatch { .. })
            ),
            "unannounced"
        );
        assert!(matches!(sink.expect(11), Err(ObjectError::TooLarge { .. })));
        sink.expect(10).unwrap();
        sink.take(&Bytes::from_static(&BYTES[..4])).unwrap();
        assert!(!sink.is_complete());
        assert_eq!([0, 1, 4].map(|before| sink.since(before)), [4, 3, 0]);
        assert!(
            matches!(sink.expect(9), Err(ObjectError::Mismatch { .. })),
            "another length"
        );
        sink.expect(10).unwrap();
        assert_eq!(sink.buffer.capacity(), 10, "no more memory than bytes");
        assert!(
            matches!(
                sink.take(&Bytes::from_static(&BYTES[3..])),
                Err(ObjectError::Mismatch { .. })
            ),
            "one too many"
        );
        sink.take(&Bytes::from_static(&BYTES[4..])).unwrap();
        assert!(sink.is_complete());
        assert_eq!(sink.into_bytes().unwrap(), BYTES);
    }

    #[test]
    fn other_bytes_of_the_right_length_are_none() {
        let mut sink = sink(10);
        sink.expect(10).unwrap();
        sink.take(&Bytes::from_static(b"ten bytes!")).unwrap();
        assert!(sink.is_complete());
        assert!(matches!(
            sink.into_bytes(),
            Err(ObjectError::Mismatch { .. })
        ));
    }
}
