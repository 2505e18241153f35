//! `docs/requirements.md`: every requirement with the tests that name it. A test proves a
//! requirement by carrying its id in its name: `fn fg_16_a_contribution_with_nan_is_refused_alone`.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Pages, functions};

/// The source of each family of requirements.
const FAMILIES: &[(&str, &str)] = &[
    (
        "FG",
        "What users of an earlier DiLoCo trainer had or missed",
    ),
    ("TL", "Security guide for federated training"),
    ("LS", "Lessons of a swarm with one shared key"),
    ("LA", "Authentication switches"),
];

/// The requirements, in words of this project.
const REQUIREMENTS: &[(&str, &str)] = &[
    (
        "FG-01",
        "every message is authenticated and authorised by role",
    ),
    ("FG-02", "credentials ride on every worker request"),
    (
        "FG-03",
        "group and rank are bound to the authenticated identity",
    ),
    (
        "FG-04",
        "an evicted worker gets nothing into the next round, and nobody speaks in its name",
    ),
    ("FG-05", "control actions need an operator's identity"),
    (
        "FG-06",
        "work is given to who may have it; an unfinished unit is issued again",
    ),
    (
        "FG-07",
        "tamper-evident record of every change, with the caller's identity and without secrets",
    ),
    (
        "FG-08",
        "mutual TLS with short-lived certificates bound to a role",
    ),
    (
        "FG-09",
        "bulk plane apart from the control plane; integrity holds without bulk TLS",
    ),
    ("FG-10", "credentials rotate while a run goes on"),
    (
        "FG-11",
        "tensors come in a form that runs no code; sizes are checked before allocation",
    ),
    (
        "FG-12",
        "all schedules: barrier, asynchronous, streaming, groups, resume, token budget",
    ),
    (
        "FG-13",
        "the server's settings are published; a worker with others is refused",
    ),
    ("FG-14", "status, tables, work map, speeds, loss, history"),
    ("FG-15", "a round honours the configured minimum of workers"),
    (
        "FG-16",
        "a bad submission is refused by itself and the round goes on",
    ),
    ("FG-17", "a repeated submission counts once"),
    ("FG-18", "staleness is bounded and weighted"),
    ("FG-19", "a reconnecting worker keeps its local steps"),
    (
        "FG-20",
        "a read time-out is retried like any broken connection",
    ),
    (
        "FG-21",
        "a worker that is evicted while it waits is told at once",
    ),
    ("FG-22", "saving happens beside the round's critical path"),
    (
        "FG-23",
        "streaming keeps local steps taken while a fragment is in flight",
    ),
    (
        "FG-24",
        "the broadcast is made once and shared; memory does not grow with workers times model",
    ),
    ("FG-25", "half of a planned team starting alone is loud"),
    (
        "TL-01",
        "workers are not trusted for identity, order, round, weights or completion",
    ),
    (
        "TL-02",
        "TLS on bus and store; a plaintext address is a start-up error",
    ),
    ("TL-03", "one account per tenant; the audit is exported"),
    (
        "TL-04",
        "sha256 is checked by producer, consumer and auditor",
    ),
    (
        "TL-05",
        "workers connect outwards only, and prove their key",
    ),
    (
        "TL-06",
        "short credentials with a renewal verb of their own",
    ),
    (
        "TL-07",
        "revocation and key rotation take effect on live connections",
    ),
    ("TL-08", "permissions by role from one declaration"),
    (
        "TL-09",
        "a lease is a signed manifest; an unsigned one is refused",
    ),
    (
        "TL-10",
        "issuer, audience, window, run, worker and digests are required claims",
    ),
    (
        "TL-11",
        "signature, window, binding and digests are checked before a tensor is parsed",
    ),
    (
        "TL-12",
        "seeds only from files with checked modes; the trust bundle is pinned",
    ),
    (
        "TL-13",
        "two signing keys may be active; manifests name theirs",
    ),
    ("TL-14", "short expiry and a use-once id"),
    ("TL-15", "one writer; every change names who caused it"),
    ("TL-16", "differential privacy with an enforced budget"),
    (
        "TL-17",
        "secure aggregation: the coordinator learns sums alone; what does not go with it is refused when a run is created",
    ),
    ("TL-18", "an object's key follows from its digest"),
    (
        "TL-19",
        "promotion reads back and hashes; provenance is signed",
    ),
    (
        "TL-20",
        "workers hold no store key; a URL is bound to method, key, length and checksum",
    ),
    ("TL-21", "a minimum TLS version is pinned"),
    ("TL-22", "no key or token in any log"),
    (
        "TL-23",
        "wrong signer, expired, revoked, not yet valid, other account, wrong role: refused",
    ),
    (
        "TL-24",
        "a manifest with any field changed, another key id, algorithm or audience: refused",
    ),
    ("TL-25", "nothing of another run can be read"),
    ("TL-26", "a sha256 mismatch blocks promotion and merge"),
    ("TL-27", "presigned URLs end, and a PUT URL has one effect"),
    ("TL-28", "rotation does not break a run in flight"),
    ("TL-29", "each denial is one event with a reason code"),
    (
        "TL-30",
        "leaked keys: one command rotates, revokes and ends leases",
    ),
    (
        "TL-31",
        "suspicious worker: revoke, end leases, exclude, issue again",
    ),
    (
        "TL-32",
        "tampered artifact: freeze, trace, restore by digest",
    ),
    (
        "LS-01",
        "a missing or wrong credential is refused and changes nothing",
    ),
    ("LS-02", "outgoing calls carry the credential by themselves"),
    ("LS-03", "success is declared only after the reply says so"),
    ("LS-04", "no reply is ignored"),
    (
        "LS-05",
        "no open entry forwards with the swarm's own authority",
    ),
    (
        "LS-06",
        "authentication without encryption is said to be that",
    ),
    ("LS-07", "identity is bound to the credential"),
    ("LS-08", "secrets are compared in constant time"),
    (
        "LS-09",
        "an empty or blank key is an error, not an open door",
    ),
    ("LS-10", "a worker that was dropped rejoins"),
    ("LS-11", "the client's behaviour on a refusal is tested too"),
    ("LS-12", "a dependency audit runs in CI"),
    (
        "LA-01",
        "one umbrella, on by default; relaxing a layer takes an exception with a reason",
    ),
    (
        "LA-02",
        "required and missing or blank: a coded exit before anything is connected",
    ),
    (
        "LA-03",
        "not required and absent: said at every start, naming who can use it then",
    ),
    ("LA-04", "half a credential pair is always an error"),
    ("LA-05", "a malformed credential is an error at start"),
    ("LA-06", "sample secrets are refused off a loopback demo"),
    ("LA-07", "the umbrella covers transport"),
    (
        "LA-08",
        "the umbrella proves itself: strangers are tried and must be refused",
    ),
    (
        "LA-09",
        "an error names the switch, and where it was set, that demands what is missing",
    ),
    (
        "LA-10",
        "each process publishes its posture; weaker peers are refused",
    ),
    (
        "LA-11",
        "the table of switches is made from their declaration",
    ),
];

pub(super) fn pages(root: &Path) -> Pages {
    let tests = tests(root);
    let mut page = String::from(
        "# Requirements\n\nGenerated by `cargo xtask docs` from the names of tests: a test that proves a requirement carries its id in\n\
         its name. A row without a test is not proved yet; most of those belong to later issues.\n",
    );
    for (family, title) in FAMILIES {
        page.push_str(&format!(
            "\n## {family}: {title}\n\n| id | requirement | tests |\n| --- | --- | --- |\n"
        ));
        for (id, text) in REQUIREMENTS.iter().filter(|(id, _)| id.starts_with(family)) {
            let proofs = tests
                .get(*id)
                .map(|names| names.join("<br>"))
                .unwrap_or_default();
            page.push_str(&format!("| {id} | {text} | {proofs} |\n"));
        }
    }
    let proved = REQUIREMENTS
        .iter()
        .filter(|(id, _)| tests.contains_key(*id))
        .count();
    page.push_str(&format!(
        "\n{proved} of {} requirements have a test.\n",
        REQUIREMENTS.len()
    ));
    Pages::from([("docs/requirements.md".to_owned(), page)])
}

/// The tests that carry an id, by id: `` `schemas`: `tl_01_…` ``.
fn tests(root: &Path) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (file, name) in functions::declared(root, &["rs"]) {
        for id in ids(&name) {
            let shown = format!("`{file}`: `{name}`");
            found.entry(id).or_default().push(shown);
        }
    }
    found
}

/// The ids in a function's name: `fg_16_tl_26_…` carries two.
fn ids(name: &str) -> Vec<String> {
    let tokens: Vec<&str> = name.split('_').collect();
    let pairs = tokens
        .windows(2)
        .map(|pair| format!("{}-{}", pair[0].to_uppercase(), pair[1]));
    pairs
        .filter(|id| REQUIREMENTS.iter().any(|(known, _)| known == id))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_carry_several_ids() {
        assert_eq!(ids("fg_16_tl_26_a_bad_chunk"), ["FG-16", "TL-26"]);
        assert!(ids("a_plain_name_of_99_bottles").is_empty());
    }
}
