//! Signed documents count once. Somebody who can speak as the coordinator on the bus, such as a
//! captured broker, can show a worker again what the coordinator once signed: a command within its
//! life, or the manifest of a lease that is over. What was signed for an earlier process of the
//! worker names that process, so this memory need not outlive its own.

use std::collections::BTreeMap;

use schemas::lease::{LeaseRef, UnitId};
use schemas::public::Command;
use schemas::{Code, Digest, Epoch, Millis, Refusal, UnixMillis};

use crate::verify::SKEW;

/// Most commands that are remembered. The coordinator sends a worker a handful in a command's life,
/// and nobody else can sign one.
const COMMANDS_MAX: usize = 1024;
/// Most units whose newest lease is remembered, those of the last rounds: the coordinator grants a
/// lease of a round that is over to nobody.
const UNITS_MAX: usize = 64;

/// The commands that were obeyed, each until it would be refused for its age. The coordinator's
/// time comes with answers that nobody signs, so somebody between the two can move it forward until
/// a command is forgotten, and back again. So no command is taken that ends as early as one that
/// was forgotten.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    known: BTreeMap<Digest, Obeyed>,
    /// The latest end of a command that was forgotten, in Unix seconds.
    floor: u64,
}

/// A command that was obeyed.
#[derive(Clone, Copy, Debug)]
struct Obeyed {
    /// The end of its validity, in Unix seconds.
    exp: u64,
    /// The time from which on it is forgotten.
    until: UnixMillis,
}

impl Commands {
    /// Takes note of a command whose signature and window hold.
    ///
    /// # Errors
    /// It was obeyed before, or one that did not end sooner was forgotten, or so many were obeyed
    /// that this one cannot be remembered.
    pub(crate) fn obey(&mut self, command: &Command, now: UnixMillis) -> Result<(), Refusal> {
        self.forget(now);
        let id = Digest::of(command.jti.as_bytes());
        let refused = |detail: String| Err(Refusal::new(Code::ManifestInvalid, detail));
        if self.known.contains_key(&id) {
            return refused(format!(
                "the command {:?} was obeyed before",
                command.verb.token()
            ));
        }
        if command.exp <= self.floor {
            let (exp, floor) = (command.exp, self.floor);
            return refused(format!(
                "the command ends at {exp}, and commands that ended up to {floor} were forgotten (Unix seconds): the \
                 coordinator's time went back"
            ));
        }
        if self.known.len() >= COMMANDS_MAX {
            return refused(format!("{COMMANDS_MAX} commands are in their window"));
        }
        // The measurement of the coordinator's time may change by as much as is tolerated.
        let end = UnixMillis(command.exp.saturating_mul(1000));
        let obeyed = Obeyed {
            exp: command.exp,
            until: end.after(SKEW).after(SKEW).after(Millis(1)),
        };
        self.known.insert(id, obeyed);
        Ok(())
    }

    fn forget(&mut self, now: UnixMillis) {
        let floor = &mut self.floor;
        self.known.retain(|_, obeyed| {
            let is_kept = now < obeyed.until;
            if !is_kept {
                *floor = obeyed.exp.max(*floor);
            }
            is_kept
        });
    }
}

/// The newest lease of each unit of which a manifest was taken.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<UnitId, Epoch>);

impl Leases {
    /// Takes note of a lease whose manifest was verified. The same one may come again.
    ///
    /// # Errors
    /// A later lease of the same unit was taken before.
    pub(crate) fn take(&mut self, lease: LeaseRef) -> Result<(), Refusal> {
        let newest = self.0.entry(lease.unit).or_insert(lease.epoch);
        if lease.epoch < *newest {
            let detail = format!(
                "the manifest is of lease {lease}, which ended before epoch {newest} of the same unit began"
            );
            return Err(Refusal::new(Code::ManifestInvalid, detail));
        }
        *newest = lease.epoch;
        while self.0.len() > UNITS_MAX {
            self.0.pop_first();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use schemas::lease::UnitKind;
    use schemas::member::Session;
    use schemas::public::CommandVerb;
    use schemas::{Round, UnitIndex, V};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_700_000_000_000);

    fn command(jti: &str) -> Command {
        let iat = NOW.get() / 1000;
        Command {
            v: V,
            iss: String::new(),
            run: "demo".parse().expect("a name"),
            aud: kit::worker(1),
            session: Session(1),
            iat,
            exp: iat + 60,
            jti: jti.to_owned(),
            verb: CommandVerb::Drain,
        }
    }

    #[test]
    fn tl_14_a_command_is_remembered_as_long_as_it_could_be_taken() {
        let mut commands = Commands::default();
        let one = command("one");
        assert_eq!(commands.obey(&one, NOW), Ok(()));
        assert_eq!(commands.obey(&command("two"), NOW), Ok(()), "another one");
        let last = UnixMillis((one.exp + 60) * 1000 - 1);
        for now in [NOW, last, last.after(SKEW)] {
            let refused = commands.obey(&one, now).expect_err("again");
            assert_eq!(refused.code, Code::ManifestInvalid);
            assert!(refused.detail.contains("obeyed before"), "{refused}");
        }
        let later = last.after(SKEW).after(Millis(2));
        let next = Command {
            exp: one.exp + 200,
            ..command("next")
        };
        assert_eq!(commands.obey(&next, later), Ok(()));
        assert_eq!(commands.known.len(), 1, "both are forgotten");
    }

    /// The worker measures the coordinator's time by answers that a captured broker can forge.
    #[test]
    fn tl_14_a_command_stays_used_when_the_coordinators_time_is_moved_back_and_forth() {
        let mut commands = Commands::default();
        let one = command("one");
        let ending = |jti: &str, exp: u64| Command {
            exp,
            ..command(jti)
        };
        assert_eq!(commands.obey(&one, NOW), Ok(()));
        let early = ending("early", one.exp - 30);
        assert_eq!(commands.obey(&early, NOW), Ok(()));
        let far = UnixMillis((one.exp + 3600) * 1000);
        assert_eq!(commands.obey(&ending("far", one.exp + 3660), far), Ok(()));
        assert_eq!(commands.known.len(), 1, "the others are forgotten");
        for used in [&one, &early, &ending("unseen", one.exp)] {
            let refused = commands.obey(used, NOW).expect_err("it could be one");
            assert_eq!(refused.code, Code::ManifestInvalid);
            assert!(refused.detail.contains("time went back"), "{refused}");
        }
        let next = ending("next", one.exp + 1);
        assert_eq!(commands.obey(&next, NOW), Ok(()), "it is none of those");
    }

    #[test]
    fn tl_14_no_command_is_forgotten_for_another() {
        let mut commands = Commands::default();
        for number in 0..COMMANDS_MAX {
            commands
                .obey(&command(&number.to_string()), NOW)
                .expect("it has room");
        }
        assert!(commands.obey(&command("more"), NOW).is_err());
        assert!(commands.obey(&command("0"), NOW).is_err());
    }

    fn lease(round: u64, index: u32, epoch: u64) -> LeaseRef {
        LeaseRef {
            unit: UnitId {
                round: Round(round),
                kind: UnitKind::Train,
                index: UnitIndex(index),
            },
            epoch: Epoch(epoch),
        }
    }

    #[test]
    fn tl_14_an_old_manifest_of_a_unit_is_refused_after_the_next_epoch() {
        let mut leases = Leases::default();
        assert_eq!(leases.take(lease(1, 0, 2)), Ok(()));
        assert_eq!(leases.take(lease(1, 0, 2)), Ok(()), "the answer came twice");
        assert_eq!(leases.take(lease(1, 1, 1)), Ok(()), "another unit");
        assert_eq!(leases.take(lease(1, 0, 3)), Ok(()));
        for old in [1, 2] {
            let refused = leases.take(lease(1, 0, old)).expect_err("it is over");
            assert_eq!(refused.code, Code::ManifestInvalid);
        }
        assert_eq!(
            leases.take(lease(1, 0, 3)),
            Ok(()),
            "a refusal changes nothing"
        );
        for round in 2..200 {
            assert_eq!(leases.take(lease(round, 0, 1)), Ok(()));
        }
        assert_eq!(leases.0.len(), UNITS_MAX);
        assert!(leases.take(lease(199, 0, 0)).is_err(), "the newest stay");
    }
}
