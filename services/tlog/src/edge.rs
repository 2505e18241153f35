//! The right edge of a Merkle tree: for each level of tiles the hashes of the tile that is not full
//! yet. That is all that appending needs.

use sha2::{Digest as _, Sha256};

use crate::Hash;
use crate::layout::{TILE_WIDTH, Tile};

/// The edge of a tree of `size` leaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Edge {
    size: u64,
    /// For each level, the hashes of its last tile; fewer than [`TILE_WIDTH`].
    levels: Vec<Vec<Hash>>,
}

/// A tile with its hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub(crate) tile: Tile,
    pub(crate) bytes: Vec<u8>,
}

impl Edge {
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf, and returns the tiles that it fills, from the lowest level up.
    pub(crate) fn push(&mut self, leaf: &[u8]) -> Vec<Filled> {
        let mut filled = Vec::new();
        let (mut hash, mut level) = (leaf_hash(leaf), 0);
        self.size += 1;
        loop {
            if self.levels.len() == level {
                self.levels.push(Vec::with_capacity(TILE_WIDTH));
            }
            let hashes = &mut self.levels[level];
            hashes.push(hash);
            if hashes.len() < TILE_WIDTH {
                return filled;
            }
            hash = root_of(hashes);
            let tile = Tile {
                level,
                index: (self.size >> (8 * (level + 1))) - 1,
                width: TILE_WIDTH,
            };
            let bytes = std::mem::take(hashes).concat();
            filled.push(Filled { tile, bytes });
            level += 1;
        }
    }

    /// The tiles that are not full and not empty.
    pub(crate) fn partial(&self) -> Vec<Filled> {
        let levels = self.levels.iter().enumerate();
        let partial = levels.filter(|(_, hashes)| !hashes.is_empty());
        let tiles = partial.map(|(level, hashes)| Filled {
            tile: Tile {
                level,
                index: self.size >> (8 * (level + 1)),
                width: hashes.len(),
            },
            bytes: hashes.concat(),
        });
        tiles.collect()
    }

    /// The root: the hash of nothing for an empty tree.
    ///
    /// RFC 6962 splits a tree at the largest power of two below its size. The hashes of a level
    /// stand for whole subtrees of the same size, and all lower levels together are one smaller
    /// subtree behind them; so each level is a list that ends with the root of the lower ones.
    pub(crate) fn root(&self) -> Hash {
        let mut lower = None;
        for hashes in &self.levels {
            let list: Vec<Hash> = hashes.iter().copied().chain(lower).collect();
            lower = (!list.is_empty()).then(|| root_of(&list));
        }
        lower.unwrap_or_else(|| Sha256::digest([]).into())
    }
}

fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(leaf)
        .finalize()
        .into()
}

/// The root over the roots of subtrees, of which only the last may be smaller than the others.
pub(crate) fn root_of(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => unreachable!("callers have a hash"),
        [one] => *one,
        many => {
            let half = many.len().next_power_of_two() / 2;
            let (left, right) = many.split_at(half);
            let node = Sha256::new().chain_update([1]);
            node.chain_update(root_of(left))
                .chain_update(root_of(right))
                .finalize()
                .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The known answers that implementations of RFC 6962 are tested with.
    #[test]
    fn roots_are_those_of_rfc_6962() {
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let roots = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut edge = Edge::default();
        for (size, root) in roots.into_iter().enumerate() {
            assert_eq!(HEXLOWER.encode(&edge.root()), root, "size {size}");
            if let Some(leaf) = leaves.get(size) {
                assert_eq!(edge.push(leaf), []);
            }
        }
    }
}
