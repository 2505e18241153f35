//! `up` on a machine where everything runs already: it compares the streams at the broker, and
//! checks that the services answer.

use async_nats::jetstream;
use e2e::Machine;
use identity::Credentials;
use runtime::{Bus, BusConfig, clock};
use schemas::Code;
use schemas::subject::WORK_STREAM;

/// Connects as the provisioner of the account that holds the offers.
async fn provisioner(machine: &Machine) -> jetstream::Context {
    let endpoints = std::fs::read_to_string(machine.path("d/endpoints.toml")).unwrap();
    let url = endpoints
        .lines()
        .find_map(|line| line.strip_prefix("bus = "))
        .unwrap()
        .trim_matches('"')
        .to_owned();
    let layout = identity::DomainLayout::new(&machine.path("d"));
    let config = BusConfig {
        url,
        credentials: layout.credentials("provisioner"),
        ca: layout.ca(),
    };
    jetstream::new(
        Bus::connect("test", &config, clock::now())
            .await
            .unwrap()
            .client()
            .clone(),
    )
}

#[tokio::test]
async fn up_makes_what_is_missing_tells_what_differs_and_asks_the_coordinator() {
    let machine = Machine::new();
    assert!(machine.init("d", "1").await.status.success());
    let up = machine.up("d", "0").await;
    assert!(up.status.success(), "{}", up.text);
    let drift = format!("warning {}", Code::StreamDrift);
    assert!(!up.text.contains(&drift), "{}", up.text);

    let jetstream = provisioner(&machine).await;
    let live = async || {
        let stream = jetstream.get_stream(WORK_STREAM).await.unwrap();
        stream.cached_info().config.clone()
    };
    let mut config = live().await;
    config.max_bytes = 12_345_678;
    jetstream.update_stream(config).await.unwrap();
    let up = machine.up_again("d", "0").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(
        up.text.contains(&drift) && up.text.contains("WORK: max_bytes is 12345678"),
        "{}",
        up.text
    );
    let altered = live().await.max_bytes;
    assert_eq!(
        altered, 12_345_678,
        "nothing is altered behind anyone's back"
    );
    jetstream.delete_stream(WORK_STREAM).await.unwrap();
    let up = machine.up_again("d", "0").await;
    assert!(up.status.success(), "{}", up.text);
    let stream = jetstream.get_stream(WORK_STREAM).await.unwrap();
    stream.consumer_info("lease").await.unwrap();

    // The process lives, was ready once, and answers nobody.
    machine.signal("d", "coordinator", "-STOP");
    let up = machine.up_again("d", "0").await;
    machine.signal("d", "coordinator", "-CONT");
    let told = up.text.contains(&Code::NoAnswer.to_string())
        && up.text.contains("the coordinator cannot be used");
    assert!(!up.status.success() && told, "{}", up.text);
    let up = machine.up_again("d", "0").await;
    assert!(up.status.success(), "{}", up.text);
}

#[tokio::test]
async fn tl_06_up_gives_short_tokens_for_the_same_keys_and_needs_no_vault() {
    let machine = Machine::new();
    assert!(machine.init("d", "1").await.status.success());
    let layout = identity::DomainLayout::new(&machine.path("d"));
    let read = |name: &str| Credentials::read(&layout.credentials(name)).unwrap();
    let names = [
        "coordinator",
        "ledger-writer",
        "auditor",
        "recorder",
        "worker-0",
    ];
    let keys = names.map(|name| read(name).public().clone());
    let up = machine.up("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    let hour = clock::now().after(schemas::Millis::from_secs(3600));
    for (name, key) in names.iter().zip(keys) {
        let now = read(name);
        assert!(now.token().expires.unwrap() <= hour, "{name}: {now:?}");
        assert_eq!(*now.public(), key, "{name}");
        let record = layout.issued().find(&key).unwrap().unwrap();
        assert_eq!(record.name, *name);
    }
    machine.down("d").await;
    std::fs::rename(machine.path("d/vault"), machine.path("offline")).unwrap();
    let up = machine.up_again("d", "1").await;
    assert!(up.status.success(), "{}", up.text);
    assert!(up.text.contains("the vault is not here"), "{}", up.text);
    let issue = ["--domain", "d", "auth", "issue", "worker", "late", "--run"];
    machine.ok(&[&issue[..], &["demo"]].concat()).await;
    let config = e2e::machine::nats_config();
    let config = ["--domain", "d", "auth", "config", "--nats-config", &config];
    let refused = machine.diloctl(&config).await;
    let code = Code::VaultMissing.to_string();
    assert!(
        !refused.status.success() && refused.text.contains(&code),
        "{}",
        refused.text
    );
}
