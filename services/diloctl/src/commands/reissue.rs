//! A new token for a worker whose keys lie on its own machine, on both sides of the way.

use std::path::Path;

use identity::{DomainLayout, TokenFile};
use runtime::{Failure, clock};
use schemas::{Code, Millis, UnixMillis};
use serde::Serialize;

use crate::context::Context;
use crate::output::Record;
use crate::table::time;

/// Makes the token, and writes the file that is carried.
pub(super) async fn make(
    context: &Context,
    worker: &str,
    lifetime: Millis,
    into: &Path,
) -> Result<(), Failure> {
    let (domain, _lock) = context.locked("diloctl worker reissue").await?;
    if into.symlink_metadata().is_ok() {
        let text = format!(
            "{} exists; choose another file with --into, or remove it",
            into.display()
        );
        return Err(Failure::new(Code::ConfigInvalid, text));
    }
    let made = domain.reissue(worker, lifetime, clock::now())?;
    made.write(into)?;
    context.printer.record(&Reissued {
        file: into.display().to_string(),
        name: made.name,
        worker: made.worker.to_string(),
        expires: made.ends,
    });
    context
        .printer
        .talk("carry the file to the worker's machine, and run `diloctl worker accept FILE` there");
    Ok(())
}

/// Puts a token beside the key that lies here.
pub(super) async fn accept(context: &Context, file: &Path) -> Result<(), Failure> {
    let token = TokenFile::read(file)?;
    let _lock = context.lock("diloctl worker accept").await?;
    let issued = token.take(&DomainLayout::new(&context.folder), clock::now())?;
    context.printer.record(&Reissued {
        file: issued.credentials.display().to_string(),
        name: token.name,
        worker: issued.public.to_string(),
        expires: issued.expires,
    });
    Ok(())
}

#[derive(Serialize)]
struct Reissued {
    name: String,
    worker: String,
    expires: UnixMillis,
    file: String,
}

impl Record for Reissued {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("worker", self.worker.clone()),
            ("expires", time(self.expires)),
            ("file", self.file.clone()),
        ]
    }
}
