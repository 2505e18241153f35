//! Tests of the sentry.

use data_encoding::BASE64URL_NOPAD;

use super::*;

mod refused;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn sighting(address: &str, subject: &str) -> Sighting {
    Sighting {
        happening: Happening::PermissionDenied,
        account: None,
        user: None,
        name: String::new(),
        address: address.to_owned(),
        subject: subject.to_owned(),
        reason: "publish".to_owned(),
    }
}

fn seen(events: &[SecurityEvent]) -> Vec<(u64, &str)> {
    let seen = events.iter().filter_map(SecurityEvent::seen);
    seen.map(|seen| (seen.count, seen.subject.as_str()))
        .collect()
}

fn key(letter: &str) -> String {
    format!("U{}", letter.repeat(55))
}

#[test]
fn tl_29_a_refusal_is_told_at_once_and_its_repetitions_together() {
    let mut sentry = Sentry::new(NOW);
    sentry.note(NOW, sighting("a", "x"));
    assert_eq!(seen(&sentry.take(NOW)), [(1, "x")]);
    let soon = NOW.after(Millis(REFUSALS_EVERY.get() - 1));
    for _ in 0..1000 {
        sentry.note(soon, sighting("a", "x"));
    }
    assert_eq!(sentry.take(soon), [], "the while is not over");
    let later = NOW.after(REFUSALS_EVERY);
    let events = sentry.take(later);
    assert_eq!(seen(&events), [(1000, "x")]);
    assert_eq!(events[0].seen().expect("it is one").first, soon);
    let after = later.after(REFUSALS_EVERY);
    assert_eq!(sentry.take(after), [], "nothing more came");
    let table = &sentry.refusals[&Happening::PermissionDenied];
    assert_eq!(
        (table.waiting.len(), table.senders.len()),
        (0, 0),
        "and it is forgotten"
    );
    sentry.note(after, sighting("a", "x"));
    assert_eq!(seen(&sentry.take(after)), [(1, "x")]);
}

#[test]
fn tl_29_sessions_are_told_less_often_and_do_not_take_the_events_of_refusals() {
    let mut sentry = Sentry::new(NOW);
    for number in 0..SECURITY_BURST + 1 {
        let session = Sighting {
            happening: Happening::ClientConnected,
            ..sighting(&number.to_string(), "")
        };
        sentry.note(NOW, session);
    }
    sentry.note(NOW, sighting("a", "x"));
    let events = sentry.take(NOW);
    assert_eq!(events.len() as u64, SECURITY_BURST + 1);
    let refusals = |event: &&SecurityEvent| event.kind() == "permission-denied";
    assert_eq!(events.iter().filter(refusals).count(), 1);
    let more = sentry.take(NOW.after(SECURITY_EVERY));
    assert_eq!(more.len(), 1, "the one for which no event was left");
    let again = Sighting {
        happening: Happening::ClientConnected,
        ..sighting("0", "")
    };
    let minute = NOW.after(REFUSALS_EVERY);
    sentry.note(minute, again);
    assert_eq!(sentry.take(minute), []);
    assert_eq!(sentry.take(NOW.after(SESSIONS_EVERY)).len(), 1);
}

#[test]
fn tl_29_a_sender_that_varies_what_it_does_gets_few_events() {
    let mut sentry = Sentry::new(NOW);
    for number in 0..5000 {
        sentry.note(NOW, sighting("a", &format!("x{number}")));
    }
    sentry.note(NOW, sighting("b", "y"));
    let other = Sighting {
        reason: "subscribe".to_owned(),
        ..sighting("a", "z")
    };
    sentry.note(NOW, other);
    let events = sentry.take(NOW);
    assert_eq!(events.len(), SIGHTINGS_OF_SENDER_MAX + 3);
    let others: Vec<_> = events
        .iter()
        .filter_map(SecurityEvent::seen)
        .filter(|seen| seen.reason.ends_with(OTHERS))
        .collect();
    assert_eq!(others.len(), 1);
    assert!(others[0].reason.starts_with("publish: "));
    assert_eq!(others[0].count as usize, 5000 - SIGHTINGS_OF_SENDER_MAX);
    assert_eq!(
        (others[0].address.as_str(), others[0].subject.as_str()),
        ("a", "")
    );
}

/// Whose connection was refused may have claimed a new key each time.
#[test]
fn tl_29_claimed_keys_make_no_new_senders() {
    let mut sentry = Sentry::new(NOW);
    let letters: Vec<char> = ('A'..='Z').collect();
    for letter in &letters {
        let claimed = Sighting {
            happening: Happening::AuthenticationFailed,
            user: user(&key(&letter.to_string())),
            ..sighting("a", "")
        };
        sentry.note(NOW, claimed);
    }
    let events = sentry.take(NOW);
    assert_eq!(events.len(), SIGHTINGS_OF_SENDER_MAX + 1);
    let others = |event: &&SecurityEvent| {
        event
            .seen()
            .is_some_and(|seen| seen.reason.ends_with(OTHERS))
    };
    let others: Vec<_> = events.iter().filter(others).collect();
    let others = others[0].seen().expect("it is one");
    assert_eq!(others.user, None, "it stands for several");
    assert_eq!(
        others.count as usize,
        letters.len() - SIGHTINGS_OF_SENDER_MAX
    );
}

#[test]
fn tl_29_memory_and_events_are_bounded_and_what_is_left_out_is_counted() {
    let mut sentry = Sentry::new(NOW);
    for number in 0..SIGHTINGS_MAX + 100 {
        sentry.note(NOW, sighting(&number.to_string(), "x"));
    }
    let table = &sentry.refusals[&Happening::PermissionDenied];
    assert_eq!(table.waiting.len(), SIGHTINGS_MAX);
    let events = sentry.take(NOW);
    assert_eq!(events.len() as u64, SECURITY_BURST + 1);
    let dropped = SecurityEvent::SightingsDropped {
        count: 100,
        log_bytes: 0,
    };
    assert_eq!(events.last(), Some(&dropped));
    sentry.note_dropped(1, 7);
    assert_eq!(sentry.take(NOW), [], "at most once in a while");
    let dropped = SecurityEvent::SightingsDropped {
        count: 1,
        log_bytes: 7,
    };
    let later = NOW.after(REFUSALS_EVERY);
    assert!(sentry.take(later).contains(&dropped));
    // A day of such a flood.
    let mut told = 0;
    for minute in 0..24 * 60_u64 {
        let now = later.after(Millis::from_secs(60 * minute));
        for number in 0..SIGHTINGS_MAX {
            sentry.note(now, sighting(&number.to_string(), "x"));
        }
        told += sentry.take(now).len() as u64;
    }
    let day = 24 * 3600 * 1000 / SECURITY_EVERY.get();
    assert!(told <= day + SECURITY_BURST, "{told} events");
}

/// For a day a stranger claims one name after another, and a worker tries one subject after
/// another.
#[test]
fn tl_29_no_flood_hides_another_happening_or_another_sender() {
    let mut sentry = Sentry::new(NOW);
    let mut now = NOW;
    for _ in 0..24 * 60 {
        for number in 0..SIGHTINGS_OF_SENDER_MAX {
            let login = Sighting {
                happening: Happening::AuthenticationFailed,
                ..sighting("0.0.0.0", &number.to_string())
            };
            sentry.note(now, login);
            sentry.note(now, sighting("a", &number.to_string()));
        }
        sentry.take(now);
        now = now.after(REFUSALS_EVERY);
    }
    let change = Sighting {
        happening: Happening::StreamChanged,
        ..sighting("z", "changed")
    };
    sentry.note(now, change);
    sentry.note(now, sighting("z", "denied"));
    let is_told = |events: &[SecurityEvent], subject| seen(events).contains(&(1, subject));
    assert!(is_told(&sentry.take(now), "changed"), "at once");
    let told = (0..10).any(|minute| {
        let later = now.after(Millis(REFUSALS_EVERY.get() * minute));
        is_told(&sentry.take(later), "denied")
    });
    assert!(told, "in its turn");
}

#[test]
fn tl_29_clients_that_come_and_go_take_no_room_from_refusals() {
    let mut sentry = Sentry::new(NOW);
    for number in 0..SESSIONS_MAX + 1 {
        let session = Sighting {
            happening: Happening::ClientConnected,
            ..sighting(&number.to_string(), "")
        };
        sentry.note(NOW, session);
    }
    sentry.note(NOW, sighting("a", "x"));
    let events = sentry.take(NOW);
    assert!(seen(&events).contains(&(1, "x")));
    let dropped = SecurityEvent::SightingsDropped {
        count: 1,
        log_bytes: 0,
    };
    assert_eq!(events.last(), Some(&dropped));
}

#[test]
fn tl_29_what_no_event_is_left_for_at_an_end_is_counted() {
    let mut sentry = Sentry::new(NOW);
    for number in 0..SECURITY_BURST + 3 {
        sentry.note(NOW, sighting(&number.to_string(), "x"));
    }
    let events = sentry.take_last(NOW);
    assert_eq!(events.len() as u64, SECURITY_BURST + 1);
    let dropped = SecurityEvent::SightingsDropped {
        count: 3,
        log_bytes: 0,
    };
    assert_eq!(events.last(), Some(&dropped));
}

#[test]
fn tl_29_texts_of_others_are_short() {
    let long = "r".repeat(2 * SEEN_BYTES_MAX);
    let report = serde_json::json!({
        "type": "io.nats.server.advisory.v1.client_disconnect",
        "client": {"host": "10.0.0.1"},
        "reason": long,
    });
    let subject = "$SYS.SERVER.X.CLIENT.AUTH.ERR";
    let found = of_report(NOW, subject, report.to_string().as_bytes()).expect("a report");
    assert!(found.reason.len() <= SEEN_BYTES_MAX);
    assert!(found.others().reason.len() <= SEEN_BYTES_MAX);
}

#[test]
fn tl_29_what_waits_at_an_end_is_told() {
    let mut sentry = Sentry::new(NOW);
    sentry.note(NOW, sighting("a", "x"));
    assert_eq!(sentry.take(NOW).len(), 1);
    sentry.note(NOW, sighting("a", "x"));
    sentry.note_dropped(1, 0);
    assert_eq!(sentry.take_last(NOW).len(), 2);
    assert_eq!(sentry.take_last(NOW), []);
}

#[test]
fn tl_29_a_denied_message_is_found_in_the_brokers_log() {
    let account = format!("A{}", "B".repeat(55));
    let user = key("C");
    let text = format!(
        "[7] 2026/11/28 09:33:43.808814 [ERR] 127.0.0.1:38062 - cid:9 - \"v2.16.0:python3:a\\\" - \\\"b\" - \"{account}/default/jwt:{user}\" - \
         Publish Violation - Subject \"diloco.control.x\""
    );
    let reply = text.replace("Subject ", "Reply ");
    let found = of_line(reply.as_bytes()).expect("a refusal of an answer");
    assert_eq!(found.subject, "diloco.control.x");
    let found = of_line(text.as_bytes()).expect("a refusal");
    let expected = Sighting {
        account: account.parse().ok(),
        user: user.parse().ok(),
        ..sighting("127.0.0.1", "diloco.control.x")
    };
    assert_eq!(found, expected);
    assert!(found.account.is_some() && found.user.is_some());
    let text = text.replace("Publish Violation", "Subscription Violation") + ", SID 1";
    let found = of_line(text.as_bytes()).expect("a refusal");
    assert_eq!(found.reason, "subscribe");
    let tls = b"[7] 2026/11/28 09:33:43 [ERR] [::1]:38062 - cid:9 - TLS handshake error: read tcp [::1]:4222->[::1]:38062: EOF";
    let found = of_line(tls).expect("a refusal");
    assert_eq!(found.happening, Happening::AuthenticationFailed);
    assert_eq!(
        (found.address.as_str(), found.reason.as_str()),
        ("::1", "TLS: EOF")
    );
}

/// What a client says of itself stands in quotes; it must not be taken for the broker's words.
#[test]
fn tl_29_a_client_cannot_write_lines_of_the_broker() {
    let refused = [
        "",
        "[7] 2026/11/28 09:33:43 [INF] 1.2.3.4:5 - cid:9 - Publish Violation - Subject \"x\"",
        "[7] 2026/11/28 09:33:43 [ERR] 1.2.3.4:5 - cid:9 - authentication error - User \"l\"",
        "[7] 2026/11/28 09:33:43 [ERR] 1.2.3.4:5 - cid:x - Publish Violation - Subject \"x\"",
        "[7] 2026/11/28 09:33:43 [ERR] 1.2.3.4:5 - cid: - Publish Violation - Subject \"x\"",
        "[7] 2026/11/28 09:33:43 [ERR] 1.2.3.4:5 - cid:9 - \"Publish Violation - Subject \\\"x\\\"\" - \"A/b\" - other",
        "[7] 2026/11/28 09:33:43 [ERR] 1.2.3.4:5 - cid:9 - Publish Violation - Subject \"x",
        "[7] 2026/11/28 09:33:43 [INF] 1.2.3.4:5 - cid:9 - \"[ERR] 6.6.6.6:1 - cid:9 - TLS handshake error: x\" - Slow Consumer",
        "[7] 2026/11/28 09:33:43 [WRN] client [ERR] 6.6.6.6:1 - cid:9 - TLS handshake error: x",
    ];
    for line in refused {
        assert_eq!(of_line(line.as_bytes()), None, "{line}");
    }
    assert_eq!(of_line(b"\xff[ERR] "), None);
}

#[test]
fn tl_29_lines_come_whole_whatever_the_pieces_are() {
    let text = b"one\ntwo\n\nthree";
    for size in 1..text.len() {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for piece in text.chunks(size) {
            lines.feed(piece, &mut |line| found.push(line.to_vec()));
        }
        assert_eq!(found, [&b"one"[..], b"two", b""]);
        lines.feed(b"\n", &mut |line| found.push(line.to_vec()));
        assert_eq!(found.last().map(Vec::as_slice), Some(&b"three"[..]));
    }
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    let long = vec![b'x'; LINE_BYTES_MAX];
    let mut feed = |piece: &[u8]| lines.feed(piece, &mut |line| found.push(line.len()));
    feed(&long);
    feed(b"\n");
    feed(&long);
    feed(b"x\nshort\n");
    assert_eq!(found, [LINE_BYTES_MAX, 5], "one byte more is too long");
}

/// A token's form, with claims that nobody has signed.
fn token(claims: &str) -> String {
    format!(
        "head.{}.signature",
        BASE64URL_NOPAD.encode(claims.as_bytes())
    )
}

fn report(kind: &str, more: &str) -> Vec<u8> {
    let user = key("C");
    let token = token(&format!(
        r#"{{"sub":"{user}","name":"worker-1","exp":{}}}"#,
        NOW.get() / 1000 + 1
    ));
    let client = format!(
        r#"{{"host":"10.0.0.1","acc":"A{}","user":"{user}","name":"mine","name_tag":"tenant","jwt":"{token}"}}"#,
        "B".repeat(55)
    );
    format!(r#"{{"type":"io.nats.{kind}","client":{client}{more}}}"#).into_bytes()
}

#[test]
fn tl_29_connections_are_found_in_the_brokers_reports_without_their_tokens() {
    let of = |subject: &str, kind: &str, more: &str| of_report(NOW, subject, &report(kind, more));
    let (connect, disconnect) = (
        "server.advisory.v1.client_connect",
        "server.advisory.v1.client_disconnect",
    );
    let connected = of("$SYS.ACCOUNT.A.CONNECT", connect, "").expect("a connection");
    assert_eq!(connected.happening, Happening::ClientConnected);
    assert_eq!(
        connected.user.as_ref().map(PublicKey::as_str),
        Some(&*key("C"))
    );
    assert_eq!(
        (connected.name.as_str(), connected.address.as_str()),
        ("worker-1", "10.0.0.1")
    );
    assert!(connected.account.is_some());
    assert!(!format!("{connected:?}").contains("signature"));
    let reason = r#","reason":"Credentials Revoked""#;
    let ended = of("$SYS.ACCOUNT.A.DISCONNECT", disconnect, reason).expect("an end");
    assert_eq!(ended.reason, "Credentials Revoked");
    let reason = r#","reason":"Authentication Failure""#;
    let failed = of("$SYS.SERVER.N.CLIENT.AUTH.ERR", disconnect, reason).expect("a refusal");
    assert_eq!(failed.happening, Happening::AuthenticationFailed);
    assert_eq!(
        of("$SYS.ACCOUNT.A.DISCONNECT", disconnect, reason),
        None,
        "told already"
    );
    assert_eq!(
        of("$SYS.ACCOUNT.A.CONNECT", disconnect, ""),
        None,
        "not under this subject"
    );
    assert_eq!(of_report(NOW, "$SYS.ACCOUNT.A.CONNECT", b"{}"), None);
}

/// To the broker all of these look the same.
#[test]
fn tl_29_a_refused_login_says_what_its_token_claims() {
    let of = |jwt: &str| {
        let text = format!(
            r#"{{"type":"io.nats.server.advisory.v1.client_disconnect","client":{{"host":"h","name":"mine","user":"hunter2","jwt":"{jwt}"}},"reason":"Authentication Failure"}}"#
        );
        let found = of_report(NOW, "$SYS.SERVER.N.CLIENT.AUTH.ERR", text.as_bytes());
        let found = found.expect("a refusal");
        (found.user, found.name, found.reason)
    };
    let mine = || "mine".to_owned();
    assert_eq!(
        of(""),
        (None, mine(), "Authentication Failure: no token".to_owned())
    );
    assert_eq!(
        of("not.a!.token").2,
        "Authentication Failure: the token cannot be read"
    );
    let user = key("C");
    let seconds = NOW.get() / 1000;
    for (nbf, exp, more) in [
        (seconds, seconds, ": the token has ended"),
        (seconds, seconds + 1, ""),
        (seconds + 1, seconds + 2, ": the token begins later"),
        (u64::MAX, seconds, ": the token has ended"),
    ] {
        let claims = format!(r#"{{"sub":"{user}","name":"worker-1","nbf":{nbf},"exp":{exp}}}"#);
        let (claimed, name, reason) = of(&token(&claims));
        assert_eq!(claimed.as_ref().map(PublicKey::as_str), Some(user.as_str()));
        assert_eq!(
            (name.as_str(), reason),
            ("worker-1", format!("Authentication Failure{more}"))
        );
    }
    let (claimed, ..) = of(&token(r#"{"sub":"SUsecret"}"#));
    assert_eq!(claimed, None, "no public key of a user");
    for broken in ["x", "a.b", "a.!.c", &token("{}")] {
        assert_eq!(of(broken).0, None, "{broken}");
    }
}

/// Somebody who mistakes one field for another must not find a secret in the record.
#[test]
fn tl_22_nothing_but_a_users_public_key_is_taken_for_a_user() {
    for text in [
        "hunter2",
        "",
        &format!("S{}", "A".repeat(57)),
        &format!("A{}", "B".repeat(55)),
    ] {
        assert_eq!(user(text), None, "{text}");
    }
    assert!(user(&key("A")).is_some());
}

#[test]
fn tl_29_changes_of_streams_are_found_with_their_caller_and_outcome() {
    let of = |request: &str, response: &str| {
        let response = response.replace('"', "\\\"");
        let more = format!(r#","subject":"$JS.API.{request}","response":"{response}""#);
        of_report(
            NOW,
            "report.ledger",
            &report("jetstream.advisory.v1.api_audit", &more),
        )
    };
    let found = of("STREAM.UPDATE.LEDGER", "{}").expect("a change");
    assert_eq!(found.happening, Happening::StreamChanged);
    assert_eq!(
        (found.subject.as_str(), found.reason.as_str()),
        ("$JS.API.STREAM.UPDATE.LEDGER", "done")
    );
    assert!(found.user.is_some());
    let refused = r#"{"error":{"code":404,"description":"stream not found"}}"#;
    let found = of("STREAM.DELETE.LEDGER", refused).expect("an attempt");
    assert_eq!(found.reason, "refused: stream not found");
    for change in [
        "STREAM.MSG.DELETE.LEDGER",
        "STREAM.PURGE.AUDIT",
        "CONSUMER.CREATE.WORK.x",
    ] {
        assert!(of(change, "{}").is_some(), "{change}");
    }
    for read in READS_OF_ALL_KINDS {
        assert_eq!(of(read, "{}"), None, "{read}");
    }
}

const READS_OF_ALL_KINDS: [&str; 10] = [
    "INFO",
    "STREAM.INFO.LEDGER",
    "STREAM.NAMES",
    "STREAM.LIST",
    "STREAM.MSG.GET.LEDGER",
    "DIRECT.GET.AUDIT",
    "CONSUMER.INFO.WORK.lease",
    "CONSUMER.NAMES.WORK",
    "CONSUMER.LIST.WORK",
    "CONSUMER.MSG.NEXT.WORK.lease",
];

#[test]
fn texts_of_others_are_short_and_on_one_line() {
    assert_eq!(cut("a\nb\u{1b}c"), "a b c");
    let long = cut(&"ä".repeat(SEEN_BYTES_MAX));
    assert_eq!(long.len(), SEEN_BYTES_MAX);
}
