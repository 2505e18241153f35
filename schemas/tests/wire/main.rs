//! What crosses the bus: fixed bytes, and no trouble from hostile ones.

mod bounds;
mod examples;
mod golden;
mod hostile;
