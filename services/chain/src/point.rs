//! Points of the curve of Ed25519, as far as sums of multiples need them: -x² + y² = 1 + dx²y².
//!
//! The law of addition that is used here has no exceptions on this curve (Hisil, Wong, Carter,
//! Dawson 2008, with an addend whose Z is 1): it adds points of small order, equal points and
//! opposite ones like any others.

use std::sync::LazyLock;

use crate::field::{Number, inverses};

/// A sum of points, with X/Z and Y/Z as its coordinates and T = XY/Z.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    x: Number,
    y: Number,
    z: Number,
    t: Number,
}

/// A point in the form in which it is added: halves of y + x and of y - x, and dxy. With halves, Z
/// of the other point is added as it is instead of twice.
#[derive(Clone, Copy)]
pub(crate) struct Addend {
    y_plus_x: Number,
    y_minus_x: Number,
    xyd: Number,
}

/// Numbers that belong to the curve.
struct Curve {
    d: Number,
    half: Number,
    /// A square root of -1.
    root: Number,
}

static CURVE: LazyLock<Curve> = LazyLock::new(|| {
    let small = |number: u64| {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Number::from_bytes(&bytes)
    };
    let d = negative(&small(121_665).times(&small(121_666).inverse()));
    // 2 is no square here, so that its power to half of what a square needs is no 1.
    let root = small(2).raised(&quarter());
    let half = small(2).inverse();
    Curve { d, half, root }
});

/// A quarter of the prime less one, lowest byte first.
const fn quarter() -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xfb;
    bytes[31] = 0x1f;
    bytes
}

/// An eighth of the prime less five, lowest byte first.
const fn eighth() -> [u8; 32] {
    let mut bytes = [0xff; 32];
    bytes[0] = 0xfd;
    bytes[31] = 0x0f;
    bytes
}

fn negative(number: &Number) -> Number {
    Number::ZERO.minus(number).carried()
}

impl Point {
    pub(crate) const NEUTRAL: Self = Self {
        x: Number::ZERO,
        y: Number::ONE,
        z: Number::ONE,
        t: Number::ZERO,
    };

    /// The point with this encoding (RFC 8032, 5.1.3); none when it is no point's. Forms of y from
    /// the prime on are taken, and an x of 0 with either sign.
    pub(crate) fn decode(bytes: &[u8; 32]) -> Option<Self> {
        let (curve, y) = (&*CURVE, Number::from_bytes(bytes));
        let squared = y.square();
        let above = squared.minus(&Number::ONE).carried();
        let below = squared.times(&curve.d).plus(&Number::ONE).carried();
        let cubed = below.square().times(&below);
        let seventh = cubed.square().times(&below);
        let root = above.times(&seventh).raised(&eighth());
        let mut x = above.times(&cubed).times(&root);
        let square = x.square().times(&below);
        if !square.minus(&above).carried().is_zero() {
            if !square.plus(&above).carried().is_zero() {
                return None;
            }
            x = x.times(&curve.root);
        }
        if x.is_odd() != (bytes[31] & 0x80 != 0) {
            x = negative(&x);
        }
        let (z, t) = (Number::ONE, x.times(&y));
        Some(Self { x, y, z, t })
    }

    pub(crate) fn negative(&self) -> Self {
        Self {
            x: negative(&self.x),
            t: negative(&self.t),
            ..*self
        }
    }

    pub(crate) fn plus(&self, addend: &Addend) -> Self {
        let a = self.y.minus(&self.x).times(&addend.y_minus_x.alone());
        let b = self.y.plus(&self.x).times(&addend.y_plus_x.alone());
        self.summed(&a, &b, &self.t.times(&addend.xyd), false)
    }

    pub(crate) fn minus(&self, addend: &Addend) -> Self {
        let a = self.y.minus(&self.x).times(&addend.y_plus_x.alone());
        let b = self.y.plus(&self.x).times(&addend.y_minus_x.alone());
        self.summed(&a, &b, &self.t.times(&addend.xyd), true)
    }

    fn summed(&self, a: &Number, b: &Number, c: &Number, subtract: bool) -> Self {
        let d = &self.z;
        let (e, h) = (b.minus(a), b.plus(a));
        let (f, g) = match subtract {
            false => (d.minus(c), d.plus(c)),
            true => (d.plus(c), d.minus(c)),
        };
        Self {
            x: e.times(&f),
            y: g.times(&h),
            z: f.times(&g),
            t: e.times(&h),
        }
    }
}

/// The encodings of points. They are unique: equal ones are of equal points.
pub(crate) fn encoded(points: &[Point]) -> Vec<[u8; 32]> {
    let (x, y) = affine(points);
    let encoded = x.iter().zip(&y).map(|(x, y)| {
        let mut bytes = y.to_bytes();
        bytes[31] |= u8::from(x.is_odd()) << 7;
        bytes
    });
    encoded.collect()
}

/// Points in the form in which they are added.
pub(crate) fn addends(points: &[Point]) -> Vec<Addend> {
    let (x, y) = affine(points);
    let addends = x.iter().zip(&y).map(|(x, y)| Addend {
        y_plus_x: y.plus(x).times(&CURVE.half.alone()),
        y_minus_x: y.minus(x).times(&CURVE.half.alone()),
        xyd: x.times(y).times(&CURVE.d),
    });
    addends.collect()
}

/// The coordinates of points. Their Z is never 0, since the law of addition has no exceptions.
fn affine(points: &[Point]) -> (Vec<Number>, Vec<Number>) {
    let z: Vec<Number> = points.iter().map(|point| point.z).collect();
    let inverted = points.iter().zip(inverses(&z));
    let affine = inverted.map(|(point, z)| (point.x.times(&z), point.y.times(&z)));
    affine.unzip()
}

#[cfg(test)]
mod tests {
    use curve25519_dalek::edwards::CompressedEdwardsY;
    use sha2::{Digest as _, Sha512};

    use super::*;

    /// Half of all numbers are no point's y.
    #[test]
    fn points_are_decoded_where_the_library_decodes_them_and_as_it_does() {
        let bytes = (0..400_u64).map(|number| {
            let bytes: [u8; 64] = Sha512::digest(number.to_le_bytes()).into();
            *bytes.first_chunk().expect("half of it")
        });
        // The numbers around the prime and around 0, with either sign.
        let mut edges = Vec::new();
        for low in 0..=255_u8 {
            for (between, high) in [(0xff, 0x7f), (0xff, 0xff), (0, 0), (0, 0x80)] {
                let mut bytes = [between; 32];
                (bytes[0], bytes[31]) = (low, high);
                edges.push(bytes);
            }
        }
        let (mut points, mut none) = (0, 0);
        for bytes in bytes.chain(edges) {
            let theirs = CompressedEdwardsY(bytes).decompress();
            let theirs = theirs.map(|point| point.compress().to_bytes());
            let ours = Point::decode(&bytes).map(|point| encoded(&[point])[0]);
            assert_eq!(ours, theirs, "{bytes:?}");
            match ours {
                Some(_) => points += 1,
                None => none += 1,
            }
        }
        assert!(points > 300 && none > 300, "{points} points, {none} none");
    }

    /// All four coordinates of the negative are used here.
    #[test]
    fn a_point_and_its_negative_are_nothing_together() {
        let base = curve25519_dalek::constants::ED25519_BASEPOINT_COMPRESSED;
        let mut point = Point::decode(base.as_bytes()).expect("it is a point");
        for _ in 0..20 {
            let addend = &addends(&[point])[0];
            let none = [point.negative().plus(addend), point.minus(addend)];
            assert_eq!(encoded(&none), encoded(&[Point::NEUTRAL; 2]));
            point = point.plus(addend);
        }
    }
}
