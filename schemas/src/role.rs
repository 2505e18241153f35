//! The accounts of a domain and the roles in them: each credential is issued for one role.

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
    /// Those who read the copy. It has no JetStream: what they may ask crosses to the audit account.
    Readers,
    /// A tenant's workers. It has no JetStream.
    Tenant,
}

impl Account {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Control,
        Self::Ledger,
        Self::Events,
        Self::Audit,
        Self::Readers,
        Self::Tenant,
    ];

    /// Its name in files and declarations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Ledger => "ledger",
            Self::Events => "events",
            Self::Audit => "audit",
            Self::Readers => "readers",
            Self::Tenant => "tenant",
        }
    }
}

/// The purpose of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Creates streams of the control account. Like the other provisioners it is used by `diloctl
    /// cluster` only.
    Provisioner,
    /// Creates the ledger's stream.
    LedgerProvisioner,
    /// Creates the streams of tenants' events.
    EventsProvisioner,
    /// Creates the stream that readers see.
    AuditProvisioner,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Worker,
        Self::Coordinator,
        Self::LedgerWriter,
        Self::Operator,
        Self::Auditor,
        Self::Recorder,
        Self::Provisioner,
        Self::LedgerProvisioner,
        Self::EventsProvisioner,
        Self::AuditProvisioner,
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
            Self::Provisioner => "provisioner",
            Self::LedgerProvisioner => "ledger-provisioner",
            Self::EventsProvisioner => "events-provisioner",
            Self::AuditProvisioner => "audit-provisioner",
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
        }
    }

    /// The role that creates the streams of an account; none for accounts without streams.
    pub const fn provisioner(account: Account) -> Option<Self> {
        match account {
            Account::Control => Some(Self::Provisioner),
            Account::Ledger => Some(Self::LedgerProvisioner),
            Account::Events => Some(Self::EventsProvisioner),
            Account::Audit => Some(Self::AuditProvisioner),
            Account::Readers | Account::Tenant => None,
        }
    }

    /// True if it belongs to a tenant's account.
    pub const fn is_tenant(self) -> bool {
        matches!(self.account(), Account::Tenant)
    }
}
