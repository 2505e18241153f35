//! `auth config --mutual-tls`: gives a domain mutual TLS.

use identity::clients::CERTIFICATE_LIFE_MAX;
use identity::domain::Domain;
use runtime::{Failure, clock};

use crate::context::{Context, credentials_files};

/// Makes the authority of clients, if there is none, and certificates for the credentials in the
/// domain's folder.
pub(super) fn begin(context: &Context, domain: &Domain) -> Result<(), Failure> {
    let now = clock::now();
    let is_new = domain.make_mutual(now)?;
    let mut made = 0_usize;
    for file in credentials_files(domain) {
        made += usize::from(domain.refresh_certificate(&file, CERTIFICATE_LIFE_MAX, now)?);
    }
    let file = domain.layout().clients();
    let what = match is_new {
        true => "is the domain's new authority of clients",
        false => "was there before",
    };
    context.printer.talk(&format!(
        "{} {what}; {made} credentials have a new certificate beside them, for a day at most. \
         Credentials elsewhere need `diloctl auth issue`, and both files copied. Start broker, \
         store and services again: `diloctl down`, then `diloctl up`",
        file.display()
    ));
    Ok(())
}
