//! Knowledge about the streams from outside the streams: the coordinator's mark, the files of the
//! audit service, and the readers' copy. A stream that is missing, or shorter than these say, has
//! lost messages, and is not created anew.

use std::collections::{BTreeMap, BTreeSet};

use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use diloco_audit::StreamSequence;
use diloco_audit::files::last_kept;
use identity::{DomainLayout, Mark};
use runtime::Failure;
use schemas::subject::{
    AUDIT_STREAM, EVENTS_STREAM_PREFIX, LEDGER_FILTER, LEDGER_STREAM, Lane, SECURITY_FILTER,
    SECURITY_STREAM, events_stream,
};
use schemas::{AccountId, Code};

use crate::context::Context;

/// A stream as the broker has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    /// Number of messages in the stream.
    pub(crate) messages: u64,
    /// Position of the newest message that the stream ever took.
    pub(crate) last: u64,
}

/// The header in which the broker writes the origin of a copied message: stream, position there,
/// and more.
const SOURCE: &str = "Nats-Stream-Source";

/// The positions that the readers' copy has reached.
#[derive(Debug, Default)]
pub(crate) struct Copy {
    /// Position of the newest message that the copy ever took.
    last: u64,
    /// The streams that it copies, by its own settings.
    copied: BTreeSet<String>,
    /// For each copied stream, the position of its newest message in the copy.
    of: BTreeMap<String, u64>,
}

impl Copy {
    /// Asks for the newest message of the ledger, of the security events and of each tenant.
    pub(crate) async fn read(copy: &Stream, tenants: &[AccountId]) -> Result<Self, Failure> {
        let record = Lane::Record.prefix();
        let events = tenants
            .iter()
            .map(|tenant| (events_stream(tenant), format!("{record}.{tenant}.>")));
        let mut of = BTreeMap::new();
        for (stream, subject) in [
            (LEDGER_STREAM, LEDGER_FILTER),
            (SECURITY_STREAM, SECURITY_FILTER),
        ]
        .map(|(stream, filter)| (stream.to_owned(), filter.to_owned()))
        .into_iter()
        .chain(events)
        {
            let message = match copy.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => message,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => continue,
                Err(error) => {
                    let text = format!("the newest message of {stream} in {AUDIT_STREAM}: {error}");
                    return Err(Failure::new(Code::StreamUnreadable, text));
                }
            };
            let source = message
                .headers
                .get(SOURCE)
                .map(|value| position(value.as_str()));
            of.extend(source.flatten().map(|position| (stream, position)));
        }
        let sources = copy.cached_info().config.sources.iter().flatten();
        Ok(Self {
            last: copy.cached_info().state.last_sequence,
            copied: sources.map(|source| source.name.clone()).collect(),
            of,
        })
    }
}

/// The position in a source header such as `LEDGER:RlIrW0JO 5 > >`.
fn position(source: &str) -> Option<u64> {
    source.split(' ').nth(1)?.parse().ok()
}

/// The newest known position of each stream.
#[derive(Debug)]
pub(crate) struct History {
    mark: Option<Mark>,
    kept: StreamSequence,
    copy: Copy,
    layout: DomainLayout,
}

impl History {
    /// Reads what is known. `copy` is empty where there is no copy yet.
    pub(crate) fn read(context: &Context, copy: Copy) -> Result<Self, Failure> {
        let domain = context.domain()?;
        let layout = domain.layout().clone();
        let mark = Mark::read(&layout.ledger_mark(), &domain.trust().domain)?;
        let kept = last_kept(&layout.audit_files())?;
        Ok(Self {
            mark,
            kept,
            copy,
            layout,
        })
    }

    /// Refuses a stream of events that no longer holds what it once held. `live` is the stream as
    /// the broker has it, and none where it does not exist.
    pub(crate) fn check(&self, stream: &str, live: Option<Live>) -> Result<(), Failure> {
        if stream == AUDIT_STREAM {
            return self.check_copy(live);
        }
        let events = stream == SECURITY_STREAM || stream.starts_with(EVENTS_STREAM_PREFIX);
        if stream != LEDGER_STREAM && !events {
            return Ok(());
        }
        let (mark, files) = (self.layout.ledger_mark(), self.layout.audit_files());
        let marked = self.mark.as_ref().filter(|mark| mark.events > 0);
        let lost = |what: &str, witness: String| {
            Err(Failure::new(
                Code::LedgerLost,
                format!("stream {stream} {what}; {witness}"),
            ))
        };
        // A stream that the copy does not copy yet is of a tenant that was just made, or the domain
        // is of an earlier release, which had no security events.
        let copies = !self.copy.copied.is_empty();
        let known = self.copy.copied.contains(stream) || self.copy.of.contains_key(stream);
        if live.is_none() && events && copies && !known {
            return Ok(());
        }
        let Some(Live { last, messages }) = live else {
            return match marked {
                Some(Mark { events, .. }) => lost(
                    "does not exist",
                    format!("{} knows of {events} events in the ledger", mark.display()),
                ),
                None if self.kept.0 > 0 => lost(
                    "does not exist",
                    format!("{} keeps {} messages of a copy", files.display(), self.kept),
                ),
                None if self.copy.last > 0 => lost(
                    "does not exist",
                    format!(
                        "its copy in stream {AUDIT_STREAM} has {} messages",
                        self.copy.last
                    ),
                ),
                None => Ok(()),
            };
        };
        if messages < last {
            // Nothing may be deleted from these streams, so their first message is number 1.
            return lost(
                &format!("holds {messages} messages"),
                format!("it took {last}"),
            );
        }
        let copied = self
            .copy
            .of
            .get(stream)
            .copied()
            .filter(|copied| last < *copied);
        if let Some(copied) = copied {
            return lost(
                &format!("ends at {last}"),
                format!("its copy in stream {AUDIT_STREAM} has message {copied} of it"),
            );
        }
        match marked {
            Some(mark_of) if stream == LEDGER_STREAM && last < mark_of.stream_sequence => lost(
                &format!("ends at {last}"),
                format!("{} knows of {}", mark.display(), mark_of.stream_sequence),
            ),
            _ => Ok(()),
        }
    }

    /// The same for the readers' copy, of which only the audit files know. Where they keep nothing,
    /// the broker can make it anew: the streams that it is copied from are checked before it.
    fn check_copy(&self, live: Option<Live>) -> Result<(), Failure> {
        let (kept, files) = (self.kept, self.layout.audit_files());
        let found = match live {
            Some(Live { messages, last }) if messages < last => {
                format!("holds {messages} messages; it took {last}")
            }
            Some(Live { last, .. }) if last < kept.0 => {
                format!("ends at {last}; {} keeps message {kept}", files.display())
            }
            None if kept.0 > 0 => {
                format!("does not exist; {} keeps {kept} messages", files.display())
            }
            None | Some(_) => return Ok(()),
        };
        let text = format!("stream {AUDIT_STREAM} {found}");
        Err(Failure::new(Code::CopyLost, text))
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
        let mark = Mark {
            v: V,
            domain,
            events: marked,
            stream_sequence: marked,
            last,
        };
        let layout = DomainLayout::new(std::path::Path::new(".diloco"));
        let copy = Copy {
            last: copied,
            copied: BTreeSet::new(),
            of: BTreeMap::new(),
        };
        History {
            mark: (marked > 0).then_some(mark),
            kept: StreamSequence(kept),
            copy,
            layout,
        }
    }

    #[test]
    fn a_copied_message_says_where_it_is_from() {
        assert_eq!(
            position("LEDGER:RlIrW0JO 5 > > diloco.ledger.cluster.U.coordinator-started 9HTAoEyI"),
            Some(5)
        );
        for unreadable in ["", "LEDGER", "LEDGER:x many"] {
            assert_eq!(position(unreadable), None, "{unreadable}");
        }
    }

    #[test]
    fn each_witness_alone_is_enough_and_none_is_a_new_domain() {
        let events = format!("{EVENTS_STREAM_PREFIX}A");
        for (marked, kept, copied) in [(3, 0, 0), (0, 3, 0), (0, 0, 3)] {
            for stream in [LEDGER_STREAM, &events] {
                let refused = history(marked, kept, copied)
                    .check(stream, None)
                    .expect_err("it was there");
                assert_eq!(refused.code(), Code::LedgerLost, "{refused}");
            }
        }
        for stream in [LEDGER_STREAM, AUDIT_STREAM, &events] {
            history(0, 0, 0).check(stream, None).expect("a new domain");
        }
        history(3, 3, 3)
            .check("WORK", None)
            .expect("offers are made again");
    }

    #[test]
    fn a_stream_that_the_copy_does_not_copy_yet_is_a_new_tenants() {
        let mut known = history(3, 3, 3);
        let (old, new) = (
            format!("{EVENTS_STREAM_PREFIX}A"),
            format!("{EVENTS_STREAM_PREFIX}B"),
        );
        known.copy.copied = [LEDGER_STREAM.to_owned(), old.clone()].into();
        known.check(&new, None).expect("it was never there");
        for lost in [LEDGER_STREAM, &old] {
            known.check(lost, None).expect_err("it was there");
        }
        // A copy that was altered still has what it copied before.
        known.copy.of.insert(new.clone(), 4);
        known.check(&new, None).expect_err("it was there");
    }

    #[test]
    fn an_end_before_what_is_known_and_a_hole_are_losses() {
        let whole = |last| {
            Some(Live {
                messages: last,
                last,
            })
        };
        history(3, 5, 0)
            .check(LEDGER_STREAM, whole(2))
            .expect_err("cut off");
        // The broker may know the position of a message whose bytes it has lost.
        history(3, 5, 0)
            .check(
                LEDGER_STREAM,
                Some(Live {
                    messages: 2,
                    last: 3,
                }),
            )
            .expect_err("a hole");
        history(3, 5, 0)
            .check(LEDGER_STREAM, whole(3))
            .expect("whole");
        // The copy alone, of the ledger or of a tenant's events.
        let events = format!("{EVENTS_STREAM_PREFIX}A");
        for stream in [LEDGER_STREAM, &events] {
            let mut copied = history(0, 0, 9);
            copied.copy.of.insert(stream.to_owned(), 4);
            copied.check(stream, whole(3)).expect_err("cut off");
            copied.check(stream, whole(0)).expect_err("begun anew");
            copied.check(stream, whole(4)).expect("whole");
            copied.check("WORK", whole(0)).expect("not of the record");
        }
    }

    /// A copy is judged by the audit files alone: to bring back every stream from a backup would
    /// take the end of a ledger that is whole.
    #[test]
    fn a_copy_that_is_lost_alone_has_advice_of_its_own() {
        let live = |messages, last| Some(Live { messages, last });
        for (kept, live) in [(5, None), (5, live(4, 4)), (0, live(2, 3))] {
            let refused = history(3, kept, 0).check(AUDIT_STREAM, live);
            assert_eq!(
                refused.expect_err("lost").code(),
                Code::CopyLost,
                "{live:?}"
            );
        }
        for (kept, live) in [(0, None), (5, live(5, 5)), (5, live(9, 9)), (0, live(0, 0))] {
            let taken = history(3, kept, 0).check(AUDIT_STREAM, live);
            taken.expect("nobody knows more of it");
        }
    }
}
