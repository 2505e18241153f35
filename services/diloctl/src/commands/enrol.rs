//! The invited machine's side of an enrolment. Success is claimed when the registrar's answer has
//! been checked and everything that a worker needs has been written.

use std::path::Path;
use std::time::Duration;

use identity::newcomer::{self, Became};
use identity::{DomainLayout, InvitationFile, Newcomer};
use runtime::{Bus, BusConfig, Failure, clock};
use schemas::enrolment::EnrolmentReply;
use schemas::subject::enrolment_subject;
use schemas::{Code, RunId, Seat, UnixMillis};
use serde::Serialize;

use crate::context::{Context, Endpoints};
use crate::output::Record;
use crate::stack::services::{self, Choices};
use crate::switches;
use crate::table::time;

/// Time between two questions while a person has to approve the machine.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Makes the machine's keys and shows their public halves.
pub(super) async fn keys(context: &Context) -> Result<(), Failure> {
    let _lock = context.lock("diloctl worker keys").await?;
    let newcomer = Newcomer::prepare(&DomainLayout::new(&context.folder))?;
    context.printer.record(&Keys {
        worker: newcomer.worker().to_string(),
        audit_key: newcomer.audit_key().to_string(),
    });
    Ok(())
}

/// Asks to be enrolled, and writes what the worker needs.
pub(super) async fn run(
    context: &Context,
    file: &Path,
    device: String,
    threads: u32,
) -> Result<(), Failure> {
    let _lock = context.lock("diloctl worker enrol").await?;
    let invitation = InvitationFile::read(file)?;
    let layout = DomainLayout::new(&context.folder);
    let Became { name, seat, issued } = match newcomer::became(&layout, &invitation)? {
        Some(became) => {
            let text = format!("this machine is enrolled already, as {}", became.name);
            context.printer.talk(&text);
            became
        }
        None => become_worker(context, &layout, &invitation).await?,
    };
    let choices = Choices {
        endpoints: Endpoints {
            bus: invitation.bus.clone(),
            ..Endpoints::default()
        },
        run: invitation.run.clone(),
        workers: 0,
        threads,
        device,
        token_lifetime: runtime::ConfigDuration(identity::domain::LIFETIME_RENEWED.as_duration()),
    };
    let folder = services::absolute(&context.folder)?;
    let config = services::write_worker(&folder, &choices, &name)?;
    newcomer::finish(&layout, &issued.public)?;
    context.printer.record(&Enrolled {
        name,
        run: invitation.run,
        seat,
        worker: issued.public.to_string(),
        expires: issued.expires,
        credentials: issued.credentials.display().to_string(),
        start: format!("diloco-worker --config {}", config.display()),
    });
    Ok(())
}

/// Asks the registrar, and keeps its answer.
async fn become_worker(
    context: &Context,
    layout: &DomainLayout,
    invitation: &InvitationFile,
) -> Result<Became, Failure> {
    check_end(invitation)?;
    let newcomer = Newcomer::prepare(layout)?;
    let approach = newcomer.approach(invitation)?;
    let config = BusConfig {
        url: invitation.bus.clone(),
        credentials: approach.credentials,
        ca: approach.ca,
    };
    context.check_bus(&config)?;
    let bus = Bus::connect("diloctl-enrol", &config, clock::now()).await?;
    let reply = ask(context, &bus, &config, invitation, &newcomer).await?;
    let issued = newcomer.accept(invitation, &reply)?;
    Ok(Became {
        name: reply.name,
        seat: reply.seat,
        issued,
    })
}

/// Asks until there is an answer other than that a person has to approve.
async fn ask(
    context: &Context,
    bus: &Bus,
    config: &BusConfig,
    invitation: &InvitationFile,
    newcomer: &Newcomer,
) -> Result<EnrolmentReply, Failure> {
    let subject = enrolment_subject(invitation.id());
    let mut told = false;
    loop {
        check_end(invitation)?;
        let posture = switches::posture(config, std::env::vars_os())?;
        let question = newcomer.question(invitation, posture, clock::now());
        let answer = bus.request(&subject, &question, context.timeout).await;
        match answer {
            Ok(reply) => return Ok(reply),
            Err(error) if error.code() == Code::EnrolmentPending => {
                if !told {
                    told = true;
                    let text = format!(
                        "waits for approval of key {}, until {}",
                        newcomer.worker(),
                        time(invitation.ends)
                    );
                    context.printer.talk(&text);
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn check_end(invitation: &InvitationFile) -> Result<(), Failure> {
    match clock::now() < invitation.ends {
        true => Ok(()),
        false => {
            let text = format!("the invitation ended at {}", time(invitation.ends));
            Err(Failure::new(Code::InvitationEnded, text))
        }
    }
}

#[derive(Serialize)]
struct Keys {
    worker: String,
    audit_key: String,
}

impl Record for Keys {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("worker", self.worker.clone()),
            ("audit key", self.audit_key.clone()),
        ]
    }
}

#[derive(Serialize)]
struct Enrolled {
    name: String,
    run: RunId,
    seat: Option<Seat>,
    worker: String,
    expires: UnixMillis,
    credentials: String,
    start: String,
}

impl Record for Enrolled {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![("name", self.name.clone()), ("run", self.run.to_string())];
        lines.extend(self.seat.iter().map(|seat| ("seat", seat.to_string())));
        lines.extend([
            ("worker", self.worker.clone()),
            ("expires", time(self.expires)),
            ("credentials", self.credentials.clone()),
            ("start", self.start.clone()),
        ]);
        lines
    }
}
