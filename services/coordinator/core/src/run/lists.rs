//! The contents of lists of chunks. A member may read the chunks of the weights that are in use. If
//! those are listed, the foundry reads the list when a member asks for objects that may be in it.

use std::collections::{BTreeMap, BTreeSet};

use ledger::Run;
use schemas::foundry::Order;
use schemas::{Code, Digest, Listed, Refusal};

use crate::run::RunRoom;
use crate::run::objects::RefusedRead;
use crate::turn::Turn;

/// Reads of a list that fail before its readers are told for good: a reader is not to blame for a
/// list, and fails its unit over such an answer. When all workers fail their units so, the run is
/// halted, and names the list.
const FAILURES_MAX: u32 = 3;

/// The chunks in the lists of the weights that are read now: a list or two, each of less than 1
/// MiB.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    read: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Lists that the foundry was asked for and has not delivered.
    asked: BTreeSet<Digest>,
    /// Reads of a list that failed since it was last read.
    failed: BTreeMap<Digest, u32>,
}

impl Lists {
    /// True when `digest` is in this list, as far as it was read.
    pub(crate) fn holds(&self, list: &Digest, digest: &Digest) -> bool {
        let chunks = self.read.get(list);
        chunks.is_some_and(|chunks| chunks.contains(digest))
    }

    /// The lists of the run's weights that were not read yet.
    pub(crate) fn unread<'a>(&'a self, run: &'a Run) -> impl Iterator<Item = Listed> + 'a {
        named(run).filter(|listed| !self.read.contains_key(&listed.list.digest))
    }
}

fn named(run: &Run) -> impl Iterator<Item = Listed> {
    run.weights
        .values()
        .filter_map(|weights| weights.chunks.listed())
}

impl RunRoom<'_> {
    /// Orders the foundry to read the lists that were not read yet, each once.
    pub(crate) fn read_lists(&mut self, turn: &mut Turn<'_>) {
        let unread: Vec<Listed> = self.live.lists.unread(&self.run).collect();
        for listed in unread {
            if self.live.lists.asked.insert(listed.list.digest) {
                self.order(turn, Order::ReadList { listed });
            }
        }
    }

    /// Takes a list that was read. Returns the requests that waited for it and are refused now.
    pub(crate) fn list_read(
        &mut self,
        turn: &mut Turn<'_>,
        list: Digest,
        outcome: Result<Vec<Digest>, Refusal>,
    ) -> Vec<RefusedRead> {
        if !self.live.lists.asked.remove(&list) {
            // An answer that was not asked for changes nothing.
            return Vec::new();
        }
        match outcome {
            Ok(chunks) => {
                let held: BTreeSet<Digest> =
                    named(&self.run).map(|listed| listed.list.digest).collect();
                let lists = &mut self.live.lists;
                lists.read.insert(list, chunks.into_iter().collect());
                lists.read.retain(|list, _| held.contains(list));
                lists.failed.remove(&list);
                self.answer_reads(turn)
            }
            Err(refusal) => {
                self.list_unread(turn, list, refusal);
                Vec::new()
            }
        }
    }

    /// A list could not be read. Requests that may be about it are to be asked again, and then it
    /// is read again; they go on waiting while another list or the data manifest may answer them.
    fn list_unread(&mut self, turn: &mut Turn<'_>, list: Digest, refusal: Refusal) {
        let held: BTreeSet<Digest> = named(&self.run).map(|listed| listed.list.digest).collect();
        let lists = &mut self.live.lists;
        lists.failed.retain(|failed, _| held.contains(failed));
        let failed = lists.failed.entry(list).or_default();
        *failed = failed.saturating_add(1);
        let answer = if refusal.code.passes() || *failed >= FAILURES_MAX {
            refusal
        } else {
            let detail = format!("list {list} of the weights was not read, ask again: {refusal}");
            Refusal::new(Code::NoAnswer, detail)
        };
        if lists.asked.is_empty() && self.live.data.is_some() {
            for read in std::mem::take(&mut self.live.reads).into_values() {
                turn.reply(read.reply, Err(answer.clone()));
            }
        }
    }
}
