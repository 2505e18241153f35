//! The place that objects are read from: the coordinator's store, or what an auditor may read.

use async_trait::async_trait;
use bytes::Bytes;
use schemas::{Chunks, ObjectRef, Refusal};

/// Reads objects by their digests.
#[async_trait]
pub trait Objects: Send + Sync {
    /// The bytes of an object. Their digest and their length were compared with the reference.
    ///
    /// # Errors
    /// The object is missing, has other bytes, or cannot be read.
    async fn fetch(&self, object: ObjectRef) -> Result<Bytes, Refusal>;

    /// The chunks: those that are named, or those in the list that is named.
    ///
    /// # Errors
    /// As [`Objects::fetch`]; or the list is none.
    async fn chunks(&self, chunks: &Chunks) -> Result<Vec<ObjectRef>, Refusal> {
        match chunks {
            Chunks::Named(chunks) => Ok(chunks.clone()),
            Chunks::Listed(listed) => listed.read(&self.fetch(listed.list).await?),
        }
    }
}
