//! Checks of the bus: the broker, its lock, its streams, and the coordinator.

use std::time::{Duration, Instant};

use identity::Domain;
use runtime::stranger::{self, Outcome};
use runtime::{Bus, BusConfig, Failure, accounts, clock};
use schemas::control::{Query, View};
use schemas::permission::Role;
use schemas::view::CoordinatorView;
use schemas::{Code, Millis};

use super::posture::PostureRow;
use super::{Finding, Report, log};
use crate::cli::Declarations;
use crate::commands::cluster::{self, StreamState};
use crate::context::{Context, Operator, unexpected};
use crate::stack::health::BrokerFault;

/// The oldest broker that stores batches of events as a whole.
const VERSION_MIN: (u64, u64) = (2, 12);
/// A larger difference of two clocks is told: leases and URLs live for a minute.
const CLOCKS_APART_MAX: Millis = Millis::from_secs(2);

/// Looks at the bus. Returns the operator's connection if the coordinator answered on it.
pub(super) async fn look(
    context: &Context,
    declarations: &Declarations,
    report: &mut Report,
) -> Option<Operator> {
    report.add(lock(context).await);
    if let Some(finding) = certificates(context).await {
        report.add(finding);
    }
    let operator = match context.operator().await {
        Ok(operator) => operator,
        Err(failure) => {
            report.add(Finding::fail("broker", &failure));
            for check in ["streams", "coordinator"] {
                report.add(Finding::skipped(
                    check,
                    "there is no connection to the broker",
                ));
            }
            return None;
        }
    };
    report.add(broker(context, &operator.bus).await);
    report.add(streams(context, declarations).await);
    let coordinator = coordinator(&operator).await;
    let answered = coordinator.is_ok();
    match coordinator {
        Ok((finding, view)) => {
            report.add(finding);
            report.add(log::ledger(&view));
            report.postures.push(PostureRow::of_coordinator(&view));
        }
        Err(failure) => report.add(Finding::fail("coordinator", &failure)),
    }
    answered.then_some(operator)
}

/// Connects without credentials, which must be refused.
async fn lock(context: &Context) -> Finding {
    const CHECK: &str = "broker's lock";
    let authority = match context.domain() {
        Ok(domain) => domain.layout().ca(),
        Err(failure) => return Finding::fail(CHECK, &failure),
    };
    let config = BusConfig {
        url: context.endpoints.bus.clone(),
        ..BusConfig::default()
    };
    let addresses: Vec<&str> = config.addresses().collect();
    let mut unknown = None;
    for (address, outcome) in stranger::tried(&addresses, Some(&authority)).await {
        match outcome {
            Outcome::Refused => {}
            Outcome::LetIn => return Finding::fail(CHECK, &stranger::served(address)),
            Outcome::Unknown(reason) => unknown = Some(format!("{address}: {reason}")),
        }
    }
    match unknown {
        Some(reason) => Finding::skipped(CHECK, reason),
        None => Finding::ok(CHECK, "clients without credentials are refused"),
    }
}

/// Compares the certificates of the broker's clients with their tokens: the broker does not. None
/// in a domain without mutual TLS.
async fn certificates(context: &Context) -> Option<Finding> {
    const CHECK: &str = "certificates";
    let domain = context.domain().ok().filter(Domain::is_mutual)?;
    if !domain.has_vault() {
        let text = "the vault is not here, and the broker is asked with its keys";
        return Some(Finding::skipped(CHECK, text));
    }
    let seen = match context.accounts_url() {
        Ok(url) => accounts::certificates(&domain, &url, clock::now()).await,
        Err(failure) => Err(failure),
    };
    Some(match seen {
        Err(failure) => Finding::fail(CHECK, &failure),
        Ok(seen) => match seen.strays.first() {
            None => Finding::ok(CHECK, format!("{} clients show their own", seen.bound)),
            Some(first) => {
                let text = match seen.strays.len() {
                    1 => first.to_string(),
                    count => format!("{first} (and {} more)", count - 1),
                };
                Finding::fail(CHECK, &Failure::new(first.code(), text))
            }
        },
    })
}

async fn broker(context: &Context, bus: &Bus) -> Finding {
    const CHECK: &str = "broker";
    if let Some(fault) = BrokerFault::of_broker(&context.folder) {
        return Finding::fail(CHECK, &fault.failure());
    }
    let began = Instant::now();
    if let Err(error) = bus.round_trip().await {
        return Finding::fail(CHECK, &error.into());
    }
    let took = began.elapsed();
    let version = bus.client().server_info().version;
    let text = format!("nats-server {version}, round trip {}", milliseconds(took));
    match parsed(&version) {
        Some(version) if version >= VERSION_MIN => Finding::ok(CHECK, text),
        _ => {
            let (major, minor) = VERSION_MIN;
            let text = format!("{text}; {major}.{minor} or later is needed");
            Finding::fail(CHECK, &Failure::new(Code::ToolMissing, text))
        }
    }
}

/// The first two numbers of a version.
fn parsed(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Compares the streams with their declarations, as `cluster check` does. An operator's machine
/// need not hold the provisioners' credentials, nor the declarations.
async fn streams(context: &Context, declarations: &Declarations) -> Finding {
    const CHECK: &str = "streams";
    let layout = match context.domain() {
        Ok(domain) => domain.layout().clone(),
        Err(failure) => return Finding::fail(CHECK, &failure),
    };
    if !layout.credentials(Role::Provisioner.name()).exists() {
        return Finding::skipped(CHECK, "no provisioner's credentials are on this machine");
    }
    if !declarations.nats_config.join("streams").is_dir() {
        let place = declarations.nats_config.display();
        return Finding::skipped(CHECK, format!("{place} declares none; say --nats-config"));
    }
    let context = Context {
        credentials: None,
        ..context.clone()
    };
    let rows = match cluster::compare(&context, declarations, false).await {
        Ok(rows) => rows,
        Err(failure) => return Finding::fail(CHECK, &failure),
    };
    let of = |state| rows.iter().find(|row| row.state == state);
    match (of(StreamState::Missing), of(StreamState::Differs)) {
        (Some(row), _) => Finding::fail(CHECK, &Failure::new(Code::StreamMissing, &row.name)),
        (None, Some(row)) => {
            let text = format!("{}: {}", row.name, row.difference);
            Finding::warn(CHECK, Code::StreamDrift, text)
        }
        (None, None) => Finding::ok(CHECK, format!("{} as declared", rows.len())),
    }
}

async fn coordinator(operator: &Operator) -> Result<(Finding, CoordinatorView), Failure> {
    const CHECK: &str = "coordinator";
    let (asked, began) = (clock::now(), Instant::now());
    let view = match operator.view(Query::Coordinator).await? {
        View::Coordinator(view) => view,
        other => return Err(unexpected(&other)),
    };
    let took = began.elapsed();
    let own = env!("CARGO_PKG_VERSION");
    let text = format!(
        "release {}, answers in {}",
        view.release,
        milliseconds(took)
    );
    // Its clock was read between the question and the answer.
    let apart = match view.now < asked {
        true => view.now.until(asked),
        false => clock::now().until(view.now),
    };
    let finding = if view.release != own {
        let text = format!("{text}; this diloctl is release {own}");
        Finding::warn(CHECK, Code::MessageInvalid, text)
    } else if apart > CLOCKS_APART_MAX {
        let text = format!("{text}; its clock and this one are {apart} apart");
        Finding::warn(CHECK, Code::ClockOff, text)
    } else {
        Finding::ok(CHECK, text)
    };
    Ok((finding, view))
}

fn milliseconds(span: Duration) -> String {
    format!("{:.1} ms", span.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parsed("2.15.1"), Some((2, 15)));
        assert_eq!(parsed("2.9.10"), Some((2, 9)));
        assert!(parsed("2.9.10") < Some(VERSION_MIN) && parsed("2.12.0-rc.1") >= Some(VERSION_MIN));
        assert_eq!(parsed("v2.12"), None);
        assert_eq!(parsed(""), None);
    }
}
