//! The flags of an invitation.

use std::path::PathBuf;

use clap::Args;
use schemas::RunId;

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// Name of the new worker; by default one that nobody has.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Run that it works for.
    #[arg(long, default_value = "demo")]
    pub(crate) run: RunId,
    /// Time after which the invitation is worth nothing, at most a day.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    pub(crate) ends: runtime::ConfigDuration,
    /// Admit no machine before `worker approve` has named its key.
    #[arg(long, conflicts_with = "keys")]
    pub(crate) by_hand: bool,
    /// Admit exactly the machines whose keys are in this file: in each line a name for the worker
    /// and its key, as `worker keys` shows it.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    pub(crate) keys: Option<PathBuf>,
    /// Group of workers in which the new worker has a seat.
    #[arg(long, requires = "rank", requires = "of")]
    pub(crate) group: Option<schemas::GroupId>,
    /// Its rank in the group, from 0.
    #[arg(long, requires = "group")]
    pub(crate) rank: Option<u32>,
    /// Number of seats in the group.
    #[arg(long, requires = "group")]
    pub(crate) of: Option<u32>,
    /// File to write.
    #[arg(long, value_name = "FILE", default_value = "invitation.json")]
    pub(crate) into: PathBuf,
}
