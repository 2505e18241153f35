//! Puts all mutants of a file into it at once, each behind a switch that the environment turns on:
//! one build then serves them all, and a mutant costs only the tests that reach it.
//!
//! `a < b` becomes `(if on(7) { a <= b } else if on(8) { a == b } else { a < b })`. An alternative
//! holds the code as it was, since only one mutant is on at a time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context as _, Result};

use super::find::{self, ConstFunction, Lines, Places};
use super::listed::{Mutant, MutantKind};

/// The module that is put at the end of the root of every woven crate.
pub(super) const SWITCH: &str = include_str!("switch.in");

/// The text of a file with mutants woven into it.
#[derive(Default)]
pub(super) struct Woven {
    pub(super) text: String,
    /// The place of each mutant's code in the text. An error of the compiler at that place is the
    /// mutant's.
    pub(super) code: Vec<(Range<usize>, u32)>,
    /// Mutants of the file that could not be woven in.
    pub(super) apart: BTreeSet<u32>,
}

/// All mutants at one place.
#[derive(Default)]
struct Site {
    /// Complete expressions that replace the original one.
    instead: Vec<(u32, String)>,
    /// Values that a function returns at once.
    returns: Vec<(u32, String)>,
    /// Guards that become true, or false.
    guards: Vec<(u32, bool)>,
    /// Arms that are left out.
    arms: Vec<u32>,
}

type Sites = BTreeMap<(usize, Reverse<usize>), Site>;

/// Weaves the mutants that are not `out` into the text of their file. `const` functions become
/// ordinary ones, in which a switch can be evaluated; those with a name in `kept_const` stay.
///
/// # Errors
/// The text is not Rust.
pub(super) fn weave<'a>(
    text: &str,
    mutants: impl Iterator<Item = &'a Mutant>,
    out: &BTreeSet<u32>,
    kept_const: &BTreeSet<String>,
) -> Result<Woven> {
    let lines = Lines::of(text);
    let places = find::places(text, &lines)?;
    let mut woven = Woven::default();
    let mut sites = Sites::new();
    let mut plain = text.as_bytes().to_vec();
    let of_compiler = |function: &&ConstFunction| kept_const.contains(&function.name);
    for function in places.const_functions.iter().filter(|f| !of_compiler(f)) {
        plain[function.word.clone()].fill(b' ');
    }
    let bound = places.const_functions.iter().filter(of_compiler);
    let bound: Vec<&Range<usize>> = bound
        .map(|function| &function.whole)
        .chain(&places.constants)
        .collect();
    for mutant in mutants.filter(|mutant| !out.contains(&mutant.number)) {
        let span = lines.byte(mutant.from.0, mutant.from.1)..lines.byte(mutant.to.0, mutant.to.1);
        let is_bound = bound.iter().any(|range| range.contains(&span.start));
        if is_bound || place(text, mutant, &span, &places, &mut sites).is_none() {
            woven.apart.insert(mutant.number);
        }
    }
    let plain = String::from_utf8(plain).context("only words were blanked")?;
    assemble(&plain, &sites, &mut woven);
    Ok(woven)
}

/// Notes a mutant at its site. Returns `None` if the mutant cannot be switched.
fn place(
    text: &str,
    mutant: &Mutant,
    span: &Range<usize>,
    places: &Places,
    sites: &mut Sites,
) -> Option<()> {
    let number = mutant.number;
    let instead = |whole: &Range<usize>, gone: Range<usize>| {
        let (before, after) = (&text[whole.start..gone.start], &text[gone.end..whole.end]);
        (number, format!("{before}{}{after}", mutant.replacement))
    };
    match mutant.kind {
        MutantKind::Value => {
            let site = sites.entry(key(span)).or_default();
            site.returns.push((number, mutant.replacement.clone()));
        }
        MutantKind::Operator => {
            if places.chained.contains(&span.start) {
                return None;
            }
            let whole = places.operators.get(&span.start)?;
            let site = sites.entry(key(whole)).or_default();
            site.instead.push(instead(whole, span.clone()));
        }
        MutantKind::Field => {
            let whole = places.fields.get(&span.start)?;
            let rest = &text[span.end..whole.end];
            let blank = rest.len() - rest.trim_start().len();
            let comma = usize::from(rest[blank..].starts_with(',')) * (blank + 1);
            let site = sites.entry(key(whole)).or_default();
            site.instead
                .push(instead(whole, span.start..span.end + comma));
        }
        MutantKind::Guard => {
            let site = sites.entry(key(span)).or_default();
            site.guards.push((number, mutant.replacement == "true"));
        }
        MutantKind::Arm => {
            let arm = places.arms.get(&span.start)?;
            let range = match &arm.guard {
                Some(guard) => guard.clone(),
                None => arm.pattern_end..arm.pattern_end,
            };
            let site = sites.entry(key(&range)).or_default();
            site.arms.push(number);
        }
    }
    Some(())
}

/// The order of sites: by their beginning; of two that begin together, the outer one comes first.
fn key(range: &Range<usize>) -> (usize, Reverse<usize>) {
    (range.start, Reverse(range.end))
}

impl Site {
    /// The text before and after the code of this site.
    fn frame(&self, is_empty: bool) -> (Piece, Piece) {
        let (mut before, mut behind) = (Piece::default(), Piece::default());
        for (number, value) in &self.returns {
            before.push(&format!("if {} {{ return ", on(*number)));
            before.push_code(*number, value);
            before.push("; } ");
        }
        if is_empty {
            for number in &self.arms {
                before.push_code(*number, &format!(" if !{} ", on(*number)));
            }
            return (before, behind);
        }
        for number in &self.arms {
            before.push(&format!("!{} && (", on(*number)));
            behind.push(")");
        }
        for (number, value) in &self.guards {
            let word = if *value { "" } else { "!" };
            let joint = if *value { "||" } else { "&&" };
            before.push(&format!("{word}{} {joint} (", on(*number)));
            behind.push(")");
        }
        if !self.instead.is_empty() {
            before.push("(");
            for (number, code) in &self.instead {
                before.push(&format!("if {} {{ ", on(*number)));
                before.push_code(*number, code);
                before.push(" } else ");
            }
            before.push("{ ");
            behind = Piece::of(" })").then(behind);
        }
        (before, behind)
    }
}

fn on(number: u32) -> String {
    format!("crate::mutant_switch::on({number})")
}

/// Text that is inserted, and the parts that are the code of a mutant.
#[derive(Default)]
struct Piece {
    text: String,
    code: Vec<(Range<usize>, u32)>,
}

impl Piece {
    fn of(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            code: Vec::new(),
        }
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn push_code(&mut self, number: u32, code: &str) {
        let start = self.text.len();
        self.text.push_str(code);
        self.code.push((start..self.text.len(), number));
    }

    fn then(mut self, next: Self) -> Self {
        let shift = self.text.len();
        self.text.push_str(&next.text);
        let moved = next.code.into_iter();
        self.code
            .extend(moved.map(|(range, number)| (range.start + shift..range.end + shift, number)));
        self
    }
}

/// Inserts the pieces of all sites into the text.
fn assemble(plain: &str, sites: &Sites, woven: &mut Woven) {
    let mut puts: BTreeMap<usize, Piece> = BTreeMap::new();
    let mut put = |at: usize, piece: Piece, first: bool| {
        let there = puts.remove(&at).unwrap_or_default();
        let both = if first {
            piece.then(there)
        } else {
            there.then(piece)
        };
        puts.insert(at, both);
    };
    // Ends come first, the innermost in front; then beginnings, the outermost in front.
    for ((start, Reverse(end)), site) in sites {
        if start != end {
            put(*end, site.frame(false).1, true);
        }
    }
    for ((start, Reverse(end)), site) in sites {
        put(*start, site.frame(start == end).0, false);
    }
    let mut done = 0;
    for (at, piece) in puts {
        woven.text.push_str(&plain[done..at]);
        let shift = woven.text.len();
        woven.text.push_str(&piece.text);
        let code = piece.code.into_iter();
        woven
            .code
            .extend(code.map(|(range, number)| (range.start + shift..range.end + shift, number)));
        done = at;
    }
    woven.text.push_str(&plain[done..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mutant of `text`: the first occurrence of `gone` after `mark` becomes `replacement`.
    fn mutant(text: &str, number: u32, kind: MutantKind, gone: &str, replacement: &str) -> Mutant {
        let start = text.find(gone).expect("it is there");
        let place = |at: usize| {
            let line = text[..at].matches('\n').count() + 1;
            let column = text[..at]
                .rsplit('\n')
                .next()
                .map_or(0, |row| row.chars().count());
            (line, column)
        };
        Mutant {
            name: String::new(),
            package: String::new(),
            file: "a.rs".into(),
            kind,
            replacement: replacement.to_owned(),
            from: place(start),
            to: place(start + gone.len()),
            returns_opaque: false,
            number,
        }
    }

    fn woven(text: &str, mutants: &[Mutant]) -> Woven {
        let nothing = (BTreeSet::new(), BTreeSet::new());
        weave(text, mutants.iter(), &nothing.0, &nothing.1).expect("it is Rust")
    }

    fn on(number: u32) -> String {
        super::on(number)
    }

    #[test]
    fn operators_inside_each_other_keep_their_own_alternatives() {
        let text = "fn f(a: u8, b: u8, c: bool) -> bool {\n    /* ü */ a < b && c\n}\n";
        let mutants = [
            mutant(text, 1, MutantKind::Operator, "&&", "||"),
            mutant(text, 2, MutantKind::Operator, "<", "<="),
            mutant(text, 3, MutantKind::Operator, "<", "=="),
        ];
        let (one, two, three) = (on(1), on(2), on(3));
        assert_eq!(
            woven(text, &mutants).text,
            format!(
                "fn f(a: u8, b: u8, c: bool) -> bool {{\n    /* ü */ \
                 (if {one} {{ a < b || c }} else {{ \
                 (if {two} {{ a <= b }} else if {three} {{ a == b }} else {{ a < b }}) \
                 && c }})\n}}\n"
            )
        );
    }

    #[test]
    fn a_value_is_returned_before_anything_else_is_done() {
        let text = "fn f(a: bool) -> bool { !a }";
        let mutants = [
            mutant(text, 1, MutantKind::Value, "!a", "true"),
            mutant(text, 2, MutantKind::Operator, "!", ""),
        ];
        assert_eq!(
            woven(text, &mutants).text,
            format!(
                "fn f(a: bool) -> bool {{ if {} {{ return true; }} \
                 (if {} {{ a }} else {{ !a }}) }}",
                on(1),
                on(2)
            )
        );
    }

    #[test]
    fn arms_and_guards_are_switched_and_fields_come_from_the_base() {
        let text = "fn f(a: u8) -> S { match a { 1 => S { x: 1, ..s() }, n if n > 3 => t(), \
            _ => s() } }";
        let mutants = [
            mutant(text, 1, MutantKind::Arm, "1 => S { x: 1, ..s() }", ""),
            mutant(text, 2, MutantKind::Field, "x: 1", ""),
            mutant(text, 3, MutantKind::Guard, "n > 3", "true"),
            mutant(text, 4, MutantKind::Guard, "n > 3", "false"),
            mutant(text, 5, MutantKind::Arm, "n if n > 3 => t()", ""),
        ];
        let numbers: Vec<String> = (0..6).map(on).collect();
        assert_eq!(
            woven(text, &mutants).text,
            format!(
                "fn f(a: u8) -> S {{ match a {{ 1 if !{}  => \
                 (if {} {{ S {{  ..s() }} }} else {{ S {{ x: 1, ..s() }} }}), \
                 n if !{} && ({} || (!{} && (n > 3))) => t(), _ => s() }} }}",
                numbers[1], numbers[2], numbers[5], numbers[3], numbers[4]
            )
        );
    }

    #[test]
    fn what_the_compiler_runs_is_left_apart_and_a_const_function_becomes_an_ordinary_one() {
        let text = "const A: u8 = 1 + 2; const fn f(a: u8) -> u8 { a * 3 }";
        let mutants = [
            mutant(text, 1, MutantKind::Operator, "+", "-"),
            mutant(text, 2, MutantKind::Operator, "*", "/"),
        ];
        let free = woven(text, &mutants);
        assert_eq!(free.apart, BTreeSet::from([1]));
        assert!(
            free.text
                .starts_with("const A: u8 = 1 + 2;       fn f(a: u8)")
        );
        let kept = BTreeSet::from(["f".to_owned()]);
        let bound = weave(text, mutants.iter(), &BTreeSet::new(), &kept).expect("it is Rust");
        assert_eq!(bound.apart, BTreeSet::from([1, 2]));
        assert_eq!(bound.text, text);
    }

    #[test]
    fn the_code_of_a_mutant_is_found_again() {
        let text = "fn f(a: u8, b: u8) -> u8 { a + b * a }";
        let mutants = [
            mutant(text, 1, MutantKind::Operator, "*", "/"),
            mutant(text, 2, MutantKind::Operator, "+", "-"),
            mutant(text, 3, MutantKind::Value, "a + b * a", "7"),
        ];
        let woven = woven(text, &mutants);
        let found: BTreeMap<u32, &str> = woven
            .code
            .iter()
            .map(|(range, number)| (*number, &woven.text[range.clone()]))
            .collect();
        assert_eq!(
            found,
            BTreeMap::from([(1, "b / a"), (2, "a - b * a"), (3, "7")])
        );
    }

    #[test]
    fn an_operator_beside_a_let_is_not_replaced() {
        let text =
            "fn f(a: Option<u8>) -> bool { if let Some(b) = a && b > 1 { true } else { false } }";
        let mutants = [mutant(text, 1, MutantKind::Operator, "&&", "||")];
        assert_eq!(woven(text, &mutants).apart, BTreeSet::from([1]));
    }
}
