//! Requirements for a join to any run: its form, the worker's posture, and an audit key of its own.

use ledger::Run;
use schemas::limits::TEXT_BYTES_MAX;
use schemas::member::{JoinRequest, Layer, Posture};
use schemas::text::is_plain;
use schemas::{Code, Refusal};

use crate::coordinator::{Coordinator, draining};
use crate::input::{Peer, Recorded};
use crate::run::groups::check_seat;
use crate::run::members::{check_entry, check_keys};

/// Longest description of a device or release; both are shown in tables and repeated in every view.
const LABEL_BYTES_MAX: usize = 128;
/// Most trainers that a join names: twice as many as there are.
const TRAINERS_MAX: usize = 6;

impl Coordinator {
    pub(crate) fn check_join(
        &self,
        peer: &Peer,
        recorded: &Recorded,
        request: &JoinRequest,
    ) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        check_form(request)?;
        check_posture(&request.posture, &self.settings.posture)?;
        if self.settings.audit_keys.contains(&request.audit_key) {
            let detail = format!("{} signs the ledger", request.audit_key);
            return Err(Refusal::new(Code::AuditKeyRefused, detail));
        }
        match self.state.run(&peer.run) {
            Some(run) if !run.is_complete() => {
                check_entry(run, peer, request)?;
                check_keys(run, &peer.worker, &recorded.before)?;
                check_seat(run, peer, recorded)?;
                self.check_key_is_free(run, peer, request)
            }
            // The answer is the same for any key that the worker names.
            Some(_) | None => Ok(()),
        }
    }

    /// Checks that no other emitter has this audit key: two that sign with one key would fork its
    /// chain, and each would be shown as the author of the other's words. The check looks at every
    /// member of every run, so it comes last, and only for a worker that is new to its run. The key
    /// of a known worker was checked before, and does not change.
    fn check_key_is_free(
        &self,
        run: &Run,
        peer: &Peer,
        request: &JoinRequest,
    ) -> Result<(), Refusal> {
        if run.members.contains_key(&peer.worker) {
            return Ok(());
        }
        let key = &request.audit_key;
        let mut members = self.state.runs().flat_map(|(_, run)| &run.members);
        match members.find(|(worker, member)| member.audit_key == *key && **worker != peer.worker) {
            Some((worker, _)) => Err(Refusal::new(
                Code::AuditKeyRefused,
                format!("{key} is the audit key of {worker}"),
            )),
            None => Ok(()),
        }
    }
}

fn check_form(request: &JoinRequest) -> Result<(), Refusal> {
    let long = |what: &str, bytes: usize, max: usize| {
        Refusal::new(
            Code::MessageInvalid,
            format!("{what} has {bytes} bytes, at most {max} are accepted"),
        )
    };
    for (what, text) in [("device", &request.device), ("release", &request.release)] {
        if text.len() > LABEL_BYTES_MAX {
            return Err(long(what, text.len(), LABEL_BYTES_MAX));
        }
        if !is_plain(text) {
            let text =
                format!("{what} {text:?} has characters that a terminal obeys or does not show");
            return Err(Refusal::new(Code::MessageInvalid, text));
        }
    }
    if request.trainers.len() > TRAINERS_MAX {
        let detail = format!(
            "a join names {} trainers, at most {TRAINERS_MAX} are accepted",
            request.trainers.len()
        );
        return Err(Refusal::new(Code::MessageInvalid, detail));
    }
    let layers = request.posture.open.len();
    if layers > Layer::ALL.len() {
        return Err(Refusal::new(
            Code::MessageInvalid,
            format!("posture names {layers} layers, there are four"),
        ));
    }
    match request
        .posture
        .open
        .iter()
        .find(|layer| layer.reason.len() > TEXT_BYTES_MAX)
    {
        Some(layer) => Err(long(
            "a posture's reason",
            layer.reason.len(),
            TEXT_BYTES_MAX,
        )),
        None => Ok(()),
    }
}

/// A worker may open no layer that the coordinator does not open.
fn check_posture(worker: &Posture, own: &Posture) -> Result<(), Refusal> {
    let weaker = worker
        .open
        .iter()
        .find(|open| own.open.iter().all(|allowed| allowed.layer != open.layer));
    match weaker {
        Some(open) => {
            let layer = open.layer.name();
            let detail = format!(
                "the worker runs with layer {layer} open, which this coordinator does not allow"
            );
            Err(Refusal::new(Code::LayerOpen, detail))
        }
        None => Ok(()),
    }
}
