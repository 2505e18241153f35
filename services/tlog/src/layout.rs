//! The files of a log, as C2SP tlog-tiles names them, and the bytes of a bundle of entries.

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: usize = 256;
/// Longest entry: a bundle states its length in two bytes.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;
/// The newest published head.
pub const CHECKPOINT: &str = "checkpoint";
/// The folder with a head of each size, for good.
pub const HEADS: &str = "heads";
/// The folder with the newest head that each witness has cosigned, under the witness's name.
pub const COSIGNED: &str = "cosigned";
/// Letters of a name there: those of a public nkey.
const NAME_LETTERS: usize = 56;
/// Levels of tiles: 256^8 entries are more than 64 bits count.
const LEVELS: u8 = 8;
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
        let levels = (0..usize::from(LEVELS)).map(|level| (level, size >> (8 * level)));
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

/// What may happen to a file of a log once it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// It never changes and stays: a head, a full tile, a full bundle.
    Final,
    /// It never changes, and is of no use once the full one is there.
    Partial,
    /// It is replaced with each head: the checkpoint.
    Newest,
    /// It is replaced whenever its witness cosigns, and nothing follows from it alone.
    Cosigned,
}

impl Lasting {
    /// What may happen to the file with this name; none if a log has no such file.
    pub fn of(name: &str) -> Option<Self> {
        if name == CHECKPOINT {
            return Some(Self::Newest);
        }
        if let Some(size) = name.strip_prefix(HEADS).and_then(|it| it.strip_prefix('/')) {
            return plain::<u64>(size).map(|_| Self::Final);
        }
        if let Some(witness) = name
            .strip_prefix(COSIGNED)
            .and_then(|it| it.strip_prefix('/'))
        {
            let is_letter = |c: u8| c.is_ascii_uppercase() || (b'2'..=b'7').contains(&c);
            let is_name = witness.len() == NAME_LETTERS && witness.bytes().all(is_letter);
            return is_name.then_some(Self::Cosigned);
        }
        let (level, rest) = name.strip_prefix("tile/")?.split_once('/')?;
        if level != "entries" {
            plain::<u8>(level).filter(|level| *level < LEVELS)?;
        }
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, Some(plain::<usize>(width)?)),
            None => (rest, None),
        };
        let width = match width {
            None => TILE_WIDTH,
            Some(width) if (1..TILE_WIDTH).contains(&width) => width,
            Some(_) => return None,
        };
        let mut index = 0_u64;
        for part in number.split('/') {
            let digits = part.strip_prefix('x').unwrap_or(part);
            let value: u64 = digits.parse().ok()?;
            index = index.checked_mul(DIGITS)?.checked_add(value)?;
        }
        // A name has one spelling.
        let is_plain = path(&format!("tile/{level}"), index, width) == name;
        is_plain.then_some(match width {
            TILE_WIDTH => Self::Final,
            _ => Self::Partial,
        })
    }
}

/// The files that a log with `to` entries has beside those of the log with `from` entries that it
/// continues: bundles, and tiles from the lowest level up. Heads are not among them.
pub fn between(from: u64, to: u64) -> Vec<String> {
    let mut names = Vec::new();
    let first = |level: u32| from.checked_shr(8 * (level + 1)).unwrap_or(0);
    let bundles = |index| Bundle {
        index,
        width: TILE_WIDTH,
    };
    let full = to / TILE_WIDTH as u64;
    names.extend((first(0)..full).map(|index| bundles(index).path()));
    names.extend(Bundle::partial(to).map(Bundle::path));
    for level in 0..u32::from(LEVELS) {
        let full = to.checked_shr(8 * (level + 1)).unwrap_or(0);
        let tiles = (first(level)..full).map(|index| Tile {
            level: level as usize,
            index,
            width: TILE_WIDTH,
        });
        names.extend(tiles.map(Tile::path));
    }
    names.extend(Tile::partial(to).into_iter().map(Tile::path));
    names
}

/// The partial files of the log with `size` entries, each with the size at which it is full.
pub fn partial_files(size: u64) -> Vec<(String, u64)> {
    let full_at = |index: u64, level: usize| {
        let under = u32::try_from(8 * (level + 1))
            .ok()
            .and_then(|bits| 1u64.checked_shl(bits));
        (index + 1).saturating_mul(under.unwrap_or(u64::MAX))
    };
    let bundle = Bundle::partial(size).map(|one| (one.path(), full_at(one.index, 0)));
    let tiles = Tile::partial(size);
    let tiles = tiles
        .into_iter()
        .map(|one| (one.path(), full_at(one.index, one.level)));
    bundle.into_iter().chain(tiles).collect()
}

/// A number in its only spelling.
fn plain<T: std::str::FromStr + std::fmt::Display>(text: &str) -> Option<T> {
    let number: T = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The file with the newest head that the witness of this name has cosigned.
pub fn cosigned(witness: &str) -> String {
    format!("{COSIGNED}/{witness}")
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
    fn each_file_of_a_log_has_one_name_and_no_other_name_is_a_file() {
        for (name, lasting) in [
            ("checkpoint", Lasting::Newest),
            ("heads/0", Lasting::Final),
            ("heads/18446744073709551615", Lasting::Final),
            ("tile/0/000", Lasting::Final),
            ("tile/7/999", Lasting::Final),
            ("tile/entries/x001/x234/067", Lasting::Final),
            ("tile/entries/x001/x234/067.p/1", Lasting::Partial),
            ("tile/2/000.p/255", Lasting::Partial),
            (
                &cosigned(&format!("U{}", "A2".repeat(27) + "7")),
                Lasting::Cosigned,
            ),
        ] {
            assert_eq!(Lasting::of(name), Some(lasting), "{name}");
        }
        for name in [
            "",
            "checkpoint/",
            "heads",
            "heads/",
            "heads/01",
            "heads/+1",
            "heads/x",
            "heads/18446744073709551616",
            "heads/1/2",
            "tile/8/000",
            "tile/00/000",
            "tile/entries",
            "tile/entries/",
            "tile/entries/0",
            "tile/entries/0000",
            "tile/entries/x000/001",
            "tile/entries/001/001",
            "tile/entries/x001/x001",
            "tile/entries/000.p/0",
            "tile/entries/000.p/256",
            "tile/entries/000.p/017",
            "tile/entries/000.p",
            "tile/other/000",
            "tile/0/../000",
            "../checkpoint",
            "cosigned",
            "cosigned/",
            &cosigned(&"A".repeat(55)),
            &cosigned(&"A".repeat(57)),
            &cosigned(&format!("{}.", "A".repeat(55))),
            &cosigned(&format!("{}8", "A".repeat(55))),
            &cosigned(&"a".repeat(56)),
            "tile/0/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Lasting::of(name), None, "{name}");
        }
    }

    /// A log that grows step by step has the files of one that is written at once.
    #[test]
    fn what_is_between_two_sizes_makes_the_one_log_the_other() {
        let whole = |size: u64| -> std::collections::BTreeSet<String> {
            between(0, size).into_iter().collect()
        };
        for (from, to) in [
            (0, 1),
            (0, 300),
            (1, 255),
            (255, 256),
            (256, 257),
            (700, 65_536 + 300),
        ] {
            let obsolete: Vec<String> = partial_files(from)
                .into_iter()
                .filter(|(_, full_at)| *full_at <= to)
                .map(|(name, _)| name)
                .collect();
            let mut both = whole(from);
            both.extend(between(from, to));
            both.retain(|name| !obsolete.contains(name));
            // A partial file of the older log stays for its readers until the full one is there.
            both.retain(|name| whole(to).contains(name) || !whole(from).contains(name));
            assert_eq!(both, whole(to), "{from} to {to}");
            assert!(both.iter().all(|name| Lasting::of(name).is_some()));
        }
    }

    #[test]
    fn between_two_sizes_are_the_new_files_and_no_others() {
        assert_eq!(
            between(300, 600),
            [
                "tile/entries/001",
                "tile/entries/002.p/88",
                "tile/0/001",
                "tile/0/002.p/88",
                "tile/1/000.p/2",
            ]
        );
        assert_eq!(between(256, 256), ["tile/1/000.p/1"]);
        let first = between(65_530, 65_536);
        let expected = [
            "tile/entries/255",
            "tile/0/255",
            "tile/1/000",
            "tile/2/000.p/1",
        ];
        assert_eq!(first, expected);
    }

    #[test]
    fn a_partial_file_stands_with_the_size_at_which_it_is_full() {
        let files = partial_files(600);
        let files: Vec<(&str, u64)> = files.iter().map(|(name, at)| (&**name, *at)).collect();
        let expected = [
            ("tile/entries/002.p/88", 768),
            ("tile/0/002.p/88", 768),
            ("tile/1/000.p/2", 65_536),
        ];
        assert_eq!(files, expected);
        assert_eq!(partial_files(0), []);
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
