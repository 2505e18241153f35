//! Reads from the kernel's tables the sockets on which a process waits for connections.

use std::collections::BTreeSet;
use std::fs;

/// State of a listening TCP socket, and the flag of a listening Unix socket.
const LISTENS: &str = "0A";
const ACCEPTS: &str = "00010000";

/// The TCP and Unix sockets on which the process listens.
///
/// # Panics
/// The process is gone, or this is not Linux.
pub fn listening(pid: u32) -> Vec<String> {
    let folder = format!("/proc/{pid}");
    let files =
        fs::read_dir(format!("{folder}/fd")).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    let own: BTreeSet<String> = targets
        .filter_map(|target| {
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    let mut found = Vec::new();
    for (table, state, inode, listens) in [
        ("tcp", 3, 9, LISTENS),
        ("tcp6", 3, 9, LISTENS),
        ("unix", 3, 6, ACCEPTS),
    ] {
        let text = fs::read_to_string(format!("{folder}/net/{table}")).unwrap_or_default();
        let waits = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(state) == Some(&listens)
                && fields.get(inode).is_some_and(|inode| own.contains(*inode))
        };
        found.extend(
            text.lines()
                .filter(waits)
                .map(|line| format!("{table} {}", line.trim())),
        );
    }
    found
}
