use super::*;

#[test]
fn fg_07_evidence_by_either_policy_comes_before_a_missing_verdict() {
    let failed = |code| Some(Err(Failure::new(code, "x")));
    let met = || Some(Ok(Witnessed::new(7, &BTreeSet::from(["a"]))));
    let code = |own, owners| of_both(own, owners).map_err(|failure| failure.code()).err();
    let (fork, few) = (Code::HistoryForked, Code::LogUnwitnessed);
    assert_eq!(code(failed(few), failed(fork)), Some(fork));
    assert_eq!(code(failed(fork), failed(few)), Some(fork));
    assert_eq!(code(met(), failed(fork)), Some(fork));
    assert_eq!(code(failed(few), met()), Some(few));
    assert_eq!(code(None, failed(few)), Some(few));
    let (own, weaker) = of_both(met(), failed(few)).expect("the verifier's is met");
    assert!(own.is_some() && weaker.is_some());
    let (owners, weaker) = of_both(None, met()).expect("the owner's is met");
    assert!(owners.is_some() && weaker.is_none());
}

#[test]
fn fg_07_what_is_asked_of_witnesses_needs_a_policy() {
    let with = |cosigned: &[&str], unwitnessed_max| Witnessing {
        policy: None,
        cosigned: cosigned.iter().map(Into::into).collect(),
        witnesses: None,
        unwitnessed_max,
    };
    for asked in [with(&["a.head"], 0), with(&[], 1)] {
        let refused = check_asked(&asked, false).expect_err("nothing would be compared");
        assert_eq!(refused.code(), Code::ConfigInvalid);
        assert!(check_asked(&asked, true).is_ok());
    }
    assert!(check_asked(&with(&[], 0), false).is_ok());
}

#[test]
fn fg_07_an_old_head_speaks_for_no_newer_events() {
    let mut text = String::new();
    for (seed, name) in (1..).zip(["a", "b", "c"]) {
        let witness = Witness::new(name, [seed; 32]).expect("a name");
        text += &format!("witness {name} {}\n", witness.text());
    }
    let read = |quorum: &str| {
        let text = format!("{text}group g 2 a b c\nquorum {quorum}\n");
        Policy::read(text.as_bytes()).expect("a policy")
    };
    let policy = read("g");
    let seen = [(7, "a"), (10, "b"), (4, "c")];
    let found = Witnessed::new(7, &BTreeSet::from(["a", "b"]));
    assert_eq!(judge(&policy, &seen, 7, 0).as_ref(), Ok(&found));
    let json = serde_json::to_value(&found).expect("it is JSON");
    assert_eq!(json, serde_json::json!({"events": 7, "by": ["a", "b"]}));
    assert_eq!(judge(&policy, &seen, 10, 3), Ok(found));
    for most in [0, 2] {
        let refused = judge(&policy, &seen, 10, most).expect_err("it is too old");
        assert!(refused.contains("--unwitnessed-max"), "{refused}");
    }
    assert!(judge(&policy, &[(10, "b")], 10, 100).is_err());
    assert!(judge(&policy, &[], 10, u64::MAX).is_err());
    let free = judge(&read("none"), &[], 10, 0);
    assert_eq!(free, Ok(Witnessed::new(0, &BTreeSet::new())));
}
