//! Checks that the pages that are made from the command line and from the switches of
//! `require_auth` agree with the code. `DILOCO_WRITE_PAGES=1` writes them.

use std::path::Path;

use clap::Parser as _;
use clap::error::ErrorKind;
use schemas::Code;

fn check(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(page);
    if std::env::var_os("DILOCO_WRITE_PAGES").is_some() {
        std::fs::write(&path, text).expect("the folder docs can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "docs/{page} is stale; run `cargo xtask docs`"
    );
}

#[test]
fn the_command_line_is_documented() {
    check("cli.md", &diloctl::reference());
}

#[test]
fn the_numbers_are_documented_from_their_table() {
    check("metrics.md", &runtime::metrics::reference());
}

#[test]
fn la_11_the_switches_are_documented_from_their_declaration() {
    check("auth.md", &runtime::switches_reference());
}

#[test]
fn the_tree_of_commands_is_sound() {
    use clap::CommandFactory as _;
    diloctl::Cli::command().debug_assert();
}

const INCIDENTS: &str = include_str!("../../../docs/incidents.md");

/// The commands on the page of runbooks: lines of code blocks and code within text.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.trim().to_owned());
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found.retain(|text| text.starts_with("diloctl "));
    found
}

/// The words of a command line, as a shell splits it, with values in the places of names.
fn words(command: &str) -> Vec<String> {
    let value = |word: &str| match word {
        "RUN" => "demo".to_owned(),
        "N" => "1".to_owned(),
        "ROLE" => "worker".to_owned(),
        _ => word.replace("DIGEST", &"0".repeat(64)),
    };
    let quoted = command.split('"').enumerate();
    let words = quoted.flat_map(|(place, text)| match place % 2 {
        0 => text.split_whitespace().map(str::to_owned).collect(),
        _ => vec![text.to_owned()],
    });
    words.map(|word| value(&word)).collect()
}

#[test]
fn tl_31_the_commands_of_the_runbooks_exist() {
    let commands = commands(INCIDENTS);
    for needed in [
        "snapshot restore",
        "quarantine",
        "readmit",
        "freeze",
        "descendants",
        "recompute",
    ] {
        let there = commands.iter().any(|command| command.contains(needed));
        assert!(there, "no {needed} in {commands:?}");
    }
    for command in &commands {
        let parsed = diloctl::Cli::try_parse_from(words(command));
        // A command that is only named has no arguments.
        let kind = parsed.err().map(|error| (error.kind(), error.to_string()));
        assert!(
            matches!(&kind, None | Some((ErrorKind::MissingRequiredArgument, _))),
            "{command}: {kind:?}"
        );
    }
}

#[test]
fn the_codes_of_the_runbooks_exist() {
    let words = INCIDENTS.split(|letter: char| !letter.is_ascii_alphanumeric());
    let codes: Vec<&str> = words.filter(|word| word.starts_with("DL0")).collect();
    assert!(codes.len() > 5, "{codes:?}");
    for code in codes {
        assert!(code.parse::<Code>().is_ok(), "{code}");
    }
}
