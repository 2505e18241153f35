//! What services say of the layers that they run with open, where no other event says it. They
//! repeat it; an event is written for the first statement of each, and for one that differs.

use std::collections::BTreeMap;

use schemas::member::Posture;
use schemas::security::{Refuser, SecurityEvent};
use schemas::{Millis, UnixMillis};

/// Time between two events about one service: one that says now this and now that fills nothing.
pub const STATEMENTS_EVERY: Millis = Millis::from_secs(600);

/// The last statements.
#[derive(Debug, Default)]
pub(super) struct Postures(BTreeMap<Refuser, Stated>);

#[derive(Debug)]
struct Stated {
    posture: Posture,
    /// The posture of its last event.
    told: Option<Posture>,
    /// When the next event may come.
    due: UnixMillis,
}

impl Postures {
    pub(super) fn note(&mut self, by: Refuser, posture: Posture) {
        let stated = self.0.entry(by).or_insert_with(|| Stated {
            posture: Posture::default(),
            told: None,
            due: UnixMillis(0),
        });
        stated.posture = posture.shortened();
    }

    pub(super) fn take_if(
        &mut self,
        now: UnixMillis,
        is_due: impl Fn(UnixMillis) -> bool,
    ) -> Vec<SecurityEvent> {
        let mut events = Vec::new();
        for (by, stated) in &mut self.0 {
            let is_new = stated.told.as_ref() != Some(&stated.posture);
            if is_new && is_due(stated.due) {
                stated.told = Some(stated.posture.clone());
                stated.due = now.after(STATEMENTS_EVERY);
                events.push(SecurityEvent::PostureStated {
                    by: *by,
                    posture: stated.posture.clone(),
                });
            }
        }
        events
    }
}
