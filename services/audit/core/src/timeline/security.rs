//! Security events, and the layers that a service runs with open, as lines for people.

use schemas::member::{OpenLayer, Posture};
use schemas::security::SecurityEvent;
use schemas::text::Time;

use super::short;

/// The `about` and `detail` of a security event: the sender, and what happened.
pub(super) fn of_security(event: &SecurityEvent) -> (String, String) {
    if let Some(seen) = event.seen() {
        let user = seen.user.as_ref();
        let about = match (user, event) {
            (Some(user), _) => short(user.as_str()),
            // The broker itself is a client without key and address: it makes consumers for the
            // copies of its streams.
            (None, SecurityEvent::StreamChanged { .. }) if seen.address.is_empty() => "the broker",
            (None, _) => seen.address.as_str(),
        };
        let by = match event {
            SecurityEvent::RequestRefused { by, .. } => format!("by the {}", by.title()),
            _ => String::new(),
        };
        // Nobody has vouched for the name of a stranger, who may have put our words into it.
        let name = match event {
            SecurityEvent::AuthenticationFailed { .. } if !seen.name.is_empty() => {
                format!("{:?}", seen.name)
            }
            _ => seen.name.clone(),
        };
        let parts = [&seen.reason, &by, &seen.subject, &name, &seen.address];
        let mut detail = parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if seen.count > 1 {
            detail = format!("{} times: {detail}", seen.count);
        }
        return (about.to_owned(), detail);
    }
    let detail = match event {
        SecurityEvent::SentryStarted {
            release,
            broker_log,
            unheard,
            posture,
        } => {
            let mut detail = format!("release {release}");
            detail.push_str(&reasoned(posture));
            if !broker_log {
                detail.push_str(", without the broker's log: no denied permission is seen");
            }
            if !unheard.is_empty() {
                detail.push_str(&format!(", not heard yet: {}", unheard.join(", ")));
            }
            detail
        }
        SecurityEvent::PostureStated { by, posture } => {
            let open = match posture.is_closed() {
                true => "no layer is open".to_owned(),
                false => reasoned(posture).trim_start_matches(", ").to_owned(),
            };
            return (by.title().to_owned(), open);
        }
        SecurityEvent::SentryInterrupted {
            unheard,
            from,
            until,
            times,
        } => {
            format!(
                "{unheard} were not heard from {} until {}, connection lost {times} times",
                Time(*from),
                Time(*until)
            )
        }
        SecurityEvent::SightingsDropped { count, log_bytes } => {
            format!(
                "up to {count} more were seen (reports of mere reads that nobody had time for count too), and {log_bytes} \
                 bytes of the broker's log were not read"
            )
        }
        _ => String::new(),
    };
    (String::new(), detail)
}

/// The layers that somebody runs with open, each with its reason; empty if none is.
pub(super) fn reasoned(posture: &Posture) -> String {
    opened(posture, |open| {
        format!("{} ({})", open.layer.name(), open.reason)
    })
}

pub(super) fn opened(posture: &Posture, named: impl Fn(&OpenLayer) -> String) -> String {
    let names: Vec<String> = posture.open.iter().map(named).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!(", open layers: {}", names.join(", ")),
    }
}
