//! What this machine knows of the streams apart from the broker: the coordinator's mark, and the files of the audit service.
//! A stream that is missing, or ends before what is known, was lost: it is not created anew.

use diloco_audit::StreamSequence;
use diloco_audit::keep::last_kept;
use identity::{Layout, Mark};
use runtime::Failure;
use schemas::Code;
use schemas::subject::{AUDIT_STREAM, EVENTS_STREAM_PREFIX, LEDGER_STREAM};

use crate::context::Context;

/// A stream as the broker has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    /// Messages in it.
    pub(crate) messages: u64,
    /// Position of the newest that it ever took.
    pub(crate) last: u64,
}

/// The newest of each that is known.
#[derive(Debug)]
pub(crate) struct History {
    mark: Option<Mark>,
    kept: StreamSequence,
    /// The end of the readers' copy, as the broker has it.
    copied: u64,
    layout: Layout,
}

impl History {
    /// `copied` is the last position of stream `AUDIT`; 0 where there is none yet.
    pub(crate) fn read(context: &Context, copied: u64) -> Result<Self, Failure> {
        let domain = context.domain()?;
        let layout = domain.layout().clone();
        let mark = Mark::read(&layout.ledger_mark(), &domain.trust().domain)
            .map_err(|error| Failure::new(error.code(), error))?;
        let kept = last_kept(&layout.audit_files()).map_err(|error| Failure::new(error.code(), error))?;
        Ok(Self { mark, kept, copied, layout })
    }

    /// Refuses a stream of events that does not hold what it once did. `live` is what the broker has; none where the stream
    /// does not exist.
    pub(crate) fn check(&self, stream: &str, live: Option<Live>) -> Result<(), Failure> {
        let events = stream.starts_with(EVENTS_STREAM_PREFIX);
        if stream != LEDGER_STREAM && stream != AUDIT_STREAM && !events {
            return Ok(());
        }
        let (mark, files) = (self.layout.ledger_mark(), self.layout.audit_files());
        let marked = self.mark.as_ref().filter(|mark| mark.events > 0);
        let lost = |what: &str, witness: String| {
            Err(Failure::new(Code::LedgerLost, format!("stream {stream} {what}; {witness}")))
        };
        let Some(Live { last, messages }) = live else {
            return match marked {
                Some(Mark { events, .. }) => {
                    lost("does not exist", format!("{} knows of {events} events in the ledger", mark.display()))
                }
                None if self.kept.0 > 0 => {
                    lost("does not exist", format!("{} keeps {} messages of a copy", files.display(), self.kept))
                }
                None if self.copied > 0 => {
                    lost("does not exist", format!("its copy in stream {AUDIT_STREAM} has {} messages", self.copied))
                }
                None => Ok(()),
            };
        };
        if messages < last {
            // Nothing may be deleted from these streams, and their first message is number 1.
            return lost(&format!("holds {messages} messages"), format!("it took {last}"));
        }
        match marked {
            Some(mark_of) if stream == LEDGER_STREAM && last < mark_of.stream_sequence => {
                lost(&format!("ends at {last}"), format!("{} knows of {}", mark.display(), mark_of.stream_sequence))
            }
            _ if stream == AUDIT_STREAM && last < self.kept.0 => {
                lost(&format!("ends at {last}"), format!("{} keeps message {}", files.display(), self.kept))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::{KeyKind, SigningKey};
    use schemas::V;

    use super::*;

    fn history(marked: u64, kept: u64, copied: u64) -> History {
        let domain = SigningKey::generate(KeyKind::Operator).public().clone();
        let last = Some(schemas::Digest::of(b"x"));
        let mark = Mark { v: V, domain, events: marked, stream_sequence: marked, last };
        let layout = Layout::new(std::path::Path::new(".diloco"));
        History { mark: (marked > 0).then_some(mark), kept: StreamSequence(kept), copied, layout }
    }

    #[test]
    fn each_witness_alone_is_enough_and_none_is_a_new_domain() {
        let events = format!("{EVENTS_STREAM_PREFIX}A");
        for (marked, kept, copied) in [(3, 0, 0), (0, 3, 0), (0, 0, 3)] {
            for stream in [LEDGER_STREAM, &events] {
                let refused = history(marked, kept, copied).check(stream, None).expect_err("it was there");
                assert_eq!(refused.code(), Code::LedgerLost, "{refused}");
            }
        }
        for stream in [LEDGER_STREAM, AUDIT_STREAM, &events] {
            history(0, 0, 0).check(stream, None).expect("a new domain");
        }
        history(3, 3, 3).check("WORK", None).expect("offers are made again");
    }

    #[test]
    fn an_end_before_what_is_known_and_a_hole_are_losses() {
        let whole = |last| Some(Live { messages: last, last });
        history(3, 5, 0).check(LEDGER_STREAM, whole(2)).expect_err("cut off");
        history(3, 5, 0).check(AUDIT_STREAM, whole(4)).expect_err("cut off");
        // The broker may know the position of a message whose bytes it has lost.
        history(3, 5, 0).check(LEDGER_STREAM, Some(Live { messages: 2, last: 3 })).expect_err("a hole");
        history(0, 0, 0).check(AUDIT_STREAM, Some(Live { messages: 2, last: 3 })).expect_err("a hole");
        history(3, 5, 0).check(LEDGER_STREAM, whole(3)).expect("whole");
        history(3, 5, 0).check(AUDIT_STREAM, whole(9)).expect("whole, and more");
    }
}
