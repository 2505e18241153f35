//! The tree again, from the entries alone, with code that the writer does not have.

use std::cell::RefCell;

use ct_merkle::HashableLeaf;
use ct_merkle::digest::Update;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use sha2::Sha256;
use tlog::Hash;
use tlog::layout::{TILE_WIDTH, Tile};

/// A leaf whose bytes are dropped once they are hashed: proofs need only hashes.
struct Spent(RefCell<Vec<u8>>);

impl HashableLeaf for Spent {
    fn hash<H: Update>(&self, hasher: &mut H) {
        hasher.update(&self.0.borrow());
    }
}

#[derive(Default)]
struct Tree(MemoryBackedTree<Sha256, Spent>);

/// The tree over the entries so far, and the tiles that belong to it.
#[derive(Default)]
pub struct Rebuilt {
    tree: Tree,
    levels: Vec<Level>,
}

/// The last tile of a level, as far as it goes.
#[derive(Default)]
struct Level {
    /// The subtree whose root is the next hash.
    subtree: Tree,
    hashes: Vec<Hash>,
}

impl Tree {
    fn push(&mut self, entry: &[u8]) {
        self.0.push(Spent(RefCell::new(entry.to_vec())));
        let newest = self.0.items().last().expect("it was just pushed");
        newest.0.take();
    }

    fn root(&self) -> Hash {
        (*self.0.root().as_bytes()).into()
    }
}

impl Rebuilt {
    /// An empty tree that is to have `size` entries.
    pub fn of_size(size: u64) -> Self {
        let levels = (0..8).take_while(|level| size >> (8 * level) > 0);
        Self {
            tree: Tree::default(),
            levels: levels.map(|_| Level::default()).collect(),
        }
    }

    /// Appends an entry, and returns the tiles that it fills, with their bytes.
    pub fn push(&mut self, entry: &[u8]) -> Vec<(Tile, Vec<u8>)> {
        self.tree.push(entry);
        let size = self.size();
        let mut filled = Vec::new();
        for (level, at) in self.levels.iter_mut().enumerate() {
            at.subtree.push(entry);
            if !size.is_multiple_of(1 << (8 * level)) {
                continue;
            }
            at.hashes.push(std::mem::take(&mut at.subtree).root());
            if at.hashes.len() == TILE_WIDTH {
                let tile = Tile {
                    level,
                    index: (size >> (8 * (level + 1))) - 1,
                    width: TILE_WIDTH,
                };
                filled.push((tile, std::mem::take(&mut at.hashes).concat()));
            }
        }
        filled
    }

    /// The tiles that are not full, with their bytes.
    pub fn partial(&self) -> Vec<(Tile, Vec<u8>)> {
        let tiles = Tile::partial(self.size()).into_iter();
        tiles
            .map(|tile| (tile, self.levels[tile.level].hashes.concat()))
            .collect()
    }

    /// The entries so far.
    pub fn size(&self) -> u64 {
        self.tree.0.len()
    }

    /// The root over them.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// The hashes that lead from the entry at `index` to the root; none if there is no such entry.
    pub fn prove(&self, index: u64) -> Option<Vec<Hash>> {
        let place = usize::try_from(index).ok()?;
        if index >= self.size() {
            return None;
        }
        let proof = self.tree.0.prove_inclusion(place);
        let hashes = proof.as_bytes().chunks_exact(32);
        let hash = |bytes: &[u8]| bytes.try_into().expect("a hash has 32 bytes");
        Some(hashes.map(hash).collect())
    }
}
