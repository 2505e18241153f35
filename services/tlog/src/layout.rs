//! The files of a log, as C2SP tlog-tiles names them, and the bytes of a bundle of entries.

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: usize = 256;
/// Longest entry: a bundle states its length in two bytes.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;
/// The newest published head.
pub const CHECKPOINT: &str = "checkpoint";
/// The folder with a head of each size, for good.
pub const HEADS: &str = "heads";
/// Digits in a part of an index.
const DIGITS: u64 = 1000;

/// A tile of hashes. On level L each hash stands for 256^L entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    /// Its level, from 0.
    pub level: usize,
    /// Its place on the level, from 0.
    pub index: u64,
    /// Its hashes, from 1 to [`TILE_WIDTH`].
    pub width: usize,
}

/// A bundle of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bundle {
    /// Its place, from 0.
    pub index: u64,
    /// Its entries, from 1 to [`TILE_WIDTH`].
    pub width: usize,
}

impl Tile {
    /// Its file.
    pub fn path(self) -> String {
        path(&format!("tile/{}", self.level), self.index, self.width)
    }

    /// The same tile with all its hashes, as which it may be found when the log has grown.
    #[must_use]
    pub const fn full(self) -> Self {
        Self {
            width: TILE_WIDTH,
            ..self
        }
    }

    /// The last tile of each level of a log with `size` entries, where it is not full.
    pub fn partial(size: u64) -> Vec<Self> {
        let levels = (0..8).map(|level| (level, size >> (8 * level)));
        let partial = levels.filter_map(|(level, hashes)| {
            let (index, width) = split(hashes);
            (width > 0).then_some(Self {
                level,
                index,
                width,
            })
        });
        partial.collect()
    }
}

impl Bundle {
    /// Its file.
    pub fn path(self) -> String {
        path("tile/entries", self.index, self.width)
    }

    /// The same bundle with all its entries, as which it may be found when the log has grown.
    #[must_use]
    pub const fn full(self) -> Self {
        Self {
            width: TILE_WIDTH,
            ..self
        }
    }

    /// The bundles of a log with `size` entries, in order.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        let (full, _) = split(size);
        let all = (0..full).map(|index| Self {
            index,
            width: TILE_WIDTH,
        });
        all.chain(Self::partial(size))
    }

    /// The last bundle, if it is not full.
    pub fn partial(size: u64) -> Option<Self> {
        let (index, width) = split(size);
        (width > 0).then_some(Self { index, width })
    }
}

/// The file that keeps the head of a size for good.
pub fn head(size: u64) -> String {
    format!("{HEADS}/{size}")
}

/// Appends an entry to the bytes of a bundle.
///
/// # Panics
/// It is longer than [`ENTRY_BYTES_MAX`].
pub fn add_entry(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).expect("callers bound entries");
    bundle.extend(length.to_be_bytes());
    bundle.extend_from_slice(entry);
}

/// The entries in the bytes of a bundle; none if these are not exactly `width` entries.
pub fn entries_of(bytes: &[u8], width: usize) -> Option<Vec<&[u8]>> {
    let (entries, rest) = first_entries(bytes, width)?;
    rest.is_empty().then_some(entries)
}

/// The first `width` entries in the bytes of a bundle, with the bytes behind them.
pub fn first_entries(mut bytes: &[u8], width: usize) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut entries = Vec::with_capacity(width);
    for _ in 0..width {
        let (length, rest) = bytes.split_first_chunk()?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        entries.push(entry);
        bytes = rest;
    }
    Some((entries, bytes))
}

fn split(count: u64) -> (u64, usize) {
    let width = TILE_WIDTH as u64;
    (count / width, (count % width) as usize)
}

/// An index is written in parts of three digits; all but the last begin with an `x`.
fn path(folder: &str, index: u64, width: usize) -> String {
    let mut number = format!("{:03}", index % DIGITS);
    let mut rest = index / DIGITS;
    while rest > 0 {
        number = format!("x{:03}/{number}", rest % DIGITS);
        rest /= DIGITS;
    }
    match width {
        TILE_WIDTH => format!("{folder}/{number}"),
        width => format!("{folder}/{number}.p/{width}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_written_in_parts_of_three_digits() {
        let full = |index| Bundle {
            index,
            width: TILE_WIDTH,
        };
        for (index, path) in [
            (0, "tile/entries/000"),
            (999, "tile/entries/999"),
            (1000, "tile/entries/x001/000"),
            (1_234_067, "tile/entries/x001/x234/067"),
        ] {
            assert_eq!(full(index).path(), path);
        }
        let tile = Tile {
            level: 1,
            index: 0,
            width: 17,
        };
        assert_eq!(tile.path(), "tile/1/000.p/17");
        assert_eq!(tile.full().path(), "tile/1/000");
    }

    #[test]
    fn a_log_has_full_bundles_and_at_most_one_that_is_not() {
        let widths = |size| Bundle::all(size).map(|one| one.width).collect::<Vec<_>>();
        assert_eq!(widths(0), [0; 0]);
        assert_eq!(widths(255), [255]);
        assert_eq!(widths(256), [256]);
        assert_eq!(widths(513), [256, 256, 1]);
        let tiles = Tile::partial(65_536 + 257);
        let shown: Vec<_> = tiles.into_iter().map(Tile::path).collect();
        assert_eq!(
            shown,
            ["tile/0/257.p/1", "tile/1/001.p/1", "tile/2/000.p/1"]
        );
        assert_eq!(Tile::partial(65_536).len(), 1);
    }

    #[test]
    fn a_bundle_is_exactly_its_entries() {
        let mut bytes = Vec::new();
        for entry in [&b"one"[..], b"", b"three"] {
            add_entry(&mut bytes, entry);
        }
        let entries = entries_of(&bytes, 3).unwrap();
        assert_eq!(entries, [&b"one"[..], b"", b"three"]);
        assert_eq!(first_entries(&bytes, 2).unwrap().0, entries[..2]);
        assert_eq!(entries_of(&bytes, 2), None, "bytes are left");
        assert_eq!(entries_of(&bytes, 4), None, "an entry is missing");
        for short in 0..bytes.len() {
            assert_eq!(entries_of(&bytes[..short], 3), None, "{short} bytes");
        }
    }
}
