//! Requests of operators to the coordinator.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::limits::{ENVELOPE_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::message::{V, message};
use crate::run::RunSpec;
use crate::tenant::TenantView;
use crate::view::{
    CoordinatorView, LeaseView, RoundView, RunDetail, RunView, SnapshotView, WorkerView,
};
use crate::{Millis, ObjectRef, RunId};

/// `run.new`: create a run. Every object that the settings name must be in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunNew {
    /// Version.
    pub v: V<1>,
    /// Its settings.
    pub spec: RunSpec,
}

message!(RunNew, "run.new", MESSAGE_BYTES_MAX);

/// `view`: show a view.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewRequest {
    /// Version.
    pub v: V<1>,
    /// The view that is wanted.
    pub query: Query,
    /// Only the last so many rows of the list, in the order of [`ViewReply::left_out`]: what an
    /// answer before left out. The list is made anew: runs, workers and leases that came or went
    /// meanwhile may be missing from both answers, or be in both; rounds and snapshots are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<u32>,
}

impl ViewRequest {
    /// Asks for a view from its beginning.
    pub const fn of(query: Query) -> Self {
        Self {
            v: V,
            query,
            rest: None,
        }
    }
}

message!(ViewRequest, "view", 4096);

/// A view that an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// The coordinator itself.
    Coordinator,
    /// All runs.
    Runs,
    /// One run in full.
    Run(RunId),
    /// Workers of a run, present and past.
    Workers(RunId),
    /// Leases of a run.
    Leases(RunId),
    /// Rounds of a run.
    Rounds(RunId),
    /// Full snapshots of a run.
    Snapshots(RunId),
    /// The tenants beside the domain's own.
    Tenants,
}

/// The answer to a [`ViewRequest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewReply {
    /// Version.
    pub v: V<1>,
    /// The view that was asked for.
    pub view: View,
    /// Rows that are left out, since a list is longer than a message: the oldest rounds and
    /// snapshots, and the last runs, workers and leases. They come to a request with this number as
    /// [`ViewRequest::rest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<NonZeroU32>,
}

impl ViewReply {
    /// A view that leaves nothing out.
    pub const fn of(view: View) -> Self {
        Self {
            v: V,
            view,
            left_out: None,
        }
    }
}

message!(
    ViewReply,
    "view reply",
    MESSAGE_BYTES_MAX - ENVELOPE_BYTES_MAX
);

/// A view as an operator sees it; one variant for each [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The coordinator itself.
    Coordinator(CoordinatorView),
    /// All runs.
    Runs(Vec<RunView>),
    /// One run in full.
    Run(Box<RunDetail>),
    /// Workers of a run.
    Workers(Vec<WorkerView>),
    /// Leases of a run.
    Leases(Vec<LeaseView>),
    /// Rounds of a run.
    Rounds(Vec<RoundView>),
    /// Full snapshots of a run.
    Snapshots(Vec<SnapshotView>),
    /// The tenants beside the domain's own.
    Tenants(Vec<TenantView>),
}

/// `blob.put` and `blob.commit`: upload objects into quarantine, and promote them when they are
/// there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorObjects {
    /// Version.
    pub v: V<1>,
    /// The objects, at most `GRANTS_MAX`.
    pub objects: Vec<ObjectRef>,
}

message!(OperatorObjects, "operator objects", MESSAGE_BYTES_MAX);

/// `shutdown`: drain all runs and stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// Version.
    pub v: V<1>,
    /// The time that holders of leases get to finish; after it the coordinator stops anyway.
    pub drain: Millis,
}

message!(Shutdown, "shutdown", 4096);

/// The answer to a [`Shutdown`], sent when draining has begun and is in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShutdownReply {
    /// Version.
    pub v: V<1>,
    /// Leases that were held.
    pub leases: u32,
    /// Workers that were told.
    pub workers: u32,
}

message!(ShutdownReply, "shutdown reply", 4096);

/// The answer to a [`RunNew`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunNewReply {
    /// Version.
    pub v: V<1>,
    /// The digest of its settings.
    pub spec_digest: crate::Digest,
    /// True if this request created the run; false if the same run existed.
    pub created: bool,
}

message!(RunNewReply, "run.new reply", 4096);
