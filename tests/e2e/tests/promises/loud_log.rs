//! Logs hold no secret, even at the loudest level that an operator can set.

use e2e::{Recipe, secrets};
use harness::{Cluster, Options};

/// At this level other software prints requests, messages and credentials.
#[tokio::test]
async fn no_log_holds_a_secret_however_loud_it_is() {
    let options = Options {
        log: "trace,async_nats::connection=trace,hyper=trace,h2=trace,s3s=trace".to_owned(),
        sentry: true,
        ..Options::default()
    };
    let mut cluster = Cluster::start(options, 1).await;
    Recipe::reference(1, 1, 4).create(&cluster).await;
    let run = cluster.run().clone();
    cluster.operator().await.until_complete(&run).await;
    cluster.end_well(&["worker-0"]).await;
    cluster.stop_well(&["coordinator", "audit", "store"]).await;
    for name in cluster.names() {
        let log = cluster.process(&name).log();
        let loud = log.contains("TRACE") || log.contains("DEBUG");
        assert!(loud || name == "broker", "{name} is as loud as that");
        assert_eq!(
            secrets::found(&cluster, log.as_bytes()),
            Vec::<String>::new(),
            "in the log of {name}"
        );
    }
}
