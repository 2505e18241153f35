use std::fs;

use schemas::RunId;

use super::*;
use crate::domain::InitOptions;
use crate::revocation::MARGIN;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const HOUR: Millis = Millis::from_secs(3600);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

/// A domain, and the folder of a machine that has the only credentials of `worker-7`.
struct Scene {
    scratch: tempfile::TempDir,
    domain: Domain,
    machine: DomainLayout,
}

impl Scene {
    fn new(mutual_tls: bool) -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions {
            mutual_tls,
            ..InitOptions::default()
        };
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &options, NOW).expect("an empty folder");
        let machine = DomainLayout::new(&scratch.path().join("machine"));
        let issued = domain.issue(Role::Worker, "worker-7", Some(&run()), HOUR, NOW);
        let from = issued.expect("a fresh name").credentials;
        let to = machine.credentials("worker-7");
        for ending in ["creds", "pem"] {
            let (from, to) = (from.with_extension(ending), to.with_extension(ending));
            if let Ok(text) = fs::read(&from) {
                write_private(&to, &text).expect("it takes files");
                fs::remove_file(&from).expect("it is ours");
            }
        }
        Self {
            scratch,
            domain,
            machine,
        }
    }

    fn held(&self) -> Credentials {
        Credentials::read(&self.machine.credentials("worker-7")).expect("they are there")
    }

    fn reissue(&self, what: &str, now: UnixMillis) -> Result<TokenFile, Code> {
        let made = self.domain.reissue(what, HOUR, now);
        made.map_err(|error| error.code())
    }

    /// Takes it some time after it was made.
    fn take(&self, file: &TokenFile) -> Result<Issued, Code> {
        self.take_at(file, file.ends)
    }

    fn take_at(&self, file: &TokenFile, now: UnixMillis) -> Result<Issued, Code> {
        file.take(&self.machine, now).map_err(|error| error.code())
    }
}

#[test]
fn tl_06_a_machine_that_was_off_goes_on_with_its_own_keys() {
    for mutual in [false, true] {
        let scene = Scene::new(mutual);
        let before = scene.held();
        let key = before.public().clone();
        let list = scene.domain.layout().issued();
        let known = list.find(&key).expect("it is ours").expect("it was issued");
        let late = NOW.after(Millis(100 * HOUR.get()));
        let made = scene.reissue("worker-7", late).expect("it is recorded");
        let path = scene.scratch.path().join("token.json");
        made.write(&path).expect("it takes files");
        let seed = before.key().seed().expose().trim().to_owned();
        let text = fs::read_to_string(&path).expect("it was written");
        assert!(!text.contains(&seed), "the file holds a secret");
        let read = TokenFile::read(&path).expect("it was written");
        assert_eq!(read, made);

        let issued = scene.take(&read).expect("it is this machine's");
        let after = scene.held();
        assert_eq!((&issued.public, issued.expires), (&key, made.ends));
        assert_eq!(after.public(), &key);
        assert_eq!(after.token().expires, Some(late.after(HOUR)));
        assert_eq!(after.token().claims, before.token().claims);
        let shown = ClientFile::beside(&issued.credentials);
        assert_eq!(shown.exists(), mutual);
        if mutual {
            let holder = shown.holder().expect("it was written");
            assert_eq!((holder.key, holder.ends), (key.clone(), made.ends));
        }
        // Name, run, audit key and seat stay.
        let now = list.find(&key).expect("it is ours").expect("it was issued");
        let expected = Registration {
            issued: late,
            ends: made.ends,
            ..known
        };
        assert_eq!(now, expected);
        // By its key it has the same; and an older file undoes nothing.
        let newer = late.after(HOUR);
        let second = scene.reissue(key.as_str(), newer).expect("it is recorded");
        scene.take(&second).expect("it is newer");
        assert_eq!(scene.take(&made), Err(Code::CredentialMalformed));
        assert_eq!(scene.held().token().expires, Some(second.ends));
    }
}

#[test]
fn tl_06_a_new_token_may_end_sooner_than_the_one_that_was_voided() {
    let scene = Scene::new(false);
    let short = scene.domain.reissue("worker-7", Millis::from_secs(60), NOW);
    let short = short.expect("it is recorded");
    scene.take(&short).expect("it was issued later");
    let ends = scene.held().token().expires;
    assert_eq!(ends, Some(NOW.after(Millis::from_secs(60))));
}

#[test]
fn tl_06_a_token_from_the_future_is_not_taken_and_the_files_from_before_stay() {
    let scene = Scene::new(true);
    let path = scene.machine.credentials("worker-7");
    let files = [path.clone(), path.with_extension("pem")];
    let read = || {
        files
            .clone()
            .map(|file| fs::read(file).expect("it is there"))
    };
    let beside = files.clone().map(|file| {
        let mut name = file.into_os_string();
        name.push(".before");
        PathBuf::from(name)
    });
    let before = read();
    // The clock of the registrar is a year ahead. Taken, it would shut out every later token.
    let ahead = NOW.after(Millis(365 * 24 * HOUR.get()));
    let made = scene.reissue("worker-7", ahead).expect("it is recorded");
    assert_eq!(scene.take_at(&made, NOW), Err(Code::CredentialMalformed));
    let just = UnixMillis(ahead.get() - MARGIN.get() - 1000);
    assert_eq!(scene.take_at(&made, just), Err(Code::CredentialMalformed));
    assert_eq!(read(), before);
    assert!(
        beside.iter().all(|file| !file.exists()),
        "nothing was taken"
    );
    let just = UnixMillis(ahead.get() - MARGIN.get());
    for _again in 0..2 {
        scene
            .take_at(&made, just)
            .expect("clocks differ by minutes");
        assert_ne!(read(), before);
        let kept = beside
            .clone()
            .map(|file| fs::read(file).expect("it is kept"));
        assert_eq!(kept, before);
    }
}

#[test]
fn tl_07_a_revoked_key_a_stranger_and_another_role_get_no_token() {
    let scene = Scene::new(false);
    assert_eq!(scene.reissue("nobody", NOW), Err(Code::HolderMissing));
    let issue = |role: Role, name: &str| {
        let run = role.is_tenant().then(run);
        let issued = scene.domain.issue(role, name, run.as_ref(), HOUR, NOW);
        issued.expect("a fresh name")
    };
    issue(Role::Operator, "operator");
    assert_eq!(scene.reissue("operator", NOW), Err(Code::HolderMissing));
    let bounds = scene.domain.reissue("worker-7", Millis(0), NOW);
    assert_eq!(
        bounds.expect_err("it is too short").code(),
        Code::ConfigInvalid
    );

    let key = scene.held().public().clone();
    let list = scene.domain.layout().issued();
    let twin = Registration {
        public: issue(Role::Worker, "other").public,
        ..list.find(&key).expect("it is ours").expect("it was issued")
    };
    list.record(&twin).expect("it takes files");
    assert_eq!(scene.reissue("worker-7", NOW), Err(Code::HolderMissing));
    assert!(scene.reissue(key.as_str(), NOW).is_ok());
    let account = scene.domain.tenant().expect("an account");
    scene
        .domain
        .revoke(&account, &key, None, NOW)
        .expect("it is a user's key");
    assert_eq!(scene.reissue(key.as_str(), NOW), Err(Code::HolderBlocked));
    let of_the_name = scene.reissue("worker-7", NOW).expect("the other one");
    assert_eq!(of_the_name.worker, twin.public);
    list.block(&twin.public, NOW).expect("it is ours");
    assert_eq!(scene.reissue("worker-7", NOW), Err(Code::HolderBlocked));
}

#[test]
fn tl_07_an_older_copy_of_its_record_gets_a_revoked_key_no_token() {
    let scene = Scene::new(false);
    let key = scene.held().public().clone();
    let list = scene.domain.layout().issued();
    let copy = list.find(&key).expect("it is ours").expect("it was issued");
    let account = &copy.account;
    let revoked = scene.domain.revoke(account, &key, None, NOW);
    let revoked = revoked.expect("it is a user's key");
    list.record(&copy).expect("it takes files");
    for now in [NOW, revoked.until, revoked.until.after(HOUR)] {
        assert_eq!(scene.reissue(key.as_str(), now), Err(Code::HolderBlocked));
    }
    // A key that was issued anew since then has it lifted.
    let issued = revoked.until.after(Millis::from_secs(1));
    let lifted = Registration { issued, ..copy };
    list.record(&lifted).expect("it takes files");
    let made = scene.reissue(key.as_str(), NOW).expect("it is lifted");
    assert_eq!(made.worker, key);
    let record = list.find(&key).expect("it is ours").expect("it was issued");
    assert!(!revoked.covers(record.issued), "{record:?}");
}

#[test]
fn fg_08_a_machine_takes_no_token_and_no_certificate_of_another() {
    let scene = Scene::new(true);
    let issued = scene
        .domain
        .issue(Role::Worker, "worker-8", Some(&run()), HOUR, NOW);
    let other = issued.expect("a fresh name").public;
    let made = scene.reissue("worker-7", NOW).expect("it is recorded");
    let theirs = scene.reissue("worker-8", NOW).expect("it is recorded");
    let before = fs::read(scene.machine.credentials("worker-7")).expect("it is there");
    let operator = scene
        .domain
        .certificate_of(&made.worker, Role::Operator, made.ends, NOW)
        .expect("its key");
    let cases: [(TokenFile, Code); 6] = [
        (
            TokenFile {
                token: theirs.token.clone(),
                ..made.clone()
            },
            Code::CredentialMalformed,
        ),
        (theirs.clone(), Code::CredentialUnreadable),
        (
            TokenFile {
                name: "../worker-7".to_owned(),
                ..made.clone()
            },
            Code::ConfigInvalid,
        ),
        (
            TokenFile {
                certificate: theirs.certificate,
                ..made.clone()
            },
            Code::ClientCertificateOther,
        ),
        (
            TokenFile {
                certificate: operator,
                ..made.clone()
            },
            Code::ClientCertificateOther,
        ),
        (
            TokenFile {
                certificate: None,
                ..made.clone()
            },
            Code::ClientCertificateOther,
        ),
    ];
    for (file, code) in cases {
        assert_eq!(scene.take(&file), Err(code), "{file:?}");
    }
    let now = fs::read(scene.machine.credentials("worker-7")).expect("it is there");
    assert_eq!(now, before);
    assert_ne!(other, made.worker);
    let path = scene.scratch.path().join("token.json");
    write_private(&path, b"{}").expect("it takes files");
    let refused = TokenFile::read(&path).expect_err("it is none");
    assert_eq!(refused.code(), Code::CredentialMalformed);
}
