//! `diloctl run stop-urls`: the store refuses the URLs of one run at once, while another run and
//! the operators go on, and both coordinator and store remember it. A URL is for one object of one
//! run.

use std::fs;

use e2e::Recipe;
use harness::{Cluster, Options, PATIENCE, Scripted};
use identity::{StoreKeys, UrlsOf};
use objects::{
    BlobKey, Endpoint, ObjectError, Regrant, Signer, StoreClock, Transfer, TransferLimits, Trust,
};
use runtime::{BusError, clock};
use schemas::blob::{GetRequest, Grant, Grants};
use schemas::contribution::Fate;
use schemas::event::LedgerEvent;
use schemas::hold::Hold;
use schemas::limits::OBJECT_BYTES_MAX;
use schemas::run::RunSpec;
use schemas::subject::{ControlVerb, Verb};
use schemas::{Code, Digest, ObjectRef, Refusal, RunId, V};
use tokio::time::Instant;

use crate::own_uploads::two_runs;

const STOP: [&str; 5] = ["run", "stop-urls", "demo", "--reason", "urls are in a log"];
const ALLOW: [&str; 5] = ["run", "allow-urls", "demo", "--reason", "they have ended"];

/// The holder of a URL that can get no other.
pub(crate) struct Thief(Transfer);

#[async_trait::async_trait]
impl Regrant for Thief {
    async fn regrant(&self, digest: Digest) -> Result<Grant, Refusal> {
        Err(Refusal::new(Code::ObjectForbidden, digest.to_string()))
    }
}

impl Thief {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let ca = fs::read(cluster.domain().layout().ca()).unwrap();
        Self(Transfer::new(&Trust::Authority(ca), TransferLimits::default()).unwrap())
    }

    pub(crate) async fn reads(&self, grant: &Grant) -> Result<(), ObjectError> {
        let deadline = Instant::now() + PATIENCE;
        let read = self.0.get(grant, OBJECT_BYTES_MAX, self, deadline);
        read.await.map(drop)
    }

    pub(crate) async fn writes(&self, grant: &Grant, bytes: &[u8]) -> Result<(), ObjectError> {
        let deadline = Instant::now() + PATIENCE;
        let bytes = bytes.to_vec().into();
        self.0.put(grant, bytes, self, deadline).await.map(drop)
    }
}

/// True if the store refused, so that the thief asked for another URL in vain.
pub(crate) fn refused(outcome: Result<(), ObjectError>) -> bool {
    outcome.map_err(|error| error.code()) == Err(Code::ObjectForbidden)
}

/// A chunk of a contribution in which all numbers are `value`.
pub(crate) fn chunk(spec: &RunSpec, value: f32) -> Vec<u8> {
    let bytes = spec.model.initial.objects()[0].bytes;
    value.to_le_bytes().repeat((bytes.get() / 4) as usize)
}

pub(crate) async fn to_read(worker: &Scripted, object: ObjectRef) -> Result<Grant, BusError> {
    let objects = vec![object.digest];
    let granted = worker.ask(Verb::Get, &GetRequest { v: V, objects }).await;
    granted.map(|Grants { mut grants, .. }| grants.remove(0))
}

/// The same grant with other words in its URL.
fn altered(grant: &Grant, from: &str, to: &str) -> Grant {
    let mut grant = grant.clone();
    let action = grant.action.as_mut().unwrap();
    assert!(action.href.contains(from), "{}", action.href);
    action.href = action.href.replace(from, to);
    grant
}

/// A URL that a coordinator would sign now.
fn signed(cluster: &Cluster, run: &RunId, object: ObjectRef) -> Grant {
    let layout = cluster.domain().layout();
    let keys = StoreKeys::read(&layout.coordinators_store_keys()).unwrap();
    let ca = Trust::Authority(fs::read(layout.ca()).unwrap());
    let endpoint = Endpoint::new(&cluster.store_url(), "us-east-1", ca).unwrap();
    let signer = Signer::new(&endpoint, &keys, StoreClock::default()).unwrap();
    let signer = signer.deriving(true).of(&UrlsOf::Run(run.clone()));
    signer.get(object.digest, clock::now())
}

fn stopped<T: std::fmt::Debug>(outcome: Result<T, BusError>) -> bool {
    matches!(outcome, Err(BusError::Refused(refusal)) if refusal.code == Code::UrlsStopped)
}

#[tokio::test]
async fn tl_20_the_urls_of_one_run_are_refused_at_once_while_another_runs_go_on() {
    let (mut cluster, operator, second) = two_runs("policy.silence_max=300s").await;
    let thief = Thief::of(&cluster);
    let ours = Scripted::connect(&cluster, "worker-0").await;
    let theirs = Scripted::connect_for(&cluster, "worker-1", &second).await;
    let (spec, their_spec) = (ours.join().await, theirs.join().await);
    let (lease, their_lease) = (ours.claim().await.lease, theirs.claim().await.lease);
    let weights = spec.model.initial.objects()[0];
    let (bytes, others) = (chunk(&spec, 0.001), chunk(&their_spec, 0.002));
    let (object, other) = (ObjectRef::of(&bytes), ObjectRef::of(&others));

    // A URL is of its run and for one object, and leads nowhere else.
    let read = to_read(&ours, weights).await.unwrap();
    let config = spec.model.config;
    let [from, to] = [weights, config].map(|object| BlobKey(object.digest).to_string());
    assert!(refused(thief.reads(&altered(&read, &from, &to)).await));
    let write = ours.grant(lease, object).await.unwrap();
    let elsewhere = altered(&write, "/incoming/demo/", "/incoming/second/");
    assert!(refused(thief.writes(&elsewhere, &bytes).await));
    for (grant, run) in [(&read, "demo"), (&write, "demo")] {
        let href = &grant.action.as_ref().unwrap().href;
        assert!(href.contains(&format!(".{run}%2F")), "{href}");
    }
    let renamed = altered(&read, ".demo%2F", ".second%2F");
    assert!(refused(thief.reads(&renamed).await));

    // Stopped: what is out is worth nothing at once, and nothing more is given out.
    let of_another = to_read(&theirs, weights).await.unwrap();
    let shown = cluster.diloctl_ok(&STOP).await;
    assert!(shown.contains("on urls: placed"), "{shown}");
    assert!(shown.contains("the store refuses them"), "{shown}");
    assert!(refused(thief.reads(&read).await));
    assert!(refused(thief.writes(&write, &bytes).await));
    assert!(stopped(to_read(&ours, weights).await));
    assert!(stopped(ours.grant(lease, object).await));
    // The other run's go on, and so do the operators'.
    thief.reads(&of_another).await.unwrap();
    let uploaded = theirs.upload(their_lease, others).await;
    assert_eq!(uploaded, other);
    let objects = vec![weights.digest];
    let of_operator: Grants = operator
        .ask(ControlVerb::BlobGet, &GetRequest { v: V, objects })
        .await
        .unwrap();
    let [of_operator] = &of_operator.grants[..] else {
        panic!("{of_operator:?}");
    };
    let href = &of_operator.action.as_ref().unwrap().href;
    assert!(href.contains(".operator%2F"), "{href}");
    thief.reads(of_operator).await.unwrap();
    let listed = cluster.diloctl_ok(&["run", "ls"]).await;
    assert!(listed.contains("urls on hold"), "{listed}");

    // Store and coordinator remember it.
    for name in ["store", "coordinator"] {
        cluster.kill9(name);
        cluster.restart(name).await;
        let fresh = signed(&cluster, cluster.run(), weights);
        assert!(refused(thief.reads(&fresh).await), "{name}");
        let fresh = signed(&cluster, &second, weights);
        thief.reads(&fresh).await.unwrap();
    }
    assert!(stopped(to_read(&ours, weights).await));
    let again = cluster.diloctl_ok(&STOP).await;
    assert!(again.contains("stands already"), "{again}");
    assert!(again.contains("the store refuses them"), "{again}");

    let shown = cluster.diloctl_ok(&ALLOW).await;
    assert!(shown.contains("lifted; this is in the ledger"), "{shown}");
    assert!(shown.contains("the store takes them"), "{shown}");
    let read = to_read(&ours, weights).await.unwrap();
    thief.reads(&read).await.unwrap();
    let uploaded = ours.upload(lease, bytes).await;
    let result = Scripted::contribution(&spec, vec![uploaded]);
    let reply = ours.submit(&spec, lease, result).await.unwrap();
    assert_eq!(reply.fate, Fate::Merged);
    cluster.record_verifies().await;
}

/// Real workers wait meanwhile, and go on by themselves.
#[tokio::test]
async fn a_run_goes_on_where_it_was_when_its_urls_are_allowed_again() {
    let cluster = Cluster::start(Options::default(), 2).await;
    let run = cluster.run().clone();
    let mut evidence = cluster.evidence().await;
    Recipe::reference(4, 2, 20).create(&cluster).await;
    evidence.until_contribution(&run, 0).await;
    cluster.diloctl_ok(&STOP).await;
    cluster.diloctl_ok(&ALLOW).await;
    cluster.operator().await.until_complete(&run).await;
    let everything = cluster.evidence().await.everything().await;
    let events = everything.iter().filter_map(|one| one.ledger());
    let mut is_stopped = false;
    for event in events {
        match event {
            LedgerEvent::HoldPlaced { hold, .. } => is_stopped = *hold == Hold::Urls,
            LedgerEvent::HoldLifted { .. } => is_stopped = false,
            LedgerEvent::LeaseGranted { .. } => assert!(!is_stopped, "a lease begins with urls"),
            LedgerEvent::ContributionRejected { .. } => panic!("{event:?}"),
            _ => {}
        }
    }
}
