//! The checks that a signed document must pass before anything that it names is used. For a lease's
//! manifest they are, in this order: signature by a trusted key, window, audience, run, session,
//! settings, binding of the token to the lease, the work against the settings, codecs, and number
//! and size of the chunks. Nothing is fetched before all of them hold.

use identity::jws::{self, JwsError};
use identity::{TrustBundle, TrustSource};
use schemas::lease::{LeaseRef, MANIFEST_TYPE, Manifest, UnitKind, Weights, Work};
use schemas::limits::{LEASE_MAX, OBJECT_BYTES_MAX, UNIT_SHARDS_MAX};
use schemas::member::Session;
use schemas::public::{COMMAND_TYPE, Command, CommandVerb};
use schemas::run::{Codec, CodecKind, Rounding, RunSpec};
use schemas::{Chunks, Code, Digest, Millis, ObjectRef, Refusal, RunId, UnixMillis, WorkerId};
use worker_core::NotVerified;

use crate::replays::Commands;

/// Tolerance for windows of signed documents: this worker's measurement of the coordinator's time
/// may be wrong by this much. A larger difference of this machine's clock is logged, so that
/// somebody looks at the clock.
pub(crate) const SKEW: Millis = Millis::from_secs(60);
/// Longest window of a document beyond a lease: a document with a longer window could be kept and
/// shown again.
const WINDOW_EXTRA_SECONDS: u64 = 3600;

/// The facts that a document must agree with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    /// The keys that may sign.
    pub(crate) trust: &'a TrustBundle,
    /// This worker.
    pub(crate) worker: &'a WorkerId,
    /// The session of this process.
    pub(crate) session: Session,
    /// The run that it works for.
    pub(crate) run: &'a RunId,
    /// The coordinator's time.
    pub(crate) now: UnixMillis,
}

/// The keys that may sign now.
///
/// # Errors
/// The trust bundle cannot be read, or is another domain's.
pub(crate) fn trusted(source: &TrustSource) -> Result<TrustBundle, Refusal> {
    source
        .read()
        .map_err(|error| Refusal::new(error.code(), error.to_string()))
}

/// Checks a lease's manifest against the settings that this worker joined under.
///
/// # Errors
/// The first check that fails, with [`Code::ManifestInvalid`], [`Code::ProcessOther`] or
/// [`Code::SignatureInvalid`]; and the lease, if the document is the coordinator's and meant for
/// this process, so that it can be given back.
pub(crate) fn manifest(
    document: &str,
    expected: &Expected<'_>,
    spec: &RunSpec,
    spec_digest: Digest,
) -> Result<Manifest, NotVerified> {
    let unknown = |refusal| NotVerified {
        refusal,
        lease: None,
    };
    let manifest: Manifest =
        jws::verify(document, MANIFEST_TYPE, expected.trust).map_err(|e| unknown(refused(&e)))?;
    if let Err(error) = jws::check_window(manifest.nbf, manifest.exp, expected.now, SKEW) {
        // A lease of this process can be given back at once, whatever the clocks show.
        let ours = manifest.aud == *expected.worker
            && manifest.run == *expected.run
            && manifest.session == expected.session;
        return Err(NotVerified {
            refusal: untimely(&manifest, expected.now, &error),
            lease: ours.then_some(manifest.lease),
        });
    }
    check_signer(&manifest.iss, expected.trust).map_err(unknown)?;
    if manifest.aud != *expected.worker {
        return Err(unknown(invalid(format!(
            "the manifest is for {}, this is {}",
            manifest.aud, expected.worker
        ))));
    }
    if manifest.run != *expected.run {
        return Err(unknown(invalid(format!(
            "the manifest is of run {}, this worker's is {}",
            manifest.run, expected.run
        ))));
    }
    check_session("lease", manifest.session, expected).map_err(unknown)?;
    let checked = check_binding(&manifest, spec_digest)
        .and_then(|()| check_work(&manifest, spec))
        .and_then(|()| check_base(&manifest.base, manifest.lease, spec));
    match checked {
        Ok(()) => Ok(manifest),
        Err(refusal) => Err(NotVerified {
            refusal,
            lease: Some(manifest.lease),
        }),
    }
}

/// Checks a command, and takes note of it among those that were obeyed.
///
/// # Errors
/// The command is not signed by a trusted key, or is for another worker, process, run or time, or
/// was obeyed before.
pub(crate) fn command(
    payload: &[u8],
    expected: &Expected<'_>,
    obeyed: &mut Commands,
) -> Result<CommandVerb, Refusal> {
    let text = std::str::from_utf8(payload)
        .map_err(|_| Refusal::new(Code::SignatureInvalid, "the command is no signed document"))?;
    let command: Command =
        jws::verify(text, COMMAND_TYPE, expected.trust).map_err(|error| refused(&error))?;
    jws::check_window(command.iat, command.exp, expected.now, SKEW)
        .map_err(|error| refused(&error))?;
    check_signer(&command.iss, expected.trust)?;
    if command.exp - command.iat > WINDOW_EXTRA_SECONDS {
        return Err(invalid(format!(
            "the command is valid for {} s",
            command.exp - command.iat
        )));
    }
    if command.run != *expected.run {
        return Err(invalid(format!(
            "the command is of run {}, this worker's is {}",
            command.run, expected.run
        )));
    }
    if command.aud != *expected.worker {
        return Err(invalid(format!(
            "the command is for {}, this is {}",
            command.aud, expected.worker
        )));
    }
    check_session("command", command.session, expected)?;
    obeyed.obey(&command, expected.now)?;
    Ok(command.verb)
}

fn check_signer(issuer: &str, trust: &TrustBundle) -> Result<(), Refusal> {
    match trust.manifest_keys.iter().any(|key| key.as_str() == issuer) {
        true => Ok(()),
        false => Err(invalid(format!(
            "the issuer {:?} is not trusted",
            issuer.chars().take(64).collect::<String>()
        ))),
    }
}

/// Refuses what was signed for another process of this worker. A broker that has seen such a
/// document can show it to the process that runs now, which does not remember that one.
fn check_session(what: &str, session: Session, expected: &Expected<'_>) -> Result<(), Refusal> {
    if session == expected.session {
        return Ok(());
    }
    let detail = format!(
        "the {what} is for session {session} of this worker, this process is session {}",
        expected.session
    );
    Err(Refusal::new(Code::ProcessOther, detail))
}

fn check_binding(manifest: &Manifest, spec_digest: Digest) -> Result<(), Refusal> {
    let Manifest { lease, run, .. } = manifest;
    if manifest.exp - manifest.nbf > LEASE_MAX.get() / 1000 + WINDOW_EXTRA_SECONDS {
        return Err(invalid(format!(
            "the manifest is valid for {} s",
            manifest.exp - manifest.nbf
        )));
    }
    if manifest.spec != spec_digest {
        return Err(invalid(format!(
            "settings are {}, this worker joined under {spec_digest}",
            manifest.spec
        )));
    }
    let jti = format!("{run}/{}/{}", lease.unit, lease.epoch);
    if manifest.jti != jti {
        return Err(invalid(format!(
            "the token {:?} does not name lease {lease}",
            manifest.jti
        )));
    }
    Ok(())
}

/// Checks that the work is what the settings give the unit: the coordinator counts the steps in the
/// settings, and not those that were done.
fn check_work(manifest: &Manifest, spec: &RunSpec) -> Result<(), Refusal> {
    let unit = manifest.lease.unit;
    let units = spec.schedule.units;
    let (shards, known) = match (&manifest.work, unit.kind) {
        (
            Work::Train {
                shards,
                steps,
                steps_before,
                ..
            },
            UnitKind::Train,
        ) => {
            if *steps != spec.schedule.inner_steps {
                return Err(invalid(format!(
                    "{steps} inner steps, the settings say {}",
                    spec.schedule.inner_steps
                )));
            }
            if steps_before.get().saturating_add(steps.get()) > spec.inner_steps_total().get() {
                return Err(invalid(format!(
                    "the unit begins at step {steps_before}, too late for the {} steps of the run",
                    spec.inner_steps_total()
                )));
            }
            // Rounds that a restore has undone keep their numbers and count no steps, so the number
            // may be above those of the schedule. The steps never run ahead of that number.
            let most = unit.round.get().saturating_mul(steps.get());
            (
                shards,
                steps_before.get() <= most && unit.index.get() < units,
            )
        }
        (Work::Evaluate { shards, sequences }, UnitKind::Evaluate) => {
            if *sequences != spec.schedule.evaluation_sequences {
                let wanted = spec.schedule.evaluation_sequences;
                return Err(invalid(format!(
                    "{sequences} held-out sequences, the settings say {wanted}"
                )));
            }
            (shards, true)
        }
        _ => return Err(invalid(format!("the work does not fit unit {unit}"))),
    };
    if !known {
        return Err(invalid(format!("the run has no unit {unit}")));
    }
    if shards.is_empty() || shards.len() > UNIT_SHARDS_MAX {
        return Err(invalid(format!(
            "{} shards, expected 1 to {UNIT_SHARDS_MAX}",
            shards.len()
        )));
    }
    match shards.iter().find(|shard| shard.bytes > OBJECT_BYTES_MAX) {
        Some(shard) => Err(invalid(format!(
            "shard {} of {} bytes",
            shard.digest, shard.bytes
        ))),
        None => Ok(()),
    }
}

fn check_base(base: &Weights, lease: LeaseRef, spec: &RunSpec) -> Result<(), Refusal> {
    if base.round != lease.unit.round {
        return Err(invalid(format!(
            "weights of round {} for unit {}",
            base.round, lease.unit
        )));
    }
    let initial = &spec.model.initial;
    let fp32 = Codec {
        kind: CodecKind::Fp32,
        rounding: Rounding::Nearest,
    };
    // The first weights are those in the settings, unchanged.
    let first = base.round.get() == 0 && base.codec == fp32 && base.chunks == *initial;
    if base.round.get() == 0 && !first {
        return Err(invalid(
            "the weights of round 0 are not the initial ones".to_owned(),
        ));
    }
    if !first && base.codec != spec.download {
        return Err(invalid(format!(
            "codec {:?}, the settings say {:?}",
            base.codec, spec.download
        )));
    }
    spec.check_chunks(&base.chunks, base.codec.kind)
        .map_err(|refusal| invalid(refusal.detail))?;
    // The chunks in a list are compared with the layout when it is read.
    let (Chunks::Named(chunks), Chunks::Named(initial)) = (&base.chunks, initial) else {
        return Ok(());
    };
    let expected_bytes = |initial: &ObjectRef| {
        let elements = CodecKind::Fp32.elements_in(initial.bytes.get());
        base.codec.kind.encoded_bytes(elements)
    };
    let pairs = chunks.iter().zip(initial).enumerate();
    for (index, (chunk, initial)) in pairs {
        let expected = expected_bytes(initial);
        if chunk.bytes.get() != expected || chunk.bytes > OBJECT_BYTES_MAX {
            let bytes = chunk.bytes;
            return Err(invalid(format!(
                "chunk {index} has {bytes} bytes, layout and codec give {expected}"
            )));
        }
    }
    Ok(())
}

/// The refusal for a document outside its window. It blames a clock, and says by how much the clock
/// is off; the keys are in order.
fn untimely(manifest: &Manifest, now: UnixMillis, error: &JwsError) -> Refusal {
    let seconds = now.get() / 1000;
    let off = if seconds < manifest.nbf {
        manifest.nbf - seconds
    } else {
        seconds.saturating_sub(manifest.exp)
    };
    let way = if seconds < manifest.nbf {
        "future"
    } else {
        "past"
    };
    let detail = format!(
        "lease {} is of a time {off} s in the {way}, by the coordinator's clock as it was measured: {error}",
        manifest.lease
    );
    Refusal::new(Code::ClockOff, detail)
}

fn refused(error: &JwsError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

fn invalid(detail: String) -> Refusal {
    Refusal::new(Code::ManifestInvalid, detail)
}

#[cfg(test)]
mod tests;
