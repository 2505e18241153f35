//! Which key signs the ledger: one at a time, and the last event of each names the next.

use schemas::PublicKey;

/// What a coordinator that begins does with the key that waits beside its own. It has read the
/// ledger to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Succession {
    /// Its own key signs one event more, which names the key that waits. Then that goes on.
    Name,
    /// The ledger names the key that waits, which goes on: an earlier process died behind that
    /// event, or another machine wrote it.
    Take,
    /// Another key goes on with the ledger: this process may not write it.
    Other,
}

impl Succession {
    /// Decides from the key that goes on with the ledger, the process's own, and the one that
    /// waits.
    pub fn of(emitter: &PublicKey, own: &PublicKey, waits: &PublicKey) -> Self {
        if emitter == waits {
            Self::Take
        } else if emitter == own {
            Self::Name
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_28_the_key_that_waits_is_named_once_and_nobody_else_goes_on() {
        let [old, new, stranger] = [1, 2, 3].map(kit::public_key);
        for (emitter, decided) in [
            (&old, Succession::Name),
            (&new, Succession::Take),
            (&stranger, Succession::Other),
        ] {
            assert_eq!(Succession::of(emitter, &old, &new), decided, "{emitter}");
        }
    }
}
