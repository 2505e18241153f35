//! What the owner of a trust domain says of the keys in its log, in the manifest with which the log
//! begins.

use audit_core::log::{Log, Named, check_named};
use identity::log_manifest;
use runtime::Failure;
use schemas::log_manifest::LogManifest;
use schemas::text::Time;
use schemas::{Code, UnixMillis};
use serde::Serialize;

use super::log::Source;

/// Compares the keys in the log with the manifest of its owner, if it has one.
pub(super) fn owner(source: &Source, log: &Log) -> Result<Option<Owner>, Failure> {
    let Some(manifest) = source.manifest(log)? else {
        return Ok(None);
    };
    let heads = log_manifest::raw_heads(&manifest);
    let read = |path: &str| source.read(path);
    let named = check_named(log, &read, &source.trusted, &manifest, &heads)?;
    Ok(Some(Owner::of(&manifest, &named)))
}

/// What the owner of a log says of the keys in it.
#[derive(Serialize)]
pub(super) struct Owner {
    /// The time of the owner's signature.
    at: UnixMillis,
    /// Keys of services that sign events, and that the owner has named.
    services: usize,
    /// Keys of the ledger that the owner has not named, and that the key before each has named.
    successors: usize,
    /// Keys of workers that these have named.
    workers: usize,
    /// The others, in words.
    unnamed: Vec<String>,
}

impl Owner {
    /// Refuses a verdict if the owner has not named a key that speaks here.
    pub(super) fn judge(&self) -> Result<(), Failure> {
        let Some((first, more)) = self.unnamed.split_first() else {
            return Ok(());
        };
        let text = match more.len() {
            0 => first.clone(),
            count => format!("{first}, and {count} more"),
        };
        Err(Failure::new(Code::EmitterUnnamed, text))
    }

    fn of(manifest: &LogManifest, named: &Named) -> Self {
        Self {
            at: manifest.at,
            services: named.services,
            successors: named.successors,
            workers: named.workers,
            unnamed: named.unnamed.iter().map(ToString::to_string).collect(),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            at,
            services,
            successors,
            workers,
            unnamed,
        } = self;
        write!(
            f,
            "has signed entry 0 at {}: it names {services} services that speak here, and through them {workers} keys of workers",
            Time(*at)
        )?;
        if *successors > 0 {
            write!(
                f,
                "; {successors} later keys of the ledger are not named by it but by the key before"
            )?;
        }
        match unnamed.is_empty() {
            true => Ok(()),
            false => write!(f, "; NOT NAMED: {}", unnamed.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_the_key_before_has_named_is_not_counted_as_the_owners() {
        let manifest = LogManifest {
            v: schemas::V,
            at: UnixMillis(1),
            origin: "a log".to_owned(),
            heads: vec![],
            emitters: vec![],
            enrolment: vec![],
            witnesses: None,
        };
        let shown = |successors| {
            let named = Named {
                services: 2,
                successors,
                ..Named::default()
            };
            Owner::of(&manifest, &named).to_string()
        };
        assert!(shown(0).contains("names 2 services") && !shown(0).contains("key before"));
        let later = "; 1 later keys of the ledger are not named by it but by the key before";
        assert!(shown(1).ends_with(later), "{}", shown(1));
    }
}
