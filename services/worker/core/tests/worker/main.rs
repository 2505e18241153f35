//! The worker's machine, played against by hand and at random.

mod ends;
mod guards;
mod life;
mod properties;
mod scene;
