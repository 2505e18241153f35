//! The commands that replace keys.

use clap::{Args, Subcommand};
use schemas::hold::Reason;
use schemas::permission::Role;

use super::{is_rotated, parse_signing_role};

/// Roles whose signing keys can be replaced.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct RolesArgs {
    /// The role.
    #[arg(value_parser = parse_signing_role)]
    role: Option<Role>,
    /// Every role that has such a key.
    #[arg(long)]
    all: bool,
}

impl RolesArgs {
    /// The roles that are meant.
    pub(crate) fn roles(&self) -> Vec<Role> {
        match self.role {
            Some(role) => vec![role],
            None => Role::ALL.into_iter().filter(is_rotated).collect(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Rotate {
    /// Make a new signing key for a role, and new tokens for all holders of the role. Those whose
    /// credentials lie in the trust domain's folder get them there: copy the files to their
    /// machines. The old key stays valid until `auth retire`, so that nobody is cut off meanwhile.
    Role {
        #[command(flatten)]
        of: RolesArgs,
        /// End the old key at once, for a key that was stolen: every token of it is void, wherever
        /// it was made, and its connections are cut. Processes that read their credentials from the
        /// trust domain's folder connect again with the new ones. Without a broker nothing is
        /// changed: it must know the new key first.
        #[arg(long)]
        now: bool,
        /// End all leases of all runs as well, for keys that leaked: somebody else may have taken
        /// one in a worker's name. Their units are issued again, and no result under them counts.
        /// What was accepted before stays. If the coordinator does not answer, repeat the command:
        /// it ends the leases then, and replaces no key again.
        #[arg(long, requires_all = ["now", "reason"])]
        end_leases: bool,
        /// The reason, which the ledger keeps.
        #[arg(long, requires = "end_leases", value_name = "TEXT")]
        reason: Option<Reason>,
    },
    /// Make a new key that signs leases and commands, and let the trust bundle know it beside the
    /// old one. The coordinator signs with it from its next lease on; nothing has to be restarted.
    /// Where coordinator and workers have copies of `trust.json`, begin with `--prepare`, copy that
    /// file to all of them, run this command, and copy `keys/manifest.nk` to the coordinator. End
    /// the overlap with `--retire`, and copy `trust.json` again.
    Manifest {
        /// Let the trust bundle know the new key, and sign nothing with it yet.
        #[arg(long, conflicts_with = "retire")]
        prepare: bool,
        /// End the overlap: documents that earlier keys signed are refused from now on. Leases
        /// whose work has begun go on. The coordinator is asked first, and nothing ends while it
        /// signs with an earlier key.
        #[arg(long)]
        retire: bool,
        /// End it without the coordinator's word.
        #[arg(long, requires = "retire")]
        force: bool,
    },
    /// Make a new key that signs the coordinator's events, and let the trust bundle know it after
    /// the present one. The coordinator takes it by itself: the last event of the old key names the
    /// new one, and the ledger stays one chain. No lease is lost. Where coordinator, audit service
    /// and workers have copies of `trust.json`, begin with `--prepare`, copy that file to all of
    /// them, run this command, and copy `keys/coordinator-audit.nk.next` to the coordinator. End
    /// the old key with `--retire`, and copy `trust.json` again. Events that it signed before stay
    /// valid for ever.
    Events {
        /// Let the trust bundle know the new key, and sign nothing with it yet.
        #[arg(long, conflicts_with = "retire")]
        prepare: bool,
        /// Note in the trust bundle where the earlier keys have ended: no event and no cohort that
        /// they sign after that is taken, with or without the ledger at hand. Signed statements
        /// about snapshots have no place in the ledger: where it is not at hand they are taken
        /// under every key of the bundle. The whole ledger is verified first, and must have named
        /// the present key.
        #[arg(long)]
        retire: bool,
    },
    /// Give one holder of credentials a new key, and revoke the old one once the new one is in use.
    /// The process that holds the credentials takes the new key by itself: a worker when the unit
    /// that it works on is handed in, another process at once, and one that does not run at its
    /// next start. A worker gets a new key for its events too, and is another worker to its run, in
    /// the same seat. No lease is lost, except in a group of several workers: there the group's
    /// unit goes on under its next epoch. For a worker whose keys lie on its own machine run
    /// `worker rekey` there meanwhile. Run the command again if it did not wait long enough. After
    /// a theft use `auth revoke` and enrol the machine anew: a thief could be first to take the new
    /// key.
    User {
        /// The name of the credentials, as `auth ls` shows it. Coordinator and audit service have
        /// two each: `coordinator` and `ledger-writer`, `auditor` and `recorder`.
        name: String,
        /// Time to wait until the new key is in use.
        #[arg(long, value_name = "TIME", default_value = "10m")]
        wait: runtime::ConfigDuration,
    },
    /// Make a new private authority, for the certificates of broker and store, and in a domain with
    /// mutual TLS another one for those of clients. `--prepare` makes it and lets `tls/ca.pem` and
    /// `tls/clients.pem` know it beside the old one: copy the first to every machine and the second
    /// to broker and store, and restart broker and store. Without a switch the command makes the
    /// new one sign: restart broker and store with their new certificate; clients take theirs with
    /// their next tokens. `--retire` takes the old one out: copy both files again, and restart
    /// broker and store. Services read `tls/ca.pem` at every connection and are not restarted. No
    /// lease is lost.
    Authority {
        /// Let everybody trust the new authority, and sign nothing with it yet.
        #[arg(long, conflicts_with = "retire")]
        prepare: bool,
        /// End the overlap: certificates of the old authority are refused from now on. Broker,
        /// store and the broker's clients are looked at first, and nothing ends while one of them
        /// shows a certificate of the old authority. Holders that are off and may have such a
        /// certificate are named, and so are open invitations that know only the old authority.
        #[arg(long)]
        retire: bool,
        /// End it whatever anybody shows, for an authority that was stolen.
        #[arg(long, requires = "retire")]
        force: bool,
        /// Host names or addresses of broker and store besides localhost; without one those of the
        /// old certificate.
        #[arg(long, value_name = "NAME", conflicts_with_all = ["prepare", "retire"])]
        server_name: Vec<String>,
    },
    /// Make a new certificate for broker and store, as `auth certificate` does.
    Certificate {
        /// Host names or addresses of broker and store besides localhost. Name all of them: those
        /// of the old certificate are not kept.
        #[arg(long, value_name = "NAME")]
        server_name: Vec<String>,
    },
}
