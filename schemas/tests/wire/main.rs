//! What crosses the bus: fixed bytes, and no trouble from hostile ones.

mod examples;
mod golden;
mod hostile;
