//! What crosses the bus: fixed bytes, and no trouble from hostile ones.

mod asyncapi;
mod bounds;
mod examples;
mod golden;
mod hostile;
mod value;
