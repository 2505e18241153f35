//! What this machine knows of the streams apart from the broker: the coordinator's mark, and the files of the audit service.
//! A stream that is missing, or ends before what is known, was lost: it is not created anew.

use diloco_audit::StreamSequence;
use diloco_audit::keep::last_kept;
use identity::{Layout, Mark};
use runtime::Failure;
use schemas::Code;
use schemas::subject::AUDIT_STREAM;

use crate::context::Context;

/// The newest of each that is known.
#[derive(Debug)]
pub(crate) struct History {
    mark: Option<Mark>,
    kept: StreamSequence,
    layout: Layout,
}

impl History {
    pub(crate) fn read(context: &Context) -> Result<Self, Failure> {
        let domain = context.domain()?;
        let layout = domain.layout().clone();
        let mark = Mark::read(&layout.ledger_mark(), &domain.trust().domain)
            .map_err(|error| Failure::new(error.code(), error))?;
        let kept = last_kept(&layout.audit_files()).map_err(|error| Failure::new(error.code(), error))?;
        Ok(Self { mark, kept, layout })
    }

    /// Refuses a stream that does not reach as far as it once did. `last` is its newest position; none where it does not
    /// exist.
    pub(crate) fn check(&self, stream: &str, last: Option<u64>) -> Result<(), Failure> {
        if stream != AUDIT_STREAM {
            return Ok(());
        }
        let marked = self.mark.as_ref().filter(|mark| mark.events > 0);
        let marked = marked.map(|mark| (mark.stream_sequence, self.layout.ledger_mark()));
        let kept = (self.kept > StreamSequence(0)).then(|| (self.kept.0, self.layout.audit_files()));
        for (known, witness) in marked.into_iter().chain(kept) {
            let found = match last {
                None => "does not exist".to_owned(),
                Some(last) if last < known => format!("ends at {last}"),
                Some(_) => continue,
            };
            let text = format!("stream {stream} {found}; {} knows of event {known} in it", witness.display());
            return Err(Failure::new(Code::LedgerLost, text));
        }
        Ok(())
    }
}
