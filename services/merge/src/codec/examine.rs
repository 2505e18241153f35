//! Facts about a block for the screen: its sum of squares, its largest magnitude, and whether it is
//! an encoding at all.

/// Running sums of one block; element `i` of the block goes to sum `i % LANES`.
pub(super) const LANES: usize = 16;

/// The facts that a codec finds about a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Examined {
    /// The sum, in the order of additions that [`crate::screen()`] fixes.
    pub(crate) sum_of_squares: f64,
    /// Largest magnitude, as bits. Numbers compare in their own order; infinity is above them, and
    /// NaN above infinity.
    pub(crate) abs_max_bits: u32,
    /// False if an encoder would write other bytes for these values.
    pub(crate) canonical: bool,
}

/// The fault of an encoding, and the element of the slice at which it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The element is NaN or infinite.
    NotFinite { index: usize },
    /// The block that begins at the element is not the encoding of its values.
    NotCanonical { index: usize, why: &'static str },
}

/// The running sums and maxima of a block.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    sums: [f64; LANES],
    maxima: [u32; LANES],
}

impl Sums {
    pub(super) const ZERO: Self = Self {
        sums: [0.0; LANES],
        maxima: [0; LANES],
    };

    /// Adds element `lane` of a group of [`LANES`].
    #[inline(always)]
    pub(super) fn take(&mut self, lane: usize, value: f32) {
        self.maxima[lane] = self.maxima[lane].max(value.to_bits() & 0x7fff_ffff);
        self.sums[lane] += f64::from(value) * f64::from(value);
    }

    #[inline(always)]
    pub(super) fn finish(self, canonical: bool) -> Examined {
        let Self {
            mut sums,
            mut maxima,
        } = self;
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
                maxima[lane] = maxima[lane].max(maxima[lane + half]);
            }
            half /= 2;
        }
        Examined {
            sum_of_squares: sums[0],
            abs_max_bits: maxima[0],
            canonical,
        }
    }
}

/// Examines a block of values that are encoded one by one; every byte string is then a valid
/// encoding.
#[inline(always)]
pub(super) fn examine_each<const BYTES: usize>(
    encoded: &[[u8; BYTES]],
    value: impl Fn([u8; BYTES]) -> f32,
) -> Examined {
    let mut sums = Sums::ZERO;
    let (groups, tail) = encoded.as_chunks::<LANES>();
    for group in groups {
        for (lane, bytes) in group.iter().enumerate() {
            sums.take(lane, value(*bytes));
        }
    }
    for (lane, bytes) in tail.iter().enumerate() {
        sums.take(lane, value(*bytes));
    }
    sums.finish(true)
}

/// The first value that is not finite.
pub(super) fn first_not_finite<const BYTES: usize>(
    encoded: &[[u8; BYTES]],
    value: impl Fn([u8; BYTES]) -> f32,
) -> Option<Fault> {
    let index = encoded
        .iter()
        .position(|bytes| !value(*bytes).is_finite())?;
    Some(Fault::NotFinite { index })
}
