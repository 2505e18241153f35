//! The dependencies that the project does not build: nats-server and libtorch, pinned by hash,
//! under `.deps/`.

mod component;
pub(crate) mod garage;
mod given;
mod install;
mod wheel;

use std::path::{Path, PathBuf};

use anyhow::Result;

pub(crate) use given::Overrides;

use crate::console;
use component::{LIBTORCH, NATS_SERVER};
use install::State;

/// The paths of the two dependencies, and how they came there.
pub(crate) struct Dependencies {
    /// The server's program.
    pub(crate) nats_server: PathBuf,
    /// The folder with `include/` and `lib/`.
    pub(crate) libtorch: PathBuf,
    nats_server_state: State,
    libtorch_state: State,
}

impl Dependencies {
    /// Two lines for a person.
    pub(crate) fn report(&self) -> String {
        let line = |name, state: State, path: &Path| {
            format!("{name:<12} {:<8} {}", state.word(), path.display())
        };
        let server = line("nats-server", self.nats_server_state, &self.nats_server);
        format!(
            "{server}\n{}",
            line("libtorch", self.libtorch_state, &self.libtorch)
        )
    }
}

/// Makes sure that both dependencies are there; missing ones are fetched into `folder`.
pub(crate) fn ensure(folder: &Path, overrides: &Overrides) -> Result<Dependencies> {
    let (nats_server, nats_server_state) = match &overrides.nats_server {
        Some(path) => (given::check_nats_server(path)?, State::Given),
        None => {
            let (at, state) = install::ensure(&NATS_SERVER, folder, &[])?;
            (at.join("nats-server"), state)
        }
    };
    let (libtorch, libtorch_state) = match &overrides.libtorch {
        Some(path) => (given::check_libtorch(path)?, State::Given),
        None => install::ensure(&LIBTORCH, folder, &[])?,
    };
    if libtorch_state == State::Given {
        console::say(format_args!("using LIBTORCH={}", libtorch.display()));
    }
    Ok(Dependencies {
        nats_server,
        libtorch,
        nats_server_state,
        libtorch_state,
    })
}
