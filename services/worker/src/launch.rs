//! Settings that libraries read before `main` runs: the process starts itself once more with them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The settings, each with its reason.
const SETTINGS: [(&str, &str); 2] = [
    // Large new buffers get huge pages, which cause far fewer page faults.
    ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
    // Waiting threads sleep. Spinning would cost most of the speed if there are more threads than
    // cores.
    ("OMP_WAIT_POLICY", "PASSIVE"),
];

/// Starts this program again with the variables that are not set yet; returns when all are set.
/// Values that were set by hand stay.
pub fn restart_with_settings() {
    let missing = missing(|name| std::env::var_os(name));
    if missing.is_empty() {
        return;
    }
    let mut arguments = std::env::args_os();
    let name = arguments
        .next()
        .unwrap_or_else(|| OsString::from("diloco-worker"));
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    // `exec` returns only when it fails; the worker is then slower, but correct.
    let _ = Command::new(program)
        .arg0(name)
        .args(arguments)
        .envs(missing)
        .exec();
}

fn missing(get: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, &'static str)> {
    SETTINGS
        .into_iter()
        .filter(|(name, _)| get(name).is_none())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_left_alone_so_it_ends() {
        assert_eq!(missing(|_| None).len(), SETTINGS.len());
        assert!(missing(|_| Some("anything".into())).is_empty());
        let one = missing(|name| (name == "OMP_WAIT_POLICY").then(|| "ACTIVE".into()));
        assert_eq!(one, [SETTINGS[0]]);
    }
}
