//! What a private run asks of a contribution.

use schemas::contribution::{Applied, Contribution, Outcome};
use schemas::run::{Privacy, RunSpec};
use schemas::{Code, Refusal};

/// The reason why a contribution does not have the run's privacy, by its statement.
pub(crate) fn not_private(
    privacy: Option<&Privacy>,
    contribution: &Contribution,
) -> Option<Refusal> {
    let (stated, expected) = (contribution.privacy, privacy.map(Privacy::applied));
    let say = |applied: Option<Applied>| match applied {
        None => "no clipping and no noise".to_owned(),
        Some(applied) => format!(
            "clip {} and noise {}",
            applied.clip, applied.noise_multiplier
        ),
    };
    let detail = if stated != expected {
        format!("it states {}, the run has {}", say(stated), say(expected))
    } else if privacy.is_some() && contribution.loss != 0.0 {
        "it states a training loss, which no noise covers".to_owned()
    } else {
        return None;
    };
    Some(Refusal::new(Code::NotPrivate, detail))
}

/// Refuses a contribution to a private run whose norm clipping and noise do not give.
pub(crate) fn check_noised(outcome: &Outcome, norm: f64, spec: &RunSpec) -> Result<(), Refusal> {
    let (Some(privacy), Outcome::Contribution(_)) = (&spec.privacy, outcome) else {
        return Ok(());
    };
    let (least, most) = privacy.norms(spec.parameters());
    if (least..=most).contains(&norm) {
        return Ok(());
    }
    let detail = format!("its norm is {norm}, clipping and noise give {least} to {most}");
    Err(Refusal::new(Code::NotPrivate, detail))
}
