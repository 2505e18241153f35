//! An operator with `diloctl`, played by a test.

use std::time::Duration;

use runtime::{Bus, BusError, Subscription};
use schemas::control::{Query, View, ViewReply, ViewRequest};
use schemas::public::Status;
use schemas::subject::{ControlVerb, control_subject, status_subject};
use schemas::view::{LeaseView, RoundView, RunDetail, RunPhase, RunView, SnapshotView, WorkerView};
use schemas::{Message, PublicKey, RunId};

use crate::PATIENCE;

/// Time that one answer may take while everything runs.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Longest time without news before a run is asked for: the operator hears nothing while the broker
/// is away.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// An operator's connection.
#[derive(Clone, Debug)]
pub struct Operator {
    bus: Bus,
    public: PublicKey,
}

impl Operator {
    pub(crate) fn new(bus: Bus) -> Self {
        let public = bus.public().cloned().expect("connected with credentials");
        Self { bus, public }
    }

    /// The connection.
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Asks the coordinator.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    pub async fn ask<Q: Message, A: Message>(
        &self,
        verb: ControlVerb,
        question: &Q,
    ) -> Result<A, BusError> {
        self.bus
            .request(&control_subject(&self.public, verb), question, ANSWER_WAIT)
            .await
    }

    /// Asks for one view.
    ///
    /// # Errors
    /// There is no answer, or it is a refusal.
    ///
    /// # Panics
    /// A list has no room in one message.
    pub async fn view(&self, query: Query) -> Result<View, BusError> {
        let reply: ViewReply = self.ask(ControlVerb::View, &ViewRequest::of(query)).await?;
        assert_eq!(reply.left_out, None, "a list of a test is short");
        Ok(reply.view)
    }

    /// A run in full.
    ///
    /// # Errors
    /// There is no answer, or no such run.
    pub async fn run(&self, run: &RunId) -> Result<RunDetail, BusError> {
        match self.view(Query::Run(run.clone())).await? {
            View::Run(detail) => Ok(*detail),
            other => panic!("asked for a run, shown {other:?}"),
        }
    }

    /// The rounds of a run.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn rounds(&self, run: &RunId) -> Vec<RoundView> {
        match self.view(Query::Rounds(run.clone())).await {
            Ok(View::Rounds(rounds)) => rounds,
            other => panic!("rounds of {run}: {other:?}"),
        }
    }

    /// The leases of a run.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn leases(&self, run: &RunId) -> Vec<LeaseView> {
        match self.view(Query::Leases(run.clone())).await {
            Ok(View::Leases(leases)) => leases,
            other => panic!("leases of {run}: {other:?}"),
        }
    }

    /// The workers of a run.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn workers(&self, run: &RunId) -> Vec<WorkerView> {
        match self.view(Query::Workers(run.clone())).await {
            Ok(View::Workers(workers)) => workers,
            other => panic!("workers of {run}: {other:?}"),
        }
    }

    /// The full snapshots of a run.
    ///
    /// # Panics
    /// There is no answer.
    pub async fn snapshots(&self, run: &RunId) -> Vec<SnapshotView> {
        match self.view(Query::Snapshots(run.clone())).await {
            Ok(View::Snapshots(snapshots)) => snapshots,
            other => panic!("snapshots of {run}: {other:?}"),
        }
    }

    /// Follows a run until `wanted` holds.
    ///
    /// # Panics
    /// It does not hold within `within`.
    pub async fn until(
        &self,
        run: &RunId,
        within: Duration,
        wanted: impl Fn(&RunView) -> bool,
    ) -> RunView {
        let subject = status_subject(run);
        let news = self
            .bus
            .subscribe(&subject)
            .await
            .unwrap_or_else(|error| panic!("{subject}: {error}"));
        let mut last = None;
        let follow = self.follow(run, news, &wanted, &mut last);
        match tokio::time::timeout(within, follow).await {
            Ok(view) => view,
            Err(_) => {
                panic!("run {run} is not as wanted after {within:?}; it was last seen as {last:?}")
            }
        }
    }

    /// Follows a run until it is complete.
    ///
    /// # Panics
    /// The run is not complete within twice [`PATIENCE`]: a worker repeats a claim that died with
    /// its coordinator after half a minute.
    pub async fn until_complete(&self, run: &RunId) -> RunView {
        self.until(run, 2 * PATIENCE, |view| view.phase == RunPhase::Complete)
            .await
    }

    async fn follow(
        &self,
        run: &RunId,
        mut news: Subscription,
        wanted: &impl Fn(&RunView) -> bool,
        last: &mut Option<RunView>,
    ) -> RunView {
        loop {
            let seen = match self.run(run).await {
                Ok(detail) => Some(detail.view),
                // The test may have stopped the coordinator, or the run may not exist yet.
                Err(_) => None,
            };
            let mut seen = seen;
            loop {
                if let Some(view) = seen.take() {
                    if wanted(&view) {
                        return view;
                    }
                    *last = Some(view);
                }
                match tokio::time::timeout(QUIET_MAX, news.next()).await {
                    Ok(Ok(Some(message))) => {
                        seen = Status::decode(&message.payload)
                            .ok()
                            .map(|status| status.view)
                    }
                    Ok(Ok(None)) => panic!("the operator's connection is closed"),
                    Ok(Err(error)) => panic!("status of {run}: {error}"),
                    Err(_) => break,
                }
            }
        }
    }
}
