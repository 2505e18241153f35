use schemas::enrolment::Admission;
use schemas::renewal::Registration;
use schemas::{Code, Millis, RunId, V};

use super::*;
use crate::domain::{Domain, InitOptions};
use crate::invitation::{INVITATION_DEFAULT, Invite};
use crate::issuer::Issuer;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

fn run() -> RunId {
    "demo".parse().expect("a name")
}

fn domain(scratch: &Path) -> Domain {
    let made = Domain::init(&scratch.join("domain"), &InitOptions::default(), NOW);
    made.expect("an empty folder")
}

fn invite(domain: &Domain) -> InvitationFile {
    let invite = Invite {
        name: "worker-7".to_owned(),
        run: run(),
        seat: None,
        admission: Admission::Token,
        life: INVITATION_DEFAULT,
        bus: "tls://127.0.0.1:4222".to_owned(),
    };
    domain.invite(invite, NOW).expect("a fresh name")
}

fn newcomer(scratch: &Path) -> Newcomer {
    let layout = DomainLayout::new(&scratch.join("machine"));
    Newcomer::prepare(&layout).expect("an empty folder")
}

/// The record that the registrar keeps of the machine.
fn record_of(domain: &Domain, newcomer: &Newcomer) -> Registration {
    Registration {
        v: V,
        name: "worker-7".to_owned(),
        role: Role::Worker,
        run: Some(run()),
        account: domain.tenant().expect("an account"),
        public: newcomer.worker().clone(),
        issued: NOW,
        ends: NOW.after(Millis::from_secs(60)),
        blocked: None,
        audit_key: Some(newcomer.audit_key().clone()),
        seat: None,
        before: None,
        changes_until: None,
    }
}

/// The answer that the registrar gives, for a record that `alter` may have changed.
fn answer(
    domain: &Domain,
    newcomer: &Newcomer,
    alter: impl FnOnce(&mut Registration),
) -> EnrolmentReply {
    let mut record = record_of(domain, newcomer);
    alter(&mut record);
    let issuer = Issuer::open(&domain.layout().issuer()).expect("its keys");
    let token = issuer.sign(&record, record.ends, NOW).expect("a token");
    let registered = record.clone();
    EnrolmentReply {
        v: V,
        name: record.name,
        run: run(),
        worker: newcomer.worker().clone(),
        audit_key: newcomer.audit_key().clone(),
        seat: None,
        token,
        ends: record.ends,
        certificate: issuer
            .certify(&registered, registered.ends, NOW)
            .expect("its key"),
        trust: None,
    }
}

#[test]
fn tl_13_fg_03_a_machine_takes_the_newest_bundle_from_the_domains_root_alone() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (domain, newcomer) = (domain(scratch.path()), newcomer(scratch.path()));
    let invitation = invite(&domain);
    let next = domain.prepare_manifest_key().expect("it has room");
    domain.endorse_trust(NOW).expect("the vault is here");
    let signed = crate::endorsed::read_endorsed(&domain.layout().trust());
    let signed = signed.expect("it reads").expect("it was signed");
    let mut reply = answer(&domain, &newcomer, |_| ());
    reply.trust = Some(signed.replacen('.', ".A", 1));
    assert!(newcomer.accept(&invitation, &reply).is_err());
    let layout = DomainLayout::new(&scratch.path().join("machine"));
    assert!(!layout.trust().exists() && !layout.credentials("worker-7").exists());
    reply.trust = Some(signed);
    newcomer.accept(&invitation, &reply).expect("it is ours");
    let trust = TrustBundle::read(&layout.trust()).expect("it was written");
    assert!(trust.manifest_keys.contains(&next) && trust.ca.exists());
    assert!(!invitation.trust.manifest_keys.contains(&next));
}

#[test]
fn fg_03_a_machine_keeps_its_keys_and_gets_what_a_worker_needs() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (domain, first) = (domain(scratch.path()), newcomer(scratch.path()));
    let again = newcomer(scratch.path());
    assert_eq!(again.worker(), first.worker(), "a second try has its keys");
    assert_eq!(again.audit_key(), first.audit_key());
    let invitation = invite(&domain);
    let approach = again.approach(&invitation).expect("no other domain");
    let held = Credentials::read(&approach.credentials).expect("they were written");
    assert_eq!(held.public(), invitation.id());
    let reply = answer(&domain, &again, |_| ());
    let layout = DomainLayout::new(&scratch.path().join("machine"));
    let known = |invitation| became(&layout, invitation).expect("its notes can be read");
    assert_eq!(known(&invitation), None);
    let issued = again
        .accept(&invitation, &reply)
        .expect("it is bound to it");
    let expected = Became {
        name: "worker-7".to_owned(),
        seat: None,
        issued: issued.clone(),
    };
    assert_eq!(known(&invitation), Some(expected), "it need not ask again");
    assert!(layout.newcomer().exists(), "something may still fail");
    finish(&layout, invitation.id()).expect("nothing to do");
    assert!(layout.newcomer().exists(), "the keys are another's");
    for _ in 0..2 {
        finish(&layout, again.worker()).expect("it is ours");
    }
    assert_eq!(issued.credentials, layout.credentials("worker-7"));
    let credentials = Credentials::read(&issued.credentials).expect("they were written");
    assert_eq!(credentials.public(), first.worker());
    let audit = AuditKey::read(&layout.audit_key("worker-7")).expect("it was written");
    assert_eq!(audit.public(), first.audit_key());
    let trust = TrustBundle::read(&layout.trust()).expect("it was written");
    assert_eq!(trust.domain, domain.trust().domain);
    assert!(trust.ca.exists());
    assert!(!layout.newcomer().exists(), "the invitation is gone");
    let kept = fs::read(&issued.credentials).expect("they were written");
    fs::remove_file(&issued.credentials).expect("it is ours");
    assert_eq!(known(&invitation), None, "without credentials it is nobody");
    let name = invitation.id().to_string();
    let run = run();
    let others = domain.issue(
        Role::Worker,
        &name[..8],
        Some(&run),
        INVITATION_DEFAULT,
        NOW,
    );
    fs::copy(
        others.expect("a fresh name").credentials,
        &issued.credentials,
    )
    .expect("it is ours");
    assert_eq!(known(&invitation), None, "they are another's");
    write_private(&issued.credentials, &kept).expect("it is ours");
    assert!(known(&invitation).is_some());
}

#[test]
fn fg_03_an_answer_that_is_bound_to_something_else_is_not_taken() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (domain, machine) = (domain(scratch.path()), newcomer(scratch.path()));
    let invitation = invite(&domain);
    let other = ConnectionKey::generate().public().clone();
    let right = || answer(&domain, &machine, |_| ());
    let code = |reply: &EnrolmentReply| {
        let taken = machine.accept(&invitation, reply);
        taken.expect_err("it is bound to something else").code()
    };
    let theirs = |reply: &mut EnrolmentReply| reply.worker = other.clone();
    let audit = |reply: &mut EnrolmentReply| reply.audit_key = other.clone();
    let run = |reply: &mut EnrolmentReply| reply.run = "other".parse().expect("a name");
    let name = |reply: &mut EnrolmentReply| reply.name = "worker-8".to_owned();
    for alter in [&theirs as &dyn Fn(&mut EnrolmentReply), &audit, &run, &name] {
        let mut reply = right();
        alter(&mut reply);
        assert_eq!(code(&reply), Code::AnswerForeign, "{reply:?}");
    }
    let mut outside = right();
    outside.name = "../worker-7".to_owned();
    assert_eq!(code(&outside), Code::ConfigInvalid);
    let of_another = answer(&domain, &machine, |record| record.public = other.clone());
    assert_eq!(code(&of_another), Code::CredentialMalformed);
    let of_a_run = answer(&domain, &machine, |record| {
        record.run = Some("other".parse().expect("a name"));
    });
    assert_eq!(code(&of_a_run), Code::AnswerForeign);
    let operator = answer(&domain, &machine, |record| {
        record.role = Role::Operator;
        record.account = domain.control().expect("an account");
    });
    assert_eq!(code(&operator), Code::AnswerForeign);
    let layout = DomainLayout::new(&scratch.path().join("machine"));
    assert!(!layout.trust().exists() && layout.newcomer().exists());
}

/// The broker takes no machine without a certificate.
#[test]
fn fg_08_an_invitation_and_its_answer_bring_certificates_for_their_own_keys() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (own, machine) = (domain(scratch.path()), newcomer(scratch.path()));
    own.make_mutual(NOW).expect("its folder takes files");
    let path = scratch.path().join("invitation.json");
    invite(&own).write(&path).expect("it takes files");
    let invitation = InvitationFile::read(&path).expect("it was written");
    let approach = machine.approach(&invitation).expect("no other domain");
    let shown = ClientFile::beside(&approach.credentials);
    let expected = Holder {
        key: invitation.id().clone(),
        role: Role::Newcomer,
        ends: invitation.ends,
    };
    assert_eq!(shown.holder().expect("it was written"), expected);

    let code = |certificate: Option<String>| {
        let mut reply = answer(&own, &machine, |_| ());
        reply.certificate = certificate;
        let taken = machine.accept(&invitation, &reply);
        taken.expect_err("it is not this machine's").code()
    };
    let record = record_of(&own, &machine);
    let other = ConnectionKey::generate();
    let made = |key: &PublicKey, role| {
        own.certificate_of(key, role, record.ends, NOW)
            .expect("its key")
    };
    assert_eq!(code(None), Code::AnswerForeign);
    assert_eq!(code(Some("none".to_owned())), Code::AnswerForeign);
    for foreign in [
        made(other.public(), Role::Worker),
        made(machine.worker(), Role::Operator),
    ] {
        assert_eq!(code(foreign), Code::AnswerForeign);
    }
    let reply = answer(&own, &machine, |_| ());
    let issued = machine.accept(&invitation, &reply).expect("it is bound");
    let shown = ClientFile::beside(&issued.credentials).holder();
    let expected = Holder {
        key: machine.worker().clone(),
        role: Role::Worker,
        ends: record.ends,
    };
    assert_eq!(shown.expect("it was written"), expected);
}

/// An invitation to a domain without mutual TLS leaves no certificate of an earlier one.
#[test]
fn a_certificate_is_of_the_invitation_that_is_used() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (own, machine) = (domain(scratch.path()), newcomer(scratch.path()));
    let plain = invite(&own);
    machine.approach(&plain).expect("there is no certificate");
    let made = own.layout().invitations().withdraw(plain.id());
    made.expect("it takes files");
    own.make_mutual(NOW).expect("its folder takes files");
    let mutual = invite(&own);
    let approach = machine.approach(&mutual).expect("no other domain");
    let shown = ClientFile::beside(&approach.credentials);
    assert!(shown.exists());
    machine.approach(&plain).expect("no other domain");
    assert!(!shown.exists());
    let swapped = InvitationFile {
        certificate: mutual.certificate,
        ..plain
    };
    let refused = machine.approach(&swapped).expect_err("it is another's");
    assert_eq!(refused.code(), Code::ClientCertificateOther);
}

#[test]
fn fg_03_the_name_of_an_enrolled_machine_is_issued_to_nobody_else() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let (own, machine) = (domain(scratch.path()), newcomer(scratch.path()));
    let mut record = record_of(&own, &machine);
    let list = own.layout().issued();
    list.record(&record).expect("it takes files");
    let issue = || {
        own.issue(
            Role::Worker,
            "worker-7",
            Some(&run()),
            INVITATION_DEFAULT,
            NOW,
        )
    };
    let refused = issue().expect_err("a machine has the name");
    assert_eq!(refused.code(), Code::NameTaken);
    let text = refused.to_string();
    assert!(text.contains(machine.worker().as_str()), "{text}");
    assert!(!own.layout().audit_key("worker-7").exists());
    record.blocked = Some(NOW);
    list.record(&record).expect("it takes files");
    let issued = issue().expect("nobody has the name now");
    assert_ne!(issued.public, *machine.worker());
    // An issue that broke off before it wrote the credentials can be repeated.
    fs::remove_file(&issued.credentials).expect("it was made");
    issue().expect("its audit key is here");
}

#[test]
fn a_folder_of_another_domain_and_a_name_of_another_worker_are_left_alone() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let own = domain(scratch.path());
    let invitation = invite(&own);
    let elsewhere = tempfile::tempdir().expect("a scratch folder");
    let foreign = domain(elsewhere.path());
    let machine = Newcomer::prepare(foreign.layout()).expect("it takes files");
    let refused = machine.approach(&invitation).expect_err("another domain");
    assert_eq!(refused.code(), Code::DomainExists);
    let machine = newcomer(scratch.path());
    let layout = DomainLayout::new(&scratch.path().join("machine"));
    let others = own.issue(Role::Worker, "other", Some(&run()), INVITATION_DEFAULT, NOW);
    let others = others.expect("a fresh name").credentials;
    let text = fs::read(&others).expect("it was written");
    write_private(&layout.credentials("worker-7"), &text).expect("it takes files");
    let reply = answer(&own, &machine, |_| ());
    let refused = machine
        .accept(&invitation, &reply)
        .expect_err("it is taken");
    assert_eq!(refused.code(), Code::NameTaken);
    assert_eq!(
        fs::read(layout.credentials("worker-7")).expect("it is there"),
        text
    );
}
