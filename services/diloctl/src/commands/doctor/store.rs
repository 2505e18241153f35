//! Checks of the store: that it answers, and refuses what nobody signed.

use std::time::{Duration, Instant};

use identity::StoreKeys;
use objects::{Buckets, Endpoint, StoreClock, TransferLimits};
use runtime::Failure;
use schemas::permission::Role;
use schemas::{Code, Digest};

use super::{Finding, Report};
use crate::context::Context;

/// Time for which an operation is tried again: the doctor tells what is there now.
const PATIENCE: Duration = Duration::from_secs(2);
/// A region that the embedded store and most others accept.
const REGION: &str = "us-east-1";

pub(super) async fn look(context: &Context, report: &mut Report) {
    const CHECKS: [&str; 2] = ["store", "store's lock"];
    let buckets = match open(context) {
        Ok(Some(buckets)) => buckets,
        Ok(None) => {
            for check in CHECKS {
                report.add(Finding::skipped(
                    check,
                    "the store's keys are not on this machine",
                ));
            }
            return;
        }
        Err(failure) => {
            report.add(Finding::fail(CHECKS[0], &failure));
            report.add(Finding::skipped(CHECKS[1], "the store was not reached"));
            return;
        }
    };
    let began = Instant::now();
    if let Err(error) = buckets.ping().await {
        report.add(Finding::fail(CHECKS[0], &error.into()));
        report.add(Finding::skipped(CHECKS[1], "the store was not reached"));
        return;
    }
    let took = began.elapsed().as_secs_f64() * 1000.0;
    let url = &context.endpoints.store;
    report.add(Finding::ok(
        CHECKS[0],
        format!("{url}, both buckets answer in {took:.1} ms"),
    ));
    // No object has this digest, so a store that lets strangers read and not list is not noticed.
    report.add(
        match buckets.refuse_strangers(Digest::of(b"doctor")).await {
            Ok(()) => Finding::ok(CHECKS[1], "unsigned requests are refused"),
            Err(error) => Finding::fail(CHECKS[1], &error.into()),
        },
    );
}

/// Access with the coordinator's key pair; none when it is not on this machine.
fn open(context: &Context) -> Result<Option<Buckets>, Failure> {
    let path = context.domain()?.layout().coordinators_store_keys();
    if !path.exists() {
        return Ok(None);
    }
    let keys = StoreKeys::read(&path)?;
    let trust = context.store_trust(Role::Coordinator, std::env::vars_os())?;
    let endpoint = Endpoint::new(&context.endpoints.store, REGION, trust)
        .map_err(|error| Failure::new(Code::ConfigInvalid, error))?;
    let limits = TransferLimits {
        connect: PATIENCE,
        ..TransferLimits::default()
    };
    let clock = StoreClock::default();
    Ok(Some(Buckets::new(
        &endpoint,
        &keys.admin,
        clock,
        limits,
        PATIENCE,
    )?))
}
