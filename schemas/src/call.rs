//! The questions to the coordinator, declared once: each line of `calls!` ties a verb to its
//! request, its reply, its row in the permission table and the text of the reference page, by type.
//! Subjects, decoding, the enums that the coordinator matches on, the callers' functions and
//! `docs/bus.md` follow from it.

use std::fmt;

use crate::blob::{GetRequest, Grants, PutRequest};
use crate::collection::{CollectReply, CollectRequest};
use crate::contribution::{StageRequest, Submission, SubmitReply, SubmitRequest};
use crate::control::{
    OperatorObjects, RunNew, RunNewReply, Shutdown, ShutdownReply, ViewReply, ViewRequest,
};
use crate::ending::{LeasesEndReply, LeasesEndRequest};
use crate::hold::{HoldReply, HoldRequest};
use crate::keys::{KeysReply, KeysRequest};
use crate::lease::{
    ClaimReply, ClaimRequest, Done, LeaseRef, ReleaseRequest, RenewReply, RenewRequest,
};
use crate::masking::{MaskReply, MaskRequest};
use crate::member::{JoinReply, JoinRequest, LeaveRequest};
use crate::message::DecodeError;
use crate::promotion::{PromoteReply, PromoteRequest};
use crate::quarantine::{QuarantineReply, QuarantineRequest};
use crate::restore::{RestoreReply, RestoreRequest};
use crate::revocation::{RevokeReply, RevokeRequest};
use crate::role::Role;
use crate::subject::{Kind, Lane, Row};
use crate::tenant::{TenantEndReply, TenantEndRequest, TenantReply, TenantRequest};
use crate::{Message, PublicKey, RunId, WorkerId};

/// A question to the coordinator: the types of question and answer, under one verb.
pub trait Call {
    /// The verbs of its lane.
    type Verb: Copy;
    /// The question.
    type Request: Message;
    /// The answer, if the question is not refused.
    type Reply: Message;
    /// The verb.
    const VERB: Self::Verb;
}

/// The name of a message type for the reference page; a name without a type does not compile.
macro_rules! message_name {
    ($type:ty) => {{
        const fn is_sent<T: serde::Serialize>() {}
        is_sent::<$type>();
        stringify!($type)
    }};
}
pub(crate) use message_name;

/// Declares all calls of one lane. After the request's type may follow `as` and the type to which
/// the coordinator decodes it, if that is another one.
macro_rules! calls {
    (
        $(#[$verb_doc:meta])* verbs $verbs:ident;
        $(#[$request_doc:meta])* requests $requests:ident;
        calls $module:ident;
        lane $lane:ident, $before:literal, said by $publisher:ident;
        $($call:ident = $token:literal: $request:ident $(as $taken:ty)? => $reply:ident, $purpose:literal;)+
    ) => {
        $(#[$verb_doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[expect(missing_docs, reason = "the names are those of the subjects; the table says what each is for")]
        pub enum $verbs { $($call,)+ }

        impl $verbs {
            /// All calls of the lane.
            pub const ALL: &[Self] = &[$(Self::$call,)+];

            /// Their lines in the table of subjects.
            pub(crate) const ROWS: &[Row] = &[$(Row {
                lane: Lane::$lane,
                pattern: concat!($before, $token),
                kind: Kind::Request,
                message: message_name!($request),
                reply: Some(message_name!($reply)),
                publishers: &[Role::$publisher],
                subscribers: &[Role::Coordinator],
                purpose: $purpose,
            },)+];

            /// The last tokens of its subject.
            pub const fn token(self) -> &'static str {
                match self { $(Self::$call => $token,)+ }
            }

            pub(crate) fn from_token(token: &str) -> Option<Self> {
                match token { $($token => Some(Self::$call),)+ _ => None }
            }
        }

        impl fmt::Display for $verbs {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.token())
            }
        }

        $(#[$request_doc])*
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "one variant for each verb")]
        pub enum $requests { $($call(calls!(@taken $request $($taken)?)),)+ }

        impl $requests {
            /// The verb of the request.
            pub const fn verb(&self) -> $verbs {
                match self { $(Self::$call(_) => $verbs::$call,)+ }
            }

            /// Decodes the request of a verb.
            ///
            /// # Errors
            /// The bytes are no request of this verb.
            pub fn decode(verb: $verbs, payload: &[u8]) -> Result<Self, DecodeError> {
                Ok(match verb {
                    $($verbs::$call => Self::$call(<$request>::decode(payload)?.try_into()?),)+
                })
            }
        }

        #[doc = concat!("The calls under [`", stringify!($verbs), "`], each as a type.")]
        pub mod $module {
            $(
                #[doc = concat!("`", $token, "`: ", $purpose, ".")]
                #[derive(Clone, Copy, Debug)]
                pub enum $call {}

                impl super::Call for $call {
                    type Verb = super::$verbs;
                    type Request = super::$request;
                    type Reply = super::$reply;
                    const VERB: super::$verbs = super::$verbs::$call;
                }
            )+
        }
    };
    (@taken $request:ident) => { $request };
    (@taken $request:ident $taken:ty) => { $taken };
}

calls! {
    /// A question of a worker.
    verbs Verb;
    /// A decoded question of a worker.
    requests WorkerRequest;
    calls worker;
    lane Request, "{run}.{worker}.", said by Worker;
    Join = "join": JoinRequest => JoinReply, "become a member of the run";
    Leave = "leave": LeaveRequest => Done, "stop being a member";
    Claim = "lease.claim": ClaimRequest => ClaimReply, "ask for work (long poll)";
    Renew = "lease.renew": RenewRequest => RenewReply, "extend a lease";
    Release = "lease.release": ReleaseRequest => Done, "give a lease back";
    Mask = "mask": MaskRequest => MaskReply, "agree on masks for a round, and reveal shares for its sum";
    Keys = "keys": KeysRequest => KeysReply, "read the public keys of leases and commands: a copy for readers in other languages; this project's programs trust `trust.json` alone";
    Put = "blob.put": PutRequest => Grants, "URLs to upload a unit's objects";
    Get = "blob.get": GetRequest => Grants, "URLs to read the run's objects";
    Stage = "contribution.stage": StageRequest => Done, "announce an uploaded chunk";
    Submit = "contribution.submit": SubmitRequest as Submission => SubmitReply, "hand in a unit's result";
}

calls! {
    /// A question of an operator.
    verbs ControlVerb;
    /// A decoded question of an operator.
    requests ControlRequest;
    calls control;
    lane Control, "{operator}.", said by Operator;
    RunNew = "run.new": RunNew as Box<RunNew> => RunNewReply, "create a run";
    RunHold = "run.hold": HoldRequest => HoldReply, "place or lift a hold: the run merges nothing, or the store takes none of its URLs";
    RunGc = "run.gc": CollectRequest => CollectReply, "delete the objects of a run's old rounds, or only list them";
    WorkerQuarantine = "worker.quarantine": QuarantineRequest => QuarantineReply, "shut a worker out of a run, or let it in again";
    LeasesEnd = "leases.end": LeasesEndRequest => LeasesEndReply, "end leases that workers hold: their units are issued again, and no result under them counts";
    SnapshotPromote = "snapshot.promote": PromoteRequest => PromoteReply, "move a pointer to a saved snapshot";
    SnapshotRestore = "snapshot.restore": RestoreRequest => RestoreReply, "lead a run back to a full snapshot";
    TenantSet = "tenant.set": TenantRequest => TenantReply, "let a tenant have runs, or give it another quota";
    TenantEnd = "tenant.end": TenantEndRequest => TenantEndReply, "shut a tenant out for good";
    CredentialRevoke = "credential.revoke": RevokeRequest => RevokeReply, "record that credentials are revoked, and have their keys refused";
    View = "view": ViewRequest => ViewReply, "look at the coordinator, runs, workers, leases, rounds, snapshots, tenants";
    Keys = "keys": KeysRequest => KeysReply, "read the public keys of leases and commands: a copy; this project's programs trust `trust.json` alone";
    BlobPut = "blob.put": OperatorObjects => Grants, "URLs to upload objects";
    BlobCommit = "blob.commit": OperatorObjects => Done, "check and publish uploaded objects";
    BlobGet = "blob.get": GetRequest => Grants, "URLs to read objects";
    Shutdown = "shutdown": Shutdown => ShutdownReply, "drain and stop the coordinator and its workers";
}

impl WorkerRequest {
    /// The lease that the request is about, if it is about one.
    pub const fn lease(&self) -> Option<LeaseRef> {
        match self {
            Self::Renew(request) => Some(request.lease),
            Self::Release(request) => Some(request.lease),
            Self::Mask(request) => Some(request.lease),
            Self::Put(request) => Some(request.lease),
            Self::Stage(request) => Some(request.lease),
            Self::Submit(submission) => Some(submission.statement.lease),
            Self::Join(_) | Self::Leave(_) | Self::Claim(_) | Self::Keys(_) | Self::Get(_) => None,
        }
    }
}

/// `diloco.request.<run>.<worker>.<verb>`, as the worker publishes it.
pub fn request_subject(run: &RunId, worker: &WorkerId, verb: Verb) -> String {
    format!("{}.{run}.{worker}.{verb}", Lane::Request.prefix())
}

/// `diloco.control.<operator>.<verb>`.
pub fn control_subject(operator: &PublicKey, verb: ControlVerb) -> String {
    format!("{}.{operator}.{verb}", Lane::Control.prefix())
}
