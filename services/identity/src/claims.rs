//! The content of NATS tokens: the `nats` part of operator, account and user JWTs, version 2. Only
//! what this project mints is modelled; other fields are ignored when a token is read.

use std::collections::BTreeMap;

use schemas::{AccountId, PublicKey, RunId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::key::KeyKind;

/// No limit, in every numeric field of a token; without the field the limit would be zero.
pub const UNLIMITED: i64 = -1;

/// The claims of one kind of token.
pub trait Claims: Serialize + DeserializeOwned {
    /// The subject of the token.
    const KIND: KeyKind;
    /// The signer.
    const ISSUER: KeyKind;

    /// The same claims, if they are a user's: only users' names and tags get into subjects.
    fn as_user(&self) -> Option<&UserClaims> {
        None
    }
}

/// The content of an operator's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorClaims {
    /// The keys that sign accounts.
    #[serde(default)]
    pub signing_keys: Vec<PublicKey>,
    /// Identity keys sign nothing but their own token.
    #[serde(default)]
    pub strict_signing_key_usage: bool,
    /// The account of the servers themselves.
    pub system_account: AccountId,
}

/// The content of an account's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountClaims {
    /// Imports from other accounts.
    #[serde(default)]
    pub imports: Vec<Import>,
    /// Exports to other accounts.
    #[serde(default)]
    pub exports: Vec<Export>,
    /// Its bounds.
    pub limits: AccountLimits,
    /// The keys that sign its users.
    #[serde(default)]
    pub signing_keys: Vec<AccountKey>,
    /// Users (or `*`) whose tokens, issued at or before the given Unix second, are void.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revocations: BTreeMap<String, u64>,
}

/// An account's bounds; [`UNLIMITED`] or a number. Zero storage or streams is an account without
/// JetStream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are those of the token format")]
pub struct AccountLimits {
    pub subs: i64,
    pub data: i64,
    pub payload: i64,
    pub imports: i64,
    pub exports: i64,
    pub wildcards: bool,
    pub disallow_bearer: bool,
    pub conn: i64,
    pub leaf: i64,
    pub mem_storage: i64,
    pub disk_storage: i64,
    pub streams: i64,
    pub consumer: i64,
}

/// The kind of an import or export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedKind {
    /// Messages flow to the importer.
    Stream,
    /// Requests flow to the exporter, answers back.
    Service,
}

/// Something that an account offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Its name, for people.
    pub name: String,
    /// The subject in the exporter.
    pub subject: String,
    /// Stream or service.
    #[serde(rename = "type")]
    pub kind: SharedKind,
    /// The token of the subject (from 1) that is the importer's account, so that no account can
    /// speak as another; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub account_token_position: u32,
    /// `Singleton` for services that answer once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_type: Option<String>,
    /// Nanoseconds for which the broker keeps the way back for an answer; without the field two
    /// minutes. The broker keeps some 800 bytes for each message that asks for an answer and gets
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_threshold: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_zero(position: &u32) -> bool {
    *position == 0
}

/// Something that an account takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Its name, for people.
    pub name: String,
    /// The subject in the exporter.
    pub subject: String,
    /// The subject in the importer.
    pub local_subject: String,
    /// The exporter.
    pub account: AccountId,
    /// Stream or service.
    #[serde(rename = "type")]
    pub kind: SharedKind,
    /// True if the broker tells the exporter which user asks; for services only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub share: bool,
}

/// A key that signs users of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AccountKey {
    /// It may give a user any rights within the account.
    Plain(PublicKey),
    /// Its users have exactly the rights of a role.
    Scoped(Box<Scope>),
}

/// A role: a signing key and the rights of the users that it signs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Always `user_scope`.
    pub kind: ScopeKind,
    /// The role's signing key.
    pub key: PublicKey,
    /// The role's name.
    pub role: String,
    /// The rights of its users; `{{subject()}}` and `{{tag(run)}}` stand for the user's key and
    /// tags.
    pub template: UserRights,
}

/// The only kind of scope there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScopeKind {
    /// For users.
    #[serde(rename = "user_scope")]
    User,
}

/// The rights of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRights {
    /// Subjects it may publish to.
    #[serde(rename = "pub", default)]
    pub publish: Subjects,
    /// Subjects it may subscribe to.
    #[serde(rename = "sub", default)]
    pub subscribe: Subjects,
    /// Most subscriptions.
    pub subs: i64,
    /// Most bytes in total.
    pub data: i64,
    /// Most bytes in one message.
    pub payload: i64,
    /// `STANDARD`, `WEBSOCKET`, `LEAFNODE`; empty for any.
    #[serde(default)]
    pub allowed_connection_types: Vec<String>,
}

/// Allowed and denied subjects. An empty `allow` allows everything that is not denied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subjects {
    /// Allowed.
    pub allow: Vec<String>,
    /// Denied, even where allowed.
    pub deny: Vec<String>,
}

/// The content of a user's token. Users of a role carry no rights of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserClaims {
    /// The account, if one of its signing keys signed the token and not the account itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_account: Option<AccountId>,
    /// `key:value` pairs that templates refer to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A token without proof of a key. Never minted, refused when read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bearer_token: bool,
    /// Rights of its own.
    #[serde(rename = "pub", default, skip_serializing_if = "Subjects::is_empty")]
    pub publish: Subjects,
    /// Rights of its own.
    #[serde(rename = "sub", default, skip_serializing_if = "Subjects::is_empty")]
    pub subscribe: Subjects,
    /// A limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subs: Option<i64>,
    /// A limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<i64>,
    /// A limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<i64>,
}

impl Claims for OperatorClaims {
    const KIND: KeyKind = KeyKind::Operator;
    const ISSUER: KeyKind = KeyKind::Operator;
}

impl Claims for AccountClaims {
    const KIND: KeyKind = KeyKind::Account;
    const ISSUER: KeyKind = KeyKind::Operator;
}

impl Claims for UserClaims {
    const KIND: KeyKind = KeyKind::User;
    const ISSUER: KeyKind = KeyKind::Account;

    fn as_user(&self) -> Option<&UserClaims> {
        Some(self)
    }
}

impl AccountLimits {
    /// No JetStream, everything else unbounded, no bearer tokens.
    pub const fn without_jetstream() -> Self {
        let none = UNLIMITED;
        Self {
            subs: none,
            data: none,
            payload: none,
            imports: none,
            exports: none,
            wildcards: true,
            disallow_bearer: true,
            conn: none,
            leaf: 0,
            mem_storage: 0,
            disk_storage: 0,
            streams: 0,
            consumer: 0,
        }
    }

    /// All of JetStream.
    pub const fn with_jetstream() -> Self {
        let base = Self::without_jetstream();
        Self {
            mem_storage: UNLIMITED,
            disk_storage: UNLIMITED,
            streams: UNLIMITED,
            consumer: UNLIMITED,
            ..base
        }
    }
}

impl Default for AccountLimits {
    /// The meaning of an absent field: nothing is allowed.
    fn default() -> Self {
        Self {
            subs: 0,
            data: 0,
            payload: 0,
            imports: 0,
            exports: 0,
            wildcards: false,
            disallow_bearer: false,
            conn: 0,
            leaf: 0,
            mem_storage: 0,
            disk_storage: 0,
            streams: 0,
            consumer: 0,
        }
    }
}

impl AccountKey {
    /// The public key.
    pub fn key(&self) -> &PublicKey {
        match self {
            Self::Plain(key) => key,
            Self::Scoped(scope) => &scope.key,
        }
    }
}

impl Subjects {
    fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

impl UserClaims {
    /// A user whose rights are those of the role whose key signs it.
    pub fn of_role(account: AccountId, tags: Vec<String>) -> Self {
        Self {
            issuer_account: Some(account),
            tags,
            ..Self::default()
        }
    }

    /// The run that the user works for; none if it works for none.
    pub fn run(&self) -> Option<RunId> {
        let run = self.tags.iter().find_map(|tag| tag.strip_prefix("run:"));
        run.and_then(|run| run.parse().ok())
    }

    /// True if the user has rights or limits of its own, which a user of a role must not have.
    pub fn has_rights(&self) -> bool {
        let limit = |limit: Option<i64>| limit.unwrap_or(0) != 0;
        let limits = limit(self.subs) || limit(self.data) || limit(self.payload);
        limits || !self.publish.is_empty() || !self.subscribe.is_empty()
    }
}
