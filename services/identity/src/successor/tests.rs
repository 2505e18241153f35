use schemas::{Millis, RunId};

use super::*;
use crate::domain::InitOptions;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_100_500);

struct Scene {
    _scratch: tempfile::TempDir,
    domain: Domain,
}

impl Scene {
    fn new(mutual_tls: bool) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions {
            mutual_tls,
            ..InitOptions::default()
        };
        let domain = Domain::init(&scratch.path().join("domain"), &options, NOW);
        let domain = domain.expect("an empty folder");
        let run: RunId = "demo".parse().expect("a name");
        let hour = Millis::from_secs(3600);
        for (role, name, run) in [
            (Role::Worker, "w1", Some(&run)),
            (Role::Worker, "w2", Some(&run)),
            (Role::Coordinator, "coordinator", None),
        ] {
            let issued = domain.issue(role, name, run, hour, NOW);
            issued.expect("the name is free");
        }
        Self {
            _scratch: scratch,
            domain,
        }
    }

    fn files(&self, name: &str) -> IdentityFiles {
        let layout = self.domain.layout();
        IdentityFiles {
            credentials: layout.credentials(name),
            audit_key: Some(layout.audit_key(name)).filter(|key| key.exists()),
        }
    }

    fn key(&self, name: &str) -> PublicKey {
        let held = Credentials::read(&self.files(name).credentials);
        held.expect("it is there").public().clone()
    }

    fn begin(&self, name: &str) -> Succession {
        let begun = self.domain.begin_succession(name, LATER);
        begun.expect("it is one of ours")
    }
}

#[test]
fn tl_28_a_holder_keeps_its_key_until_it_takes_the_one_that_waits() {
    let scene = Scene::new(false);
    let files = scene.files("w1");
    let (old, audit) = (scene.key("w1"), files.audit_key.clone().expect("a worker"));
    let signs = || AuditKey::read(&audit).expect("it reads").public().clone();
    let signed = signs();
    assert!(!files.has_successor(LATER));
    assert_eq!(files.take_successor(LATER).expect("nothing waits"), None);
    let begun = scene.begin("w1");
    assert_eq!((&begun.old.public, begun.taken), (&old, false));
    assert_eq!(begun.new.before, Some(old.clone()));
    assert_eq!(
        (&begun.new.name, &begun.new.run),
        (&begun.old.name, &begun.old.run)
    );
    assert_eq!(begun.new.seat, begun.old.seat);
    assert_eq!((scene.key("w1"), signs()), (old.clone(), signed.clone()));
    assert_eq!(scene.begin("w1"), begun, "it makes no further key");
    assert!(files.has_successor(LATER));

    let taken = files.take_successor(LATER).expect("it is whole");
    assert_eq!(taken, Some(begun.new.public.clone()));
    assert_eq!(scene.key("w1"), begun.new.public);
    assert_eq!(Some(signs()), begun.new.audit_key);
    assert_ne!(signs(), signed);
    let found = scene.domain.succession("w1").expect("it reads");
    assert!(found.is_some_and(|found| found.taken));
    assert!(scene.begin("w1").taken, "it begins no other");
    assert!(!files.has_successor(LATER));
    let held = Credentials::read(&files.credentials).expect("it is there");
    assert_eq!(held.token().expires, Some(begun.new.ends));
    assert!(begun.new.ends.get() >= LATER.get() + 3_600_000);
    // The registrar renews both until the old one is revoked.
    let list = scene.domain.layout().issued();
    for key in [&old, &begun.new.public] {
        let record = list.find(key).expect("it reads").expect("it is recorded");
        assert_eq!(record.blocked, None);
    }
    scene
        .domain
        .end_succession("w1")
        .expect("the folder is ours");
    assert_eq!(scene.domain.succession("w1").expect("it reads"), None);
    assert_ne!(scene.begin("w1").new.public, begun.new.public);
}

#[test]
fn a_service_keeps_the_key_of_its_events_and_a_mutual_domain_certifies_the_new_key() {
    let scene = Scene::new(true);
    let files = scene.files("coordinator");
    let begun = scene.begin("coordinator");
    assert_eq!(begun.new.audit_key, begun.old.audit_key);
    files.take_successor(LATER).expect("it is whole");
    let holder = ClientFile::beside(&files.credentials).holder();
    let holder = holder.expect("it was written");
    assert_eq!(
        (holder.key, holder.role),
        (begun.new.public, Role::Coordinator)
    );
}

/// A process that dies between two of the moves takes the rest at its next start.
#[test]
fn a_successor_that_was_taken_by_half_is_taken_whole_later() {
    let scene = Scene::new(false);
    let files = scene.files("w1");
    let begun = scene.begin("w1");
    let audit = files.audit_key.clone().expect("a worker");
    put(&waiting(&audit), &audit).expect("the folder is ours");
    files.take_successor(LATER).expect("the rest is there");
    assert_eq!(scene.key("w1"), begun.new.public);
    let signs = AuditKey::read(&audit).expect("it reads");
    assert_eq!(Some(signs.public().clone()), begun.new.audit_key);
}

#[test]
fn a_succession_that_broke_off_is_begun_anew_and_its_key_is_worth_nothing() {
    let scene = Scene::new(false);
    let files = scene.files("w1");
    let first = scene.begin("w1");
    fs::remove_file(waiting(&files.credentials)).expect("it is ours");
    assert_eq!(scene.domain.succession("w1").expect("it reads"), None);
    let second = scene.begin("w1");
    assert_ne!(first.new.public, second.new.public);
    let list = scene.domain.layout().issued();
    let lost = list.find(&first.new.public).expect("it reads");
    assert!(lost.is_some_and(|lost| lost.blocked.is_some()));
    files.take_successor(LATER).expect("it is whole");
    assert_eq!(scene.key("w1"), second.new.public);
}

#[test]
fn what_is_for_another_holder_is_not_taken() {
    let scene = Scene::new(false);
    let files = scene.files("w1");
    let kept = scene.key("w1");
    scene.begin("w2");
    let theirs = scene.files("w2").credentials;
    fs::copy(waiting(&theirs), waiting(&files.credentials)).expect("it is ours");
    let error = files.take_successor(LATER).expect_err("it is of w2");
    assert_eq!(error.code(), Code::SuccessorOther);
    assert_eq!(scene.key("w1"), kept);
    // The same key is no successor, and would be revoked with itself.
    fs::copy(&files.credentials, waiting(&files.credentials)).expect("it is ours");
    let error = files.take_successor(LATER).expect_err("it is the same");
    assert_eq!(error.code(), Code::SuccessorOther);
}

#[test]
fn strangers_blocked_holders_and_keys_elsewhere_get_none() {
    let scene = Scene::new(false);
    let code = |name: &str| {
        let begun = scene.domain.begin_succession(name, LATER);
        begun.expect_err("it is refused").code()
    };
    assert_eq!(code("nobody"), Code::HolderMissing);
    fs::rename(
        scene.files("w2").credentials,
        scene.domain.layout().folder().join("elsewhere"),
    )
    .expect("it is ours");
    assert_eq!(code("w2"), Code::HolderElsewhere);
    let key = scene.key("w1");
    let list = scene.domain.layout().issued();
    list.block(&key, NOW).expect("it is ours");
    assert_eq!(code("w1"), Code::HolderBlocked);
    assert!(!scene.files("w1").has_successor(LATER));
}

#[test]
fn tl_28_a_worker_elsewhere_may_change_its_key_once_by_an_operators_word() {
    let scene = Scene::new(false);
    let list = scene.domain.layout().issued();
    let until = UnixMillis(LATER.get() + 1000);
    let allow = |name: &str| scene.domain.allow_succession(name, until);
    let old = allow("w1").expect("it is a worker");
    let kept = list.find(&old.public).expect("it reads").expect("recorded");
    assert_eq!((kept.changes_until, &kept), (Some(until), &old));
    let found = || scene.domain.successor_of(&old.public).expect("it reads");
    assert_eq!(found(), None);
    let new = Registration {
        public: ConnectionKey::generate().public().clone(),
        before: Some(old.public.clone()),
        changes_until: None,
        ..old.clone()
    };
    list.record(&new).expect("the folder is ours");
    assert_eq!(found(), Some(new.clone()));
    // A command that is repeated is about the same key.
    assert_eq!(allow("w1").expect("it is a worker").public, old.public);
    list.block(&old.public, LATER).expect("it is ours");
    assert_eq!(allow("w1").expect("it is a worker").public, new.public);
    list.block(&new.public, LATER).expect("it is ours");
    assert_eq!(found(), None, "a blocked key succeeds nobody");
    for nobody in ["w1", "coordinator", "nobody"] {
        let refused = allow(nobody).expect_err("no worker of the name may connect");
        assert_eq!(refused.code(), Code::HolderMissing);
    }
}

/// Its holder was away for longer than the token that waits lives.
#[test]
fn tl_28_a_key_whose_token_has_ended_takes_no_place_and_is_signed_again() {
    let scene = Scene::new(false);
    let files = scene.files("w1");
    let begun = scene.begin("w1");
    let late = begun.new.ends;
    assert!(files.waits_in_vain(late) && !files.has_successor(late));
    assert_eq!(files.take_successor(late).expect("it stays"), None);
    assert_eq!(scene.key("w1"), begun.old.public);
    let again = scene.domain.begin_succession("w1", late);
    let again = again.expect("it goes on");
    assert_eq!(again.new.public, begun.new.public);
    assert_eq!((again.new.issued, again.taken), (late, false));
    assert!(!files.waits_in_vain(late));
    let taken = files.take_successor(late).expect("it is whole");
    assert_eq!(taken, Some(begun.new.public.clone()));
    let held = Credentials::read(&files.credentials).expect("it is there");
    assert_eq!(held.token().expires, Some(again.new.ends));
    let known = scene.domain.layout().issued().find(&begun.new.public);
    assert_eq!(known.expect("it reads"), Some(again.new));
}

#[test]
fn a_blocked_key_is_handed_on_to_nobody() {
    let scene = Scene::new(false);
    let list = scene.domain.layout().issued();
    let first = scene.begin("w1");
    list.block(&first.new.public, LATER).expect("it is ours");
    let second = scene.begin("w1");
    assert_ne!(first.new.public, second.new.public);
    list.block(&second.old.public, LATER).expect("it is ours");
    let refused = scene.domain.begin_succession("w1", LATER);
    let refused = refused.expect_err("somebody revoked it");
    assert_eq!(refused.code(), Code::HolderBlocked);
}
