use crate::context::Context;
pub(crate) async fn run(_: &Context, _: &crate::cli::Audit) -> Result<(), runtime::Failure> { Ok(()) }
