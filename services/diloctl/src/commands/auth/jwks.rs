//! `auth jwks`: the keys that sign leases and commands, for readers in other languages.

use std::path::Path;

use identity::TrustBundle;
use runtime::Failure;
use schemas::call::control as call;
use schemas::keys::{Jwks, KeysRequest};
use schemas::{Code, V};

use crate::context::Context;

/// Prints the keys of the trust bundle. With `from_bus` the coordinator must publish the same.
pub(super) async fn run(
    context: &Context,
    from_bus: bool,
    trust: Option<&Path>,
    file: Option<&Path>,
) -> Result<(), Failure> {
    let bundle = match trust {
        Some(path) => TrustBundle::read(path)?,
        None => context.domain()?.trust().clone(),
    };
    let set = identity::jwks::of(&bundle)?;
    if from_bus {
        let operator = context.operator().await?;
        let reply = operator.ask::<call::Keys>(&KeysRequest { v: V }).await?;
        same(&set, &reply.jwks)?;
    }
    match file {
        None => context.printer.document(&set),
        Some(path) => {
            let text = serde_json::to_string_pretty(&set).expect("strings are JSON");
            std::fs::write(path, text + "\n").map_err(|error| {
                let text = format!("{}: {error}", path.display());
                Failure::new(Code::ConfigInvalid, text)
            })?;
            let count = set.keys.len();
            let path = path.display();
            context.printer.talk(&format!("{path} has {count} keys"));
        }
    }
    Ok(())
}

/// Compares what the bus says with what is trusted.
///
/// # Errors
/// [`Code::KeysDiffer`].
fn same(trusted: &Jwks, published: &Jwks) -> Result<(), Failure> {
    if trusted == published {
        return Ok(());
    }
    let names = |set: &Jwks| {
        let names: Vec<&str> = set.keys.iter().map(|key| key.kid.as_str()).collect();
        names.join(", ")
    };
    let text = format!(
        "the trust bundle has {}; the bus has {}",
        names(trusted),
        names(published)
    );
    Err(Failure::new(Code::KeysDiffer, text))
}

#[cfg(test)]
mod tests {
    use identity::{Domain, InitOptions};
    use schemas::UnixMillis;

    use super::*;

    #[test]
    fn tl_13_keys_from_the_bus_are_those_of_the_bundle_to_the_letter_or_refused() {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let options = InitOptions::default();
        let set = |name: &str| {
            let domain = Domain::init(&scratch.path().join(name), &options, UnixMillis(1));
            identity::jwks::of(domain.expect("an empty folder").trust()).expect("keys of ours")
        };
        let (ours, other) = (set("ours"), set("other"));
        assert!(same(&ours, &ours.clone()).is_ok());
        let more = Jwks {
            keys: [&ours.keys[..], &other.keys[..]].concat(),
        };
        // The name is right, and the bytes are those of another key.
        let mut forged = ours.clone();
        forged.keys[0].x = other.keys[0].x.clone();
        let none = Jwks { keys: Vec::new() };
        for published in [&other, &more, &forged, &none] {
            let refused = same(&ours, published).expect_err("they differ");
            assert_eq!(refused.code(), Code::KeysDiffer);
            let said = &refused.refusal().detail;
            assert!(said.contains(ours.keys[0].kid.as_str()), "{said}");
        }
    }
}
