use proptest::prelude::*;

use super::*;

/// All words in these pieces, one after another.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<Word>, ProtocolError> {
    let mut parser = Parser::default();
    let mut words = Vec::new();
    for piece in pieces {
        parser.buffer().extend_from_slice(piece);
        while let Some(word) = parser.next()? {
            words.push(word);
        }
    }
    Ok(words)
}

fn message(subject: &str, reply: Option<&str>, payload: &[u8]) -> Word {
    let (reply, payload) = (reply.map(str::to_owned), Bytes::copy_from_slice(payload));
    Word::Message {
        subscription: 1,
        delivery: Delivery {
            subject: subject.to_owned(),
            reply,
            payload,
        },
    }
}

#[test]
fn every_word_is_read() {
    let bytes = b"INFO {\"nonce\":\"abc\",\"tls_required\":true,\"more\":[1]}\r\nPING\r\nPONG\r\n+OK\r\n\
        -ERR 'Stale Connection'\r\nMSG a.b 1 2\r\nhi\r\nMSG a.b 1 _R_.x 0\r\n\r\nMSG\ta 1\t  r   3\na\r\n\r\n";
    let info = Info {
        nonce: Some("abc".to_owned()),
        tls_required: true,
        tls_available: false,
        ending: false,
    };
    let expected = vec![
        Word::Info(info),
        Word::Ping,
        Word::Pong,
        Word::Ok,
        Word::Error("Stale Connection".to_owned()),
        message("a.b", None, b"hi"),
        message("a.b", Some("_R_.x"), b""),
        message("a", Some("r"), b"a\r\n"),
    ];
    assert_eq!(read([&bytes[..]]), Ok(expected));
}

#[test]
fn what_strangers_choose_ends_nothing() {
    let after = Word::Ping;
    let bytes = b"MSG a.\xff\xfe 1 2\r\nhi\r\nPING\r\n";
    assert_eq!(
        read([&bytes[..]]),
        Ok(vec![message("a.\u{fffd}\u{fffd}", None, b"hi"), after])
    );
    // No answer could be sent to this reply subject.
    let bytes = b"MSG a 1 _INBOX.\xff 2\r\nhi\r\nPING\r\n";
    assert_eq!(
        read([&bytes[..]]),
        Ok(vec![message("a", None, b"hi"), Word::Ping])
    );
    // Too many words, a word where a number should be, too few words: only the length counts.
    for line in [
        "MSG a b c 1 r 2",
        "MSG a one 2",
        "MSG a 99999999999999999999 2",
        "MSG 2",
    ] {
        let bytes = format!("{line}\r\nhi\r\nPING\r\n");
        assert_eq!(
            read([bytes.as_bytes()]),
            Ok(vec![Word::Unheard { bytes: 2 }, Word::Ping]),
            "{line}"
        );
    }
}

#[test]
fn a_payload_that_is_too_long_is_skipped_and_never_kept() {
    let whole = PAYLOAD_BYTES_MAX + 1;
    let mut parser = Parser::default();
    parser
        .buffer()
        .extend_from_slice(format!("MSG a 1 {whole}\r\n").as_bytes());
    let piece = [b'P'; 1 << 16];
    let mut left = whole;
    while left > 0 {
        assert_eq!(parser.next(), Ok(None));
        assert!(parser.is_empty(), "it is kept");
        let here = left.min(piece.len());
        parser.buffer().extend_from_slice(&piece[..here]);
        left -= here;
    }
    parser.buffer().extend_from_slice(b"\r\nPING\r\n");
    assert_eq!(parser.next(), Ok(Some(Word::Unheard { bytes: whole })));
    assert_eq!(parser.next(), Ok(Some(Word::Ping)));
    // The end of a line may come in pieces.
    let mut ended = |ends: &[&[u8]]| {
        parser
            .buffer()
            .extend_from_slice(format!("MSG a 1 {whole}\r\n").as_bytes());
        parser.buffer().extend_from_slice(&vec![b'P'; whole]);
        let mut last = parser.next();
        for end in ends {
            assert_eq!(last, Ok(None));
            parser.buffer().extend_from_slice(end);
            last = parser.next();
        }
        last
    };
    assert_eq!(
        ended(&[b"\r", b"\n"]),
        Ok(Some(Word::Unheard { bytes: whole }))
    );
    assert_eq!(ended(&[b"PI"]), Err(ProtocolError::NoEnd(whole)));
    // The longest payload that is accepted.
    let payload = vec![b'x'; PAYLOAD_BYTES_MAX];
    let bytes = [
        format!("MSG a 1 {PAYLOAD_BYTES_MAX}\r\n").as_bytes(),
        &payload,
        b"\r\n",
    ]
    .concat();
    assert_eq!(read([&bytes[..]]), Ok(vec![message("a", None, &payload)]));
}

#[test]
fn what_no_server_says_is_an_error_and_not_a_guess() {
    let error = |bytes: &[u8]| read([bytes]).expect_err("no server says this");
    assert_eq!(
        error(&vec![b'x'; LINE_BYTES_MAX + 1]),
        ProtocolError::LineTooLong
    );
    assert_eq!(
        error(b"HELLO\r\n"),
        ProtocolError::Unknown("HELLO".to_owned())
    );
    assert_eq!(
        error(b"HTTP/1.1 400 Bad Request\r\n"),
        ProtocolError::Unknown("HTTP/1.1 400 Bad Request".to_owned())
    );
    assert!(matches!(
        error(b"MSG a 1 -2\r\nhi\r\n"),
        ProtocolError::NoLength(_)
    ));
    assert!(matches!(error(b"MSG\r\n"), ProtocolError::NoLength(_)));
    assert_eq!(error(b"MSG a 1 2\r\nhiPING\r\n"), ProtocolError::NoEnd(2));
    assert!(matches!(
        error(b"INFO nonsense\r\n"),
        ProtocolError::Greeting(_)
    ));
}

#[test]
fn a_listener_asks_for_messages_without_headers() {
    let own = Connect {
        name: "x",
        tls_required: true,
        jwt: Some("a.b.c"),
        sig: Some("sig"),
    };
    let line = connect(&own);
    let json: serde_json::Value =
        serde_json::from_str(line.trim_end().strip_prefix("CONNECT ").unwrap()).unwrap();
    assert_eq!(
        (&json["headers"], &json["no_responders"], &json["echo"]),
        (&false.into(), &false.into(), &false.into())
    );
    assert_eq!(
        (&json["jwt"], &json["sig"], &json["tls_required"]),
        (&"a.b.c".into(), &"sig".into(), &true.into())
    );
    let nobody = connect(&Connect {
        jwt: None,
        sig: None,
        ..own
    });
    assert!(
        !nobody.contains("jwt") && !nobody.contains("sig"),
        "{nobody}"
    );
    assert_eq!(
        subscribe("diloco.request.>", "own", 3),
        "SUB diloco.request.> own 3\r\n"
    );
}

/// A subject of any bytes that do not end a word.
fn subject() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            b'.'
        } else {
            byte
        }
    });
    prop::collection::vec(byte, 1..40)
}

type Sent = (Vec<u8>, Option<Vec<u8>>, Vec<u8>);

fn on_the_wire(sent: &[Sent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (subject, reply, payload) in sent {
        let reply = reply
            .as_ref()
            .map(|reply| [&reply[..], b" "].concat())
            .unwrap_or_default();
        let length = payload.len().to_string();
        bytes.extend(
            [
                b"MSG ",
                &subject[..],
                b" 1 ",
                &reply,
                length.as_bytes(),
                b"\r\n",
                payload,
                b"\r\n",
            ]
            .concat(),
        );
    }
    bytes
}

proptest! {
    #[test]
    fn messages_are_the_same_in_any_pieces(
        sent in prop::collection::vec(
            (subject(), prop::option::of(subject()), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
        cuts in prop::collection::vec(1_usize..90, 1..400),
    ) {
        let bytes = on_the_wire(&sent);
        let mut pieces = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        let expected: Vec<Word> = sent.iter().map(|(subject, reply, payload)| {
            let reply = reply.as_ref().and_then(|reply| std::str::from_utf8(reply).ok());
            message(&String::from_utf8_lossy(subject), reply, payload)
        }).collect();
        prop_assert_eq!(read(pieces), Ok(expected));
    }

    #[test]
    fn any_bytes_end_in_words_or_an_error(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let _ = read(pieces.iter().map(Vec::as_slice));
    }

    #[test]
    fn damaged_words_end_in_words_or_an_error(
        sent in prop::collection::vec((subject(), prop::option::of(subject()), prop::collection::vec(any::<u8>(), 0..50)), 1..5),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = on_the_wire(&sent);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = read([&bytes[..]]);
    }
}
