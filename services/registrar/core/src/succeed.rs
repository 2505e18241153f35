//! Another key for a worker, by an operator's word: it keeps name, run and seat, and proves every
//! key that it has and wants.

use schemas::permission::Role;
use schemas::renewal::{Registration, Successor};
use schemas::{Code, Refusal, UnixMillis};

use crate::{Asked, PROOF_AGE_MAX, Registrar, Validity};

/// What the shell found about a worker that wants another key.
#[derive(Clone, Copy, Debug)]
pub struct Heritage<'a> {
    /// The record of the key with which it asks.
    pub record: Option<&'a Registration>,
    /// The record of the key that succeeds it already.
    pub successor: Option<&'a Registration>,
    /// The record of the key that it wants.
    pub wanted: Option<&'a Registration>,
    /// True if the key that signs its events and both new ones signed this question.
    pub proven: bool,
}

impl Registrar {
    /// Decides by the asker's own record if it may have another key at this time. The shell asks
    /// this first, before it looks at the records of others.
    ///
    /// # Errors
    /// The asker would get no token for the key that it has, is no worker, or no operator has said
    /// so.
    pub fn may_change<'a>(
        &self,
        now: UnixMillis,
        asked: &Asked,
        record: Option<&'a Registration>,
    ) -> Result<(&'a Registration, Validity), Refusal> {
        let validity = self.decide(now, asked, record)?;
        let refused =
            |code, why: String| Err(Refusal::new(code, format!("{} {why}", asked.holder)));
        let Some(old) = record.filter(|old| old.role == Role::Worker) else {
            return refused(Code::HolderMismatch, "is no worker's key".to_owned());
        };
        if old.changes_until.is_none_or(|until| now >= until) {
            let why = format!("({}) may not change its key", old.name);
            return refused(Code::SuccessionUnasked, why);
        }
        Ok((old, validity))
    }

    /// Decides on a question for another key. Returns the record of the new key, which is kept
    /// before the asker is told, and its token's validity. The same keys have the same answer for
    /// as long as the operator's word stands.
    ///
    /// # Errors
    /// The asker would get no token for the key that it has, no operator has said so, or the keys
    /// are not proven.
    pub fn succeed(
        &self,
        now: UnixMillis,
        asked: &Asked,
        wish: &Successor,
        known: Heritage<'_>,
    ) -> Result<(Registration, Validity), Refusal> {
        let (old, validity) = self.may_change(now, asked, known.record)?;
        let refused =
            |code, why: String| Err(Refusal::new(code, format!("{} {why}", asked.holder)));
        let name = &old.name;
        if let Some(other) = known.successor.filter(|one| one.public != wish.worker) {
            let why = format!("({name}) is succeeded by {}", other.public);
            return refused(Code::SuccessionUnasked, why);
        }
        let off = wish.at.until(now).max(now.until(wish.at));
        let mut keys = [
            Some(&old.public),
            old.audit_key.as_ref(),
            Some(&wish.worker),
            Some(&wish.audit_key),
        ];
        keys.sort_unstable();
        let differ = keys.windows(2).all(|pair| pair[0] != pair[1]);
        if !known.proven || off > PROOF_AGE_MAX || !differ {
            let why =
                format!("({name}) has not proven its keys, {off} ms from the registrar's time");
            return refused(Code::SuccessionUnproven, why);
        }
        let new = Registration {
            public: wish.worker.clone(),
            audit_key: Some(wish.audit_key.clone()),
            issued: validity.issued,
            ends: validity.ends,
            before: Some(old.public.clone()),
            changes_until: None,
            ..old.clone()
        };
        let Some(wanted) = known.wanted else {
            return Ok((new, validity));
        };
        let same = Registration {
            issued: wanted.issued,
            ends: wanted.ends,
            ..new
        };
        match *wanted == same {
            true => Ok((same, validity)),
            false => {
                let why = format!(
                    "({name}) wants key {}, which is {}'s",
                    wanted.public, wanted.name
                );
                refused(Code::SuccessionUnasked, why)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::member::Posture;
    use schemas::{Millis, PublicKey, V};
    use serde_bytes::ByteArray;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn key(letter: char) -> PublicKey {
        let text = format!("U{}", letter.to_string().repeat(55));
        text.parse().expect("the form of a key")
    }

    fn old() -> Registration {
        let account = key('A').as_str().replacen('U', "A", 1);
        Registration {
            v: V,
            name: "w1".to_owned(),
            role: Role::Worker,
            run: "demo".parse().ok(),
            account: account.parse().expect("an account"),
            public: key('B'),
            issued: UnixMillis(1),
            ends: UnixMillis(2),
            blocked: None,
            audit_key: Some(key('C')),
            seat: None,
            before: None,
            changes_until: Some(UnixMillis(NOW.get() + 1)),
        }
    }

    fn wish() -> Successor {
        let signature = || ByteArray::new([1; 64]);
        Successor {
            worker: key('D'),
            audit_key: key('E'),
            at: NOW,
            by_present: signature(),
            by_worker: signature(),
            by_audit_key: signature(),
        }
    }

    fn decided(
        now: UnixMillis,
        wish: &Successor,
        known: Heritage<'_>,
    ) -> Result<Registration, Code> {
        let registrar = Registrar::new(Millis::from_secs(3600), Posture::default());
        let of = known.record.cloned().unwrap_or_else(old);
        let asked = Asked {
            account: of.account,
            run: of.run,
            holder: of.public,
        };
        let decided = registrar.succeed(now, &asked, wish, known);
        decided.map(|(new, _)| new).map_err(|refusal| refusal.code)
    }

    #[test]
    fn tl_28_an_operators_word_and_every_key_make_another_key_of_the_same_worker() {
        let old = old();
        let known = Heritage {
            record: Some(&old),
            successor: None,
            wanted: None,
            proven: true,
        };
        let new = decided(NOW, &wish(), known).expect("an operator said so");
        let expected = Registration {
            public: key('D'),
            audit_key: Some(key('E')),
            issued: NOW,
            ends: UnixMillis(1_700_003_600_000),
            before: Some(old.public.clone()),
            changes_until: None,
            ..old.clone()
        };
        assert_eq!(new, expected);
        // The answer was lost: the same keys ask again.
        let again = Heritage {
            successor: Some(&new),
            wanted: Some(&new),
            ..known
        };
        assert_eq!(decided(NOW, &wish(), again), Ok(new.clone()));

        // Also later, while the operator's word stands: the key on record is the one it was then.
        let mut long = old.clone();
        long.changes_until = Some(NOW.after(Millis::from_secs(60)));
        let later = Heritage {
            record: Some(&long),
            ..again
        };
        let answer = decided(NOW.after(Millis::from_secs(5)), &wish(), later);
        assert_eq!(answer, Ok(new.clone()));

        let unasked = Err(Code::SuccessionUnasked);
        let later = UnixMillis(NOW.get() + 1);
        assert_eq!(decided(later, &wish(), known), unasked);
        let mut other = wish();
        other.worker = key('F');
        let second = Heritage {
            successor: Some(&new),
            ..known
        };
        assert_eq!(decided(NOW, &other, second), unasked);
        let mut never = old.clone();
        never.changes_until = None;
        let quiet = Heritage {
            record: Some(&never),
            ..known
        };
        assert_eq!(decided(NOW, &wish(), quiet), unasked);
        let theirs = Registration {
            name: "w2".to_owned(),
            ..new.clone()
        };
        let taken = Heritage {
            wanted: Some(&theirs),
            ..known
        };
        assert_eq!(decided(NOW, &wish(), taken), unasked);
    }

    #[test]
    fn what_is_not_proven_or_not_a_worker_gets_no_key() {
        let old = old();
        let known = Heritage {
            record: Some(&old),
            successor: None,
            wanted: None,
            proven: true,
        };
        let unproven = Err(Code::SuccessionUnproven);
        let forged = Heritage {
            proven: false,
            ..known
        };
        assert_eq!(decided(NOW, &wish(), forged), unproven);
        let alter: [fn(&mut Successor); 5] = [
            |wish| wish.at = UnixMillis(NOW.get() - PROOF_AGE_MAX.get() - 1),
            |wish| wish.at = UnixMillis(NOW.get() + PROOF_AGE_MAX.get() + 1),
            |wish| wish.audit_key = key('D'),
            |wish| wish.worker = key('C'),
            |wish| wish.audit_key = key('B'),
        ];
        for (index, alter) in alter.into_iter().enumerate() {
            let mut wish = wish();
            alter(&mut wish);
            assert_eq!(decided(NOW, &wish, known), unproven, "{index}");
        }
        for off in [
            NOW.get() - PROOF_AGE_MAX.get(),
            NOW.get() + PROOF_AGE_MAX.get(),
        ] {
            let mut wish = wish();
            wish.at = UnixMillis(off);
            assert!(decided(NOW, &wish, known).is_ok(), "it is new enough");
        }
        let mut blocked = old.clone();
        blocked.blocked = Some(NOW);
        let stopped = Heritage {
            record: Some(&blocked),
            ..known
        };
        assert_eq!(decided(NOW, &wish(), stopped), Err(Code::HolderBlocked));
        let operator = Registration {
            role: Role::Operator,
            run: None,
            ..old.clone()
        };
        let service = Heritage {
            record: Some(&operator),
            ..known
        };
        assert_eq!(decided(NOW, &wish(), service), Err(Code::HolderMismatch));
    }
}
