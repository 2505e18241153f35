//! Merges from objects: what the ledger names is fetched, and the outer steps are made again, bit
//! for bit. The coordinator's foundry steps and restores its weights with this code, and an auditor
//! recomputes merges with it, so that both come from settings and a sealed set to the same call of
//! [`merge`].
//!
//! | file | holds |
//! | --- | --- |
//! | `objects` | the place that objects are read from |
//! | `context` | a run's settings, and its layout cut into chunks |
//! | `inputs` | the chunks of a merge's contributions, as many at a time as memory is set aside for |
//! | `weights` | weights and outer state, and the outer step on one chunk |
//! | `directions` | the comparison of the directions of a round's contributions |
//! | `masked` | the sum of a masked round's contributions |
//! | `base`, `again` | the weights before the first merge; a merge that is made again |
//! | `restore` | weights from a snapshot and the merges since |

pub mod again;
pub mod base;
pub mod context;
pub mod directions;
pub mod inputs;
pub mod masked;
pub mod objects;
pub mod restore;
pub mod weights;

pub use again::{Again, Merged};
pub use base::Base;
pub use context::{RunContext, layout};
pub use directions::compare;
pub use merge::Directions;
pub use objects::Objects;
pub use weights::{Part, Piece, Step, Stepped, Weights};
