//! Builds the coordinator from its configuration. The order is keys, store, bus, ledger, the lead,
//! and then the listeners, so that nothing is heard before it can be answered.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use coordinator_core::{CHECKPOINT_EVERY, Coordinator, Settings};
use identity::join::new_session;
use identity::{AuditKey, IssuedList, TrustBundle};
use runtime::{Bus, Failure, Refusals, clock};
use schemas::member::{Layer, Posture};
use schemas::security::Refuser;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::arrival::{ARRIVALS_MAX, Arrival};
use crate::config::Config;
use crate::foundry::Maker;
use crate::heads::LedgerHeads;
use crate::incoming::Identity;
use crate::ledger::Ledger;
use crate::mark::{LedgerMark, StoreMark};
use crate::purge::Purges;
use crate::queue;
use crate::serve;
use crate::shell::{Shell, Tables};
use crate::signer::ManifestSigner;
use crate::stopped::{Waiting, wanted};
use crate::store::Store;
use crate::sweep;
use crate::workers::Workers;

/// A coordinator that leads.
pub struct Service {
    shell: Shell,
    core: Coordinator,
    arrivals: mpsc::Receiver<Arrival>,
    /// Tasks that live as long as the service.
    feeders: JoinSet<()>,
    refusals: Refusals,
}

impl Service {
    /// Connects, replays the ledger, takes the lead and starts to listen.
    ///
    /// # Errors
    /// The coded reason why it cannot lead.
    pub async fn build(config: &Config, posture: Posture) -> Result<Self, Failure> {
        let identity = match posture.is_open(Layer::Bus) {
            true => Identity::BySubject,
            false => Identity::ByBroker,
        };
        let trust = TrustBundle::read(&config.keys.trust)?;
        let key = |path: &Path| AuditKey::read(path).map_err(Failure::from);
        let audit_key = key(&config.keys.audit)?;
        let signer = ManifestSigner::open(&config.keys)?;
        let mark = LedgerMark::open(&config.keys.mark, &trust.domain)?;
        let store = Store::open(config, &posture, &trust.domain).await?;
        let store_mark = StoreMark::look(&store.buckets, &config.store.url, &trust.domain).await?;
        let bus = Bus::connect("diloco-coordinator", &config.bus, clock::now()).await?;
        // A credential of another role fails here, at once; later requests would only time out.
        drop(serve::listen(&config.bus).await?);
        let consumer = queue::consumer(&bus).await?;
        let patience = config.limits.ledger_patience.0;
        let (domain, home) = (trust.domain.to_string(), trust.own_tenant().clone());
        let ledger_bus = Bus::connect(
            "diloco-coordinator-ledger",
            &config.ledger_bus(),
            clock::now(),
        )
        .await?;
        let audit_keys = trust.audit_keys.clone();
        let maker = Maker {
            domain: domain.clone(),
            key: Arc::new(audit_key.clone()),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let within = config.limits.receipt_within.millis();
        let own = audit_key.public().clone();
        let (heads, follower) = LedgerHeads::open(&config.keys.mark, &trust, own, within);
        heads.show();
        let ledger = Ledger::new(ledger_bus, audit_key, trust, patience);
        let settings = Settings {
            home,
            release: env!("CARGO_PKG_VERSION").to_owned(),
            audit_keys,
            posture: posture.clone(),
            heartbeat: config.limits.heartbeat.millis(),
            session: new_session(),
            checkpoint_every: CHECKPOINT_EVERY,
        };
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let tables = Tables::default();
        let (sweeper, sweeps) = sweep::pair();
        let (offers, offered) = queue::pair();
        let mut shell = Shell {
            bus,
            store,
            ledger,
            mark,
            heads,
            event_key: config.keys.events(),
            signer,
            domain,
            maker,
            issued: IssuedList::at(&config.keys.issued),
            posture,
            arrivals: sender,
            sweeper,
            offers,
            tables,
            workers: Workers::shown(),
            purges: Purges::default(),
            waiting: Waiting::default(),
            known: watch::Sender::new(0),
            signed: VecDeque::new(),
        };
        let core = shell.lead(&settings, &store_mark, patience).await?;
        store_mark.put().await;
        // Only a leader accepts requests and offers: earlier ones were sent to its predecessor.
        let mut feeders = JoinSet::new();
        let refusals = Refusals::of(Refuser::Coordinator);
        feeders.spawn(refusals.clone().report(shell.bus.clone()));
        for listener in serve::listen(&config.bus).await? {
            feeders.spawn(serve::forward(
                shell.bus.clone(),
                listener,
                identity,
                shell.arrivals.clone(),
                refusals.clone(),
            ));
        }
        if let Some(follower) = follower {
            feeders.spawn(follower.run(shell.bus.clone()));
        }
        feeders.spawn(shell.store.clone().keep_time());
        let stopped = shell.store.stopped.clone();
        stopped.want(wanted(core.state().stopped_urls()));
        let leading = shell.leading();
        feeders.spawn(stopped.keep(shell.store.clone(), move || leading.clone().leads()));
        feeders.spawn(sweeps.run(shell.store.clone()));
        feeders.spawn(offered.run(shell.bus.clone()));
        feeders.spawn(queue::pull(
            shell.bus.clone(),
            consumer,
            shell.arrivals.clone(),
        ));
        Ok(Self {
            shell,
            core,
            arrivals,
            feeders,
            refusals,
        })
    }

    /// Its connections to the two accounts that it uses.
    pub fn connections(&self) -> Vec<Bus> {
        vec![self.shell.bus.clone(), self.shell.ledger.bus().clone()]
    }

    /// Leads until an operator stops it, `shutdown` is cancelled, or it must stand down.
    ///
    /// # Errors
    /// The coded reason to stand down.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Failure> {
        let (bus, ledger_bus) = (self.shell.bus.clone(), self.shell.ledger.bus().clone());
        // Without its credentials a coordinator can neither write nor answer. What was not written
        // has not happened.
        let ended = tokio::select! {
            ended = self.shell.run(&mut self.core, self.arrivals, shutdown) => ended,
            refusal = bus.refused() => Err(refusal.into()),
            refusal = ledger_bus.refused() => Err(refusal.into()),
        };
        self.feeders.abort_all();
        self.refusals.last(&bus).await;
        ended
    }
}
