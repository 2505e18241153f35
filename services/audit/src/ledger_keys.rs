//! The keys that may sign the ledger, as this process knows them, and where they have ended. A
//! bundle that says something else makes it begin anew: events of a key that it does not know would
//! be taken for a stranger's, and those of one that has ended for the ledger's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use identity::TrustBundle;
use identity::trust::EndedKey;
use schemas::PublicKey;

/// Time between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The keys, and the file that names them.
#[derive(Debug)]
pub struct LedgerKeys {
    path: PathBuf,
    known: Known,
}

/// The keys, and those of them that have ended.
type Known = (Vec<PublicKey>, Vec<EndedKey>);

fn known(trust: TrustBundle) -> Known {
    (trust.audit_keys, trust.ended_audit_keys)
}

impl LedgerKeys {
    /// The keys of a bundle that was read from this file.
    pub fn of(path: &Path, trust: &TrustBundle) -> Self {
        Self {
            path: path.to_owned(),
            known: known(trust.clone()),
        }
    }

    /// True if the file names other keys or ends now. One that cannot be read names none.
    pub fn are_others(&self) -> bool {
        TrustBundle::read(&self.path).is_ok_and(|trust| known(trust) != self.known)
    }

    /// Waits until the file names the keys of before: somebody has put it back.
    pub(crate) async fn are_known_again(&self) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        while self.are_others() {
            look.tick().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use identity::{Domain, InitOptions};
    use schemas::{ChainSequence, UnixMillis};

    use super::*;

    #[test]
    fn a_bundle_with_another_key_of_the_ledger_is_noticed_and_one_without_is_not() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &InitOptions::default(), UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let path = domain.layout().trust();
        let keys = LedgerKeys::of(&path, domain.trust());
        assert!(!keys.are_others());
        domain.prepare_manifest_key().expect("it has room");
        assert!(!keys.are_others(), "it is no key of the ledger");
        domain.prepare_event_key().expect("it has room");
        assert!(keys.are_others());
        // So is one that says where a key has ended.
        let next = TrustBundle::read(&path).expect("it is ours");
        let keys = LedgerKeys::of(&path, &next);
        assert!(!keys.are_others());
        let last = BTreeMap::from([(next.audit_keys[0].clone(), ChainSequence(7))]);
        domain.end_event_keys(&last).expect("it is ours");
        assert!(keys.are_others());
        std::fs::write(&path, "{}").expect("it is ours");
        assert!(!keys.are_others(), "it cannot be read");
    }

    #[tokio::test]
    async fn a_bundle_that_is_put_back_ends_the_wait_for_a_new_beginning() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &InitOptions::default(), UnixMillis(1));
        let domain = domain.expect("an empty folder");
        let path = domain.layout().trust();
        let before = std::fs::read(&path).expect("it is ours");
        let keys = LedgerKeys::of(&path, domain.trust());
        domain.prepare_event_key().expect("it has room");
        let mut waits = Box::pin(keys.are_known_again());
        std::future::poll_fn(|context| {
            assert!(waits.as_mut().poll(context).is_pending(), "it is another");
            std::task::Poll::Ready(())
        })
        .await;
        std::fs::write(&path, before).expect("it is ours");
        waits.await;
    }
}
