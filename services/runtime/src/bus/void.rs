//! Notices that the broker does not take this connection's credentials any more. The client would
//! try them again for ever; nothing changes until a person has acted.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{ClientError, Event, ServerError};
use identity::Credentials;
use schemas::{Code, PublicKey, Refusal};
use tokio::sync::{Notify, watch};

use crate::clock;

/// The text with which the broker cuts a client whose key was revoked.
const REVOKED: &str = "user authentication revoked";
/// The client's texts for a broker that refuses its credentials, and for a file that does not hold
/// the credentials of this process.
const REFUSED: [&str; 2] = ["authorization violation", "failed signing nonce"];
/// Refusals in a row, without a word about a revocation, after which the credentials count as
/// refused for good: some half a minute. A broker that has just been started may still be reading
/// the accounts' tokens of the others.
const REFUSALS_MAX: u32 = 12;

/// The verdict on the credentials of a connection. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Void {
    credentials: Arc<PathBuf>,
    public: Option<PublicKey>,
    tries: Arc<Mutex<Tries>>,
    verdict: watch::Sender<Option<Refusal>>,
    /// Told of each refusal.
    refusal: Arc<Notify>,
}

/// The refusals since the connection last stood.
#[derive(Debug, Default)]
struct Tries {
    revoked: bool,
    refused: u32,
}

/// What the broker says before it ends a connection whose signing key was replaced: a token by
/// itself allows no subscription, and the template of the role's key is gone.
const NO_SUBSCRIPTIONS: &str = "maximum subscriptions exceeded";

/// An error of the broker, with what it means where its words mislead.
pub(super) fn explained(text: &str) -> Cow<'_, str> {
    match text.to_ascii_lowercase().contains(NO_SUBSCRIPTIONS) {
        true => Cow::Owned(format!(
            "{text}; the broker says this while it ends a connection whose token was signed with a key that is replaced, and a new \
             token ends it; otherwise the connection listens to more subjects than its role may"
        )),
        false => Cow::Borrowed(text),
    }
}

impl Void {
    pub(super) fn of(credentials: PathBuf, public: Option<PublicKey>) -> Self {
        Self {
            credentials: Arc::new(credentials),
            public,
            tries: Arc::default(),
            verdict: watch::Sender::new(None),
            refusal: Arc::default(),
        }
    }

    /// Takes note of what an event says about the credentials.
    pub(super) fn follow(&self, event: &Event) {
        match event {
            Event::Connected => self.connected(),
            Event::ServerError(ServerError::AuthorizationViolation) => self.refusal.notify_one(),
            Event::ServerError(ServerError::Other(text)) => self.heard(text),
            Event::ClientError(ClientError::Other(reason)) => self.failed(reason),
            _ => {}
        }
    }

    /// The connection stands. If its key was revoked, the file has a newer token by now.
    fn connected(&self) {
        *self.tries() = Tries::default();
    }

    /// The broker said this on the connection.
    fn heard(&self, text: &str) {
        if text.to_ascii_lowercase().contains(REVOKED) {
            self.tries().revoked = true;
        }
    }

    /// A try to connect failed for this reason.
    fn failed(&self, reason: &str) {
        if !REFUSED.iter().any(|known| reason.contains(known)) {
            return;
        }
        self.refusal.notify_one();
        let (revoked, last) = {
            let mut tries = self.tries();
            tries.refused += 1;
            (tries.revoked, tries.refused >= REFUSALS_MAX)
        };
        if let Some(refusal) = (revoked || last).then(|| self.judge(revoked)).flatten() {
            self.verdict.send_if_modified(|verdict| {
                let first = verdict.is_none();
                verdict.get_or_insert(refusal);
                first
            });
        }
    }

    /// Waits until the broker has refused the credentials once.
    pub(super) async fn refused(&self) {
        self.refusal.notified().await;
    }

    /// Waits until the credentials are void.
    pub(super) async fn verdict(&self) -> Refusal {
        let mut verdict = self.verdict.subscribe();
        let told = verdict.wait_for(Option::is_some).await;
        let refusal = told.ok().and_then(|verdict| verdict.clone());
        refusal.expect("the sender is ours, and the verdict was waited for")
    }

    /// The reason why no further try succeeds; none if a renewed file may still help.
    fn judge(&self, revoked: bool) -> Option<Refusal> {
        let file = self.credentials.display();
        let own = self.public.as_ref()?;
        match Credentials::read(&self.credentials) {
            Ok(found) if found.public() != own => Some(Refusal::new(
                Code::CredentialReplaced,
                format!(
                    "{file} holds the key {} now, and this process connects as {own}",
                    found.public()
                ),
            )),
            _ if revoked => Some(Refusal::new(
                Code::CredentialRevoked,
                format!("the broker has revoked {own}, whose credentials are in {file}"),
            )),
            Ok(found) if found.check(clock::now()).is_ok() => Some(Refusal::new(
                Code::BusRefused,
                format!(
                    "the broker has refused {own} {REFUSALS_MAX} times; its credentials are in {file}"
                ),
            )),
            // A file that cannot be used, or a token that has ended, may be renewed.
            _ => None,
        }
    }

    fn tries(&self) -> std::sync::MutexGuard<'_, Tries> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use identity::{Domain, InitOptions};
    use schemas::Millis;
    use schemas::permission::Role;

    use super::*;

    const CUT: &str = "User Authentication Revoked";
    const NO: &str = "authorization violation";

    /// Credentials of an operator in a folder of their own.
    struct Scene {
        domain: Domain,
        _scratch: tempfile::TempDir,
    }

    impl Scene {
        fn new() -> Self {
            let scratch = tempfile::tempdir().expect("a scratch folder");
            let folder = scratch.path().join("d");
            let domain = Domain::init(&folder, &InitOptions::default(), clock::now());
            Self {
                domain: domain.expect("an empty folder"),
                _scratch: scratch,
            }
        }

        fn issue(&self, lifetime: Millis, now: schemas::UnixMillis) -> Void {
            let issued = self.domain.issue(Role::Operator, "o", None, lifetime, now);
            let issued = issued.expect("the name is its own");
            Void::of(issued.credentials, Some(issued.public))
        }

        fn valid(&self) -> Void {
            self.issue(Millis::from_secs(3600), clock::now())
        }
    }

    fn code(void: &Void) -> Option<Code> {
        void.verdict().now_or_never().map(|refusal| refusal.code)
    }

    #[test]
    fn tl_30_an_error_of_a_connection_that_ends_for_a_new_key_says_so() {
        let text = explained("Maximum Subscriptions Exceeded");
        assert!(text.contains("a key that is replaced"), "{text}");
        assert_eq!(
            explained("maximum connections exceeded"),
            "maximum connections exceeded"
        );
    }

    #[test]
    fn tl_07_a_revoked_key_is_void_at_the_first_refusal() {
        let scene = Scene::new();
        let void = scene.valid();
        void.heard("maximum subscriptions exceeded");
        void.heard(CUT);
        assert_eq!(code(&void), None, "the file may hold a newer token");
        void.failed("IO error");
        assert_eq!(code(&void), None, "nobody was asked");
        void.failed(NO);
        assert_eq!(code(&void), Some(Code::CredentialRevoked));
        // The first verdict stands.
        void.connected();
        assert_eq!(code(&void), Some(Code::CredentialRevoked));
    }

    #[test]
    fn tl_23_a_refusal_after_the_connection_seemed_to_stand_is_heard() {
        let scene = Scene::new();
        let void = scene.valid();
        void.follow(&Event::Connected);
        assert!(void.refused().now_or_never().is_none());
        void.follow(&Event::ServerError(ServerError::AuthorizationViolation));
        assert!(void.refused().now_or_never().is_some());
        void.failed(NO);
        assert!(void.refused().now_or_never().is_some());
    }

    #[test]
    fn tl_07_a_newer_token_makes_the_notice_void() {
        let scene = Scene::new();
        let void = scene.valid();
        void.heard(CUT);
        void.connected();
        void.failed(NO);
        assert_eq!(code(&void), None);
    }

    #[test]
    fn tl_07_a_process_that_was_away_meanwhile_gives_up_after_many_refusals() {
        let scene = Scene::new();
        let void = scene.valid();
        for _ in 1..REFUSALS_MAX {
            void.failed(NO);
            void.failed("IO error");
        }
        assert_eq!(code(&void), None);
        void.failed(NO);
        assert_eq!(code(&void), Some(Code::BusRefused));
        let void = scene.valid();
        for _ in 0..REFUSALS_MAX {
            void.failed(NO);
            void.connected();
        }
        assert_eq!(code(&void), None, "none of them in a row");
    }

    #[test]
    fn a_token_that_has_ended_may_be_renewed() {
        let scene = Scene::new();
        let long_ago = schemas::UnixMillis(clock::now().get() - 3_600_000);
        let void = scene.issue(Millis::from_secs(60), long_ago);
        for _ in 0..2 * REFUSALS_MAX {
            void.failed(NO);
        }
        assert_eq!(code(&void), None);
        void.heard(CUT);
        void.failed(NO);
        assert_eq!(code(&void), Some(Code::CredentialRevoked));
    }

    #[test]
    fn tl_07_a_file_with_another_key_needs_another_process() {
        let scene = Scene::new();
        let old = scene.valid();
        let file = scene.domain.layout().credentials("o");
        std::fs::remove_file(file).expect("it was issued");
        scene.valid();
        old.heard(CUT);
        old.failed("failed signing nonce");
        assert_eq!(code(&old), Some(Code::CredentialReplaced));
    }
}
