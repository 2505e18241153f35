//! The shards of the last unit, checked and in memory: the next unit usually reads the same ones.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data::{DataError, TokenShard};
use schemas::{Code, Digest, ObjectRef, Refusal};

use crate::library::Library;

/// Shards by their digest; clones share them. They are the shards of one unit, which needs them in
/// memory anyway.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardCache(Arc<Mutex<BTreeMap<Digest, TokenShard>>>);

impl ShardCache {
    /// The shards in the order given. Shards that are no longer wanted are dropped first, and
    /// missing ones come from the library.
    ///
    /// # Errors
    /// One of them cannot be fetched.
    pub(crate) async fn get(
        &self,
        library: &Library,
        wanted: &[ObjectRef],
        vocabulary: u32,
    ) -> Result<Vec<TokenShard>, Refusal> {
        let mut shards = self.keep_only(wanted);
        let missing = missing(&shards, wanted);
        if !missing.is_empty() {
            let bytes = library.keep(&missing).await?;
            let read = tokio::task::spawn_blocking(move || check(bytes, vocabulary));
            let read = read
                .await
                .map_err(|error| Refusal::new(Code::Internal, error.to_string()))??;
            shards.extend(missing.iter().map(|object| object.digest).zip(read));
            self.put(shards.clone());
        }
        Ok(in_order(&shards, wanted))
    }

    /// Drops shards that are not wanted; returns the wanted ones that are here.
    fn keep_only(&self, wanted: &[ObjectRef]) -> BTreeMap<Digest, TokenShard> {
        let mut shards = self.0.lock().expect("no holder panics");
        shards.retain(|digest, _| wanted.iter().any(|object| object.digest == *digest));
        shards.clone()
    }

    fn put(&self, shards: BTreeMap<Digest, TokenShard>) {
        *self.0.lock().expect("no holder panics") = shards;
    }
}

/// Wanted objects that are not among `shards`, each once.
fn missing(shards: &BTreeMap<Digest, TokenShard>, wanted: &[ObjectRef]) -> Vec<ObjectRef> {
    let missing: BTreeMap<Digest, ObjectRef> = wanted
        .iter()
        .filter(|object| !shards.contains_key(&object.digest))
        .map(|object| (object.digest, *object))
        .collect();
    missing.into_values().collect()
}

fn in_order(shards: &BTreeMap<Digest, TokenShard>, wanted: &[ObjectRef]) -> Vec<TokenShard> {
    let shard = |object: &ObjectRef| shards.get(&object.digest).cloned();
    wanted
        .iter()
        .map(|object| shard(object).expect("what was not here has been read"))
        .collect()
}

/// Checks every token, which may take some time.
fn check(bytes: Vec<Bytes>, vocabulary: u32) -> Result<Vec<TokenShard>, Refusal> {
    let shards = bytes
        .into_iter()
        .map(|bytes| TokenShard::decode(bytes.into(), vocabulary));
    let shards: Result<Vec<TokenShard>, DataError> = shards.collect();
    Ok(shards?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &[u8]) -> ObjectRef {
        ObjectRef::of(name)
    }

    fn shard(tokens: &[u8]) -> TokenShard {
        TokenShard::decode(tokens.to_vec(), 256).expect("valid")
    }

    #[test]
    fn it_holds_what_the_last_unit_wanted_and_nothing_else() {
        let shard_cache = ShardCache::default();
        let (first, second, third) = (object(b"1"), object(b"2"), object(b"3"));
        let mut shards = shard_cache.keep_only(&[first, second, first]);
        assert_eq!(
            missing(&shards, &[first, second, first]).len(),
            2,
            "each once"
        );
        shards.extend([(first.digest, shard(&[1])), (second.digest, shard(&[2, 2]))]);
        shard_cache.put(shards);
        let shards = shard_cache.keep_only(&[second, first, second]);
        assert_eq!(missing(&shards, &[second, first]), []);
        let found = in_order(&shards, &[second, first, second]);
        let lengths: Vec<usize> = found.iter().map(TokenShard::tokens).collect();
        assert_eq!(lengths, [2, 1, 2]);
        let shards = shard_cache.keep_only(&[second, third]);
        assert_eq!(missing(&shards, &[second, third]), [third]);
        let shards = shard_cache.keep_only(&[first, second]);
        let wanted = missing(&shards, &[first, second]);
        assert_eq!(wanted, [first], "it was not wanted in between");
    }
}
