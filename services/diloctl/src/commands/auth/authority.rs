//! `auth rotate authority`: a new private authority while runs go on.

use identity::authority::{Known, Side, State, Until};
use identity::clients::CERTIFICATE_LIFE_MAX;
use identity::{ClientFile, Domain};
use runtime::accounts;
use runtime::handshake::{self, Seen, Word};
use runtime::{Failure, clock};
use schemas::permission::Role;
use schemas::{Code, Millis};
use serde::Serialize;

use super::rotate::{Part, show};
use crate::context::{Context, credentials_files};
use crate::output::Row;
use crate::table::time;

/// Most holders or invitations that one text names; a terminal shows them on a screen.
const NAMED_MAX: usize = 64;
/// More than any certificate has left: every one is made anew.
const EVERY: Millis = Millis(CERTIFICATE_LIFE_MAX.get() + 1000);

/// Makes new authorities, lets them sign, or ends the former ones.
pub(super) async fn rotate(
    context: &Context,
    part: Part,
    force: bool,
    server_name: &[String],
) -> Result<(), Failure> {
    let domain = context.domain()?;
    let _lock = context.lock("diloctl auth rotate").await?;
    let now = clock::now();
    let (known, next) = match part {
        Part::Prepare => (
            domain.prepare_authorities(now)?,
            "copy tls/ca.pem to every machine, and with mutual TLS tls/clients.pem to broker and store; \
             restart broker and store, then run the command without --prepare",
        ),
        Part::Adopt => {
            let known = domain.authorities()?;
            let is_there = |state| known.iter().any(|one| one.state == state);
            let overlaps = is_there(State::Former);
            // Without a next one the command is repeated after one that broke off behind the
            // signing; nobody trusts an authority that was not prepared.
            if is_there(State::Next) || !overlaps {
                if is_there(State::Next) && !overlaps {
                    // Again, in case that the command before this one broke off.
                    domain.prepare_authorities(now)?;
                }
                check_taken(context, &domain).await?;
                domain.adopt_authorities(server_name, clock::now())?;
                domain.note_adopted(clock::now())?;
            }
            let mut left = None;
            for file in credentials_files(&domain) {
                if let Err(error) = domain.refresh_certificate(&file, EVERY, now) {
                    left = Some(Failure::from(error));
                }
            }
            if let Some(failure) = left {
                let text = "the new authorities sign; a credentials file here still has a certificate of the former \
                            one: repeat the command";
                return Err(failure.with_more(text));
            }
            (
                domain.authorities()?,
                "restart broker and store with their new certificate; when every client shows a new one, \
                 run the command with --retire",
            )
        }
        Part::Retire => {
            let waits = |one: &Known| one.state == State::Next;
            if domain.authorities()?.iter().any(waits) {
                let text =
                    "the next authority does not sign yet: run the command without a switch first";
                return Err(Failure::new(Code::AuthorityOverlap, text));
            }
            let clients = clients(context, &domain).await;
            if let Err(used) = check_unused(context, &domain, clients.as_ref()).await {
                if !force {
                    return Err(used);
                }
                let text = format!("warning {used}; it will be refused");
                context.printer.talk(&text);
            }
            // Advice must not stop the end of an authority that was stolen.
            if let Err(failure) = tell_left_behind(context, &domain, clients.as_ref()) {
                let text = format!("warning nobody knows who is left behind: {failure}");
                context.printer.talk(&text);
            }
            let gone = domain.retire_authorities()?;
            if gone.is_empty() {
                context
                    .printer
                    .talk("nothing was ended: no former authority is trusted");
            }
            (
                gone,
                "copy tls/ca.pem and tls/clients.pem again, and restart broker and store: until then they \
                 take clients of the former authority",
            )
        }
    };
    let of = |one: &Known| Line::of(one, part);
    let rows: Vec<Line> = known.iter().map(of).collect();
    show(context, &domain, &rows)?;
    context.printer.talk(next);
    Ok(())
}

/// The servers of the domain.
fn servers(context: &Context) -> Vec<(&'static str, String)> {
    let buses = context.endpoints.bus.split(',').map(str::trim);
    let mut all: Vec<_> = buses.map(|bus| ("broker", bus.to_owned())).collect();
    all.push(("store", context.endpoints.store.clone()));
    // Plaintext shows no certificate.
    all.retain(|(_, address)| address.starts_with("tls://") || address.starts_with("https://"));
    all
}

/// Refuses to let the next authority of clients sign while a server does not take it, or does not
/// say so: clients would be cut off with their next certificate.
async fn check_taken(context: &Context, domain: &Domain) -> Result<(), Failure> {
    let Some(trial) = domain.write_trial(clock::now())? else {
        return Ok(());
    };
    let checked = ask(context, domain, &trial).await;
    // It is of nobody and ends in a minute.
    let _left = std::fs::remove_file(trial.path());
    checked
}

async fn ask(context: &Context, domain: &Domain, trial: &ClientFile) -> Result<(), Failure> {
    for (server, address) in servers(context) {
        let seen = look(domain, &address, Some(trial)).await;
        let word = seen.map_or_else(Word::Unknown, |seen| seen.word);
        let text = match word {
            Word::Taken => continue,
            Word::Refused(fault) => {
                format!("the {server} at {address} does not take the next authority: {fault}")
            }
            Word::Unknown(reason) => {
                format!(
                    "nobody knows if the {server} at {address} takes the next authority: {reason}"
                )
            }
        };
        return Err(Failure::new(Code::AuthorityOverlap, text));
    }
    Ok(())
}

async fn look(domain: &Domain, address: &str, shown: Option<&ClientFile>) -> Result<Seen, String> {
    handshake::look(address, &domain.layout().ca(), shown).await
}

/// The certificates of the broker's clients now; none in a domain without mutual TLS.
async fn clients(context: &Context, domain: &Domain) -> Option<Result<accounts::Seen, Failure>> {
    if !domain.is_mutual() {
        return None;
    }
    Some(match context.accounts_url() {
        Ok(url) => accounts::certificates(domain, &url, clock::now()).await,
        Err(failure) => Err(failure),
    })
}

/// The present authority of this kind.
fn present(known: &[Known], side: Side) -> Option<&str> {
    let found = known
        .iter()
        .find(|one| one.side == side && one.state == State::Present);
    found.map(|one| one.id.as_str())
}

/// Names holders and invitations that the end of the overlap may cut off though nobody sees them.
fn tell_left_behind(
    context: &Context,
    domain: &Domain,
    clients: Option<&Result<accounts::Seen, Failure>>,
) -> Result<(), Failure> {
    let known = domain.authorities()?;
    let seen = clients.and_then(|clients| clients.as_ref().ok());
    let seen = seen.zip(present(&known, Side::Clients));
    let seen = seen.map(|(seen, present)| seen.holders_of(present));
    let behind = domain.left_behind(&seen.unwrap_or_default(), clock::now())?;
    if let Some(until) = behind.until {
        let until = match until {
            Until::Time(until) => format!("until {}", time(until)),
            Until::Unknown => "for a day at most".to_owned(),
        };
        let holders = behind.holders.iter();
        let holders = named(holders.map(|one| format!("{} ({})", one.name, one.public)));
        let text = match holders {
            None => format!(
                "certificates of the former authority of clients last {until}; every registered holder has been \
                 seen with a new one, or was issued one since"
            ),
            Some(holders) => format!(
                "warning certificates of the former authority of clients last {until}, and these registered \
                 holders have not been seen with a new one: {holders}; one that is off and has an old one is refused \
                 when it comes back (DL0136): give it another with `diloctl auth issue NAME`, or \
                 `diloctl worker reissue NAME` where its key lies elsewhere"
            ),
        };
        context.printer.talk(&text);
    }
    let invitations = behind.invitations.iter();
    let invitations = invitations.map(|one| format!("{} ({})", one.name, one.invitation));
    if let Some(invitations) = named(invitations) {
        context.printer.talk(&format!(
            "warning these open invitations were made before the present authorities signed, and no machine gets in \
             with them from now on: {invitations}; withdraw each with `diloctl worker deny`, and invite again"
        ));
    }
    Ok(())
}

/// The first of some names, in one text, and the number of the others; none if there are none.
fn named(names: impl ExactSizeIterator<Item = String>) -> Option<String> {
    let more = names.len().saturating_sub(NAMED_MAX);
    let first: Vec<String> = names.take(NAMED_MAX).collect();
    let text = first.join(", ");
    match (first.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(text),
        (false, more) => Some(format!("{text} and {more} more")),
    }
}

/// Refuses to end the former authorities while a server or a client shows a certificate of one.
async fn check_unused(
    context: &Context,
    domain: &Domain,
    clients: Option<&Result<accounts::Seen, Failure>>,
) -> Result<(), Failure> {
    let known = domain.authorities()?;
    let present = |side: Side| present(&known, side);
    let in_use = |text: String| Err(Failure::new(Code::AuthorityInUse, text));
    let own = ClientFile::beside(&domain.layout().credentials(Role::Operator.name()));
    let own = Some(own).filter(ClientFile::exists);
    for (server, address) in servers(context) {
        match look(domain, &address, own.as_ref()).await {
            Ok(seen) if seen.authority.as_deref() == present(Side::Servers) => {}
            Ok(seen) => {
                let signed = seen
                    .authority
                    .unwrap_or_else(|| "nobody it names".to_owned());
                return in_use(format!(
                    "the {server} at {address} shows a certificate that is signed by {signed}"
                ));
            }
            Err(reason) => {
                let text = format!("the {server} at {address} could not be looked at: {reason}");
                return in_use(text);
            }
        }
    }
    let Some((present, clients)) = present(Side::Clients).zip(clients) else {
        return Ok(());
    };
    let seen = match clients {
        Ok(seen) => seen,
        Err(failure) => return in_use(format!("the clients could not be looked at: {failure}")),
    };
    for (authority, client) in &seen.authorities {
        if authority.as_deref() != Some(present) {
            let signed = authority
                .as_deref()
                .unwrap_or("an authority that it does not name");
            return in_use(format!(
                "the client {client} shows a certificate that is signed by {signed}"
            ));
        }
    }
    Ok(())
}

/// An authority, as a row.
#[derive(Debug, Serialize)]
struct Line {
    signs: String,
    state: String,
    authority: String,
}

impl Line {
    fn of(one: &Known, part: Part) -> Self {
        let state = match part {
            Part::Retire => "void".to_owned(),
            Part::Prepare | Part::Adopt => one.state.to_string(),
        };
        Self {
            signs: one.side.to_string(),
            state,
            authority: one.id.clone(),
        }
    }
}

impl Row for Line {
    const TITLES: &'static [&'static str] = &["signs", "state", "authority"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.signs.clone(),
            self.state.clone(),
            self.authority.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_names_are_told_and_the_others_are_counted() {
        let told = |count: usize| named((0..count).map(|number| number.to_string()));
        assert_eq!(told(0), None);
        assert_eq!(told(2).as_deref(), Some("0, 1"));
        let most = told(NAMED_MAX).expect("there are some");
        assert!(most.ends_with(", 63"), "{most}");
        let more = told(NAMED_MAX + 2).expect("there are some");
        assert_eq!(more, format!("{most} and 2 more"));
    }
}
