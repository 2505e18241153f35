//! The keys and the certificate of the store, tried as the credentials of the other services are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use runtime::exit::EXIT_USAGE;
use schemas::Code;

use super::{Service, Trials, shown};

/// The store has no credentials for the bus; its keys and its certificate are under the same rules.
#[tokio::test]
async fn la_02_la_04_la_05_la_06_la_09_a_store_without_whole_keys_and_a_whole_certificate_ends() {
    let trials = Trials::new().await;
    let layout = trials.cluster.domain().layout();
    let whole = fs::read_to_string(layout.store_keys()).unwrap();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut keys = serde_json::from_str(&whole).unwrap();
        change(&mut keys);
        keys.to_string()
    };
    let sample = changed(&|keys| keys["admin"]["secret"] = "minioadmin".into());
    let keys = "store_server.keys";
    for (name, text, code) in [
        ("blank.json", " \n", Code::CredentialMissing),
        ("noise.json", "no keys", Code::CredentialMalformed),
        (
            "cut.json",
            &whole[..whole.len() / 2],
            Code::CredentialMalformed,
        ),
        ("sample.json", &sample, Code::SampleSecret),
    ] {
        let path = trials.write(name, text);
        let changes = [(keys, shown(&path))];
        let said = trials
            .assert_ends(Service::Store, &changes, EXIT_USAGE, code)
            .await;
        assert!(said.contains(keys), "{said}");
        assert!(
            !said.contains("minioadmin") && !said.contains("no keys"),
            "{said}"
        );
    }
    let nowhere = [(keys, "nowhere.json")];
    let missing = Code::CredentialMissing;
    let said = trials
        .assert_ends(Service::Store, &nowhere, EXIT_USAGE, missing)
        .await;
    // LA-09: the message says what required it.
    assert!(said.contains("require_auth"), "{said}");
    let exposed = trials.write("exposed.json", &whole);
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o644)).unwrap();
    for (changes, code) in [
        ([(keys, shown(&exposed))], Code::CredentialExposed),
        ([("store_server.tls_key", "")], Code::CredentialHalf),
        ([("store_server.tls_cert", "")], Code::CredentialHalf),
    ] {
        trials
            .assert_ends(Service::Store, &changes, EXIT_USAGE, code)
            .await;
    }
    // Not required: half a certificate stays an error, and the open layer is told.
    let half = [("auth.require_auth", "false"), ("store_server.tls_key", "")];
    let code = Code::CredentialHalf;
    trials
        .assert_ends(Service::Store, &half, EXIT_USAGE, code)
        .await;
    let open = [
        ("auth.require_auth", "false"),
        ("store_server.tls_cert", ""),
        ("store_server.tls_key", ""),
        ("store_server.tls_clients", ""),
    ];
    let (status, said) = trials
        .ends(Service::Store, &open, &["--check-config"])
        .await;
    assert!(
        status == Some(0) && said.contains(&Code::LayerOpen.to_string()) && said.contains("WARN"),
        "{status:?} {said}"
    );
}
