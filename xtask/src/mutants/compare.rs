//! The woven build beside the plain one: the same mutants tried both ways must end the same way,
//! else the weaver changes the code otherwise than cargo-mutants says.

use anyhow::{Result, bail};

use super::judge::End;
use super::listed::Mutant;
use super::{Ended, Ends, MutationRun, packages};

/// An end as far as both ways must agree on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Noticed,
    Missed,
    DoesNotCompile,
}

impl Verdict {
    /// None for a mutant that was not tried.
    fn of(end: Ended) -> Option<Self> {
        match end {
            // A test that does not end has noticed the change.
            Ended::Tested(End::Caught | End::TimedOut) => Some(Self::Noticed),
            Ended::Tested(End::Survived | End::Unreached) => Some(Self::Missed),
            Ended::Unbuildable => Some(Self::DoesNotCompile),
            Ended::NotTried => None,
        }
    }
}

impl MutationRun<'_> {
    /// Tries the `chosen` mutants in the woven build of all that are `listed`, and each by itself
    /// with cargo-mutants. Returns the result in a line.
    ///
    /// # Errors
    /// A mutant ends otherwise in one build than in the other.
    pub(super) fn compare(&self, listed: &[Mutant], chosen: &[Mutant]) -> Result<String> {
        let woven = self.judge(listed, chosen, true)?;
        let mut plain = Ends::new();
        for package in packages(chosen) {
            let own: Vec<&Mutant> = chosen
                .iter()
                .filter(|mutant| mutant.package == package)
                .collect();
            self.judge_apart(package, &own, &mut plain)?;
        }
        compared(chosen, &woven, &plain)
    }
}

fn compared(chosen: &[Mutant], woven: &Ends, plain: &Ends) -> Result<String> {
    let mut counts = [0; 3];
    let mut others = Vec::new();
    let mut apart = 0;
    for mutant in chosen {
        let ends = [woven, plain].map(|ends| Verdict::of(ends[&mutant.number]));
        match ends {
            [None, _] => apart += 1,
            [Some(one), Some(other)] if one == other => counts[one as usize] += 1,
            [one, other] => {
                others.push(format!("{}: woven {one:?}, plain {other:?}", mutant.name));
            }
        }
    }
    let [noticed, missed, broken] = counts;
    let said = format!(
        "{} mutants, woven and plain: {noticed} caught, {missed} survive, {broken} do not compile \
         either way; {apart} are never woven",
        chosen.len()
    );
    if others.is_empty() {
        return Ok(said);
    }
    bail!(
        "{said}; these end otherwise:\n       {}",
        others.join("\n       ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::listed::MutantKind;
    use super::*;

    fn mutant(number: u32) -> Mutant {
        Mutant {
            name: format!("a.rs:{number}:1: replace < with <= in f"),
            package: "a".to_owned(),
            file: "a.rs".into(),
            kind: MutantKind::Operator,
            replacement: "<=".to_owned(),
            from: (1, 0),
            to: (1, 1),
            returns_opaque: false,
            number,
        }
    }

    fn ends(ends: [Ended; 4]) -> Ends {
        (1..).zip(ends).collect()
    }

    #[test]
    fn a_mutant_that_only_one_build_notices_is_an_error() {
        let chosen: Vec<Mutant> = (1..=4).map(mutant).collect();
        let (caught, survived) = (Ended::Tested(End::Caught), Ended::Tested(End::Survived));
        let timed_out = Ended::Tested(End::TimedOut);
        let woven = ends([caught, survived, Ended::Unbuildable, Ended::NotTried]);
        let same = ends([timed_out, survived, Ended::Unbuildable, caught]);
        let said = compared(&chosen, &woven, &same).expect("they agree");
        assert!(
            said.contains("1 caught, 1 survive, 1 do not compile"),
            "{said}"
        );
        assert!(said.ends_with("1 are never woven"), "{said}");
        let other = ends([caught, caught, Ended::Unbuildable, caught]);
        let fault = compared(&chosen, &woven, &other).expect_err("the second differs");
        let fault = fault.to_string();
        assert!(
            fault.contains("a.rs:2:1: replace < with <= in f"),
            "{fault}"
        );
        assert!(!fault.contains("a.rs:1:1"), "{fault}");
    }
}
