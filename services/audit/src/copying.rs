//! The work of copying the log into the store, beside the service: again and again, as long as the
//! service runs. It tells the service when the store has other bytes than were written there, and
//! when they are right again.

use std::time::Duration;

use runtime::Failure;
use schemas::Code;
use tlog::Head;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::mirror::{Copies, Mirror, MirrorError, Stored};

/// Pause before a copy that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Time between two looks for cosigned heads, which come without a head of the log.
const COSIGNED_EVERY: Duration = Duration::from_secs(15);
/// Turns that wait to be heard; the copying waits then.
const TURNS_MAX: usize = 4;

/// What the store had at the start.
#[derive(Debug)]
pub enum Found {
    /// This head, or none.
    Has(Option<Stored>),
    /// It did not answer.
    Away,
    /// Other bytes than were written there.
    Wrong,
}

/// What becomes of the log in the store.
#[derive(Debug)]
pub enum Turn {
    /// The store has said which head it has, for the first time or after it had other bytes: then
    /// everything that is in the folder has been copied, and what was there was the same.
    Whole(Option<Head>),
    /// It has other bytes than were written there.
    Wrong(Failure),
    /// The copying has ended.
    Ended(Result<(), Failure>),
}

/// The work of copying, beside the service.
#[derive(Debug)]
pub struct Copying {
    task: tokio::task::JoinHandle<Result<(), Failure>>,
    turns: mpsc::Receiver<Turn>,
    wake: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Copying {
    /// Begins.
    pub fn begin(mirror: Mirror, found: Found) -> Self {
        let (tell, turns) = mpsc::channel(TURNS_MAX);
        let (wake, woken) = watch::channel(0);
        let stop = CancellationToken::new();
        let wrong = matches!(found, Found::Wrong);
        let known = match found {
            Found::Has(stored) => Some(stored),
            Found::Away | Found::Wrong => None,
        };
        let copier = Copier {
            mirror,
            known,
            wrong,
            behind: false,
            copies: Copies::default(),
            tell,
        };
        Self {
            task: tokio::spawn(copier.run(woken, stop.clone())),
            turns,
            wake,
            stop,
        }
    }

    /// Waits for the next turn. The end is the last one; it comes with a failure, or after
    /// [`Copying::end`].
    pub async fn turn(&mut self) -> Turn {
        match self.turns.recv().await {
            Some(turn) => turn,
            None => Turn::Ended(self.ended().await),
        }
    }

    /// Says that the folder has a new head.
    pub fn wake(&self, head: &Head) {
        self.wake.send_replace(head.size);
    }

    async fn ended(&mut self) -> Result<(), Failure> {
        let ended = (&mut self.task).await;
        ended.map_err(|error| Failure::new(Code::Internal, error))?
    }

    /// Copies what is left, if the store takes it, and ends.
    ///
    /// # Errors
    /// The store has other bytes, or another service has written there.
    pub async fn end(mut self) -> Result<(), Failure> {
        self.stop.cancel();
        // Turns that nobody hears hold up nothing.
        self.turns.close();
        self.ended().await
    }
}

struct Copier {
    mirror: Mirror,
    /// What the store has; none before it has said so, and while it has other bytes.
    known: Option<Option<Stored>>,
    /// True while the store has other bytes.
    wrong: bool,
    /// True while the store does not answer.
    behind: bool,
    copies: Copies,
    tell: mpsc::Sender<Turn>,
}

impl Copier {
    async fn run(
        mut self,
        mut woken: watch::Receiver<u64>,
        stop: CancellationToken,
    ) -> Result<(), Failure> {
        loop {
            let is_last = stop.is_cancelled();
            if is_last && self.known.is_none() {
                return Ok(());
            }
            match self.copy(is_last).await {
                Ok(()) => {
                    if std::mem::take(&mut self.behind) {
                        tracing::info!("the log in the store has caught up");
                    }
                }
                Err(error) => self.say_or_fail(error, is_last).await?,
            }
            if is_last {
                return Ok(());
            }
            let is_level = self.known.is_some() && !self.behind;
            tokio::select! {
                () = stop.cancelled() => {}
                changed = woken.changed() => if changed.is_err() { return Ok(()) },
                () = tokio::time::sleep(if is_level { COSIGNED_EVERY } else { AGAIN_AFTER }) => {}
            }
        }
    }

    /// Asks the store which head it has, if that is not known, and copies what it lacks: at the end
    /// the log alone.
    async fn copy(&mut self, is_last: bool) -> Result<(), MirrorError> {
        let known = match &self.known {
            Some(known) => known.clone(),
            None => {
                let stored = self.mirror.stored().await?;
                if !self.wrong {
                    // Heads are signed again before the first copy is done.
                    self.whole(stored.clone()).await;
                }
                stored
            }
        };
        let now = self.mirror.copy(known.as_ref()).await?;
        if std::mem::take(&mut self.wrong) {
            tracing::info!("the log in the store is again as it was written");
            self.whole(now.clone()).await;
        }
        self.known = Some(now);
        if let Some(Some(stored)) = &self.known
            && !is_last
        {
            let copied = self
                .mirror
                .copy_cosigned(stored.head.size, &mut self.copies);
            if let Err(error) = copied.await {
                tracing::debug!(%error, "cosigned heads are not copied into the store yet");
            }
        }
        Ok(())
    }

    async fn whole(&mut self, stored: Option<Stored>) {
        let head = stored.as_ref().map(|stored| stored.head.clone());
        self.known = Some(stored);
        self.tell(Turn::Whole(head)).await;
    }

    /// A store that does not answer is said once, and so are other bytes, which a person may put
    /// right; everything else ends the copying.
    async fn say_or_fail(&mut self, error: MirrorError, is_last: bool) -> Result<(), Failure> {
        let code = error.code();
        match error {
            MirrorError::Store(_) if std::mem::replace(&mut self.behind, true) => {}
            MirrorError::Store(_) => {
                tracing::warn!(%code, next = code.next_step(), "the log in the store is behind: {error}");
            }
            // What it has is asked for again, as at a start.
            _ if code == Code::LogStoreAltered && !is_last => {
                self.known = None;
                match std::mem::replace(&mut self.wrong, true) {
                    true => tracing::debug!(%code, %error, "the store has other bytes still"),
                    false => self.tell(Turn::Wrong(error.into())).await,
                }
            }
            _ => return Err(error.into()),
        }
        Ok(())
    }

    async fn tell(&self, turn: Turn) {
        // Nobody listens if the service is ending.
        let _told = self.tell.send(turn).await;
    }
}
