//! The key that signs the ledger, on the coordinator's machine: an operator lays another one beside
//! it now and again, and the process that begins next has it named and takes it, wherever the one
//! before died.

use coordinator_core::Succession;
use schemas::event::{EventBody, LedgerEvent};
use schemas::{Millis, PublicKey};

use crate::plan::operator;
use crate::world::{START, SimEvent, World};

/// The numbers of the later keys begin here.
const KEYS_FROM: u32 = 40_000;

/// In a thousand: how often a process dies at one of the steps of a change.
const DEATHS: u64 = 250;

/// The machine's files, and the trust bundle.
#[derive(Debug)]
pub(crate) struct EventKeys {
    /// The keys that may sign the ledger, oldest first.
    trusted: Vec<PublicKey>,
    /// The place of the one that the machine has.
    own: usize,
    /// Processes that died between the event that names a key and its use.
    pub(crate) between: u64,
}

impl Default for EventKeys {
    fn default() -> Self {
        Self {
            trusted: vec![operator()],
            own: 0,
            between: 0,
        }
    }
}

impl EventKeys {
    pub(crate) fn trusted(&self) -> &[PublicKey] {
        &self.trusted
    }

    /// The key that the machine signs with.
    pub(crate) fn own(&self) -> &PublicKey {
        &self.trusted[self.own]
    }

    /// The key that waits beside it.
    fn waits(&self) -> Option<&PublicKey> {
        self.trusted.get(self.own + 1)
    }

    fn offer(&mut self) {
        if self.waits().is_none() {
            let number = u32::try_from(self.trusted.len()).expect("a handful of keys");
            self.trusted.push(kit::public_key(KEYS_FROM + number));
        }
    }

    /// The key that goes on with the ledger, as a reader finds it: each event is of the one key
    /// whose turn it is.
    fn emitter(&self, journal: &[EventBody]) -> PublicKey {
        let mut present = self.trusted[0].clone();
        for EventBody {
            emitter,
            sequence,
            event,
            ..
        } in journal
        {
            assert_eq!(*emitter, present, "event {sequence} is of another key");
            if let Some(next) = event.next_emitter() {
                assert!(self.trusted.contains(next), "{next} is not trusted");
                present = next.clone();
            }
        }
        present
    }
}

impl World {
    /// An operator gives the coordinator another key for its events, while there are faults. The
    /// process ends in order, or dies first.
    pub(crate) fn rotate_now_and_again(&mut self) {
        if self.now < START.after(self.plan.faults_last) {
            self.keys.offer();
            if self.random.hits(500) {
                self.crash_coordinator();
            } else {
                self.shut_down();
            }
            let pause = self.random.millis(2_000, 40_000);
            self.after(pause, SimEvent::RotateEvents);
        }
    }

    /// Does what a coordinator does before it leads: has the key that waits named, and takes it.
    /// Returns false if it died on the way.
    pub(crate) fn take_next_key(&mut self) -> bool {
        let (emitter, own) = (self.keys.emitter(&self.journal), self.keys.own().clone());
        let Some(next) = self.keys.waits().cloned() else {
            assert_eq!(emitter, own, "a key of before leads");
            return true;
        };
        match Succession::of(&emitter, &own, &next) {
            Succession::Name => {
                if self.dies() {
                    return false;
                }
                let event = LedgerEvent::EmitterSucceeded { next };
                self.append(self.now, None, event);
                if self.dies() {
                    self.keys.between += 1;
                    return false;
                }
            }
            Succession::Take => {}
            Succession::Other => panic!("{emitter} goes on, and the machine has {own} and {next}"),
        }
        self.keys.own += 1;
        !self.dies()
    }

    /// A process dies at a step of a change now and then, while there are faults.
    fn dies(&mut self) -> bool {
        let dies = self.faults.calm > Millis(0) && self.random.hits(DEATHS);
        if dies {
            self.site.crashes += 1;
            self.restart_coordinator();
        }
        dies
    }
}
