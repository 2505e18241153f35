//! `up` and `down`: all services of one machine.

use runtime::Failure;

use crate::cli::{Down, Up};
use crate::context::Context;

pub(crate) async fn up(context: &Context, options: &Up) -> Result<(), Failure> {
    crate::stack::up(context, options).await
}

pub(crate) async fn down(context: &Context, options: &Down) -> Result<(), Failure> {
    crate::stack::down(context, options).await
}
