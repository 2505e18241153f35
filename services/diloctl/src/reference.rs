//! The reference page of the command line, made from the tree of commands.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory as _, Id};

use crate::cli::Cli;

/// Every command with its help, as Markdown.
pub fn reference() -> String {
    let mut page = String::from(
        "# diloctl\n\nGenerated from the tree of commands; `DILOCO_WRITE_PAGES=1 cargo test -p diloctl --test pages` writes it.\n\
         More than 600 lines: one page, to be searched.\n",
    );
    let mut root = Cli::command().term_width(100);
    root.build();
    let everywhere: BTreeSet<Id> = root
        .get_arguments()
        .map(|flag| flag.get_id().clone())
        .collect();
    describe(&mut root, "", &everywhere, &mut page);
    page
}

fn describe(command: &mut Command, prefix: &str, everywhere: &BTreeSet<Id>, page: &mut String) {
    let name = if prefix.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{prefix} {}", command.get_name())
    };
    // The flags that all commands share are shown once, at the top.
    let told = !prefix.is_empty();
    let mut shown = command.clone().mut_args(|flag| {
        let hidden = told && flag.is_global_set() && everywhere.contains(flag.get_id());
        // The page must not depend on the environment in which it is made.
        flag.hide_env_values(true).hide(hidden)
    });
    let help = shown.render_help().to_string();
    page.push_str(&format!("\n## {name}\n\n```\n{}\n```\n", trimmed(&help)));
    for subcommand in command
        .get_subcommands_mut()
        .filter(|subcommand| subcommand.get_name() != "help")
    {
        describe(subcommand, &name, everywhere, page);
    }
}

/// The text without blanks at line ends: they change with the width.
fn trimmed(text: &str) -> String {
    text.trim()
        .lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}
