//! One page per error code, and a list of them.

use schemas::Code;

use super::Pages;

const NOTE: &str = "Generated from `schemas/src/code.rs` by `cargo xtask docs`.";

/// The area of codes for each hundred of their numbers.
const AREAS: &[(u16, &str)] = &[
    (1, "Configuration, credentials, posture"),
    (2, "The bus"),
    (3, "Objects and the store"),
    (4, "Leases"),
    (5, "Contributions"),
    (6, "Runs and data"),
    (7, "Ledger and audit"),
    (8, "Workers and training"),
    (9, "Tooling"),
];

pub(super) fn pages() -> Pages {
    let page = |code: &Code| (format!("docs/errors/{code}.md"), text(*code));
    let mut pages: Pages = Code::ALL.iter().map(page).collect();
    pages.insert("docs/errors/README.md".to_owned(), list());
    pages
}

fn text(code: Code) -> String {
    format!(
        "# {code} {}\n\n{}\n\n## What to do\n\n{}\n\n## What the program does about it\n\n{} ({:?})\n\n[All codes](README.md). {NOTE}\n",
        code.title(),
        code.what(),
        code.next_step(),
        code.class().what_programs_do(),
        code.class(),
    )
}

fn list() -> String {
    let mut page = format!(
        "# Error codes\n\nA program prints the code with its particulars; the page says what to do. {NOTE}\n"
    );
    for (area, title) in AREAS {
        page.push_str(&format!(
            "\n## {title}\n\n| code | what | class |\n| --- | --- | --- |\n"
        ));
        for code in Code::ALL.iter().filter(|code| code.number() / 100 == *area) {
            page.push_str(&format!(
                "| [{code}]({code}.md) | {} | {:?} |\n",
                code.title(),
                code.class()
            ));
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_list() {
        let list = list();
        for code in Code::ALL {
            assert!(
                list.contains(&format!("[{code}]({code}.md)")),
                "{code} belongs to no area"
            );
        }
    }

    #[test]
    fn a_page_says_what_and_what_next() {
        let page = text(Code::LeaseLost);
        assert!(page.starts_with("# DL0401 lease lost\n"));
        assert!(page.contains(Code::LeaseLost.next_step()));
        assert!(page.contains("The worker stops the unit at once"));
    }
}
