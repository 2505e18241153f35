//! The contents of lists of chunks. A member may read the chunks of the weights that are in use. If
//! those are listed, the foundry reads the list when a member asks for objects that may be in it.

use std::collections::{BTreeMap, BTreeSet};

use ledger::Run;
use schemas::foundry::Order;
use schemas::{Digest, Listed, Refusal};

use crate::run::RunRoom;
use crate::run::objects::RefusedRead;
use crate::turn::Turn;

/// The chunks in the lists of the weights in use: one or two lists, each below 1 MiB.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    read: BTreeMap<Digest, BTreeSet<Digest>>,
    /// Lists that the foundry was asked for and has not delivered.
    asked: BTreeSet<Digest>,
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
                self.answer_reads(turn)
            }
            Err(refusal) => {
                // Their askers ask again, and the list is read again then.
                for read in std::mem::take(&mut self.live.reads).into_values() {
                    turn.reply(read.reply, Err(refusal.clone()));
                }
                Vec::new()
            }
        }
    }
}
