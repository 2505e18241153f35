//! Objects that operators upload and read: data sets, initial weights, and every object of a run.

use schemas::blob::GetRequest;
use schemas::call::ControlVerb;
use schemas::control::OperatorObjects;
use schemas::lease::Done;
use schemas::{Code, ObjectRef, PublicKey, Refusal, V};

use crate::control::ControlOutcome;
use crate::coordinator::{Coordinator, draining};
use crate::effect::{Answer, Effect, Quarantine};
use crate::input::ReplyId;
use crate::run::objects::{check_count, check_objects};
use crate::turn::Outcome;

/// Most requests of one operator whose uploads are being checked at once: several imports side by
/// side.
const COMMITS_MAX: usize = 16;

impl Coordinator {
    pub(crate) fn operator_put(
        &mut self,
        operator: PublicKey,
        request: OperatorObjects,
        reply: ReplyId,
    ) -> ControlOutcome {
        self.check_operator(&request)?;
        let place = Quarantine::Operator { operator };
        self.out.push(Effect::GrantPut {
            reply,
            place,
            objects: request.objects,
        });
        Ok(Outcome::Later)
    }

    pub(crate) fn operator_commit(
        &mut self,
        operator: PublicKey,
        request: OperatorObjects,
        reply: ReplyId,
    ) -> ControlOutcome {
        self.check_operator(&request)?;
        self.no_collection()?;
        self.check_orders(&operator)?;
        if self
            .commits
            .values()
            .filter(|other| **other == operator)
            .count()
            >= COMMITS_MAX
        {
            let detail =
                format!("{COMMITS_MAX} uploads of {operator} are being checked; ask again");
            return Err(Refusal::new(Code::AskedTooMuch, detail));
        }
        self.commits.insert(reply, operator.clone());
        self.keep_committed(&request.objects);
        let place = Quarantine::Operator { operator };
        self.out.push(Effect::CheckUploads {
            reply,
            place,
            objects: request.objects,
        });
        Ok(Outcome::Later)
    }

    /// Writes the order before anything is promoted, and only if there is something to promote: an
    /// order that names absent objects is refused, and a repeated one finds its objects in `blobs`.
    pub(crate) fn uploads_checked(
        &mut self,
        reply: ReplyId,
        verdict: Result<Vec<ObjectRef>, Refusal>,
    ) {
        // A verdict that was not asked for changes nothing.
        if let Some(operator) = self.commits.get(&reply).cloned() {
            match verdict.and_then(|objects| self.check_orders(&operator).map(|()| objects)) {
                Ok(objects) if !objects.is_empty() => {
                    self.record_order(operator.clone(), ControlVerb::BlobCommit);
                    self.out.push(Effect::Promote {
                        reply,
                        place: Quarantine::Operator { operator },
                        objects,
                    });
                }
                outcome => self.promoted(reply, outcome.map(drop)),
            }
        }
    }

    /// Answers an operator whose uploads are promoted, or whose order has failed.
    pub(crate) fn promoted(&mut self, reply: ReplyId, outcome: Result<(), Refusal>) {
        // An outcome that was not asked for changes nothing.
        if self.commits.remove(&reply).is_some() {
            self.reply(reply, outcome.map(|()| Answer::Done(Done { v: V })));
        }
    }

    /// Grants an operator URLs to read objects; operators may read every object.
    pub(crate) fn operator_get(&mut self, request: GetRequest, reply: ReplyId) -> ControlOutcome {
        check_count(request.objects.len())?;
        self.out.push(Effect::GrantGet {
            reply,
            run: None,
            objects: request.objects,
        });
        Ok(Outcome::Later)
    }

    fn check_operator(&self, request: &OperatorObjects) -> Result<(), Refusal> {
        if self.drain.is_some() {
            return Err(draining());
        }
        check_objects(&request.objects)
    }
}
