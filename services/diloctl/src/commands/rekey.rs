//! Another key for a worker of this machine, which the registrar signs. The worker takes it by
//! itself.

use identity::{DomainLayout, Heir, TrustBundle};
use runtime::{Bus, BusConfig, Failure, clock};
use schemas::renewal::RenewalReply;
use schemas::subject::renewal_subject;
use serde::Serialize;

use crate::context::Context;
use crate::output::Record;

/// Makes the keys, asks, and puts what is answered where the worker takes it.
pub(super) async fn run(context: &Context, name: &str) -> Result<(), Failure> {
    let _lock = context.lock("diloctl worker rekey").await?;
    let layout = DomainLayout::new(&context.folder);
    let trust = TrustBundle::read(&layout.trust())?;
    let heir = Heir::prepare(&layout, name)?;
    let config = BusConfig {
        url: context.endpoints.bus.clone(),
        credentials: layout.credentials(name),
        ca: layout.ca(),
    };
    context.check_bus(&config)?;
    let bus = Bus::connect("diloctl-rekey", &config, clock::now()).await?;
    let held = heir.held();
    let subject = renewal_subject(held.token().claims.run().as_ref(), held.public());
    let question = heir.question(trust.domain.as_str(), clock::now());
    let reply: RenewalReply = bus.request(&subject, &question, context.timeout).await?;
    let new = heir.accept(&reply)?;
    context.printer.record(&Rekeyed {
        name: name.to_owned(),
        before: held.public().to_string(),
        worker: new.to_string(),
    });
    context
        .printer
        .talk("the worker takes the new key when the unit that it works on is handed in");
    Ok(())
}

#[derive(Serialize)]
struct Rekeyed {
    name: String,
    worker: String,
    before: String,
}

impl Record for Rekeyed {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("worker", self.worker.clone()),
            ("before", self.before.clone()),
        ]
    }
}
