//! NATS tokens: fixed bytes, round trips, and every way in which one is refused.

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use identity::claims::{
    AccountClaims, AccountKey, AccountLimits, OperatorClaims, Scope, ScopeKind, Subjects,
    UserClaims, UserRights,
};
use identity::jwt::{Chain, JwtError, Subject, check_label, mint, verify, verify_chain};
use identity::{KeyKind, Seed, SigningKey};
use proptest::prelude::*;
use schemas::{AccountId, Code, PublicKey, UnixMillis};
use serde_json::{Value, json};

pub(crate) const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const LATER: UnixMillis = UnixMillis(1_700_000_060_000);

/// A domain in memory: operator, its signing key, one account, its plain key and one role's key.
struct House {
    operator: SigningKey,
    signer: SigningKey,
    account: SigningKey,
    plain: SigningKey,
    role: SigningKey,
    strict: bool,
    revocations: BTreeMap<String, u64>,
}

impl House {
    fn new() -> Self {
        Self {
            operator: SigningKey::generate(KeyKind::Operator),
            signer: SigningKey::generate(KeyKind::Operator),
            account: SigningKey::generate(KeyKind::Account),
            plain: SigningKey::generate(KeyKind::Account),
            role: SigningKey::generate(KeyKind::Account),
            strict: true,
            revocations: BTreeMap::new(),
        }
    }

    fn operator_jwt(&self) -> String {
        let claims = OperatorClaims {
            signing_keys: vec![self.signer.public().clone()],
            strict_signing_key_usage: self.strict,
            system_account: account_id(&self.account),
        };
        mint(
            &subject("op", self.operator.public()),
            claims,
            &self.operator,
            NOW,
        )
        .expect("good claims")
    }

    fn account_jwt(&self, signer: &SigningKey) -> String {
        let scope = Scope {
            kind: ScopeKind::User,
            key: self.role.public().clone(),
            role: "worker".into(),
            template: rights(),
        };
        let claims = AccountClaims {
            signing_keys: vec![
                AccountKey::Plain(self.plain.public().clone()),
                AccountKey::Scoped(Box::new(scope)),
            ],
            revocations: self.revocations.clone(),
            imports: vec![],
            exports: vec![],
            limits: AccountLimits::without_jetstream(),
        };
        mint(&subject("acct", self.account.public()), claims, signer, NOW).expect("good claims")
    }

    fn user_jwt(
        &self,
        user: &PublicKey,
        signer: &SigningKey,
        rights: Option<UserRights>,
    ) -> String {
        let account = account_id(&self.account);
        let claims = match rights {
            Some(rights) => UserClaims {
                publish: rights.publish,
                subscribe: rights.subscribe,
                subs: Some(rights.subs),
                ..UserClaims::of_role(account, Vec::new())
            },
            None => UserClaims::of_role(account, vec!["run:demo".into()]),
        };
        mint(&subject("w1", user), claims, signer, NOW).expect("good claims")
    }

    fn check(&self, user: &str) -> Result<Chain, JwtError> {
        let account = self.account_jwt(&self.signer);
        verify_chain(
            user,
            &account,
            &self.operator_jwt(),
            self.operator.public(),
            NOW,
        )
    }
}

fn subject<'a>(name: &'a str, key: &'a PublicKey) -> Subject<'a> {
    Subject {
        name,
        key,
        not_before: None,
        expires: Some(LATER),
    }
}

fn account_id(key: &SigningKey) -> AccountId {
    key.public()
        .as_str()
        .parse()
        .expect("a key of kind account")
}

fn user() -> PublicKey {
    SigningKey::generate(KeyKind::User).public().clone()
}

fn rights() -> UserRights {
    let subjects = |subject: &str| Subjects {
        allow: vec![subject.into()],
        deny: vec![],
    };
    UserRights {
        publish: subjects("a.{{subject()}}.>"),
        subscribe: subjects("_INBOX.{{subject()}}.>"),
        subs: 64,
        data: -1,
        payload: 1024,
        allowed_connection_types: vec!["STANDARD".into()],
    }
}

/// The key pair of fixed bytes, and ours of the same bytes.
pub(crate) fn fixed(kind: KeyKind, byte: u8) -> (nkeys::KeyPair, SigningKey) {
    let nkey = match kind {
        KeyKind::Operator => nkeys::KeyPairType::Operator,
        KeyKind::Account => nkeys::KeyPairType::Account,
        KeyKind::User => nkeys::KeyPairType::User,
    };
    let pair = nkeys::KeyPair::new_from_raw(nkey, [byte; 32]).expect("any bytes are a key");
    let scratch = tempfile::NamedTempFile::new().expect("a scratch file");
    std::fs::write(scratch.path(), pair.seed().expect("it is private")).expect("it is ours");
    let key = SigningKey::from_seed(kind, &Seed::read(scratch.path()).expect("mode 0600"))
        .expect("a seed");
    (pair, key)
}

/// Any header and claims, with a right signature by `pair`: what a careless reader would take.
pub(crate) fn forge(pair: &nkeys::KeyPair, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let input = format!("{}.{}", encode(header), encode(claims));
    format!(
        "{input}.{}",
        BASE64URL_NOPAD.encode(&pair.sign(input.as_bytes()).expect("it is private"))
    )
}

#[test]
fn a_token_of_fixed_keys_and_time_has_fixed_bytes() {
    let ((_, account), (_, user)) = (fixed(KeyKind::Account, 1), fixed(KeyKind::User, 2));
    let claims = UserClaims::of_role(account_id(&account), vec!["run:demo".into()]);
    let token = mint(&subject("w1", user.public()), claims, &account, NOW).expect("good claims");
    let golden = include_str!("golden/user.jwt").trim_end();
    assert_eq!(token, golden);
    let parts: Vec<&str> = golden.split('.').collect();
    let decode = |part: &str| {
        String::from_utf8(BASE64URL_NOPAD.decode(part.as_bytes()).expect("base64url"))
            .expect("text")
    };
    assert_eq!(decode(parts[0]), r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims: Value = serde_json::from_str(&decode(parts[1])).expect("JSON");
    assert_eq!(claims["nats"]["type"], "user");
    assert_eq!(claims["nats"]["version"], 2);
    assert_eq!(claims["jti"].as_str().map(str::len), Some(52));
    assert!(
        claims["nats"].get("pub").is_none() && claims["nats"].get("subs").is_none(),
        "a role's users carry no rights"
    );
}

#[test]
fn every_kind_round_trips() {
    let house = House::new();
    let operator = verify::<OperatorClaims>(&house.operator_jwt(), NOW).expect("just minted");
    assert_eq!(
        (operator.name.as_str(), operator.issued, operator.expires),
        ("op", NOW, Some(LATER))
    );
    let account =
        verify::<AccountClaims>(&house.account_jwt(&house.signer), NOW).expect("just minted");
    assert_eq!(account.claims.limits, AccountLimits::without_jetstream());
    assert_eq!(account.claims.signing_keys.len(), 2);
    let key = user();
    let jwt =
        verify::<UserClaims>(&house.user_jwt(&key, &house.role, None), NOW).expect("just minted");
    assert_eq!((&jwt.subject, &jwt.issuer), (&key, house.role.public()));
    assert_eq!(jwt.claims.tags, ["run:demo"]);
}

#[test]
fn a_token_of_one_kind_is_none_of_another() {
    let house = House::new();
    let (operator, account) = (house.operator_jwt(), house.account_jwt(&house.signer));
    let user = house.user_jwt(&user(), &house.role, None);
    assert!(
        verify::<UserClaims>(&account, NOW).is_err()
            && verify::<UserClaims>(&operator, NOW).is_err()
    );
    assert!(
        verify::<AccountClaims>(&user, NOW).is_err()
            && verify::<AccountClaims>(&operator, NOW).is_err()
    );
    assert!(
        verify::<OperatorClaims>(&user, NOW).is_err()
            && verify::<OperatorClaims>(&account, NOW).is_err()
    );
}

#[test]
fn chains_name_the_role() {
    let house = House::new();
    let key = user();
    let of_role = house
        .check(&house.user_jwt(&key, &house.role, None))
        .expect("a whole chain");
    assert_eq!(
        (
            of_role.role.as_deref(),
            &of_role.account,
            &of_role.user.subject
        ),
        (Some("worker"), house.account.public(), &key)
    );
    let own = house
        .check(&house.user_jwt(&key, &house.plain, Some(rights())))
        .expect("a whole chain");
    assert_eq!(own.role, None);
}

#[test]
fn strangers_in_the_chain_are_refused() {
    let house = House::new();
    let stranger = House::new();
    let token = house.user_jwt(&user(), &house.role, None);
    // The key that signed the user is one that the account does not list, or its identity key in
    // spite of strict use.
    let by_stranger = house.user_jwt(&user(), &stranger.role, None);
    let by_identity = house.user_jwt(&user(), &house.account, Some(rights()));
    for forged in [&by_stranger, &by_identity] {
        assert!(matches!(house.check(forged), Err(JwtError::Issuer { .. })));
    }
    // The user names another account than the one that is checked.
    assert!(matches!(
        stranger.check(&token),
        Err(JwtError::Issuer { .. })
    ));
    // A stranger signed the account, or the operator's identity key did in spite of strict use.
    let domain = house.operator.public();
    for signer in [&stranger.signer, &house.operator] {
        let account = house.account_jwt(signer);
        assert!(matches!(
            verify_chain(&token, &account, &house.operator_jwt(), domain, NOW),
            Err(JwtError::Issuer { .. })
        ));
    }
    // The operator is another.
    let account = house.account_jwt(&house.signer);
    let refused = verify_chain(&token, &account, &stranger.operator_jwt(), domain, NOW);
    assert!(matches!(refused, Err(JwtError::Issuer { .. })));
    // A role's user carries rights of its own.
    let widened = house.user_jwt(&user(), &house.role, Some(rights()));
    assert!(matches!(
        house.check(&widened),
        Err(JwtError::Issuer { .. })
    ));
}

#[test]
fn identity_keys_sign_where_use_is_not_strict() {
    let house = House {
        strict: false,
        ..House::new()
    };
    let token = house.user_jwt(&user(), &house.account, Some(rights()));
    let account = house.account_jwt(&house.operator);
    assert!(
        verify_chain(
            &token,
            &account,
            &house.operator_jwt(),
            house.operator.public(),
            NOW
        )
        .is_ok()
    );
}

#[test]
fn revoked_users_are_refused_until_issued_anew() {
    let key = user();
    for entry in [key.as_str(), "*"] {
        let mut house = House::new();
        let token = house.user_jwt(&key, &house.role, None);
        house.revocations.insert(entry.into(), NOW.get() / 1000);
        assert!(
            matches!(house.check(&token), Err(JwtError::Revoked(_))),
            "the same second counts as before"
        );
        house.revocations.insert(entry.into(), NOW.get() / 1000 - 1);
        assert!(house.check(&token).is_ok(), "issued after it");
    }
}

/// A whole chain that is valid in itself, but belongs to another domain.
#[test]
fn a_chain_ends_at_the_operator_of_this_domain() {
    let (house, other) = (House::new(), House::new());
    let token = house.user_jwt(&user(), &house.role, None);
    let account = house.account_jwt(&house.signer);
    let ends_at = |operator: &str, domain: &SigningKey| {
        verify_chain(&token, &account, operator, domain.public(), NOW).map(|chain| chain.role)
    };
    assert!(ends_at(&house.operator_jwt(), &house.operator).is_ok());
    let refused =
        |ended: Result<Option<String>, JwtError>| matches!(ended, Err(JwtError::Issuer { .. }));
    assert!(
        refused(ends_at(&house.operator_jwt(), &other.operator)),
        "another domain's"
    );
    let claims = || OperatorClaims {
        signing_keys: vec![house.signer.public().clone()],
        strict_signing_key_usage: true,
        system_account: account_id(&house.account),
    };
    let about = |key: &SigningKey, signer: &SigningKey| {
        mint(&subject("op", key.public()), claims(), signer, NOW).expect("good claims")
    };
    assert!(
        refused(ends_at(
            &about(&house.operator, &other.operator),
            &house.operator
        )),
        "vouched for by a stranger"
    );
    assert!(
        refused(ends_at(
            &about(&other.operator, &house.operator),
            &house.operator
        )),
        "about a stranger"
    );
}

/// Only the role says what its users may do.
#[test]
fn a_user_of_a_role_has_no_right_or_limit_of_its_own() {
    let house = House::new();
    let some = || Subjects {
        allow: vec!["a.b".into()],
        deny: vec![],
    };
    let denied = || Subjects {
        allow: vec![],
        deny: vec!["a.b".into()],
    };
    type Change<'a> = &'a dyn Fn(&mut UserClaims);
    let changes: [(&str, Change<'_>); 7] = [
        ("subs", &|claims| claims.subs = Some(1)),
        ("data", &|claims| claims.data = Some(1)),
        ("payload", &|claims| claims.payload = Some(-1)),
        ("publish", &|claims| claims.publish = some()),
        ("subscribe", &|claims| claims.subscribe = some()),
        ("publish, denied", &|claims| claims.publish = denied()),
        ("subscribe, denied", &|claims| claims.subscribe = denied()),
    ];
    for (name, change) in changes {
        let mut claims = UserClaims::of_role(account_id(&house.account), Vec::new());
        change(&mut claims);
        assert!(claims.has_rights(), "{name}");
        let token = mint(&subject("w1", &user()), claims, &house.role, NOW).expect("good claims");
        assert!(
            matches!(house.check(&token), Err(JwtError::Issuer { .. })),
            "{name}"
        );
    }
}

#[test]
fn windows_are_checked() {
    let house = House::new();
    let key = user();
    let window = Subject {
        name: "w1",
        key: &key,
        not_before: Some(NOW),
        expires: Some(LATER),
    };
    let claims = || UserClaims::of_role(account_id(&house.account), vec![]);
    let token = mint(&window, claims(), &house.role, NOW).expect("good claims");
    let at = |millis| verify::<UserClaims>(&token, UnixMillis(millis));
    assert!(at(NOW.get()).is_ok() && at(LATER.get() - 1).is_ok());
    for (outside, said) in [
        (NOW.get() - 1, "is not valid before 2023-11-14"),
        (LATER.get(), "ended at 2023-11-14"),
    ] {
        let error = at(outside).expect_err("outside");
        assert!(
            error.code() == Code::CredentialExpired && error.to_string().contains(said),
            "{error}"
        );
    }
    let endless = Subject {
        not_before: None,
        expires: None,
        ..window
    };
    let token = mint(&endless, claims(), &house.role, NOW).expect("good claims");
    assert!(verify::<UserClaims>(&token, UnixMillis(u64::MAX)).is_ok());
}

#[test]
fn names_and_tags_cannot_become_wildcards() {
    let house = House::new();
    let key = user();
    let account = || account_id(&house.account);
    for bad in [
        "",
        "*",
        ">",
        "a.b",
        "a b",
        "a*",
        "é",
        "a\n",
        "{{tag(run)}}",
        &"a".repeat(65),
    ] {
        assert!(check_label(bad).is_err(), "{bad:?}");
        let named = mint(
            &subject(bad, &key),
            UserClaims::of_role(account(), vec![]),
            &house.role,
            NOW,
        );
        assert!(matches!(named, Err(JwtError::Label { .. })), "{bad:?}");
        for tag in [format!("run:{bad}"), format!("{bad}:demo"), bad.to_owned()] {
            let tagged = mint(
                &subject("w1", &key),
                UserClaims::of_role(account(), vec![tag]),
                &house.role,
                NOW,
            );
            assert!(matches!(tagged, Err(JwtError::Label { .. })), "{bad:?}");
        }
    }
    // A thief of a role's key mints any token; a reader still refuses.
    let ((pair, _), (_, victim)) = (fixed(KeyKind::Account, 1), fixed(KeyKind::User, 2));
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = |name: &str, tag: &str| {
        json!({"iat": 1, "iss": pair.public_key(), "name": name, "sub": victim.public().as_str(),
            "nats": {"type": "user", "version": 2, "tags": [tag]}})
    };
    assert!(verify::<UserClaims>(&forge(&pair, &header, &claims("w1", "run:demo")), NOW).is_ok());
    for (name, tag) in [
        ("*", "run:demo"),
        ("w1", "run:*"),
        ("w1", "run:>"),
        ("w1", "run"),
        ("w1", "a:b:c"),
    ] {
        let forged = forge(&pair, &header, &claims(name, tag));
        assert!(
            matches!(
                verify::<UserClaims>(&forged, NOW),
                Err(JwtError::Label { .. })
            ),
            "{name} {tag}"
        );
    }
}

#[test]
fn headers_and_claims_of_other_forms_are_refused() {
    let ((pair, _), (_, victim)) = (fixed(KeyKind::Account, 1), fixed(KeyKind::User, 2));
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let claims = json!({"iat": 1, "iss": pair.public_key(), "name": "w1", "sub": victim.public().as_str(),
        "nats": {"type": "user", "version": 2}});
    assert!(verify::<UserClaims>(&forge(&pair, &header, &claims), NOW).is_ok());
    for (typ, alg) in [
        ("JWT", "none"),
        ("JWT", "HS256"),
        ("JWT", "EdDSA"),
        ("JWT", "ed25519"),
        ("jwt", "ed25519-nkey"),
    ] {
        let forged = forge(&pair, &json!({"typ": typ, "alg": alg}), &claims);
        assert!(
            matches!(
                verify::<UserClaims>(&forged, NOW),
                Err(JwtError::Malformed { .. })
            ),
            "{typ} {alg}"
        );
    }
    let changed = |pointer: &str, value: Value| {
        let mut claims = claims.clone();
        *claims.pointer_mut(pointer).expect("it is there") = value;
        verify::<UserClaims>(&forge(&pair, &header, &claims), NOW)
    };
    let stranger = SigningKey::generate(KeyKind::Account);
    assert!(
        matches!(
            changed("/iss", json!(stranger.public().as_str())),
            Err(JwtError::Key(_))
        ),
        "signed by another"
    );
    assert!(
        changed("/iss", json!(victim.public().as_str())).is_err(),
        "issuer of the wrong kind"
    );
    assert!(
        changed("/sub", json!(stranger.public().as_str())).is_err(),
        "subject of the wrong kind"
    );
    assert!(changed("/sub", json!("*")).is_err() && changed("/iat", json!(-1)).is_err());
    assert!(
        changed("/nats/version", json!(1)).is_err()
            && changed("/nats/type", json!("account")).is_err()
    );
    let mut bearer = claims.clone();
    bearer["nats"]["bearer_token"] = json!(true);
    assert!(verify::<UserClaims>(&forge(&pair, &header, &bearer), NOW).is_err());
}

#[test]
fn minting_wants_keys_of_the_right_kind_and_tokens_that_fit() {
    let house = House::new();
    let key = user();
    let claims = |tags| UserClaims::of_role(account_id(&house.account), tags);
    let by_operator = mint(&subject("w1", &key), claims(vec![]), &house.operator, NOW);
    assert!(matches!(by_operator, Err(JwtError::Issuer { .. })));
    let about_account = mint(
        &subject("w1", house.account.public()),
        claims(vec![]),
        &house.role,
        NOW,
    );
    assert!(matches!(about_account, Err(JwtError::Key(_))));
    let many = (0..200).map(|n| format!("run:demo-{n}")).collect();
    let long = mint(&subject("w1", &key), claims(many), &house.role, NOW);
    assert!(matches!(long, Err(JwtError::TooLong { .. })));
    let typical = mint(
        &subject("w1", &key),
        claims(vec!["run:demo".into()]),
        &house.role,
        NOW,
    )
    .expect("good claims");
    assert!(
        typical.len() < 800,
        "{} bytes of 4096 in CONNECT",
        typical.len()
    );
}

proptest! {
    #[test]
    fn any_changed_character_is_noticed(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.=-]") {
        let golden = include_str!("golden/user.jwt").trim_end();
        let mut bytes = golden.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = to.as_bytes()[0];
        let changed = String::from_utf8(bytes).expect("still ASCII");
        prop_assume!(changed != golden);
        prop_assert!(verify::<UserClaims>(&changed, NOW).is_err());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,80}|[A-Za-z0-9_-]{0,20}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}") {
        prop_assert!(verify::<UserClaims>(&text, NOW).is_err());
    }
}
