//! Tests of the bytes that cross the bus: valid messages keep theirs, and hostile ones do no harm.

mod asyncapi;
mod bounds;
mod examples;
mod golden;
mod hostile;
mod value;
