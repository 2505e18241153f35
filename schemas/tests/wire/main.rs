//! Tests of the bytes that cross the bus: those of valid messages are fixed, and hostile ones do no
//! harm.

mod asyncapi;
mod bounds;
mod examples;
mod golden;
mod hostile;
mod value;
