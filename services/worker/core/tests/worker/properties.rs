//! Properties that hold for all answers in any order: the worker holds one lease at a time, hands
//! in no result under a lost lease, and always finds a way on.

use std::collections::BTreeMap;

use crate::scene::{Scene, join_reply, lease, manifest, trained};
use proptest::prelude::*;
use schemas::contribution::{Evaluation, Fate, SubmitReply};
use schemas::event::WorkerEvent;
use schemas::lease::{ClaimOutcome, ClaimReply, Done, LeaseRef, RenewReply, UnitKind};
use schemas::public::CommandVerb;
use schemas::{Code, Millis, ObjectRef, Refusal, Steps, Tokens, UnixMillis, V};
use worker_core::{Answer, Effect, Input, NotVerified, Request, RequestId, ResultEnd, WorkId};

/// The world's next move. Numbers choose among the open requests or works, modulo their count.
#[derive(Clone, Debug)]
enum Move {
    /// Answer a request as it should be answered.
    Answer(usize),
    /// Refuse a request.
    Refuse(usize, Code),
    /// Answer a request with the answer to another one.
    Confuse(usize, u8),
    /// The shell finished a step of some work, present or past.
    Finish(usize, bool),
    Command(CommandVerb),
    Forge,
    /// Time passes.
    Wait(u64),
    /// Time passes to the worker's own next deadline.
    Deadline,
}

fn moves() -> impl Strategy<Value = Move> {
    let code = prop::sample::select(Code::ALL.to_vec());
    prop_oneof![
        6 => any::<usize>().prop_map(Move::Answer),
        3 => (any::<usize>(), code).prop_map(|(which, code)| Move::Refuse(which, code)),
        1 => (any::<usize>(), any::<u8>()).prop_map(|(which, kind)| Move::Confuse(which, kind)),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Move::Finish(which, well)),
        1 => prop_oneof![Just(CommandVerb::Drain), Just(CommandVerb::Stop)].prop_map(Move::Command),
        2 => Just(Move::Forge),
        2 => (0_u64..40_000).prop_map(Move::Wait),
        4 => Just(Move::Deadline),
    ]
}

/// True for an answer to a submit that names this fate.
fn is_a_fate(input: &Input, wanted: Fate) -> bool {
    matches!(input, Input::Replied { outcome: Ok(Answer::Submit(SubmitReply { fate, .. })), .. } if *fate == wanted)
}

/// Plays the moves and checks every effect.
struct Play {
    scene: Scene,
    /// Requests that have not been answered; some never will be.
    open: Vec<(RequestId, Request)>,
    /// The work that the shell is doing, as far as it was not stopped.
    running: BTreeMap<WorkId, Effect>,
    /// All works so far, with their leases if they were verified.
    works: Vec<(WorkId, Option<LeaseRef>)>,
    present: Option<LeaseRef>,
    lost: Vec<LeaseRef>,
    exited: bool,
    epoch: u64,
    /// Units that were trained and have no known end.
    unkept: Vec<WorkId>,
    /// True if the last input was the answer to a submit, and the result counts.
    counts: bool,
}

impl Play {
    fn new() -> Self {
        let scene = Scene::new();
        let mut play = Self {
            scene,
            open: Vec::new(),
            running: BTreeMap::new(),
            works: Vec::new(),
            present: None,
            lost: Vec::new(),
            exited: false,
            epoch: 0,
            unkept: Vec::new(),
            counts: false,
        };
        play.look();
        play
    }

    fn give(&mut self, input: Input) {
        let was_over = self.exited;
        self.counts = is_a_fate(&input, Fate::Merged);
        self.scene.give(input);
        assert!(
            !was_over || self.scene.effects.is_empty(),
            "nothing after the exit: {:?}",
            self.scene.effects
        );
        self.look();
    }

    /// Checks the worker's effects.
    fn look(&mut self) {
        for effect in self.scene.effects.clone() {
            match &effect {
                Effect::Send { id, request, .. } => {
                    if let Request::Submit(_) | Request::Renew(_) = request {
                        assert!(self.present.is_some(), "{request:?} without a lease");
                    }
                    if let Request::Submit(result) = request {
                        let statement: schemas::contribution::Statement =
                            schemas::Message::decode(&result.statement).expect("a statement");
                        assert!(
                            !self.lost.contains(&statement.lease),
                            "a result under a lost lease"
                        );
                        assert_eq!(Some(statement.lease), self.present);
                    }
                    if let Request::Claim(_) = request {
                        assert!(self.present.is_none(), "a claim beside a lease");
                        assert!(
                            self.running.is_empty(),
                            "a claim beside work: {:?}",
                            self.running
                        );
                    }
                    self.open.push((*id, request.clone()));
                }
                Effect::Verify { work, .. } => {
                    assert!(self.running.is_empty(), "two works at once");
                    self.works.push((*work, None));
                    self.running.insert(*work, effect);
                }
                Effect::Fetch { work, .. }
                | Effect::Train { work }
                | Effect::Evaluate { work }
                | Effect::Upload { work } => {
                    assert!(
                        self.running.keys().all(|other| other == work),
                        "two works at once"
                    );
                    self.running.insert(*work, effect);
                }
                Effect::Stop { work } => {
                    self.running.remove(work);
                    self.lost.extend(self.present.take());
                }
                Effect::Emit(WorkerEvent::Started { lease }) => {
                    assert_eq!(self.present, None, "two leases at once");
                    self.present = Some(*lease);
                }
                Effect::Emit(WorkerEvent::Submitted { lease, .. }) => {
                    assert_eq!(self.present.take(), Some(*lease));
                    self.running.clear();
                }
                Effect::Exit(_) => {
                    assert!(!self.exited, "it ends once");
                    self.exited = true;
                }
                Effect::KeepInner { work, end } => {
                    let at = self.unkept.iter().position(|unkept| unkept == work);
                    self.unkept.remove(at.expect("each trained unit ends once"));
                    assert_eq!(*end == ResultEnd::Counted, self.counts, "{end:?}");
                }
                _ => {}
            }
        }
        self.trained_units_end();
    }

    /// Checks that every trained unit has got an end.
    fn trained_units_end(&mut self) {
        for effect in &self.scene.effects {
            if let Effect::Train { work } = effect {
                self.unkept.push(*work);
            }
        }
        let idle = self.exited || self.present.is_none();
        assert!(!idle || self.unkept.is_empty(), "{:?}", self.unkept);
    }

    fn good_answer(&mut self, request: &Request, kind: u8) -> Answer {
        match (request, kind) {
            (Request::Join(_), _) => Answer::Join(Box::new(join_reply(self.scene.now))),
            (Request::Claim(_), kind) => {
                let outcome = match kind % 8 {
                    0 => ClaimOutcome::Nothing,
                    1 if kind == 1 => ClaimOutcome::Complete,
                    _ => ClaimOutcome::Lease("document".to_owned()),
                };
                Answer::Claim(ClaimReply::of(outcome))
            }
            (Request::Renew(_), kind) => {
                let remaining = Millis(u64::from(kind) * 200);
                Answer::Renew(RenewReply {
                    v: V,
                    expires_at: UnixMillis(0),
                    remaining,
                })
            }
            (Request::Submit(_), kind) => {
                let fates = [
                    Fate::Merged,
                    Fate::Merged,
                    Fate::Late,
                    Fate::Rejected,
                    Fate::Abandoned,
                ];
                Answer::Submit(SubmitReply {
                    v: V,
                    fate: fates[usize::from(kind) % fates.len()],
                })
            }
            (Request::Release(_) | Request::Leave(_), _) => Answer::Done(Done::default()),
        }
    }

    fn finish(&mut self, which: usize, well: bool) {
        let Some((work, _)) = self.works.get(which % self.works.len().max(1)).copied() else {
            return;
        };
        let refusal = || Refusal::new(Code::ALL[which % Code::ALL.len()], "played by the test");
        // Usually the present work; sometimes a report about work that was stopped long ago.
        let running = self
            .running
            .last_key_value()
            .map(|(work, effect)| (*work, effect.clone()));
        let (work, doing) = running
            .filter(|_| !which.is_multiple_of(5))
            .unwrap_or((work, Effect::Train { work }));
        let ok = |value| if well { Ok(value) } else { Err(refusal()) };
        match doing {
            Effect::Verify { .. } => {
                self.epoch += 1;
                let kind = if which.is_multiple_of(3) {
                    UnitKind::Evaluate
                } else {
                    UnitKind::Train
                };
                let lease = lease(0, kind, self.epoch);
                let outcome = match well {
                    true => Ok(Box::new(manifest(lease, self.scene.now))),
                    false => Err(NotVerified {
                        refusal: refusal(),
                        lease: which.is_multiple_of(2).then_some(lease),
                    }),
                };
                self.running.remove(&work);
                self.give(Input::Verified { work, outcome });
            }
            Effect::Fetch { .. } => self.give(Input::Fetched {
                work,
                outcome: ok(()).map(|_| None),
            }),
            Effect::Evaluate { .. } => {
                let evaluation = Evaluation {
                    loss_sum: 3.0,
                    tokens: Tokens(2),
                };
                let outcome = if well { Ok(evaluation) } else { Err(refusal()) };
                self.give(Input::Evaluated { work, outcome });
            }
            Effect::Upload { .. } => {
                let outcome = if well {
                    Ok(vec![ObjectRef::of(b"chunk")].into())
                } else {
                    Err(refusal())
                };
                self.give(Input::Uploaded { work, outcome });
            }
            _ => {
                self.give(Input::Progress {
                    work,
                    steps_done: Steps(1),
                });
                let outcome = if well { Ok(trained()) } else { Err(refusal()) };
                self.give(Input::Trained { work, outcome });
            }
        }
    }

    fn play(&mut self, step: Move) {
        match step {
            Move::Answer(which) | Move::Confuse(which, _) | Move::Refuse(which, _)
                if self.open.is_empty() =>
            {
                let id = RequestId(which as u64);
                self.give(Input::Replied {
                    id,
                    outcome: Ok(Answer::Done(Done::default())),
                });
            }
            Move::Answer(which) => {
                let (id, request) = self.open.swap_remove(which % self.open.len());
                let answer = self.good_answer(&request, which as u8);
                self.give(Input::Replied {
                    id,
                    outcome: Ok(answer),
                });
            }
            Move::Refuse(which, code) => {
                let (id, _) = self.open.swap_remove(which % self.open.len());
                self.give(Input::Replied {
                    id,
                    outcome: Err(Refusal::new(code, "played by the test")),
                });
            }
            Move::Confuse(which, kind) => {
                let (id, _) = self.open.swap_remove(which % self.open.len());
                let renewal = RenewReply {
                    v: V,
                    expires_at: UnixMillis(0),
                    remaining: Millis(0),
                };
                let answers = [
                    Answer::Done(Done::default()),
                    Answer::Renew(renewal),
                    Answer::Submit(SubmitReply {
                        v: V,
                        fate: Fate::Late,
                    }),
                ];
                let answer = answers[usize::from(kind) % answers.len()].clone();
                self.give(Input::Replied {
                    id,
                    outcome: Ok(answer),
                });
            }
            Move::Finish(which, well) => self.finish(which, well),
            Move::Command(verb) => self.give(Input::Command(verb)),
            Move::Forge => self.give(Input::CommandRefused(Refusal::new(
                Code::SignatureInvalid,
                "forged",
            ))),
            Move::Wait(span) => {
                self.scene.now = self.scene.now.after(Millis(span));
                self.give(Input::Tick);
            }
            Move::Deadline => {
                if let Some(deadline) = self.scene.worker.next_deadline() {
                    self.scene.now = self.scene.now.max(deadline);
                }
                self.give(Input::Tick);
            }
        }
    }

    /// From here on the world answers every request and completes every step, until the worker
    /// claims or ends.
    fn settle(&mut self) {
        for round in 0..400 {
            if self.exited
                || self
                    .open
                    .iter()
                    .any(|(_, request)| matches!(request, Request::Claim(_)))
            {
                return;
            }
            if let Some((id, request)) = self.open.pop() {
                let answer = match request {
                    Request::Renew(_) => self.scene.renewed(),
                    Request::Submit(_) => Answer::Submit(SubmitReply {
                        v: V,
                        fate: Fate::Merged,
                    }),
                    request => self.good_answer(&request, 2),
                };
                self.give(Input::Replied {
                    id,
                    outcome: Ok(answer),
                });
            } else if self.running.is_empty() || round % 4 == 3 {
                self.play(Move::Deadline);
            } else {
                self.finish(1, true);
            }
        }
        panic!(
            "neither claim nor exit: {:?}, running {:?}",
            self.scene.worker, self.running
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn one_lease_at_a_time_no_late_result_and_always_a_way_on(script in prop::collection::vec(moves(), 0..120)) {
        let mut play = Play::new();
        for step in script {
            play.play(step);
        }
        // Claims that the world left open are refused first, since they would otherwise count as a
        // way on.
        let claims: Vec<RequestId> = play
            .open
            .iter()
            .filter(|(_, request)| matches!(request, Request::Claim(_)))
            .map(|(id, _)| *id)
            .collect();
        play.open.retain(|(id, _)| !claims.contains(id));
        for id in claims {
            play.give(Input::Replied { id, outcome: Err(Refusal::new(Code::NoAnswer, "played by the test")) });
        }
        play.settle();
    }

    #[test]
    fn a_living_worker_always_has_a_deadline_or_waits_for_the_shell(
        script in prop::collection::vec(moves(), 0..60),
    ) {
        let mut play = Play::new();
        for step in script {
            play.play(step);
            let waits = !play.running.is_empty() || !play.open.is_empty();
            prop_assert!(play.exited || waits || play.scene.worker.next_deadline().is_some());
        }
    }
}
