//! Checks that the pages that are made from the command line and from the switches of
//! `require_auth` agree with the code. `DILOCO_WRITE_PAGES=1` writes them.

use std::path::Path;

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
