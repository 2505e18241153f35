use std::time::{SystemTime, UNIX_EPOCH};

use identity::Domain;
use identity::domain::InitOptions;
use rustls::ServerConfig;
use schemas::UnixMillis;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

/// The time that a server gets which never says anything.
const BRIEF: Duration = Duration::from_millis(50);

/// The conduct of a server, once TLS is there.
#[derive(Clone, Copy)]
enum Conduct {
    /// It answers what it is asked.
    Answers,
    /// It waits for the client's end.
    IsSilent,
    /// It says goodbye.
    Ends,
    /// It is gone, as a process that dies.
    Breaks,
}

/// The machine's time, with which certificates are compared. Another test moves the process's.
fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let since = since.expect("the clock is past 1970");
    UnixMillis(since.as_millis().try_into().expect("it is not that late"))
}

struct Scene {
    domain: Domain,
    _scratch: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions {
            mutual_tls: true,
            ..InitOptions::default()
        };
        let folder = scratch.path().join("domain");
        let domain = Domain::init(&folder, &options, now()).expect("an empty folder");
        Self {
            domain,
            _scratch: scratch,
        }
    }

    /// What broker and store are started with at this moment.
    fn config(&self) -> ServerConfig {
        let layout = self.domain.layout();
        let (certificate, key) = (layout.server_certificate(), layout.server_key());
        let config = tls::mutual_config(&certificate, &key, &layout.clients(), |_| {});
        config.expect("the domain's own files")
    }

    async fn look(&self, limits: Limits, address: &str, shown: &ClientFile) -> Seen {
        let seen = look_within(limits, address, &self.domain.layout().ca(), Some(shown)).await;
        seen.expect("a server of the domain")
    }
}

/// A server at an address of this scheme; what it is asked first comes over the channel.
async fn serve(
    config: ServerConfig,
    scheme: &str,
    conduct: Conduct,
) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("{scheme}://{}", listener.local_addr().expect("its own"));
    let (is_bus, acceptor) = (scheme == "tls", TlsAcceptor::from(Arc::new(config)));
    let (tell, asked) = mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if is_bus {
                let greeted = stream.write_all(b"INFO {\"tls_required\":true}\r\n").await;
                greeted.expect("the client reads it");
            }
            // One that refuses the client has said so.
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            match conduct {
                Conduct::Answers => {
                    let mut asked = vec![0; 4096];
                    let count = stream.read(&mut asked).await.expect("the client asks");
                    let asked = String::from_utf8_lossy(&asked[..count]).into_owned();
                    tell.send(asked).await.expect("the test goes on");
                    stream.write_all(b"no\r\n").await.expect("it is read");
                }
                Conduct::IsSilent => {
                    let mut asked = Vec::new();
                    let _ended = stream.read_to_end(&mut asked).await;
                }
                Conduct::Ends => stream.shutdown().await.expect("it is open"),
                Conduct::Breaks => drop(stream),
            }
        }
    });
    (address, asked)
}

#[tokio::test]
async fn tl_28_fg_08_a_server_that_takes_a_certificate_or_refuses_it_says_so() {
    let scene = Scene::new();
    let limits = Limits::default();
    // The one from before knows the present authority alone.
    let before = [scene.config(), scene.config()];
    let known = scene.domain.prepare_authorities(now());
    known.expect("the vault is here");
    let trial = scene.domain.write_trial(now());
    let trial = trial.expect("the keys are here").expect("one is next");
    for (scheme, before) in ["tls", "https"].into_iter().zip(before) {
        let (address, mut asked) = serve(scene.config(), scheme, Conduct::Answers).await;
        let seen = scene.look(limits, &address, &trial).await;
        assert_eq!(seen.word, Word::Taken, "{scheme}");
        assert!(seen.authority.is_some(), "{scheme}");
        let asked = asked.recv().await.expect("it was asked");
        let words = match scheme {
            "tls" => "\"name\":\"diloco-stranger\"",
            _ => "HEAD / HTTP/1.1\r\nHost: 127.0.0.1:",
        };
        assert!(asked.contains(words), "{asked}");

        let (address, _asked) = serve(before, scheme, Conduct::Answers).await;
        let seen = scene.look(limits, &address, &trial).await;
        let Word::Refused(fault) = seen.word else {
            panic!("{scheme}: {:?}", seen.word);
        };
        assert!(fault.to_string().contains("does not take"), "{fault}");
    }
}

#[tokio::test]
async fn tl_28_fg_08_silence_and_an_end_without_a_word_take_no_certificate() {
    let scene = Scene::new();
    let known = scene.domain.prepare_authorities(now());
    known.expect("the vault is here");
    let trial = scene.domain.write_trial(now());
    let trial = trial.expect("the keys are here").expect("one is next");
    let long = Limits::default();
    let brief = Limits {
        word: BRIEF,
        ..Limits::default()
    };
    for scheme in ["tls", "https"] {
        for (conduct, limits, words) in [
            (Conduct::IsSilent, brief, "it said nothing within 0.05 s"),
            (Conduct::Ends, long, "without a word on the certificate"),
            (Conduct::Breaks, long, "without a word on the certificate"),
        ] {
            let (address, _asked) = serve(scene.config(), scheme, conduct).await;
            let seen = scene.look(limits, &address, &trial).await;
            let Word::Unknown(reason) = seen.word else {
                panic!("{scheme}: {:?}", seen.word);
            };
            assert!(reason.contains(words), "{reason}");
        }
    }
}
