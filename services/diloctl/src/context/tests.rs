use super::*;
use crate::output::Format;

#[test]
fn an_address_of_the_machine_itself_is_known_in_each_form() {
    let loops = |bus: &str| {
        let endpoints = Endpoints {
            bus: bus.to_owned(),
            ..Endpoints::default()
        };
        endpoints.is_loopback()
    };
    for own in [
        "tls://127.0.0.1:4222",
        "tls://localhost:4222",
        "tls://[::1]:4222",
        "localhost",
    ] {
        assert!(loops(own), "{own}");
    }
    for other in [
        "tls://10.0.0.1:4222",
        "tls://broker:4222",
        "tls://[fd00::1]:4222",
    ] {
        assert!(!loops(other), "{other}");
    }
}

/// Only what the address and the switches both say opens the way to the store.
#[test]
fn transfers_are_protected_unless_the_address_and_the_switches_say_otherwise() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let context = |store: &str| Context {
        folder: scratch.path().to_owned(),
        endpoints: Endpoints {
            store: store.to_owned(),
            ..Endpoints::default()
        },
        credentials: None,
        timeout: Duration::from_secs(1),
        printer: Printer::new(Format::Table),
        warned: Arc::default(),
        history: Arc::default(),
    };
    let opened: (OsString, OsString) = (
        "DILOCO_AUTH__EXCEPTIONS".into(),
        r#"[{ layer = "bulk", reason = "a test" }]"#.into(),
    );
    let (plain, own) = ("http://127.0.0.1:9000", "https://127.0.0.1:9000");
    let trust = context(plain).store_trust(Role::Operator, [opened.clone()].into_iter());
    assert!(matches!(trust, Ok(Trust::PlainLoopback)), "{trust:?}");
    let closed = context(plain).store_trust(Role::Operator, std::iter::empty());
    let code = closed.map_err(|refused| refused.code()).err();
    assert_eq!(code, Some(Code::PlaintextRefused));
    // Under TLS the authority of the domain is needed, and here is no domain.
    assert!(
        context(own)
            .store_trust(Role::Operator, [opened].into_iter())
            .is_err()
    );
}

#[tokio::test]
async fn an_address_is_reached_or_the_reason_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let host = listener.local_addr().expect("it is bound");
    for url in [
        format!("https://{host}"),
        format!("http://{host}/x"),
        host.to_string(),
    ] {
        assert_eq!(unreachable_at(&url).await, None, "{url}");
    }
    drop(listener);
    let reason = unreachable_at(&format!("https://{host}")).await;
    assert!(reason.is_some_and(|reason| reason.contains("refused")));
}

#[test]
fn a_question_that_moves_no_object_is_not_blamed_on_the_store() {
    let needs = ControlVerb::ALL.iter().filter(|verb| needs_store(**verb));
    let needs: Vec<String> = needs.map(ToString::to_string).collect();
    let expected = [
        "run.new",
        "run.gc",
        "snapshot.restore",
        "blob.put",
        "blob.commit",
        "blob.get",
    ];
    assert_eq!(needs, expected);
}

fn alone(folder: &Path, timeout: Duration) -> Context {
    Context {
        folder: folder.to_owned(),
        endpoints: Endpoints::default(),
        credentials: None,
        timeout,
        printer: Printer::new(Format::Table),
        warned: Arc::default(),
        history: Arc::default(),
    }
}

#[tokio::test]
async fn a_second_command_waits_for_the_first_and_not_for_ever() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let folder = scratch.path().join("domain");
    let first = DomainLock::take(&folder, "diloctl up").expect("nobody has it");
    let short = alone(&folder, Duration::from_millis(1));
    let refused = short.lock("diloctl down").await.expect_err("it is taken");
    assert_eq!(refused.code(), Code::DomainBusy);
    assert!(refused.to_string().contains("`diloctl up`"), "{refused}");
    let patient = alone(&folder, Duration::from_secs(3600));
    let frees = async { drop(first) };
    let (taken, ()) = tokio::join!(patient.lock("diloctl down"), frees);
    taken.expect("it was given back");
}

#[test]
fn an_interrupted_command_says_what_it_has_finished() {
    let context = alone(Path::new("nowhere"), Duration::ZERO);
    let said = |context: &Context| context.interrupted("SIGINT");
    assert_eq!(said(&context).refusal().detail, "stopped by SIGINT");
    assert_eq!(said(&context).exit_status(), 130);
    let other = Context {
        timeout: Duration::from_secs(1),
        ..context.clone()
    };
    other.finished("the broker runs");
    context.finished("the store runs");
    assert_eq!(
        said(&context).refusal().detail,
        "stopped by SIGINT; finished before: the broker runs; the store runs"
    );
}
