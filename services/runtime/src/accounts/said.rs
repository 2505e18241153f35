//! Answers of brokers to questions about accounts and connections.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::certificates::Connection;

/// A broker's answer.
#[derive(Deserialize)]
pub(super) struct Said {
    pub(super) server: Server,
    #[serde(default)]
    pub(super) data: Option<Data>,
    #[serde(default)]
    pub(super) error: Option<Fault>,
}

#[derive(Deserialize)]
pub(super) struct Server {
    pub(super) name: String,
}

#[derive(Deserialize)]
pub(super) struct Data {
    #[serde(default)]
    pub(super) num_connections: usize,
    #[serde(default)]
    pub(super) total: usize,
    #[serde(default)]
    pub(super) connections: Vec<Connection>,
}

#[derive(Deserialize)]
pub(super) struct Fault {
    #[serde(default)]
    pub(super) description: String,
}

/// The connections in these answers.
pub(super) fn counted(answers: &[Said]) -> usize {
    let connections = answers.iter().filter_map(|said| said.data.as_ref());
    connections.map(|data| data.num_connections).sum()
}

/// The brokers that have confirmed a push and are missing in these answers: one may be slower than
/// the others, and is waited for no longer than [`QUIET`].
pub(super) fn silent(answers: &[Said], brokers: &BTreeSet<String>) -> Vec<String> {
    let is_there = |name: &String| answers.iter().any(|said| said.server.name == *name);
    let missing = brokers.iter().filter(|name| !is_there(name));
    missing.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tl_07_a_broker_that_is_slower_than_the_others_is_waited_for() {
        let said = |name: &str, connections: usize| {
            let text = serde_json::json!({
                "server": { "name": name },
                "data": { "num_connections": connections },
            });
            serde_json::from_value::<Said>(text).expect("as brokers say it")
        };
        let brokers = BTreeSet::from(["n0".to_owned(), "n1".to_owned()]);
        let one = [said("n0", 0)];
        assert_eq!(
            (counted(&one), silent(&one, &brokers).join(" ")),
            (0, "n1".to_owned())
        );
        let all = [said("n1", 3), said("n0", 1), said("n2", 0)];
        assert_eq!((counted(&all), silent(&all, &brokers)), (4, vec![]));
    }
}
