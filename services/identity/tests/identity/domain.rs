//! A trust domain on disk: its files, the credentials of each role, and the refusals.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use identity::claims::{AccountClaims, OperatorClaims};
use identity::domain::{DomainError, LIFETIME_DEFAULT, LIFETIME_MAX};
use identity::jwt::{verify, verify_chain};
use identity::secret::FileError;
use identity::tls::server_config;
use identity::{
    AuditKey, BrokerFiles, Credentials, Domain, InitOptions, KeyKind, ManifestKey, SigningKey,
    StoreKeys,
};
use schemas::permission::Role;
use schemas::{Code, Millis, RunId, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn new_domain(scratch: &Path) -> Domain {
    Domain::init(&scratch.join(".diloco"), &InitOptions::default(), NOW).expect("an empty folder")
}

/// Every file and folder under `path`.
fn walk(path: &Path, visit: &mut impl FnMut(&Path)) {
    visit(path);
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it is ours") {
            walk(&entry.expect("it is ours").path(), visit);
        }
    }
}

#[test]
fn everything_is_the_owners_alone_and_nothing_temporary_stays() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    for role in Role::ALL {
        let run = role.is_tenant().then(run);
        domain
            .issue(role, role.name(), run.as_ref(), LIFETIME_DEFAULT, NOW)
            .expect("a fresh name");
    }
    domain
        .write_server_config(&scratch.path().join("generated"), NOW)
        .expect("the folder takes files");
    let mut files = 0;
    for root in [".diloco", "generated"] {
        walk(&scratch.path().join(root), &mut |path| {
            let mode = fs::metadata(path).expect("it is ours").permissions().mode() & 0o777;
            let expected = if path.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, expected, "{}", path.display());
            assert!(
                !path.to_string_lossy().contains(".init-"),
                "{}",
                path.display()
            );
            files += usize::from(path.is_file());
        });
    }
    // 15 keys and one for each role, the names of accounts, 4 files of TLS, 4 of the store's keys,
    // the bundle and the log manifest; credentials of each role with its record, and 2 audit keys;
    // 4 files of configuration.
    let roles = Role::ALL.len();
    assert_eq!(files, 15 + roles + 1 + 4 + 4 + 2 + 2 * roles + 2 + 4);
    let layout = domain.layout();
    let trust = domain.trust();
    assert_eq!(
        trust.manifest_keys,
        [ManifestKey::read(&layout.manifest_key())
            .expect("a key")
            .public()
            .clone()]
    );
    assert_eq!(
        trust.audit_keys,
        [AuditKey::read(&layout.coordinator_audit_key())
            .expect("a key")
            .public()
            .clone()]
    );
    assert_eq!(trust.ca, layout.ca());
    let keys = StoreKeys::read(&layout.store_keys()).expect("it was made");
    let coordinators = StoreKeys::read(&layout.coordinators_store_keys()).expect("it was made");
    assert!(keys.log.is_some() && keys.audit.is_some());
    assert!(coordinators.log.is_none() && coordinators.audit.is_none());
    assert_eq!(coordinators.admin.id(), keys.admin.id());
}

#[test]
fn a_domain_is_never_overwritten() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    assert_eq!(
        Domain::open(&folder).expect_err("none yet").code(),
        Code::DomainMissing
    );
    let domain = new_domain(scratch.path());
    let again = Domain::init(&folder, &InitOptions::default(), NOW).expect_err("there is one");
    assert_eq!(again.code(), Code::DomainExists);
    assert_eq!(
        Domain::open(&folder).expect("still the first").trust(),
        domain.trust()
    );
    // Keys without a bundle, not left by an unfinished `init`, may be all that somebody has left,
    // and must not be overwritten.
    fs::remove_file(domain.layout().trust()).expect("it is ours");
    assert!(matches!(
        Domain::open(&folder),
        Err(DomainError::Missing(_))
    ));
    assert!(matches!(
        Domain::init(&folder, &InitOptions::default(), NOW),
        Err(DomainError::Unfinished(_))
    ));
}

#[test]
fn what_can_be_known_is_checked_before_anything_is_written() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    for name in [
        "not a name",
        "",
        "host\u{e9}",
        "-host",
        "10.0.0.1:4222",
        "https://host",
        "host.",
        "*",
        "a..b",
    ] {
        let options = InitOptions {
            server_names: vec!["nats.example".into(), name.into()],
            ..InitOptions::default()
        };
        let error =
            Domain::init(&folder, &options, NOW).expect_err("no client would look for that");
        assert_eq!(error.code(), Code::ConfigInvalid, "{name:?}");
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
    for name in ["do\\llar", "do$llar", "quo\"te", "li\nne"] {
        let folder = scratch.path().join(name).join("domain");
        let error = Domain::init(&folder, &InitOptions::default(), NOW)
            .expect_err("the broker cannot name it");
        assert!(matches!(error, DomainError::Unquotable(_)), "{error}");
    }
    assert_eq!(
        fs::read_dir(scratch.path()).expect("it is ours").count(),
        0,
        "nothing was written"
    );
    let names = [
        "nats.example",
        "*.example.org",
        "10.0.0.1",
        "fd00::1",
        "localhost",
    ]
    .map(str::to_owned);
    Domain::init(
        &folder,
        &InitOptions {
            server_names: names.to_vec(),
            ..InitOptions::default()
        },
        NOW,
    )
    .expect("all of these can be reached");
}

/// The states that a kill leaves: before anything was moved in, after each move, and before the
/// last step.
#[test]
fn an_init_that_broke_off_is_finished_by_the_next() {
    const MOVES: [&str; 6] = [
        "keys",
        "tls",
        "store",
        "credentials",
        "audit-keys",
        "trust.json",
    ];
    for moved in 0..=MOVES.len() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let folder = scratch.path().join(".diloco");
        fs::create_dir(&folder).expect("it is ours");
        let made = Domain::init(&scratch.path().join("made"), &InitOptions::default(), NOW)
            .expect("an empty folder");
        fs::rename(made.layout().folder(), folder.join(".init")).expect("it is ours");
        for name in &MOVES[..moved] {
            fs::rename(folder.join(".init").join(name), folder.join(name)).expect("it was made");
        }
        let again = Domain::init(&folder, &InitOptions::default(), NOW);
        assert!(!folder.join(".init").exists(), "{moved}");
        if moved == MOVES.len() {
            assert_eq!(
                again.expect_err("it was complete").code(),
                Code::DomainExists
            );
            assert_eq!(
                Domain::open(&folder).expect("complete").trust().domain,
                made.trust().domain
            );
            continue;
        }
        let again = again.unwrap_or_else(|error| panic!("after {moved} moves: {error}"));
        assert_ne!(
            again.trust().domain,
            made.trust().domain,
            "nothing of the first is kept"
        );
        again
            .issue(Role::Operator, "operator", None, LIFETIME_DEFAULT, NOW)
            .expect("it is whole");
    }
}

#[test]
fn an_init_whose_filling_fails_leaves_no_part() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    let failing = |staged: &Domain| {
        staged.issue(Role::Operator, "operator", None, LIFETIME_DEFAULT, NOW)?;
        Err(DomainError::Lifetime(Millis(0)))
    };
    let failed = Domain::init_with(&folder, &InitOptions::default(), NOW, failing);
    assert!(matches!(failed, Err(DomainError::Lifetime(_))));
    assert_eq!(fs::read_dir(&folder).expect("it was made").count(), 0);
    assert!(
        Domain::init(&folder, &InitOptions::default(), NOW).is_ok(),
        "and the next one succeeds"
    );
}

/// The broker's configuration names the place where the domain will lie, and not the one where it
/// is made.
#[test]
fn an_init_whose_parts_cannot_be_moved_in_makes_no_domain() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join(".diloco");
    let options = InitOptions::default();
    let made = Domain::init_with(&folder, &options, NOW, |_| {
        // A folder that is not empty cannot be replaced by another.
        fs::create_dir(folder.join("keys"))
            .and_then(|()| fs::write(folder.join("keys/of-another"), b"x"))
            .map_err(|source| DomainError::Template {
                path: folder.clone(),
                source,
            })
    });
    let error = made.expect_err("the keys are not in their place");
    assert!(
        matches!(&error, DomainError::File(FileError::Write { path, .. }) if path.ends_with("keys")),
        "{error}"
    );
    assert!(!folder.join("trust.json").exists() && Domain::open(&folder).is_err());
}

#[test]
fn configuration_that_is_made_with_the_domain_names_its_final_place() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let committed =
        BrokerFiles::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../nats-config"));
    let committed = committed.expect("it is in the repository");
    let folder = scratch.path().join(".diloco");
    let fill = |staged: &Domain| staged.write_broker(&committed, NOW);
    let domain =
        Domain::init_with(&folder, &InitOptions::default(), NOW, fill).expect("an empty folder");
    let layout = domain.layout();
    let text = |name: &str| {
        fs::read_to_string(layout.broker_generated().join(name)).expect("it was written")
    };
    let real = folder.canonicalize().expect("it is there");
    assert!(text("jetstream.conf").contains(&format!("store_dir: \"{}/nats\"", real.display())));
    assert!(text("tls.conf").contains(&format!("\"{}/tls/server.pem\"", real.display())));
    assert!(layout.broker_config().is_file());
    // The file for one node gets its own name below a domain's folder; the others keep theirs.
    let include = layout.broker_config().with_file_name("include");
    assert!(include.join("limits.conf").is_file());
    let listens = || {
        let place = layout.broker_generated().join("listen.conf");
        fs::read_to_string(place).unwrap_or_default()
    };
    assert!(!listens().contains("127.0.0.9:4299"));
    domain.write_listen("127.0.0.9:4299").expect("it is ours");
    assert!(listens().ends_with("listen: \"127.0.0.9:4299\"\n"));
    let missing = BrokerFiles::read(scratch.path()).expect_err("no such files");
    assert!(missing.to_string().contains("--nats-config"), "{missing}");
}

#[test]
fn other_files_in_the_folder_do_not_matter() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    fs::create_dir_all(scratch.path().join(".diloco/logs")).expect("it is ours");
    assert_eq!(
        new_domain(scratch.path()).layout().folder(),
        scratch.path().join(".diloco")
    );
}

/// A broker that reads its configuration again compares bytes: a token that says the same as before
/// stays as it is, and no other does.
#[test]
fn a_token_changes_only_if_its_account_does() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let config = |earlier: &str, now| {
        let config = domain.server_config(earlier, now);
        config.expect("all keys are there").auth
    };
    let later = NOW.after(Millis::from_secs(100));
    let first = config("", NOW);
    assert_eq!(config(&first, later), first);
    assert_ne!(config("", later), first, "the time of issue is in it");

    let changed = |earlier: &str| -> Vec<String> {
        let written = config(earlier, later);
        let pairs = earlier.lines().zip(written.lines());
        let changed = pairs.filter(|(old, new)| old != new);
        changed.map(|(_, new)| new.to_owned()).collect()
    };
    let line = |part: &str| -> &str {
        let found = first.lines().find(|line| line.contains(part));
        found.expect("it is in the text")
    };
    // One that is damaged, and one of another account.
    let damaged = first.replacen("operator: \"ey", "operator: \"ex", 1);
    assert_eq!(changed(&damaged).len(), 1);
    let tenant = domain.tenant().expect("a key");
    let system = domain.accounts().expect("all keys are there").system;
    let (_, of_the_system) = line(&format!("{system}: "))
        .split_once(": ")
        .expect("an account and its token");
    let swapped = first.replace(
        line(tenant.as_str()),
        &format!("  {tenant}: {of_the_system}"),
    );
    assert_eq!(changed(&swapped).len(), 1);

    let key = domain.layout().folder().join("issuer/role-worker.nk");
    let replaced = SigningKey::generate(KeyKind::Account).seed().write(&key);
    replaced.expect("the folder takes files");
    let changed = changed(&first);
    assert_eq!(changed.len(), 1);
    assert!(changed[0].contains(tenant.as_str()), "{changed:?}");
}

#[test]
fn issued_tokens_stand_in_the_chain_that_the_broker_gets() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let auth = domain
        .server_config("", NOW)
        .expect("all keys are there")
        .auth;
    let tokens: Vec<&str> = auth
        .split('"')
        .filter(|part| part.starts_with("eyJ"))
        .collect();
    let operator = tokens
        .iter()
        .find(|token| verify::<OperatorClaims>(token, NOW).is_ok())
        .expect("an operator");
    let account = |id: &str| {
        let about = |token: &&&str| {
            verify::<AccountClaims>(token, NOW).is_ok_and(|jwt| jwt.subject.as_str() == id)
        };
        tokens.iter().find(about).expect("an account")
    };
    for role in Role::ALL {
        let run = role.is_tenant().then(run);
        let issued = domain
            .issue(role, role.name(), run.as_ref(), LIFETIME_DEFAULT, NOW)
            .expect("a fresh name");
        let text = fs::read_to_string(&issued.credentials).expect("it is ours");
        let user = text
            .lines()
            .find(|line| line.starts_with("eyJ"))
            .expect("a token");
        let home = domain.account(role.account()).expect("a key");
        let chain = verify_chain(
            user,
            account(home.as_str()),
            operator,
            &domain.trust().domain,
            NOW,
        )
        .expect("a chain");
        assert_eq!(chain.role.as_deref(), Some(role.name()));
        assert_eq!(chain.user.expires, Some(NOW.after(LIFETIME_DEFAULT)));
        assert_eq!(chain.user.subject, issued.public);
        assert_eq!(
            chain.user.claims.tags,
            if role.is_tenant() {
                vec!["run:demo"]
            } else {
                vec![]
            }
        );
        let emits = matches!(role, Role::Worker | Role::Auditor | Role::Coordinator);
        assert_eq!(issued.audit_key.is_some(), emits);
        if let Some(path) = issued.audit_key {
            assert_ne!(
                AuditKey::read(&path).expect("a key").public(),
                &issued.public,
                "never the connection key"
            );
        }
    }
}

#[test]
fn issuing_again_renews_and_keeps_the_keys() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issue = |lifetime, now| {
        domain
            .issue(Role::Worker, "w1", Some(&run()), lifetime, now)
            .expect("the same holder")
    };
    let first = issue(Millis::from_secs(60), NOW);
    let audit = AuditKey::read(first.audit_key.as_deref().expect("workers emit")).expect("a key");
    let second = issue(Millis::from_secs(3600), NOW.after(Millis(30_500)));
    assert_eq!(
        (first.public, first.credentials),
        (second.public, second.credentials.clone())
    );
    assert_eq!(second.expires, UnixMillis(NOW.get() + 3_630_000));
    let again = AuditKey::read(second.audit_key.as_deref().expect("workers emit")).expect("a key");
    assert_eq!(again.public(), audit.public());
    let credentials = Credentials::read(&second.credentials).expect("it is ours");
    assert_eq!(credentials.token().expires, Some(second.expires));
}

#[test]
fn a_renewed_server_certificate_is_of_the_same_authority() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let layout = domain.layout();
    let read = |path: &Path| fs::read_to_string(path).expect("it is ours");
    let (ca, old) = (read(&layout.ca()), read(&layout.server_certificate()));
    let config = domain
        .server_config("", NOW)
        .expect("all keys are there")
        .tls;
    domain
        .renew_server_certificate(&["nats.example".into()], NOW)
        .expect("its own authority");
    assert_eq!(read(&layout.ca()), ca);
    assert_ne!(read(&layout.server_certificate()), old);
    assert!(
        server_config(&layout.server_certificate(), &layout.server_key()).is_ok(),
        "certificate and key fit"
    );
    assert_eq!(
        domain
            .server_config("", NOW)
            .expect("all keys are there")
            .tls,
        config,
        "under the same paths"
    );
}

#[test]
fn names_runs_and_lifetimes_are_checked_before_anything_is_written() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let run = run();
    let day = Millis::from_secs(24 * 3600);
    for name in ["", "*", "../w1", "a.b", "a/b", ">"] {
        let error = domain
            .issue(Role::Worker, name, Some(&run), day, NOW)
            .expect_err("no such name");
        assert_eq!(error.code(), Code::ConfigInvalid, "{name}");
    }
    assert!(matches!(
        domain.issue(Role::Worker, "w1", None, day, NOW),
        Err(DomainError::Run { .. })
    ));
    assert!(matches!(
        domain.issue(Role::Auditor, "a", Some(&run), day, NOW),
        Err(DomainError::Run { .. })
    ));
    for lifetime in [Millis(0), Millis(999), LIFETIME_MAX.next()] {
        assert!(matches!(
            domain.issue(Role::Worker, "w1", Some(&run), lifetime, NOW),
            Err(DomainError::Lifetime(_))
        ));
    }
    assert_eq!(
        fs::read_dir(domain.layout().folder().join("credentials"))
            .expect("it is ours")
            .count(),
        0
    );
    domain
        .issue(Role::Worker, "w1", Some(&run), day, NOW)
        .expect("a fresh name");
    for (name, lifetime) in [("brief", Millis::from_secs(1)), ("long", LIFETIME_MAX)] {
        domain
            .issue(Role::Worker, name, Some(&run), lifetime, NOW)
            .expect("the shortest and the longest are lifetimes");
    }
    let other: RunId = "other".parse().expect("a name");
    for (role, run) in [(Role::Worker, Some(&other)), (Role::Auditor, None)] {
        assert_eq!(
            domain
                .issue(role, "w1", run, day, NOW)
                .expect_err("taken")
                .code(),
            Code::NameTaken
        );
    }
}

#[test]
fn nothing_that_can_be_printed_holds_a_seed() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let issued = domain
        .issue(Role::Worker, "w1", Some(&run()), LIFETIME_DEFAULT, NOW)
        .expect("a fresh name");
    let config = domain.server_config("", NOW).expect("all keys are there");
    let keys = StoreKeys::read(&domain.layout().store_keys()).expect("it is ours");
    let trust = fs::read_to_string(domain.layout().trust()).expect("it is ours");
    let printed = format!("{domain:?} {issued:?} {config:?} {keys:?} {trust}");
    let mut seeds = 0;
    for folder in ["keys", "vault", "issuer", "audit-keys"] {
        walk(&domain.layout().folder().join(folder), &mut |path| {
            if path.extension().is_some_and(|ending| ending == "nk") {
                let seed = fs::read_to_string(path).expect("it is ours");
                assert!(!printed.contains(seed.trim_end()), "{}", path.display());
                seeds += 1;
            }
        });
    }
    assert_eq!(seeds, 15 + Role::ALL.len() + 1);
    assert!(!printed.contains(keys.admin.expose_secret()));
}

#[test]
fn a_domain_of_an_older_release_is_refused_with_what_to_do() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let domain = new_domain(scratch.path());
    let (path, folder) = (domain.layout().trust(), domain.layout().folder().to_owned());
    let text = fs::read_to_string(&path).expect("it is ours");
    let mut bundle: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    bundle["v"] = 1.into();
    bundle.as_object_mut().expect("an object").remove("tenants");
    fs::write(&path, bundle.to_string()).expect("it is ours");
    let error = Domain::open(&folder).expect_err("its events lie in another layout");
    assert_eq!(error.code(), Code::DomainOlder);
    assert!(error.to_string().contains("diloctl auth init"), "{error}");
}
