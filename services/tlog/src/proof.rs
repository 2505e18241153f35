//! The hashes that prove something about a head (RFC 6962, 2.1), out of the tiles of its log: that
//! it continues an older one, or that an entry is under it. Readers check them with other code.

use std::collections::BTreeMap;

use crate::Hash;
use crate::edge::root_of;
use crate::layout::{TILE_WIDTH, Tile};

/// Proofs about one head.
pub struct Prover<'a, E> {
    size: u64,
    read: &'a mut Read<'a, E>,
    /// Tiles that were read: a proof needs some of them more than once.
    tiles: BTreeMap<Tile, Vec<u8>>,
}

/// Reads a tile of the log, or the full one in its place; none if neither is there.
pub type Read<'a, E> = dyn FnMut(Tile) -> Result<Option<Vec<u8>>, E> + 'a;

impl<'a, E> Prover<'a, E> {
    /// Proofs about the head over `size` entries.
    pub fn new(size: u64, read: &'a mut Read<'a, E>) -> Self {
        let tiles = BTreeMap::new();
        Self { size, read, tiles }
    }

    /// The hashes that lead from the root over the first `known` entries to the head's: none at all
    /// if there is nothing to prove. `None` if the head covers fewer, or a tile is not there.
    ///
    /// # Errors
    /// A tile cannot be read.
    pub fn consistency(&mut self, known: u64) -> Result<Option<Vec<Hash>>, E> {
        if known > self.size {
            return Ok(None);
        }
        let mut hashes = Vec::new();
        if known == 0 || known == self.size {
            return Ok(Some(hashes));
        }
        // The subtrees in which the old tree ends, from the whole tree down; `known` stands for the
        // root of the innermost if the old tree is that subtree.
        let (mut from, mut to, mut is_known) = (0, self.size, true);
        let mut beside = Vec::new();
        while known != to {
            let split = from + half(to - from);
            if known <= split {
                beside.push((split, to));
                to = split;
            } else {
                beside.push((from, split));
                from = split;
                is_known = false;
            }
        }
        if !is_known {
            beside.push((from, to));
        }
        for (from, to) in beside.into_iter().rev() {
            match self.subtree(from, to)? {
                Some(hash) => hashes.push(hash),
                None => return Ok(None),
            }
        }
        Ok(Some(hashes))
    }

    /// The hashes that lead from the entry at `index` to the head's root. `None` if the head has no
    /// such entry, or a tile is not there.
    ///
    /// # Errors
    /// A tile cannot be read.
    pub fn inclusion(&mut self, index: u64) -> Result<Option<Vec<Hash>>, E> {
        if index >= self.size {
            return Ok(None);
        }
        let (mut from, mut to) = (0, self.size);
        let mut beside = Vec::new();
        while to - from > 1 {
            let split = from + half(to - from);
            if index < split {
                beside.push((split, to));
                to = split;
            } else {
                beside.push((from, split));
                from = split;
            }
        }
        let mut hashes = Vec::with_capacity(beside.len());
        for (from, to) in beside.into_iter().rev() {
            match self.subtree(from, to)? {
                Some(hash) => hashes.push(hash),
                None => return Ok(None),
            }
        }
        Ok(Some(hashes))
    }

    /// The root over the entries `from..to`, of which there is one at least.
    fn subtree(&mut self, from: u64, to: u64) -> Result<Option<Hash>, E> {
        let count = to - from;
        if count.is_power_of_two() && from.is_multiple_of(count) {
            return self.whole(from, count);
        }
        let split = from + half(count);
        // Each step halves the count, so this ends.
        let Some(left) = self.subtree(from, split)? else {
            return Ok(None);
        };
        let right = self.subtree(split, to)?;
        Ok(right.map(|right| root_of(&[left, right])))
    }

    /// The root of a subtree whose size is a power of two: its hashes stand in one tile.
    fn whole(&mut self, from: u64, count: u64) -> Result<Option<Hash>, E> {
        let bits = count.trailing_zeros() as usize;
        let (level, within) = (bits / 8, 1_usize << (bits % 8));
        let place = from >> (8 * level);
        let (index, first) = (place / WIDTH, (place % WIDTH) as usize);
        let here = (self.size >> (8 * level)) - index * WIDTH;
        let width = usize::try_from(here).map_or(TILE_WIDTH, |here| here.min(TILE_WIDTH));
        let tile = Tile {
            level,
            index,
            width,
        };
        if !self.tiles.contains_key(&tile) {
            let Some(bytes) = (self.read)(tile)? else {
                return Ok(None);
            };
            self.tiles.insert(tile, bytes);
        }
        let bytes = &self.tiles[&tile];
        let wanted = bytes.get(32 * first..32 * (first + within));
        Ok(wanted.map(|bytes| {
            let (hashes, _) = bytes.as_chunks::<32>();
            root_of(hashes)
        }))
    }
}

/// A tile's width, as indices are counted.
const WIDTH: u64 = TILE_WIDTH as u64;

/// The largest power of two below `count`, which is two at least: there a tree is split.
const fn half(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}
