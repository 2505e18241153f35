//! The status of a run, which operators follow, and the signed commands to workers.

use serde::{Deserialize, Serialize};

use crate::UnixMillis;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::member::Session;
use crate::message::{V, message};
use crate::view::RunView;

/// `status`: the coordinator publishes it when a run changes, at most twice a second. While the run
/// is open it does so at least every five seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Version.
    pub v: V<1>,
    /// The coordinator's clock.
    pub now: UnixMillis,
    /// A summary of the run.
    pub view: RunView,
}

message!(Status, "status", MESSAGE_BYTES_MAX);

/// The type header of a command's JWS.
pub const COMMAND_TYPE: &str = "diloco-command+jwt";

/// The claims of a command to a worker, signed by the manifest key (JWS of type [`COMMAND_TYPE`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Version.
    pub v: V<2>,
    /// The public key of the manifest key that signed it.
    pub iss: String,
    /// The run that the worker works for.
    pub run: crate::RunId,
    /// The worker that it is for.
    pub aud: crate::WorkerId,
    /// The process of that worker that it is for: one that is started later obeys no command that
    /// ended the process before it.
    pub session: Session,
    /// Issued at, Unix seconds.
    pub iat: u64,
    /// End of its validity, exclusive, in Unix seconds.
    pub exp: u64,
    /// Unique id.
    pub jti: String,
    /// The command.
    pub verb: CommandVerb,
}

/// A command to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandVerb {
    /// Finish the present unit, hand it in, and claim no other.
    Drain,
    /// Stop the work, give its lease back and exit. A result that is on its way is handed in first,
    /// within a time limit.
    Stop,
    /// Exit at once and send nothing more: an operator has put the worker in quarantine.
    Quarantine,
}

impl CommandVerb {
    /// Its name as one subject token.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Quarantine => "quarantine",
        }
    }
}
