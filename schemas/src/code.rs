//! Error codes. Every error that an operator can act on has a number, a class for programs, a page
//! in `docs/errors/`, and a next step.

mod class;
mod coded;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::TEXT_BYTES_MAX;
use crate::message::{V, message};

pub use class::Class;
pub use coded::Coded;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $class:ident, $title:literal, $what:literal, $next:literal;)+) => {
        /// A coded error. Its text form is `DL` and four digits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[expect(missing_docs, reason = "the table below says what each one means")]
        pub enum Code { $($variant,)+ }

        impl Code {
            /// Every code, in order of number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The number behind `DL`.
            pub const fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)+ }
            }

            /// The class, which says what a program does on this code.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)+ }
            }

            /// The heading in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            /// The error and its cause.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)+ }
            }

            /// The next step.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$variant => $next,)+ }
            }
        }
    };
}

codes! {
    // 01: configuration, credentials, posture.
    ConfigInvalid = 101 Operator, "configuration not valid", "A configuration file, variable or flag has an unknown key or a value that does not parse.", "Correct the named key; `--print-config` shows every key with its value and where it came from.";
    CredentialMissing = 102 Operator, "credential missing", "A switch demands a credential that is absent, empty or blank.", "Create it with `diloctl auth issue`, or name the file in the configuration.";
    CredentialMalformed = 103 Operator, "credential malformed", "A key, token or credentials file does not parse, or its parts do not belong together.", "Issue it again with `diloctl auth issue`; do not edit such files by hand.";
    CredentialHalf = 104 Operator, "half a credential", "One part of a credential pair is present without the other.", "Supply both parts or neither.";
    CredentialExposed = 105 Operator, "credential readable by others", "A secret file's mode lets its group or everybody read it.", "Run `chmod 600` on the file and `chmod 700` on its folder, then consider the secret known and issue a new one.";
    CredentialExpired = 106 Operator, "credential expired or not yet valid", "A token's window does not contain the present time.", "Issue a new one with `diloctl auth issue`, and check the machine's clock.";
    DomainExists = 107 Operator, "trust domain exists", "`auth init` found a complete trust domain and does not overwrite keys.", "Use the existing folder, or move it away and run `diloctl auth init` again; everything issued from it becomes void.";
    DomainMissing = 108 Operator, "no trust domain", "The folder holds no complete trust domain.", "Run `diloctl auth init`.";
    PlaintextRefused = 109 Operator, "plaintext refused", "A plaintext address was given while `require_auth` covers its layer.", "Use `tls://` and `https://`; to relax the layer on purpose, add an exception that names the layer and a reason.";
    LayerOpen = 110 Operator, "layer open", "A layer runs without authentication because an exception or a switch in the configuration turns it off.", "Remove the exception when it is no longer needed.";
    SampleSecret = 111 Operator, "sample secret", "A secret is a well-known sample value.", "Generate real ones with `diloctl auth init`.";
    RoleMismatch = 112 Operator, "credential of another role", "The credential is valid but was issued for another role.", "Point the configuration at the credential of this service's role.";
    SignatureInvalid = 114 Evidence, "signature not valid", "A signed document was altered, or was signed by a key that is not trusted here.", "Compare the trust bundle with the one that `diloctl auth show` prints; if they agree, someone altered the document.";
    CredentialUnreadable = 115 Operator, "credential file unusable", "A file with keys, tokens or certificates cannot be read or written, or is not a regular file.", "Check the path and the rights of its folder.";
    NonceRefused = 116 Evidence, "server asks to sign something else", "The server sent something that is no nonce for the connection key to sign.", "Do not connect to this server; a broker that does so is captured or is no NATS server.";
    CertificateInvalid = 117 Operator, "certificate not valid", "A certificate or its key does not parse, or the two do not belong together.", "Make a new one with `diloctl auth certificate` and restart broker and store, or name the right files.";
    NameTaken = 118 Operator, "name taken", "A credential of this name exists for another role or run, or a machine with keys of its own has the name.", "Choose another name, or remove the old files first. A name that a machine has becomes free with `diloctl auth revoke` of its key.";
    DomainBusy = 119 Operator, "trust domain in use", "Another command is changing the trust domain, and two at a time would undo each other's work.", "Wait until the named process has ended, or end it, then repeat.";
    DomainMoved = 120 Operator, "trust domain moved under its services", "Services that still run were started when the folder lay elsewhere; their paths lead to the old place.", "Run `diloctl down` with this folder, then `diloctl up`.";
    StrangerServed = 121 Operator, "a stranger is served", "The broker lets in clients without credentials, or the store serves unsigned requests, although the layer demands a credential.", "Start the broker with the configuration that `diloctl auth config` writes; take public access away from the store's buckets. An exception (`auth.exceptions`) with a reason opens the whole layer: then nobody's name is proved.";
    CredentialRevoked = 122 Operator, "credential revoked", "The broker has revoked the key of this credential, and refuses all of its tokens that were issued before.", "Ask the domain's operator for the reason. If it was a mistake, `diloctl auth issue` makes a new token for the name, which is valid again: copy the credentials file to its machine and start the process again.";
    RevocationKept = 123 Away, "revocation kept, but not in effect yet", "The revocation is kept in the trust domain's folder, but no broker has confirmed it. A broker that runs still serves the revoked key.", "Mend what the text names, then run `diloctl auth push`, or `diloctl up` if that starts the broker: both bring every kept revocation into effect. A broker that is started with the domain's new configuration refuses the key at once.";
    CertificateExpired = 124 Operator, "certificate expired or not yet valid", "The time of a certificate in a file does not contain the present time.", "Make a new one with `diloctl auth certificate`, copy it to broker and store, restart both, and check the machine's clock. An authority that has ended needs a new trust domain.";
    CertificateUntrusted = 125 Away, "server's certificate not trusted", "A server showed a certificate that is signed by no authority trusted here, or is for another name.", "Check that address and CA file belong to the same trust domain; `diloctl auth certificate --server-name NAME` makes one for a further name.";
    EndsSoon = 126 Operator, "credential or certificate ends soon", "A credential or a certificate ends within a week.", "Renew it now: `diloctl auth issue` for credentials, `diloctl auth certificate` for the certificate of broker and store. Running processes take renewed credentials up by themselves.";
    ServerCertificateExpired = 127 Away, "server's certificate expired or not yet valid", "The time of the certificate that a server showed does not contain the present time.", "Make a new one with `diloctl auth certificate`, copy it to that server and restart it, and compare the clocks of both machines.";
    CredentialReplaced = 128 Away, "credential replaced", "The credentials file holds the credentials of another key than the one with which this process connects. The broker refuses the old ones.", "Start the process again: it then connects with the credentials that the file holds now. A service manager does so by itself.";
    AccountsBehind = 129 Operator, "broker takes no accounts' tokens", "The broker does not let `diloctl` replace the tokens of accounts: it was started with a configuration of an earlier release, or of another trust domain.", "Restart the broker with the domain's configuration: `diloctl down`, then `diloctl up`. If `up` does not start it, copy the folder `broker` of the trust domain to its machine first.";
    AccountNotTaken = 130 Operator, "account's token not taken", "A broker refused the new token of an account, or had another token of the account afterwards, or still served a revoked key.", "Run `diloctl auth push` again. If it repeats, look at the broker's log; another command with the domain's keys may be replacing tokens at the same time.";
    HolderMissing = 131 Operator, "nobody holds such credentials", "No credentials of this name or key are recorded in the trust domain.", "`diloctl auth ls` shows all of them. A key that is not recorded is named in full: it begins with U.";
    RevocationsFull = 132 Operator, "too many revocations", "An account's token has no room for another revocation.", "Give the role of the revoked holders a new signing key, which ends all of its old credentials, and issue new ones to those that stay.";
    RotationKept = 133 Away, "keys rotated, but not in effect yet", "What the command changed about a role's signing keys is kept in the trust domain's folder, but no broker has confirmed the account's new token. A broker that runs may still accept the keys that are to end; it knows the new one.", "Mend what the text names, then run `diloctl auth push`, or `diloctl up` if that starts the broker. Until then no key that the command prints as kept counts as void.";
    ClientCertificateMissing = 134 Operator, "client's certificate missing", "A server takes only clients that show a certificate, and the client has none to show. It lies beside the credentials file, with the ending `.pem`.", "Run `diloctl auth issue` for the name that the file bears, and copy both files, `NAME.creds` and `NAME.pem`, to the client's machine. If there is no `.pem` then, the domain has no authority of clients: `diloctl auth config --mutual-tls` makes it.";
    ClientCertificateExpired = 135 Operator, "client's certificate ended or not begun", "The time of the certificate that a client shows does not contain the present time, by the clock of the server or of the client.", "Compare the clocks of both machines. Then run `diloctl auth issue` for the name that the file bears, and copy `NAME.creds` and `NAME.pem` to the client's machine; `diloctl up` does so on its own machine. While a process runs, the registrar renews its certificate with its token: look at the registrar's log if it did not.";
    ClientCertificateUntrusted = 136 Operator, "client's certificate of another authority", "A client showed a certificate that was not signed by the authority that the server takes for clients.", "Check that client and server belong to the same trust domain: the server's file is `tls/clients.pem` of the domain. If the authority is a new one, run `diloctl auth issue` for the client's name, and copy `NAME.creds` and `NAME.pem` to its machine.";
    ClientCertificatePurpose = 137 Operator, "certificate is not for clients", "A client showed a certificate that was made for another purpose, such as that of a server.", "Put the certificate that `diloctl auth issue` makes (`NAME.pem`) beside the credentials file.";
    ClientCertificateOther = 138 Operator, "certificate of somebody else", "A certificate names another holder or role than the one that may do this: the holder of the credentials beside it, the holder that a URL was given to, or the role that an access key of the store is for.", "Use credentials and certificate that `diloctl auth issue` made together. If the holder named in the text is honest, somebody else uses what was given to it: look for a leaked URL or a leaked access key.";
    TlsMismatch = 139 Operator, "plaintext where TLS is spoken", "One side of a connection speaks TLS, and the other plaintext.", "Correct the address: `tls://` for the bus and `https://` for the store, and the port of that service. If the server was started without TLS, start it with the domain's configuration (`diloctl auth config` writes the broker's).";

    // 02: the bus.
    BusUnreachable = 201 Away, "bus unreachable", "No NATS server answered at the address.", "Start it with `diloctl up` or `nats-server -c .diloco/broker/nats.conf`, and check address and CA file.";
    BusRefused = 202 Operator, "bus refused the credential", "The NATS server refused the credential.", "Check that the credential and the server belong to the same trust domain, and that it has not expired. An auditor's credential of an earlier release must be copied from the domain's folder again.";
    BusDenied = 203 Operator, "not permitted on the bus", "The server refused to publish or subscribe: the subject is not in this role's permissions.", "Use a credential of the right role; docs/bus.md lists who may say what.";
    NoAnswer = 204 Away, "no answer", "A request was not answered in time.", "Look whether `diloco-coordinator` runs, and at its log; the request may be repeated.";
    StreamMissing = 205 Operator, "stream missing", "A JetStream stream or consumer does not exist.", "Run `diloctl cluster init`. If the domain had a ledger before, the command stops and says how to get the ledger back.";
    StreamDrift = 206 Operator, "stream differs from its declaration", "A live stream differs from the file in nats-config.", "`diloctl cluster check` shows the difference. `diloctl cluster init` alters nothing that exists: change the stream with the tools of NATS, or the file, then check again.";
    MessageInvalid = 207 Final, "message not valid", "A message is too long, is not of the expected type, or has a version that this build does not speak.", "Run the same release everywhere; a repeated case from one worker is a reason to stop that worker.";
    IdentityMismatch = 208 Operator, "sender is not who it says", "A sender uses a name that is not its own: the name of a member, from another account or with another audit key; or that of a run of another tenant. Or a request wants its answer on a subject on which its sender may not listen.", "Do nothing at the caller. This is an attack or a broken import: look at the events with `diloctl audit replay`.";
    MessagesDropped = 209 Busy, "messages dropped", "More messages came on a subject than this process could take, or messages longer than any that our programs send. They were dropped and counted.", "Senders of requests ask again by themselves. If it repeats, look at the load of this machine, and at the worker that the log names as asking too much.";
    AnswerForeign = 210 Final, "answer to something else", "An answer arrived that names another asker, or another question than the one that was asked. It was ignored.", "The answer had no effect. Some client had the answers to its own questions sent to the subject of another: if it repeats, look at the workers of this tenant.";
    DomainOlder = 211 Operator, "domain of an older release", "The trust domain was made by a release in which ledger, workers' events and their readers shared one account; this release does not run on it.", "Make a new domain with `diloctl auth init` in another folder, and begin its runs anew; keep the old folder as long as you need its signed events. To finish a run, use the release that began it.";
    StreamNotStored = 212 Busy, "stream not stored", "The NATS server answers, but stores nothing: its disk is or was full, or its limits of storage are used up.", "Make room on the server's disk, then restart the server, which stores nothing until then. `diloctl up` restarts a server that it started. Its log says what happened.";
    RenewalDelayed = 213 Busy, "token not renewed yet", "A process asked the registrar for a new token in vain. It works on with the one that it has, and asks again.", "Look whether `diloco-registrar` runs, and at its log. If there is none in this domain, issue the credentials again with `diloctl auth issue` and copy the file to its machine: the process takes it up. It ends when its token does.";
    CredentialLapsed = 214 Operator, "token ended and was not renewed", "The token of a process has ended, and no new one could be had before, so the broker does not serve the process any more. The last reason is given.", "Mend the reason, issue the credentials again with `diloctl auth issue` (the key stays the same; for a worker whose keys lie on its own machine alone, use `diloctl worker reissue`), copy the file to its machine, and start the process again; `diloctl up` does all of this on its own machine.";
    HolderUnknown = 215 Operator, "credential not registered", "Somebody asked the registrar to renew a credential that is not in the list of issued ones.", "If it was issued in this domain, copy the folder `issued` to the registrar's machine, or issue it again. If nobody here knows it, somebody has a role's signing key: find out who.";
    HolderBlocked = 216 Operator, "credential blocked", "The registrar does not renew this credential any more, and the coordinator lets its holder join no run, since an operator has revoked or blocked it.", "If the holder of a revoked credential may come back, `diloctl auth issue` makes a new token for it. A key that was blocked stays so: issue credentials under another name.";
    HolderMismatch = 217 Operator, "credential was issued for something else", "A credential was used to ask for a new token, or to join a run, in another account or for another run than the list of issued credentials names for its key.", "The holder has an old token for a name that was issued again for another run, or made one with a stolen signing key. Issue it again, under another name.";
    RenewalTooOften = 218 Busy, "asks for tokens too often", "The holder of a credential asked the registrar for new tokens more often than any of our programs does. The surplus was dropped.", "An honest process asks again by itself. If it repeats, look at that machine: its program is broken or hostile.";
    IssuerInvalid = 219 Operator, "issuer's keys unusable", "The folder with the signing keys of roles is missing, incomplete, or belongs to another trust domain.", "Restore the folder `issuer` of the trust domain, or name it with `registrar.issuer`. In a domain of an earlier release run `diloctl auth config` first.";
    VaultMissing = 220 Operator, "vault is not here", "The command needs keys of the operator, of accounts or of the authority, and the folder `vault` is not on this machine.", "Run the command where the vault is kept, or bring the folder back for as long as the command takes.";
    RegistrationInvalid = 221 Operator, "record of a credential unusable", "A file in the folder `issued` is not the record of the credential after whose key it is named; or the coordinator cannot read the file or the folder, and lets nobody in with it.", "Restore the file, or remove it and issue the credential again with `diloctl auth issue`. A worker that wants to join waits, and asks again by itself.";
    InvitationUnknown = 222 Operator, "no such invitation", "A machine asked to be enrolled with an invitation that the registrar does not know.", "If it was made in this domain, copy the folder `invitations` to the registrar's machine. If nobody here made it, somebody has the signing key of role newcomer: find out who.";
    InvitationEnded = 223 Operator, "invitation ended", "The invitation was used after its end.", "Make a new one with `diloctl worker invite`, and check this machine's clock.";
    InvitationUsed = 224 Operator, "invitation used", "Another machine, with other keys, has used this invitation before; or the same machine has, more than two minutes ago; or as many machines wait for an answer to it as may.", "If this machine is enrolled already, start its worker; a machine whose files were lost needs its key revoked with `diloctl auth revoke` and a new invitation. If you did not use it, somebody has copied it: revoke the worker that it made with `diloctl auth revoke`, and send a new one over a channel that nobody else reads.";
    InvitationMismatch = 225 Operator, "invitation is for something else", "The machine asked with an invitation for another run, with another join token, with a key that the invitation does not list or that is enrolled as another worker, or for a seat that another worker has.", "Use the file as `diloctl worker invite` wrote it; for another run or another key make a new invitation.";
    EnrolmentUnproven = 226 Evidence, "enrolment not proved", "A question to be enrolled is not signed by both keys that it names, or was signed at another time than now.", "Check the machine's clock and ask again. If it repeats with a correct clock, somebody tries to enrol keys of others: see who had the invitation.";
    EnrolmentPending = 227 NotNow, "enrolment waits for approval", "A person has to approve this machine's key.", "Tell the domain's operator the key that the command shows; `diloctl worker approve` on the operator's machine admits it. Then the command goes on by itself.";
    EnrolmentDenied = 228 Operator, "enrolment denied", "An operator has denied this key, or has withdrawn the invitation.", "Ask the domain's operator why.";
    InvitationInvalid = 229 Operator, "invitation unusable", "The file is no invitation, or was altered; or a record about it in the folder `invitations` is none.", "Copy the file again as `diloctl worker invite` wrote it, or make a new invitation.";
    RecordMissing = 230 Operator, "no record of the credential", "A worker wants to join with credentials of which the coordinator has no record. So it does not know the worker's audit key and seat, and lets nobody in.", "Copy the worker's file in the folder `issued` from the machine where it was issued or enrolled to the coordinator's machine (`keys.issued`). The worker waits, asks again by itself, and joins then. If nobody here issued these credentials, somebody has the signing key of role worker: replace it with `diloctl auth rotate role worker --now`.";
    TenantUnknown = 240 Operator, "no such tenant", "The name of a run begins with a tenant that the domain does not have, or that the coordinator does not know.", "`diloctl tenant ls` lists the tenants; `diloctl tenant new` makes one, and completes one whose making broke off.";
    TenantEnded = 241 Operator, "tenant ended", "An operator has ended this tenant for good: its credentials are void, its workers are no members, and its runs are frozen.", "Make a tenant of another name with `diloctl tenant new` if its party may come back. The record of its runs stays readable.";
    TenantBusy = 242 Operator, "tenant has open runs", "A tenant that has runs which are not complete was to be ended.", "Wait until they are complete, or end the tenant all the same: `diloctl tenant end NAME --now`.";
    TenantFull = 243 Busy, "tenant at its quota", "A tenant has as many runs, workers, objects or bytes as its quota allows. Other tenants are not affected.", "Workers wait and ask again by themselves. `diloctl tenant show NAME` shows the quota and what is used of it; `diloctl tenant quota` changes it.";
    TenantExists = 244 Operator, "tenant exists otherwise", "A tenant of this name exists with another quota or account.", "Use `diloctl tenant quota` to change a quota, or choose another name.";

    // 03: objects and the store.
    StoreUnreachable = 301 Away, "store unreachable", "No S3 store answered at the address.", "Start `diloco-store` or correct the endpoint and CA file.";
    ObjectMissing = 302 Final, "object missing", "The store does not have an object that a digest names.", "If it should exist, look for its deletion in the store's log; a contribution can be uploaded again.";
    ObjectMismatch = 303 Final, "object has other bytes", "The bytes of an object do not have the digest or the length that names it.", "The object was refused. Fetch it again; if it repeats, look for a fault in the machine, or in the network between it and the store.";
    UrlRefused = 304 Busy, "url refused", "The store refused a presigned URL because the URL has expired, or is not valid yet.", "Nothing: the worker asks for another URL. If all are refused, compare the clocks of store and coordinator.";
    StoreFull = 305 Busy, "store full", "The store has no room for an object.", "Free space on the store's disk, or give it a larger one, then repeat.";
    StoreBusy = 306 Operator, "store root in use", "Another process holds the lock on the store's folder.", "Stop the other process; two on one folder would delete each other's files.";
    ObjectTooLarge = 308 Final, "object too large", "An object exceeds the largest that is accepted.", "Lower `chunk_elements` of the run, or split the data.";
    ObjectForbidden = 309 Final, "object not granted", "The sender of the request has no lease or role that gives access to this object.", "Nothing if the lease was lost; otherwise look at the audit stream.";
    CacheFailed = 310 Final, "cache failed", "The local object cache cannot be read or written.", "Check the cache folder's space and rights; it may be deleted at any time.";
    LineSlow = 311 Busy, "slow line", "An object is moving to or from the store, but slowly; nothing has failed.", "Nothing is lost while bytes move. If it stays so, look at the line to the store, choose a smaller codec for the run's uploads, or a longer lease.";
    LineStalled = 312 Busy, "line stalled", "No byte moved between this machine and the store for so long that the transfer was given up. It is tried again, with fewer transfers at a time.", "If it repeats, look at the line to the store and at the store's machine.";
    StoreGround = 313 Operator, "store's folder not usable", "The file system under the store's folder cannot do what the store needs: make, rename, sync and remove files.", "Put the folder on a local disk, or correct its rights.";
    HandlesTooFew = 314 Operator, "too few open files allowed", "The system lets this process hold too few files and sockets open.", "Raise the limit (`ulimit -n`, or `LimitNOFILE` of the systemd unit) to 2048 or more.";

    // 04: leases.
    LeaseLost = 401 LostLease, "lease lost", "The lease expired or its unit was granted to another under a later epoch.", "Claim again; the unit's work counts for its present holder only.";
    LeaseUnknown = 402 LostLease, "lease unknown", "The worker that sent the request has no lease of this unit and epoch.", "Claim first.";
    NotJoined = 403 NotMember, "not joined", "The worker has not joined the run, or was removed from it.", "Join again.";
    RunClosed = 404 NotNow, "run closed", "The run is complete or stopped and gives out no work.", "Nothing; `diloctl run get` shows how it ended.";
    Draining = 405 Away, "draining", "The coordinator is shutting down and gives out no work.", "Wait for it to come back; the worker asks again by itself.";
    ManifestInvalid = 406 Final, "manifest refused", "A lease's signed manifest failed a check: signature, window, audience or binding.", "Nothing was executed; compare the worker's trust bundle with the coordinator's.";
    AskedTooMuch = 407 Busy, "asked too much", "A worker or an operator sent more requests than any needs, or caused more events in the ledger. Its requests were refused for a moment.", "Workers and `diloctl` slow down by themselves; other programs ask again in a moment. If it repeats, the worker or operator that is named is broken or hostile.";
    ClockOff = 408 NotNow, "clock off", "The clocks of two machines differ by more than they should, or this machine's clock was set while a process ran.", "Correct the clock that is wrong. Work goes on meanwhile: leases are judged by the coordinator's time, and a process keeps the time that it started with until it is started again.";
    LeaseStalled = 409 LostLease, "lease without progress", "A worker renewed its lease for a long time while neither steps nor bytes advanced. The unit was given to another worker.", "Look at the worker's log, which says what holds it up, and at its line. The worker may claim again.";

    Replaced = 410 Operator, "replaced by another process", "Another process joined the run with this worker's credentials; the newest is the worker.", "Nothing if the worker was moved or started again. Otherwise two machines share one name: issue one of them a name of its own with `diloctl auth issue`, and start it with that.";
    AuditKeyRefused = 411 Operator, "audit key is not the sender's", "A join names an audit key whose secret its sender did not prove to hold, or one that belongs to another worker or to a coordinator.", "Point `worker.audit_key` at the key that was issued together with the credentials. If it already is that key, find out who else holds these credentials.";
    WorkerQuarantined = 412 Operator, "worker in quarantine", "An operator has shut this worker out of the run: it gets no lease and no URL, cannot join, and its events are not recorded. This goes by its key, on whatever machine it runs, and outlives a restart of the coordinator.", "Ask the operators of the run why: `diloctl audit replay --run RUN` shows the reason. Do not start the worker again before an operator has let it in with `diloctl worker readmit`.";
    QuarantineFull = 413 Operator, "quarantine full", "The run has as many workers in quarantine as it can keep.", "Let workers in again that are no danger any more: `diloctl worker readmit`. Keys that never joined the run need no quarantine unless somebody else holds them.";
    WorkerUnknown = 414 NotNow, "no such worker", "The run has had no worker of this name, or several whose keys begin like this.", "Name the whole key; `diloctl worker ls RUN -o json` shows the keys of all workers that ever joined.";
    SnapshotDescends = 415 Operator, "snapshot has a contribution of a worker in quarantine", "A run was to be restored to a full snapshot, or one was to be promoted, that contains a contribution of a worker that an operator has shut out.", "Take the older snapshot that the text names. If you accept the contribution in the weights, repeat the restore with `--force`, or let the worker in with `diloctl worker readmit`.";
    SeatTaken = 420 Operator, "seat taken", "A seat of a group was asked for that another worker of the run has, or the workers of the group disagree about its number of seats.", "Give the worker another seat, or revoke the one that has it: `diloctl auth ls` shows the seats.";
    GroupWaits = 421 NotNow, "group is not complete", "The worker has a seat in a group of which not every seat has a worker now, so the group gets no work.", "Start the workers of the ranks that are named. When one worker of a group ends, all of them join again by themselves.";
    RankFollows = 422 NotNow, "another rank takes the group's units", "The worker has a seat in a group, and rank 0 takes the group's units and hands in its results.", "Nothing; the worker keeps its seat and waits. Training that is spread over the seats of a group comes with its schedules.";

    // 05: contributions.
    LayoutMismatch = 501 Final, "other layout", "A contribution's layout (names, shapes, order or types) is not the run's.", "Run the same release and the same model configuration as the run.";
    SizeMismatch = 502 Final, "wrong size", "A chunk does not have the length that layout and codec give.", "Run the same release; suspect the worker if it repeats.";
    NotFinite = 503 Final, "not finite", "A contribution, the initial weights of a new run, or the weights after an outer step hold NaN or infinity.", "A contribution is refused alone and its unit issued again: inspect the worker. Initial weights have to be made again. Weights after an outer step halt the run; its last full snapshot stands: start another run with a lower learning rate.";
    NormOutlier = 504 Final, "norm out of bounds", "A contribution's norm is too large: above the run's bound, above what the run's inner steps can reach, or many times that of other contributions.", "Inspect the worker. The bounds are `norm_max`, the learning rate and steps of `inner`, and `norm_ratio_max` of the run.";
    AlreadyCounted = 505 LostLease, "already counted", "The unit has an accepted contribution already.", "Nothing: a unit's contribution counts once.";
    StatementInvalid = 506 Final, "statement refused", "A result's signed statement does not verify or does not fit its lease.", "Point `worker.audit_key` at the key with which the worker joined, and run the same release; suspect the worker if it repeats.";
    TokensMismatch = 507 Final, "wrong token count", "A result claims another number of tokens or steps than its unit has.", "Run the same release; suspect the worker if it repeats.";

    NumberImpossible = 508 Final, "number that is not possible", "A worker states a loss, a speed or a count that its unit, its data and the time since it joined do not allow.", "The number was refused and counts nowhere. Run the same release; suspect the worker if it repeats.";
    UploadMissing = 509 Final, "not uploaded under its lease", "A contribution names an object that its worker did not upload under this lease. Objects that came from other workers, or under another lease, do not count.", "If the store has lost an upload, its worker trains the unit again by itself. If one worker causes this again and again, it hands in objects that are not its own.";
    ContributionCopied = 510 Final, "copied contribution", "A contribution consists of the chunks of a contribution to the round before, and not of zeros. Training from other weights never gives the same bytes.", "Inspect the worker: it hands in work that was done before. The other contribution counts.";
    PrivacyUnfit = 511 Operator, "privacy settings that do not hold", "A run's settings for differential privacy promise nothing, cannot be kept together with its other settings, or its data has fewer shards than one round reads; or the budget does not last for one contribution.", "Correct the setting that the error names: more noise, a larger budget, no error feedback, a `norm_max` above the noise, or data in more and smaller shards.";
    NotPrivate = 512 Final, "contribution without the run's privacy", "A contribution to a private run does not state the run's clipping and noise, states a training loss, or has a norm that clipping and noise do not give; or a contribution to another run states them.", "Run the same release on the worker; suspect the worker if it repeats.";
    PrivacySpent = 513 NotNow, "privacy budget is spent", "The run is over before its last planned round: another contribution could pass its privacy budget.", "The last snapshot stands. More rounds need more noise or a larger budget, which is another run; a run that goes on from the snapshot with the same data spends on top of what is spent.";
    DisclosedBefore = 514 NotNow, "a contribution under this lease has left", "A contribution under this lease of a private run has left the worker, and another one under the same lease would not be counted.", "Nothing: the unit is given back, and is counted again when it is granted again.";
    AggregationUnfit = 515 Operator, "secure aggregation that does not hold", "A run's settings for secure aggregation protect nobody, or cannot be kept together with settings that need a contribution by itself.", "Correct the setting that the error names: three units a round or more, a threshold above half of them, as many workers as units, contributions in fp32, the mean, and no bound on norms, no comparison, no error feedback and no differential privacy.";
    MaskRange = 516 Final, "value out of range for secure aggregation", "A value of a contribution is larger than the run's `largest`. A whole number that does not fit would wrap in the sum, so nothing was sent.", "Create another run with a larger `--secure-aggregation-largest`, or look for why the training diverges.";
    MaskKeysRefused = 517 Final, "keys for masks refused", "The keys or shares of a cohort are not those that its workers signed, or are of another round, or the coordinator asks for both secrets of a worker.", "Nothing was revealed. If it repeats, compare the coordinator's ledger with what the workers log: one of them names other keys or other survivors.";
    CohortOver = 518 Final, "cohort of masks is over", "A worker with a lease of a masked round has no keys in the round's cohort, or has lost them: it was started again, or has sent a contribution under these masks before. Masks must never be used twice.", "Nothing: the unit is given back, and the round closes without it or is opened again.";

    // 06: runs and data.
    RunUnknown = 601 NotNow, "no such run", "The coordinator knows no run of this name.", "`diloctl run ls` lists the runs.";
    RunExists = 602 Final, "run exists", "A run of this name exists with other settings.", "Choose another name.";
    SpecInvalid = 603 Operator, "run settings not valid", "A run's settings are out of bounds or do not fit together.", "Correct the named field.";
    CorpusEmpty = 604 Operator, "corpus empty", "No usable text was found at the path, or too little of it.", "Name a folder or file with at least the stated amount of text. Text is UTF-8 (`iconv -t UTF-8` converts other encodings); where files lie behind links that leave the folder, name the folder that holds them.";
    CorpusUnreadable = 605 Operator, "corpus unreadable", "A file of the corpus cannot be read.", "Name a file or folder that is there; correct its rights, or leave it out.";
    DataInvalid = 606 Final, "data set not valid", "A data set's manifest or shard does not parse or contradicts itself.", "Import the data again with `diloctl data import`.";
    SnapshotMissing = 607 NotNow, "no such snapshot", "The run has no snapshot of this round yet.", "`diloctl snapshot ls` lists them.";
    ModelInvalid = 608 Operator, "model configuration not valid", "A model's configuration is out of bounds or contradicts itself.", "Correct the named field of its config.json.";
    TokenizerInvalid = 609 Operator, "tokenizer not valid", "A tokenizer.json does not load or does not fit the model's vocabulary.", "Use the tokenizer that belongs to the model.";
    TooFewWorkers = 610 NotNow, "too few workers", "The run waits because fewer workers have joined than its minimum.", "Start more workers, or create the run with a smaller `workers_min`.";
    UnitFails = 616 Final, "a unit fails with every worker", "One unit failed several times, with every worker of the run, so another try would not help. The run is halted.", "Remove the causes that the workers named, then start another worker or restart the coordinator: either one offers the unit again. Accepted contributions are kept.";
    NoWorkerLeft = 617 NotNow, "no worker left", "The run had workers, and no worker is there now.", "Look at the logs of the workers that are named. Start them again, or start others; the run then continues by itself. A worker that was removed needs a new name: `diloctl auth issue`.";
    ShardTooShort = 618 Final, "shard shorter than a sequence", "A shard of the data set holds fewer tokens than one sequence of the run, which takes `schedule.sequence_tokens` + 1 tokens. A unit that reads this shard would have nothing to train or to evaluate on.", "Lower `schedule.sequence_tokens`, or import again: `diloctl data import` cuts shards of equal length, and more text makes the held-out part longer.";
    VocabularyTooLarge = 619 Final, "vocabulary larger than the model's", "The data set's tokenizer has more tokens than the model's embedding has rows.", "Raise `vocab_size` in the model's config.json to the data set's vocabulary (`diloctl data ls` shows it), or choose a data set with a smaller one.";
    SequenceTooLong = 620 Final, "sequence longer than the model's positions", "The run trains on sequences that are longer than the model has positions.", "Lower `schedule.sequence_tokens`, or raise `max_position_embeddings` in the model's config.json.";
    FolderBusy = 621 Operator, "folder in use", "Another `diloctl snapshot pull` writes into this folder.", "Wait until the other command has ended and repeat, or name another folder.";
    EncodingInvalid = 622 Final, "not an encoding", "A chunk of a contribution holds a block that no encoder writes. The codec has exactly one encoding for each contribution, and this block is not part of it.", "The contribution was refused and counts nowhere. Run the same release; suspect the worker if it repeats.";
    CodecUnfit = 623 Operator, "codec not for this", "A run's settings use a codec for something that it cannot carry: a 4-bit codec for the weights, or error feedback with a codec that loses nothing.", "Choose `bf16` or `fp32` for `transfer.download`, and switch `transfer.error_feedback` on with `e3m0` or `bf16` uploads only.";
    ListInvalid = 640 Final, "not a list of chunks", "An object that should be a list of chunks, of a contribution or of weights, is not one: it has another beginning, ends within an entry, or names an empty chunk.", "A contribution was refused and counts nowhere: run the same release, and suspect the worker if it repeats. In the settings of a run, make the initial weights again with `diloctl run new`.";
    ListMismatch = 641 Final, "list of other chunks", "The number of chunks in a list, or of bytes in these chunks, is not the number in the message that names the list, or not the number that the run's layout and codec give.", "The contribution was refused and counts nowhere: run the same release, and suspect the worker if it repeats.";
    DigestUnknown = 642 NotNow, "digest not in the record", "No run in the ledger names an object with this digest.", "Compare the digest. Where a run's contributions or weights have lists of chunks, the ledger names the list and not each chunk; a shard is named by the manifest of its data set; the parts of a snapshot by its manifest.";
    SnapshotUnknown = 643 NotNow, "no such full snapshot", "No run has a full snapshot whose manifest has this digest, or the run that has it is another one than the command names. Digests of contributions, published weights, chunks and lists name no snapshot.", "`diloctl snapshot ls RUN` lists the digests; name one of its column `manifest`, and the run that the text names.";
    SnapshotUnsound = 644 Evidence, "snapshot not as it was saved", "An object of a full snapshot does not have the bytes that its digest names, or the snapshot is not of the run. Nothing was restored, and nothing is in the ledger.", "Bring the named object back from a backup of the store and repeat the command, or restore another snapshot that `diloctl snapshot ls RUN` lists.";
    RestoresFull = 645 Operator, "too many restores", "The run was restored as often as its state keeps restores.", "Begin another run with `diloctl run new`; `diloctl snapshot pull` keeps the model of this one.";
    SnapshotGone = 646 NotNow, "snapshot's object gone", "The store does not have an object of a full snapshot. Nothing was restored, and nothing is in the ledger.", "Bring the named object back from a backup of the store and repeat the command, or restore another snapshot that `diloctl snapshot ls RUN` lists.";
    CheckpointUnusable = 650 NotNow, "checkpoint not used", "A checkpoint of the ledger is missing, was altered, is of a form that this release does not read, or does not fit the chain of events.", "Nothing is lost: the coordinator used the checkpoint before it, or read all events, and saves a new checkpoint as soon as it leads. If it repeats, look at what removes or changes objects in bucket `blobs`.";
    CheckpointFalse = 651 Evidence, "checkpoint of another state", "The ledger names a checkpoint that differs from the state that its events lead to. A coordinator that started from this checkpoint would continue from a state that never existed.", "Keep the stream and the object as they are. Delete the object from bucket `blobs`, so that the next start reads all events, and find out who held the coordinator's key.";
    CheckpointUnsaved = 652 Busy, "checkpoint not saved", "A checkpoint of the ledger could not be written to the store.", "Nothing is lost: the next start reads more events. If it repeats, look at the store.";
    UrlInvalid = 660 Final, "url refused for good", "The store refused two presigned URLs one after the other, for a reason that a third would not remove: a wrong signature, an unknown key, or an object or a method that the signer may not use. Or a grant held no URL for this store.", "Check that the coordinator's `store/coordinator.json` has the same pairs as the store's `store/keys.json`, and that workers reach the store at the coordinator's `store.url`; a proxy between them may alter requests. If the run was halted for this reason, it continues when the coordinator is restarted.";
    TrainingThreadLost = 661 Final, "training thread lost", "The thread of a worker that trains has panicked, or its device fails at everything since an error: a kernel that broke off, a card that fell off its bus. The worker gives its unit back and ends: no other unit could be trained either.", "Look at the log line before it. One with `panic` is to be reported. After one that says that the device is lost, look at the card, on NVIDIA's with `nvidia-smi` and the kernel's log. Start the worker again: what it saved last is taken up.";
    RunFrozen = 662 NotNow, "run is frozen", "The run is frozen, so none of its snapshots is promoted: a freeze keeps everything that others would build on as it is.", "Decide the incident first. `diloctl run unfreeze` lifts the freeze; then promote again.";
    SnapshotUnattested = 663 Operator, "snapshot without a statement", "The ledger names no signed statement of provenance for the snapshot, since an earlier release has saved it. What has no statement is not promoted.", "Promote a newer snapshot of the run: `diloctl snapshot ls` shows them. A run that goes on saves its next snapshots with a statement.";
    PointersFull = 664 Operator, "too many pointers", "The run has as many pointers as it can have, and this is the name of another one.", "Use one of the names that `diloctl snapshot ls` shows: a promotion moves it.";
    PointerUnknown = 665 NotNow, "no such pointer", "The run has no pointer of this name: nothing was promoted under it.", "`diloctl snapshot ls` shows the pointers of a run; `diloctl snapshot promote` moves one.";
    ObjectsGivenUp = 666 Final, "given up by a collection", "The objects of this round or of this snapshot were deleted by `diloctl run gc`, as the event in the ledger says that the text names. Nothing was lost by accident and nobody altered anything.", "What is kept starts with the oldest full snapshot that `diloctl snapshot ls RUN` lists without the mark `given up`: restore, promote and recompute from there. `diloctl audit replay --run RUN` shows who ordered it, and why. Keep more in future with a larger `--keep`.";
    CollectionUnsure = 667 NotNow, "cannot tell what is needed", "Objects of old rounds were not deleted, since an object that names others could not be read: a manifest of a snapshot that is kept, a list of chunks, or the manifest of a data set.", "Bring the named object back from a backup of the store, and repeat the command. Nothing was deleted, and nothing is in the ledger.";
    CollectionsFull = 668 Operator, "too many collections", "The run's objects were given up as often as its state keeps collections.", "Nothing is deleted any more. Collect less often, with a smaller `--keep`, in the next run.";
    MetricsUnserved = 670 Operator, "metrics not served", "The address in `metrics.listen` is in use, or does not belong to this machine. The service works, but without `/metrics` and `/ready`.", "End the program that listens on this address, or choose another port for `metrics.listen`, then start the service again.";
    CopyLost = 695 Evidence, "readers' copy shorter than it was", "Stream AUDIT, the copy of the ledger and of workers' events that auditors read, is missing, lacks messages, or ends before what the audit files keep of it. The streams that it is copied from are whole, as far as is known.", "A copy that only lost its end is made whole by the broker: with the broker running, wait a moment and try again. Otherwise stop the broker and bring back the folder of stream AUDIT alone, below `nats/jetstream` of the trust domain, from a backup that is as new as the audit files; no other stream may be replaced by an older one, the ledger least of all. Where there is no such backup, put aside and keep the audit files, what is left of that folder, and, with the store stopped, the folder `log` in the store's root: the new copy may have another order than the log there. Then `diloctl cluster init`, or `diloctl up`, makes the copy anew from those streams, and the audit service checks it from its first message.";
    ReadersBehind = 699 Operator, "domain of an earlier release", "The trust domain, or the configuration of its broker, is one of an earlier release: its keys lie in one folder, or auditors have no account of their own. Nothing new is issued until it is taken over. In the second case auditors read stream AUDIT message by message, which takes the broker several times as long.", "`diloctl down` and `diloctl up` take the domain over. If the broker is not started by `up`, run `diloctl auth config`, restart the broker, run `diloctl cluster init`, and copy the auditors' credentials to their machines again.";

    // 07: ledger and audit.
    LedgerFenced = 701 Away, "another coordinator leads", "The stream holds an event that this coordinator did not write. The coordinator ended before it sent anything more.", "Nothing if you started a new coordinator in place of this one; otherwise two of them run: stop one.";
    LedgerBroken = 702 Evidence, "ledger does not verify", "The coordinator's chain, in stream LEDGER or in its copy in AUDIT, has a gap, a wrong signature or a wrong hash.", "Keep the stream as it is, and run `diloctl audit replay`, which says where the chain breaks.";
    LedgerUnwritable = 703 Busy, "ledger not writable", "An event could not be appended, so nothing that depends on it was done.", "Check the bus and the stream's limits; the coordinator resumes from the ledger.";
    ReplayDiverged = 704 Evidence, "replay differs", "Recomputing a merge gave another digest than the ledger records.", "Do not continue the run; compare the contributions with `diloctl audit replay`.";
    AuditRejected = 705 Evidence, "event refused", "Events of workers in the stream do not verify; they were recorded as refused. The ledger, on which a run's timeline rests, is not concerned.", "Look at the workers that `diloctl audit replay --summary` and the audit files name; nothing that the coordinator decided is in doubt.";
    NoVerdict = 706 Final, "no verdict", "The stream of events could not be read to its end, or there is none, so there is no verdict about it.", "Check the bus and the stream (`diloctl cluster check`), then repeat. This code says neither that the events are right nor that they are wrong.";
    AuditFolderBusy = 707 Operator, "audit folder in use", "Another process holds the lock on the folder of the audit files.", "Stop the other audit service, or give this one a folder of its own.";
    AuditFolderInvalid = 708 Operator, "audit files unusable", "A file of the audit service cannot be read or written, or was damaged other than by a crash.", "Check the folder's space and rights; keep a damaged folder as it is and start with a new one: the stream is read again from its start. The log in the new folder is another one: machines that have pinned a head then report DL0730 or DL0731. Tell those who hold pins why, and to move `audit-head.pin` aside and keep it, together with the old folder.";
    ClockBehind = 709 NotNow, "clock behind the ledger", "The ledger's newest event has a time that this machine's clock has not reached.", "The run needs nothing: if the difference is a matter of seconds the coordinator waits, otherwise it continues from the ledger's time. Correct this machine's clock if it is wrong.";
    EventLater = 710 Busy, "event not taken yet", "An event of a worker was not recorded yet: the ledger does not name its key yet, or the stream is busy or full.", "Nothing: the worker sends the event again by itself, and works on meanwhile. If the event is still not taken after minutes, look at the audit service's log and at the tenant's stream.";
    EventRefused = 711 Evidence, "event of a worker refused", "A worker sent a message that is not a valid event: it has no signature, or that of another key than the ledger names for this worker, or it does not match its subject.", "Run the same release everywhere. If an unaltered worker is refused, its audit key is not the one with which it joined first.";
    ChainForked = 712 Evidence, "chain of events forked", "An event of a worker does not follow the worker's last recorded event, and was not recorded. Either the worker's state was lost or restored from a copy, or two processes run under one identity, or the stream has lost the events before this one.", "If many workers of a tenant are refused at once, their stream was lost: restore the folder `nats` from a backup. Otherwise let only one process run with these credentials, each with a folder `worker.state` of its own. If that folder was lost or restored, issue the worker a new name with `diloctl auth issue`: this chain cannot go on.";
    AuditFilesOlder = 713 Operator, "audit files of an older release", "The folder holds audit files in the form of an older release. They keep a stream that this release does not read.", "Give the service a new, empty folder (`audit.folder`), and keep the old one as it is. If it holds a folder `log`, machines that have pinned a head of it report DL0730 or DL0731 for the new one: tell those who hold pins why, and to move `audit-head.pin` aside and keep it.";
    StreamUnreadable = 714 Busy, "stream not readable now", "A stream exists, or may exist, but the broker could not read it at this moment; its own words are given.", "Look at the broker: its disk, its memory, its log. Start again when it answers; a service manager does that by itself. Do not create anything anew.";
    EventsDropped = 715 Busy, "events dropped", "A worker sent more events than any worker needs. The surplus was dropped before its signatures were checked.", "An honest worker sends them again, more slowly. If it repeats, look at that worker: it is broken or hostile.";
    ForeignMessage = 716 Evidence, "foreign message", "A stream of events holds a message that is in no chain: no emitter with a chain there has signed it. The message was skipped; nothing in the record depends on it.", "Nothing is lost or in doubt. Find out who used the credentials of `ledger-writer` or `recorder` besides the services, and issue new ones.";
    LedgerLost = 717 Evidence, "ledger shorter than it was", "The stream with the ledger is missing, ends before an event that is known to have been in it, or holds another event in its place. A coordinator that continued would sign positions of the chain a second time.", "Restore the folder `nats` of the trust domain from a backup that is as new as the named event, with the broker stopped. To begin anew on purpose, make another trust domain: `diloctl --domain NEW auth init`; the old keys must not sign another ledger.";
    LedgerMarkInvalid = 718 Operator, "mark of the ledger unusable", "The file in which the coordinator notes how far the ledger has come cannot be read or written, or belongs to another trust domain.", "Check the space and rights of its folder, and that the configuration names this domain's own file. Remove the file only if you know that the ledger is whole: the coordinator then makes the file again from the stream.";
    RecordContradicted = 719 Evidence, "stream contradicts the audit files", "The stream that the audit service reads is missing, ends before the last event that the service's files keep, or holds another event in its place. The service has stopped: a second history recorded behind the first would leave no evidence of either.", "Keep the audit files: they show what was there. With the broker stopped, bring back the folder of stream AUDIT, below `nats/jetstream` of the trust domain, from a backup that is as new as they are; other streams only if `diloctl cluster check` says that they were lost too. A copy that only lost its end is made whole by the broker when it is started again: then start the service. To begin anew on purpose, make another trust domain: `diloctl --domain NEW auth init`. If the files are of another domain, correct `audit.folder`.";
    StoreUsedBefore = 720 Operator, "store was used before", "A coordinator is beginning its ledger, but the store already holds objects. Either another trust domain has used the store, or this domain's ledger was lost under a release that left no mark in the store.", "If another trust domain has used the store, nothing: objects are named by their content, so domains do not disturb each other. If this domain has had runs before, stop the coordinator at once and restore the folder `nats` from a backup.";
    EventsLost = 721 Evidence, "workers' events were lost", "The stream of a tenant lacks events of a worker that were recorded in it before: it was lost, cut off or put back. Nothing more of this worker is recorded, since its chain would have a gap. The worker works on, and keeps its new events as long as it has room for them.", "With the broker stopped, restore the folder `nats` of the trust domain from a backup that has the named event. The lost events are still in stream `AUDIT` and in the audit files. If there is no backup, let the runs that go on end, and make another trust domain for the next ones: `diloctl --domain NEW auth init`.";
    RoundDiverged = 722 Evidence, "round was merged otherwise", "Making the merge of a round again gives something else than the ledger records of it. All objects that the ledger names for this were there and had their digests, so the coordinator that wrote the ledger did not merge what it sealed.", "Do not use the weights of this round or a later one. Keep the store and the streams as they are, repeat the command on another machine, and ask who held the coordinator's keys. The snapshot of an earlier, verified round can be pulled as a model folder; a new run begins from its seed.";
    SnapshotDiverged = 723 Evidence, "snapshot holds other weights", "A full snapshot differs from the weights to which the merges before it lead. All objects that the ledger names for this were there and had their digests.", "Do not use this snapshot, nor anything that was trained or exported from it. Keep the store as it is, and repeat the command on another machine.";
    ObjectAltered = 724 Evidence, "stored object was altered", "An object in the store has other bytes than its name says. Nobody who checks digests uses such bytes, so this is evidence against the disk or the holders of the store's keys, and says nothing about the merge.", "Restore the named object from a backup of the store, then repeat the command. Find out whether the disk is failing, or who could write there.";
    RoundUnproven = 725 Final, "round cannot be recomputed", "Something that is needed to make a merge again was not there: an object is gone, or the store could not be read. Nothing is said about the round.", "If the store could not be read, check its address and keys, then repeat. If the object was removed, bring it back from a backup, or recompute rounds behind a newer full snapshot, which need nothing older.";
    RecordUnproven = 726 Final, "nothing recomputed from a broken ledger", "The ledger does not verify, so what it says about merges is nobody's word, and nothing was recomputed.", "Run `diloctl audit replay`, which names what is wrong with the ledger, and follow its advice.";
    RoundNotMerged = 727 NotNow, "round not merged", "The ledger has no merge of the round, or of any round of the run, so nothing was checked.", "Name a round that is closed: `diloctl round ls` shows them. The audit files may lag behind the ledger by some seconds.";
    LogAltered = 728 Evidence, "log of events was altered", "The files of the log of all events do not belong to its signed head: other events, other hashes, or an entry that is no event.", "Keep the folder as it is, and compare it with the audit service's own (`audit/log` of its folder) or with another copy. If the audit service's own is altered too, find out who could write there. Its files of events lead to the same log again: stop it, move only the folder `log/tile` away, and start it: it writes the tiles again. Never move `log/heads` or `log/checkpoint`: they keep the service from signing a second history.";
    HeadInvalid = 729 Evidence, "tree head not signed by this domain", "A head of the log was not signed by a key for heads that the trust bundle names, or is one of another log.", "Compare the trust bundle with the one that `diloctl auth show` prints where the domain was made. If they agree, somebody else has made this head: keep it, and do not use the log beside it.";
    HeadRolledBack = 730 Evidence, "log is shorter than before", "The newest head covers fewer events than a head that this machine has verified before. An older copy of the log was put in its place, or its end was cut off.", "Keep both: this log, and the file `audit-head.pin` of the trust domain, which holds the newer signed head. Ask who could replace the log. Do not delete the pin. If the audit service was given a new folder on purpose, its keeper can say so: then move the pin aside, keep it, and verify the new log.";
    HistoryForked = 731 Evidence, "two histories under one key", "The log is whole under its head, but does not contain the history under the head that this machine has verified before: somebody with the key for heads has signed two histories.", "Keep both signed heads: they prove it to anybody. The other one is in the file `audit-head.pin` of the trust domain. Ask who held the audit service's keys, and compare the heads that other machines have pinned. If the audit service was given a new folder on purpose, its keeper can say so, and the order of events in it may be another: then move the pin aside, keep it, and verify the new log.";
    LogUnproven = 732 Final, "log cannot be checked", "Something that is needed to check the log was not there, or is not what it should be: the folder, its newest head, a file under that head, a proof, the keys for heads and of coordinators in the trust bundle, or a pinned head that can be read. A head or a proof that is empty or half copied counts as not there. Nothing is said about the events.", "Name the log's folder with `--log-folder`: it is `audit/log` in the folder of the audit service's domain, or a copy. A domain of an earlier release gets a key for heads by `diloctl up` or `diloctl auth config`; copy `trust.json` to this machine afterwards. If a file is gone, bring it back from another copy.";
    LogContradicted = 733 Evidence, "kept events contradict the signed head", "The files of the audit service lead to another log than the one whose head it has signed, or a file of the log that may not change has other bytes. It signs nothing more, since it would sign a second history.", "Keep the audit service's folder as it is, the files and the folder `log` in it. If the files were restored from a backup, restore the newest one. Find out who could write there before you start the service with a new folder, and tell those who have pinned heads: the next log is another one, and their machines report DL0730 or DL0731 until they move `audit-head.pin` aside; they should keep it. If this came with a new build of the service, nobody need have altered anything: events of a kind that the older build did not know are not in its log, and the new build would log them. Go on with the build that signed the head, or begin a new folder as above.";
    ProofInvalid = 734 Evidence, "proof does not hold", "A proof that an event is in the log does not lead from the event to the signed head, or its event is not signed by the emitter that it names.", "Do not rely on it. Ask for a new proof: `diloctl audit prove`.";
    EventUnlogged = 735 NotNow, "event is under no head yet", "The newest head of the log does not cover such an event.", "A new event is covered after ten seconds. Otherwise check how the event was named: by the sha256 of its body, by its emitter and number (`KEY:NUMBER`), or by its index in the log.";
    StreamDiffers = 736 Evidence, "stream differs from the log", "Stream AUDIT does not hold the events of the log. The words say how: its end is missing, numbers of events were used again for others, or the past was altered.", "Keep the stream and the log as they are. A missing end, and numbers that were used again, can follow from a broker that lost what it had acknowledged, as after a power failure or an old backup. An altered past cannot: somebody with access to the broker's files or to a provisioner's credentials did it. The log has the events as they were.";
    StatementForged = 737 Evidence, "statement of provenance does not hold", "The statement about a snapshot is not signed by the coordinator's key, or is no statement about this snapshot, or says something else than its manifest and the ledger do.", "Do not use the snapshot. Keep the statement and the ledger as they are, and find out who could write to the store and who holds the coordinator's audit key.";
    LineageDiffers = 738 Evidence, "lineage contradicts the ledger", "A snapshot's manifest names another run, other settings, another parent or other contributions than the ledger does, or a contribution's signature is not that of its worker's key. The objects had their digests.", "Do not use the snapshot, nor what descends from it: `diloctl lineage descendants` lists that. Keep store and streams as they are.";
    LineageUnproven = 739 Final, "lineage cannot be checked", "Something that is needed to follow a snapshot back was not there: an object is gone, the store could not be read, a snapshot has no statement, or the bytes that a worker signed cannot be made again. Nothing is said about the rest.", "If the store could not be read, check its address and keys, then repeat. If the object was removed, bring it back from a backup. A snapshot of an earlier release has no statement, and none can be made for it.";
    ReleaseAltered = 740 Evidence, "release does not verify", "The files of a released model are not those that its signature names, or the signature is not that of the given key.", "Do not use the model. Compare the public key with the one that the releaser publishes elsewhere; if it is the right one, fetch the release again from another place.";
    ReleaseInvalid = 741 Operator, "not for a release", "The folder is not that of a pulled snapshot, holds something besides plain files, or has no signature; or the file is no key on P-256.", "Pull the snapshot into a new folder with `diloctl snapshot pull`, and sign that. `diloctl snapshot release-key` makes a key.";
    LogStoreBehind = 742 Away, "log in the store is behind", "The store's copy of the log does not have the newest signed heads: the audit service cannot reach the store, or the store refuses it. Events are recorded in the service's folder all the same. After a start, the service signs no head before the store has said which head it has.", "Look at the store and at the settings `store` of the audit service. The copy catches up by itself.";
    LogTaken = 743 Operator, "another audit service writes this log", "The log in the store has another newest head than this audit service has written there. Two services with the key for tree heads write the same log; the one that finds the other's head ends.", "Stop one of the two for good, and start the other. Before it signs anything, it makes sure that its events lead to the head in the store.";
    LogStoreAltered = 744 Evidence, "log in the store is not the signed one", "A file of the log in the store has other bytes than the audit service has written, or its head is not signed by this domain. Or the store has an older head than the service has copied there. No head is signed or copied from then on, and nothing is changed there; events are recorded all the same.", "Keep the bucket `log` and the audit service's folder as they are. `diloctl audit verify` on each says what differs. Find out who could write there: only the audit service has the key `store/log.json`. Then put the bucket back as it was, and start the service again. If that cannot be, move its objects aside, and the file `log.copied` of the service's folder: it then writes the log anew, from its folder.";
    LogUnwitnessed = 745 Final, "too few witnesses have cosigned the log", "The log is whole, but the witnesses that have cosigned a head of it are fewer than the policy asks for. Nothing speaks against the log; nothing but its own key speaks for it either.", "Workers that the policy names cosign by themselves while they run; `diloctl audit head` says how many have. Ask other witnesses for newer cosigned heads (`diloctl audit cosign` on their machines), and name each file with `--cosigned`.";
    HeadMissing = 746 NotNow, "no such tree head", "The log has no signed head yet, or none over so many events.", "Nothing: a head is signed ten seconds after an event. If it repeats, see if the audit service says that it writes no log, or that it signs no heads (DL0744).";
    HeadContradicted = 747 Evidence, "log does not continue what this worker saw", "The newest head of the log, as the audit service gives it to this worker, does not continue the one that the worker saw last: the log was cut, or its key signed another history. The worker cosigns nothing that does not continue it, and trains on.", "Keep the files `log.head` and `log.refused` under `worker.state`: two signed texts that contradict each other, or a newer one that nothing leads to. Compare them with those who verify the log (`diloctl audit verify`). If the audit service was given a new folder on purpose, its keeper can say so: then stop the worker, move both files aside, keep them, and start it again.";
    CosignatureRefused = 748 Final, "cosignature refused", "A worker sent a cosignature that its key did not make over a head of the log.", "Look at the worker's log for what it saw. If the worker is sound, somebody else uses its credentials: revoke them.";
    EventsUncovered = 749 Evidence, "events are under no head of the log", "A worker was told that its events are recorded, and no head of the log that it has verified covers them. It has sent them again. Either heads are not signed at the moment, or the broker has lost the events, or the audit service leaves them out.", "See if the audit service runs and signs heads (`diloctl doctor`; DL0732, DL0742, DL0744). If it does, ask who could keep events of this worker from the log: the file `events.json` under `worker.state` has them, signed by nobody else. Training goes on meanwhile.";

    // 08: workers and training.
    TorchMissing = 801 Operator, "libtorch missing", "libtorch was not found, or is of another version than this build needs.", "Run `cargo xtask deps`, or set LIBTORCH (build) or LD_LIBRARY_PATH (run) to libtorch 2.11.0.";
    DeviceMissing = 802 Operator, "device missing", "The configured device is not available.", "Choose `cpu`, or install the driver and the CUDA build of libtorch.";
    TrainingFailed = 803 Final, "training failed", "A loss, a gradient norm or a logit is not finite, or the trainer refused its input.", "Look at the worker's log; the unit is issued again.";
    TrainerMissing = 804 Operator, "trainer missing", "This worker was built or configured without the trainer that the run asks for.", "Use a build with the feature, or another worker.";
    WorkerStateInvalid = 805 Final, "worker state unusable", "The worker's folder for its state cannot be used, or the saved inner state does not fit the run.", "Give each worker a folder of its own that it can write. A damaged `inner.safetensors` or `residual.safetensors` may be removed: only optimizer moments are lost, or the residual of the last contribution.";
    WorkerChainInvalid = 806 Operator, "worker's chain of events unusable", "The file that holds the end of a worker's chain of events cannot be read or written.", "Check the space and rights of `worker.state`. Never remove `events.json`: the chain would fork, and its replay would fail. If it is damaged, issue the worker a new name with `diloctl auth issue`.";
    WorkerRemoved = 808 Operator, "removed from the run", "The coordinator removed this worker from the run for good, after too many refused results.", "Find out why its results were refused before it works again. Then issue it a new name with `diloctl auth issue`, or let it work for another run.";
    InnerStateInvalid = 809 Final, "inner state refused", "A saved inner state has the right form, but values that no optimizer produces: values that are not finite, negative squares, or zeros after many steps.", "Nothing: the worker renamed the file to `inner.refused` and starts with fresh moments. If it repeats, check the disk under `worker.state`, and who can write there.";
    InnerStateDropped = 810 Final, "inner state dropped", "The first unit after a saved inner state was taken up failed, or its result was refused, so the worker does not trust the state any more.", "Nothing: the worker renamed the file to `inner.refused`, and the next unit begins with fresh moments. If units still fail, the state was not the cause.";
    DeviceFailed = 811 Final, "device failed", "The library under the trainer, or the card, failed at an operation, as when a card has no memory left. The moments are not to blame, and are kept.", "Look at the worker's log for the operation, and at the card for other processes that hold its memory; the unit is issued again.";

    // 09: tooling.
    ToolMissing = 901 Operator, "tool missing", "A program that set-up needs is not on the machine.", "Install the named program and repeat.";
    DownloadFailed = 902 Away, "download failed", "A pinned file could not be fetched.", "Repeat when the network is back, or set NATS_SERVER_BIN and LIBTORCH to files of your own.";
    DownloadMismatch = 903 Final, "download has other bytes", "A downloaded file does not have the pinned sha256.", "Do not use the file. Repeat the command; if the digest differs again, report it.";
    PlatformUnsupported = 904 Operator, "platform not served", "There is no pinned binary for this platform.", "Set NATS_SERVER_BIN and LIBTORCH to files of your own.";
    ProcessDied = 905 Operator, "process ended", "A process that `diloctl up` started ended by itself.", "Read the named log file.";
    PortTaken = 906 Operator, "port taken", "A port is already in use.", "Stop the other process (`diloctl down`, with `--domain` where it is another domain's), or choose other ports with `diloctl up --bus-port --store-port`.";
    Interrupted = 907 NotNow, "interrupted", "The operation was stopped by a signal.", "Run it again; what was finished is kept.";
    ToolUnusable = 908 Operator, "given tool unusable", "NATS_SERVER_BIN or LIBTORCH names something that is absent, does not run or has another version than this build needs.", "Correct the variable, or unset it to use the pinned download.";
    PageStale = 909 Operator, "generated page out of date", "A page that is generated from the code differs from what the code says now.", "Run `cargo xtask docs` and commit what it writes.";
    OutputUnwritten = 910 Operator, "output not written", "The command could not write its output, or not all of it, to the standard output.", "Make room on the disk to which the output goes, then run the command again: the output that is there is incomplete.";
    Internal = 999 Final, "internal error", "An invariant of the program did not hold.", "Report it with the log.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DL{:04}", self.number())
    }
}

/// A text that is not a code of this build.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown error code {0:?}")]
pub struct UnknownCode(String);

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.to_string() == text)
            .ok_or_else(|| UnknownCode(text.chars().take(16).collect()))
    }
}

impl TryFrom<String> for Code {
    type Error = UnknownCode;
    fn try_from(text: String) -> Result<Self, UnknownCode> {
        text.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.to_string()
    }
}

/// A coded error with its particulars: the answer to a refused request, and the last line of a
/// failed program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(deny_unknown_fields)]
#[error("{code} {}: {detail}", code.title())]
pub struct Refusal {
    /// Version.
    pub v: V<1>,
    /// The code.
    pub code: Code,
    /// Names and values of this case, never a secret.
    pub detail: String,
}

message!(Refusal, "Refusal", 4096);

impl Refusal {
    /// A refusal; `detail` is cut at the limit for texts.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if detail.len() > TEXT_BYTES_MAX {
            let end = (0..=TEXT_BYTES_MAX)
                .rev()
                .find(|at| detail.is_char_boundary(*at))
                .unwrap_or(0);
            detail.truncate(end);
        }
        Self { v: V, code, detail }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_sorted() {
        assert!(
            Code::ALL
                .windows(2)
                .all(|pair| pair[0].number() < pair[1].number())
        );
    }

    #[test]
    fn text_form_round_trips() {
        for code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(*code));
        }
        assert!("DL0000".parse::<Code>().is_err());
    }

    #[test]
    fn detail_is_cut_at_a_character() {
        let refusal = Refusal::new(Code::Internal, "ä".repeat(TEXT_BYTES_MAX));
        assert!(refusal.detail.len() <= TEXT_BYTES_MAX);
    }
}
