//! The accounts of a domain and the roles in them: each credential is issued for one role.

use serde::{Deserialize, Serialize};

/// An account, by its purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// Coordinators and operators, and the queue of offers.
    Control,
    /// The ledger. Coordinators write it, and nobody else connects.
    Ledger,
    /// Events of workers about themselves, one stream for each tenant.
    Events,
    /// A copy of the ledger and of every tenant's events, in one stream. Nobody connects but its
    /// provisioner.
    Audit,
    /// Those who read the copy. It has no JetStream: what they may ask crosses to the audit
    /// account.
    Readers,
    /// The registrar, which renews credentials. It has no JetStream.
    Registrar,
    /// Machines that ask to be enrolled. It has no JetStream, and a single import.
    Enrolment,
    /// A tenant's workers. It has no JetStream.
    Tenant,
    /// The broker's own account. Nobody connects but `diloctl auth`, for a moment, to replace the
    /// tokens of accounts.
    System,
}

impl Account {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Control,
        Self::Ledger,
        Self::Events,
        Self::Audit,
        Self::Readers,
        Self::Registrar,
        Self::Enrolment,
        Self::Tenant,
        Self::System,
    ];

    /// Its name in files and declarations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Ledger => "ledger",
            Self::Events => "events",
            Self::Audit => "audit",
            Self::Readers => "readers",
            Self::Registrar => "registrar",
            Self::Enrolment => "enrolment",
            Self::Tenant => "tenant",
            Self::System => "system",
        }
    }
}

/// The purpose of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Trains; its account is a tenant's.
    Worker,
    /// Leads runs.
    Coordinator,
    /// A coordinator's second connection, on which it writes the ledger.
    LedgerWriter,
    /// A person with `diloctl`.
    Operator,
    /// Reads events.
    Auditor,
    /// The audit service's second connection, on which it receives workers' events and records
    /// those that pass its checks.
    Recorder,
    /// Renews credentials, its own too.
    Registrar,
    /// Creates streams of the control account. Like the other provisioners it is used by `diloctl
    /// cluster` only.
    Provisioner,
    /// Creates the ledger's stream.
    LedgerProvisioner,
    /// Creates the streams of tenants' events.
    EventsProvisioner,
    /// Creates the stream that readers see.
    AuditProvisioner,
    /// Replaces the tokens of accounts at the broker, and so may give any rights to anybody. Its
    /// credentials are made when they are needed, and last for minutes.
    AccountWriter,
    /// Asks to be enrolled, and can do nothing else. Its credentials are part of an invitation, and
    /// last for minutes.
    Newcomer,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Worker,
        Self::Coordinator,
        Self::LedgerWriter,
        Self::Operator,
        Self::Auditor,
        Self::Recorder,
        Self::Registrar,
        Self::Provisioner,
        Self::LedgerProvisioner,
        Self::EventsProvisioner,
        Self::AuditProvisioner,
        Self::AccountWriter,
        Self::Newcomer,
    ];

    /// Its name in credentials, files and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Coordinator => "coordinator",
            Self::LedgerWriter => "ledger-writer",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::Recorder => "recorder",
            Self::Registrar => "registrar",
            Self::Provisioner => "provisioner",
            Self::LedgerProvisioner => "ledger-provisioner",
            Self::EventsProvisioner => "events-provisioner",
            Self::AuditProvisioner => "audit-provisioner",
            Self::AccountWriter => "account-writer",
            Self::Newcomer => "newcomer",
        }
    }

    /// The account to which its credentials belong.
    pub const fn account(self) -> Account {
        match self {
            Self::Worker => Account::Tenant,
            Self::Coordinator | Self::Operator | Self::Provisioner => Account::Control,
            Self::LedgerWriter | Self::LedgerProvisioner => Account::Ledger,
            Self::Recorder | Self::EventsProvisioner => Account::Events,
            Self::AuditProvisioner => Account::Audit,
            Self::Auditor => Account::Readers,
            Self::Registrar => Account::Registrar,
            Self::AccountWriter => Account::System,
            Self::Newcomer => Account::Enrolment,
        }
    }

    /// The role that creates the streams of an account; none for accounts without streams.
    pub const fn provisioner(account: Account) -> Option<Self> {
        match account {
            Account::Control => Some(Self::Provisioner),
            Account::Ledger => Some(Self::LedgerProvisioner),
            Account::Events => Some(Self::EventsProvisioner),
            Account::Audit => Some(Self::AuditProvisioner),
            Account::Readers
            | Account::Registrar
            | Account::Enrolment
            | Account::Tenant
            | Account::System => None,
        }
    }

    /// True if the registrar renews its credentials. Provisioners are used by hand and kept offline
    /// otherwise, so nothing that is online can make credentials for them.
    pub const fn is_renewable(self) -> bool {
        match self {
            Self::Worker
            | Self::Coordinator
            | Self::LedgerWriter
            | Self::Operator
            | Self::Auditor
            | Self::Recorder
            | Self::Registrar => true,
            Self::Provisioner
            | Self::LedgerProvisioner
            | Self::EventsProvisioner
            | Self::AuditProvisioner
            | Self::AccountWriter
            | Self::Newcomer => false,
        }
    }

    /// True if its credentials are made by the command that needs them, and the domain keeps none.
    pub const fn is_momentary(self) -> bool {
        matches!(self, Self::AccountWriter | Self::Newcomer)
    }

    /// True if its signing key lies in the issuer's folder. A newcomer's does too, though nothing
    /// renews its credentials: without the vault a machine can be invited all the same, and who has
    /// the issuer's keys can make workers' credentials without asking.
    pub const fn is_signed_online(self) -> bool {
        self.is_renewable() || matches!(self, Self::Newcomer)
    }

    /// True if machines hold its credentials that nobody here answers for: their messages are
    /// short, and their subscriptions few.
    pub const fn is_foreign(self) -> bool {
        self.is_tenant() || matches!(self, Self::Newcomer)
    }

    /// True if it belongs to a tenant's account.
    pub const fn is_tenant(self) -> bool {
        matches!(self.account(), Account::Tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files name a role as people do.
    #[test]
    fn a_role_is_written_as_its_name() {
        for role in Role::ALL {
            let written = serde_json::to_value(role).expect("it is a name");
            assert_eq!(written, role.name());
        }
    }

    #[test]
    fn the_registrar_renews_every_role_whose_credentials_lie_online() {
        for role in Role::ALL {
            let provisions = Role::provisioner(role.account()) == Some(role);
            let offline = provisions || role.is_momentary();
            assert_eq!(role.is_renewable(), !offline, "{role:?}");
        }
    }
}
