//! The rows of a store's check: rules, and the store's answers.

use std::fmt;

use serde::Serialize;

/// The rule that a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// An upload with the right bytes is stored.
    RightBytesStored,
    /// An upload whose bytes do not hash to the signed sha256 is refused, and nothing appears.
    WrongBytesRefused,
    /// A wrong upload over a good object leaves the good one.
    GoodObjectKept,
    /// A signed header that is not sent, or sent with another value, is refused.
    SignedHeadersBind,
    /// A body of another length than signed is refused.
    LengthBinds,
    /// A URL whose path was changed is refused.
    KeyBinds,
    /// A request without a signature is refused.
    AnonymousRefused,
    /// A URL past its time is refused.
    ExpiredRefused,
    /// A URL to read cannot write.
    ReadUrlCannotWrite,
    /// The key for uploads cannot write verified objects.
    PutKeyCannotWriteBlobs,
    /// The key for reading cannot write at all.
    GetKeyCannotWrite,
    /// Part of an object can be read, for resumption.
    RangeServed,
    /// An object can be copied between the buckets at the store.
    CopyBetweenBuckets,
    /// Objects are listed and deleted.
    ListedAndDeleted,
    /// An existing key is not created again. Otherwise a URL could be replayed, with the same
    /// bytes.
    OverwriteRefused,
    /// Of several uploads that race for one key, exactly one succeeds.
    OneCreatorWins,
    /// The store records the sha256 that it checked. Otherwise the coordinator reads every upload
    /// to know it.
    ChecksumRecorded,
    /// An unsigned `x-amz-*` header beside the signed ones is refused.
    ExtraHeaderRefused,
    /// Each run has a pair of its own, which the store derives, and which uploads for that run
    /// alone. Otherwise the domain's pairs sign the URLs of all runs, and those of one cannot be
    /// refused.
    RunsHavePairs,
    /// The clocks of the store and of this machine agree to 5 s. Signatures use the store's clock
    /// in any case.
    ClocksAgree,
}

/// One fact about the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The rule that was tried.
    pub rule: Rule,
    /// True if the store may not be used without this rule.
    pub required: bool,
    /// True if the rule holds.
    pub holds: bool,
    /// The store's answer.
    pub seen: String,
}

/// All results of the check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The rows, in the order in which they were tried.
    pub rows: Vec<Row>,
}

impl Rule {
    /// True if a store that breaks this rule is refused.
    pub const fn is_required(self) -> bool {
        !matches!(
            self,
            Self::OverwriteRefused
                | Self::OneCreatorWins
                | Self::ChecksumRecorded
                | Self::ExtraHeaderRefused
                | Self::RunsHavePairs
                | Self::ClocksAgree
        )
    }

    /// What it means that a store breaks this rule; none for a rule without which a store is
    /// refused.
    pub const fn without(self) -> Option<&'static str> {
        Some(match self {
            Self::OverwriteRefused => {
                "an upload can be repeated until its url ends, with the same bytes, into quarantine"
            }
            Self::OneCreatorWins => {
                "uploads that race are each told that they were first; their bytes are the same"
            }
            Self::ChecksumRecorded => {
                "the coordinator reads each upload to know its bytes, which costs time"
            }
            Self::ExtraHeaderRefused => "an upload can bring metadata along, which nobody reads",
            Self::RunsHavePairs => {
                "the urls of a run, or of a worker in quarantine, that are out last until they end, for a minute, whatever is ordered"
            }
            Self::ClocksAgree => "urls are signed by the store's clock; correct one of the two",
            _ => return None,
        })
    }
}

impl Report {
    /// True when the store can be used: every required row holds.
    pub fn is_fit(&self) -> bool {
        self.rows.iter().all(|row| row.holds || !row.required)
    }

    /// The rules that the store breaks and may not break, each with the store's answer; empty if it
    /// is fit.
    pub fn unfit(&self) -> String {
        let broken = self.rows.iter().filter(|row| row.required && !row.holds);
        let broken = broken.map(|row| format!("{} (it answered {})", row.rule, row.seen));
        broken.collect::<Vec<_>>().join("; ")
    }

    /// True when a rule was tried and holds.
    pub fn holds(&self, rule: Rule) -> bool {
        self.rows.iter().any(|row| row.rule == rule && row.holds)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RightBytesStored => "right bytes are stored",
            Self::WrongBytesRefused => "wrong bytes are refused and absent",
            Self::GoodObjectKept => "a wrong upload leaves a good object",
            Self::SignedHeadersBind => "signed headers bind",
            Self::LengthBinds => "the signed length binds",
            Self::KeyBinds => "the signed key binds",
            Self::AnonymousRefused => "anonymous requests are refused",
            Self::ExpiredRefused => "expired urls are refused",
            Self::ReadUrlCannotWrite => "a url to read cannot write",
            Self::PutKeyCannotWriteBlobs => "the put key cannot write blobs",
            Self::GetKeyCannotWrite => "the get key cannot write",
            Self::RangeServed => "ranges are served",
            Self::CopyBetweenBuckets => "objects are copied between the buckets",
            Self::ListedAndDeleted => "objects are listed and deleted",
            Self::OverwriteRefused => "an existing object is not created again",
            Self::OneCreatorWins => "of racing uploads one wins",
            Self::ChecksumRecorded => "the checksum is recorded",
            Self::ExtraHeaderRefused => "unsigned x-amz headers are refused",
            Self::RunsHavePairs => "each run has a pair of its own",
            Self::ClocksAgree => "the clocks agree",
        })
    }
}

impl Report {
    pub(super) fn note(&mut self, rule: Rule, holds: bool, seen: impl Into<String>) {
        self.rows.push(Row {
            rule,
            required: rule.is_required(),
            holds,
            seen: seen.into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rules that a store may break.
    const OPTIONAL: [Rule; 6] = [
        Rule::OverwriteRefused,
        Rule::OneCreatorWins,
        Rule::ChecksumRecorded,
        Rule::ExtraHeaderRefused,
        Rule::RunsHavePairs,
        Rule::ClocksAgree,
    ];
    const REQUIRED: [Rule; 14] = [
        Rule::RightBytesStored,
        Rule::WrongBytesRefused,
        Rule::GoodObjectKept,
        Rule::SignedHeadersBind,
        Rule::LengthBinds,
        Rule::KeyBinds,
        Rule::AnonymousRefused,
        Rule::ExpiredRefused,
        Rule::ReadUrlCannotWrite,
        Rule::PutKeyCannotWriteBlobs,
        Rule::GetKeyCannotWrite,
        Rule::RangeServed,
        Rule::CopyBetweenBuckets,
        Rule::ListedAndDeleted,
    ];

    /// A store that breaks this rule and no other.
    fn breaking(broken: Rule) -> Report {
        let mut report = Report { rows: Vec::new() };
        for rule in OPTIONAL.into_iter().chain(REQUIRED) {
            report.note(rule, rule != broken, "200");
        }
        report
    }

    #[test]
    fn a_store_is_fit_that_breaks_no_required_rule() {
        for (rules, is_fit) in [(&OPTIONAL[..], true), (&REQUIRED[..], false)] {
            for rule in rules {
                let report = breaking(*rule);
                assert_eq!(report.is_fit(), is_fit, "{rule}");
                assert_eq!(report.unfit().is_empty(), is_fit, "{rule}");
                assert_eq!(rule.without().is_some(), is_fit, "{rule}");
                let names = report.unfit() == format!("{rule} (it answered 200)");
                assert_eq!(names, !is_fit, "{rule}");
                assert!(!report.holds(*rule), "{rule}");
            }
        }
    }

    #[test]
    fn each_rule_has_a_name_of_its_own() {
        let rules = OPTIONAL.into_iter().chain(REQUIRED);
        let mut names: Vec<String> = rules.map(|rule| rule.to_string()).collect();
        assert!(names.contains(&"the clocks agree".to_owned()));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), OPTIONAL.len() + REQUIRED.len());
    }
}
