//! `store check`: tries whether a store keeps the rules that uploads and presigned URLs depend on.

use std::path::Path;

use identity::StoreKeys;
use objects::check::{self, Report};
use objects::{Endpoint, Trust};
use runtime::Failure;
use schemas::Code;
use schemas::permission::Role;
use serde::Serialize;

use crate::cli::{Store, StoreCheck};
use crate::context::Context;
use crate::output::Row;

pub(crate) async fn run(context: &Context, command: &Store) -> Result<(), Failure> {
    let Store::Check(options) = command;
    let (endpoint, keys) = reach(context, options)?;
    let report = check::check(&endpoint, &keys).await?;
    let rows: Vec<Shown> = report.rows.iter().map(Shown::of).collect();
    context.printer.rows(&rows);
    verdict(endpoint.url().as_str(), &report)
}

/// The store's address, what it is trusted by, and its keys.
fn reach(context: &Context, options: &StoreCheck) -> Result<(Endpoint, StoreKeys), Failure> {
    let url = options.url.as_ref().unwrap_or(&context.endpoints.store);
    let trust = match &options.ca {
        Some(ca) => Trust::Authority(read(ca)?),
        None if options.url.is_some() && is_plain_loopback(url) => Trust::PlainLoopback,
        None => {
            let at = Context {
                endpoints: crate::context::Endpoints {
                    store: url.clone(),
                    ..context.endpoints.clone()
                },
                ..context.clone()
            };
            at.store_trust(Role::Coordinator, std::env::vars_os())?
        }
    };
    let endpoint = Endpoint::new(url, &options.region, trust)
        .map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    let keys = match &options.keys {
        Some(path) => StoreKeys::read(path)?,
        None => StoreKeys::read(&context.domain()?.layout().coordinators_store_keys())?,
    };
    Ok((endpoint, keys))
}

/// True for a store on this machine that speaks without TLS: what is tried there are small objects
/// of the check alone, and no byte leaves the machine.
fn is_plain_loopback(url: &str) -> bool {
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
        let rest = url.strip_prefix("http://");
        let rest = rest.and_then(|rest| rest.strip_prefix(host));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        let text = format!("{}: {error}", path.display());
        Failure::new(Code::CredentialMissing, text)
    })
}

fn verdict(url: &str, report: &Report) -> Result<(), Failure> {
    match report.unfit() {
        unfit if unfit.is_empty() => Ok(()),
        unfit => Err(Failure::new(Code::StoreUnfit, format!("{url}: {unfit}"))),
    }
}

/// One rule, and what the store did.
#[derive(Serialize)]
struct Shown {
    rule: String,
    required: bool,
    holds: bool,
    seen: String,
    /// What it means that the rule is broken.
    without: Option<&'static str>,
}

impl Shown {
    fn of(row: &check::Row) -> Self {
        let broken = (!row.holds).then_some(row.rule);
        Self {
            rule: row.rule.to_string(),
            required: row.required,
            holds: row.holds,
            seen: row.seen.clone(),
            without: broken.and_then(check::Rule::without),
        }
    }
}

impl Row for Shown {
    const TITLES: &'static [&'static str] = &["rule", "holds", "the store's answer"];
    const WIDTHS: &'static [usize] = &[40, 5];

    fn cells(&self) -> Vec<String> {
        let holds = match (self.holds, self.required) {
            (true, _) => "yes",
            (false, true) => "NO",
            (false, false) => "no",
        };
        let seen = match self.without {
            Some(without) => format!("{}: {without}", self.seen),
            None => self.seen.clone(),
        };
        vec![self.rule.clone(), holds.to_owned(), seen]
    }
}

#[cfg(test)]
mod tests {
    use objects::check::{Row as Found, Rule};

    use super::*;

    fn report(rule: Rule) -> Report {
        let found = |rule: Rule, holds| Found {
            rule,
            required: rule.is_required(),
            holds,
            seen: "200".to_owned(),
        };
        let rows = vec![found(Rule::RightBytesStored, true), found(rule, false)];
        Report { rows }
    }

    #[test]
    fn a_store_that_breaks_a_required_rule_fails_the_command_and_another_does_not() {
        let broken = report(Rule::WrongBytesRefused);
        let failed = verdict("http://x", &broken).expect_err("it is not fit");
        assert_eq!(failed.code(), Code::StoreUnfit);
        let said = failed.refusal().detail.clone();
        assert!(said.contains("http://x: wrong bytes are refused"), "{said}");
        let lesser = report(Rule::OverwriteRefused);
        assert!(verdict("http://x", &lesser).is_ok());
        let cells: Vec<_> = lesser
            .rows
            .iter()
            .map(|row| Shown::of(row).cells())
            .collect();
        assert_eq!((&*cells[0][1], &*cells[0][2]), ("yes", "200"));
        assert_eq!(cells[1][1], "no");
        assert!(cells[1][2].contains("can be repeated"), "{:?}", cells[1]);
        assert_eq!(Shown::of(&broken.rows[1]).cells()[1], "NO");
    }

    #[test]
    fn only_this_machine_is_spoken_to_without_encryption() {
        for url in [
            "http://127.0.0.1:3900",
            "http://localhost",
            "http://[::1]:9/",
        ] {
            assert!(is_plain_loopback(url), "{url}");
        }
        for url in [
            "http://127.0.0.1.example",
            "http://store:9000",
            "https://localhost",
        ] {
            assert!(!is_plain_loopback(url), "{url}");
        }
    }
}
