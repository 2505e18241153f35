//! Revoked keys: what an operator has made void is recorded, and nothing of such a key is taken.
//! The brokers refuse it too; a node of a cluster that was down serves it until it has heard of
//! that.

use schemas::event::LedgerEvent;
use schemas::revocation::{
    HOLDER_BYTES_MAX, REVOKED_AHEAD_MAX, REVOKED_NAMED_MAX, RevokeReply, RevokeRequest, RevokedKey,
};
use schemas::text::{Time, is_plain};
use schemas::{Code, PublicKey, Refusal, RunId, UnixMillis, V, WorkerId};

use crate::control::ControlOutcome;
use crate::coordinator::Coordinator;
use crate::effect::Answer;
use crate::run::RunRoom;
use crate::turn::{Outcome, Turn};

impl Coordinator {
    /// The refusal of everything that a worker with a revoked key asks for. The reason is not in
    /// it: it is for operators, and this may be the thief.
    pub(crate) fn void(&self, worker: &WorkerId) -> Option<Refusal> {
        let is_void = self.state.is_revoked(worker);
        is_void.then(|| refusal(worker.as_str()))
    }

    /// The same for an operator.
    pub(crate) fn void_operator(&self, operator: &PublicKey) -> Option<Refusal> {
        let until = self.state.revoked_until(operator);
        until.map(|_| refusal(operator.as_str()))
    }

    /// Records that keys are revoked, each as an event, and takes nothing of them from then on. A
    /// key that was revoked up to the same time before is not written again. What waits for an
    /// answer is refused, so that no lease is granted and no URL given to a revoked key; a lease
    /// that it holds ends by itself, since nobody renews it.
    pub(crate) fn revoke_credentials(
        &mut self,
        operator: PublicKey,
        request: RevokeRequest,
    ) -> ControlOutcome {
        self.check_revoked_keys(&request.keys)?;
        let mut recorded = 0;
        for named in request.keys {
            let stands = self.state.revoked_until(&named.key);
            if stands.is_some_and(|stands| named.until <= stands) {
                continue;
            }
            if recorded == 0 {
                // All keys of an order are written, or none.
                self.check_orders(&operator)?;
            }
            self.spend_order(&operator);
            recorded += 1;
            let RevokedKey {
                key,
                role,
                name,
                until,
                reason,
            } = named;
            let worker = key.as_str().parse::<WorkerId>().ok();
            let event = LedgerEvent::CredentialRevoked {
                key,
                role,
                name,
                until,
                reason,
                operator: operator.clone(),
            };
            self.append(None, event);
            if let Some(worker) = worker {
                self.leave_waiting(&worker);
            }
        }
        Ok(Outcome::Now(Answer::Revoke(RevokeReply { v: V, recorded })))
    }

    /// Takes a key again that was issued anew after its revocation. A token of before stays void.
    pub(crate) fn reissued(&mut self, key: PublicKey, issued: UnixMillis) {
        let until = self.state.revoked_until(&key);
        if until.is_some_and(|until| !RevokedKey::covers(until, issued)) {
            self.append(None, LedgerEvent::CredentialReissued { key, issued });
        }
    }

    /// Refuses what a worker still waits for, in every run.
    fn leave_waiting(&mut self, worker: &WorkerId) {
        let refusal = refusal(worker.as_str());
        let runs: Vec<RunId> = self.live.keys().cloned().collect();
        for run in &runs {
            self.tell(run, |room, turn| room.leave_waiting(turn, worker, &refusal));
        }
    }

    fn check_revoked_keys(&self, keys: &[RevokedKey]) -> Result<(), Refusal> {
        let invalid = |detail: String| Err(Refusal::new(Code::MessageInvalid, detail));
        if keys.len() > REVOKED_NAMED_MAX {
            return invalid(format!(
                "{} keys are named, at most {REVOKED_NAMED_MAX} are recorded at once",
                keys.len()
            ));
        }
        let latest = self.now.after(REVOKED_AHEAD_MAX);
        for named in keys {
            let RevokedKey {
                key, name, until, ..
            } = named;
            if *until > latest {
                return invalid(format!(
                    "{key} is to be void up to {}, more than {REVOKED_AHEAD_MAX} ms from now",
                    Time(*until)
                ));
            }
            let name = name.as_deref().unwrap_or_default();
            if name.len() > HOLDER_BYTES_MAX || !is_plain(name) {
                return invalid(format!(
                    "the name of {key} is longer than {HOLDER_BYTES_MAX} bytes, or not plain"
                ));
            }
        }
        Ok(())
    }
}

impl RunRoom<'_> {
    /// Refuses what a worker waits for in this run; its membership and its lease stay.
    fn leave_waiting(&mut self, turn: &mut Turn<'_>, worker: &WorkerId, refusal: &Refusal) {
        let claim = self.live.claims.take(worker).map(|claim| claim.reply);
        let read = self.live.reads.remove(worker).map(|read| read.reply);
        for reply in claim.into_iter().chain(read) {
            turn.reply(reply, Err(refusal.clone()));
        }
    }
}

fn refusal(key: &str) -> Refusal {
    let detail = format!("{key} was revoked by an operator");
    Refusal::new(Code::HolderBlocked, detail)
}
