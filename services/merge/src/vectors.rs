//! One loop, compiled for several widths of vector instructions, chosen when the program runs.
//!
//! Only the width differs. A loop wrapped here uses separate IEEE operations for each element (the
//! compiler never fuses a multiplication and an addition), so every width gives the same bits. The
//! tests of this crate run all widths that the machine has. The gain, measured on a Xeon with
//! AVX-512 by `examples/throughput.rs`, 2 threads: merge with a bf16 broadcast 1.9 times as fast as
//! the x86-64 baseline, screen 2.5 times, stochastic rounding 2.7 times.

/// A set of vector instructions that this processor has: values other than [`Vectors::BASELINE`]
/// come only from detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vectors(Width);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    /// The instructions that every processor of the target has.
    pub(crate) const BASELINE: Self = Self(Width::Baseline);

    /// The widest set of this processor. Cheap: detection is cached by the standard library.
    pub(crate) fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::has_avx512() {
                return Self(Width::Avx512);
            }
            if is_x86_feature_detected!("avx2") {
                return Self(Width::Avx2);
            }
        }
        Self::BASELINE
    }

    pub(crate) fn width(self) -> Width {
        self.0
    }

    #[cfg(target_arch = "x86_64")]
    fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
    }

    /// Every set of this processor, narrowest first.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut sets = vec![Self::BASELINE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                sets.push(Self(Width::Avx2));
            }
            if Self::has_avx512() {
                sets.push(Self(Width::Avx512));
            }
        }
        sets
    }
}

/// `vectorised!(fn name(argument: Type, …) -> Output = body)` declares `name(vectors, argument,
/// …)`, which runs `body`, an `#[inline(always)]` function, compiled for `vectors`.
macro_rules! vectorised {
    (fn $name:ident($($argument:ident: $type:ty),*) $(-> $output:ty)? = $body:path) => {
        fn $name(vectors: $crate::vectors::Vectors, $($argument: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($argument: $type),*) $(-> $output)? {
                $body($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512($($argument: $type),*) $(-> $output)? {
                $body($($argument),*)
            }
            match vectors.width() {
                $crate::vectors::Width::Baseline => $body($($argument),*),
                // SAFETY: a `Vectors` of this width exists only where detection found the
                // instructions; the function itself is safe code.
                #[cfg(target_arch = "x86_64")]
                $crate::vectors::Width::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::vectors::Width::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}
pub(crate) use vectorised;
