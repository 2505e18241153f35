//! Finds the place of a mutant's code in a file. cargo-mutants names only the operator, the arm or
//! the field; to put an alternative beside it, the expression around it must be known.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context as _, Result};
use proc_macro2::{LineColumn, Span};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};

/// Converts positions in a text to byte offsets.
pub(super) struct Lines {
    starts: Vec<usize>,
    text: String,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let ends = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            starts: std::iter::once(0).chain(ends).collect(),
            text: text.to_owned(),
        }
    }

    /// The byte offset of a line, from 1, and a column in characters, from 0.
    pub(super) fn byte(&self, line: usize, column: usize) -> usize {
        let start = self.starts[line - 1];
        let rest = &self.text[start..];
        let skipped = rest.char_indices().nth(column);
        start + skipped.map_or(rest.len(), |(at, _)| at)
    }

    fn range(&self, span: Span) -> Range<usize> {
        let at = |place: LineColumn| self.byte(place.line, place.column);
        at(span.start())..at(span.end())
    }
}

/// An arm of a `match`.
#[derive(Clone)]
pub(super) struct Arm {
    /// The end of its pattern.
    pub(super) pattern_end: usize,
    pub(super) guard: Option<Range<usize>>,
}

/// A `const` function, which the compiler may evaluate.
pub(super) struct ConstFunction {
    pub(super) name: String,
    pub(super) whole: Range<usize>,
    /// The word `const`.
    pub(super) word: Range<usize>,
}

/// The places in a file that mutants can be at, by the offset at which cargo-mutants says that they
/// begin.
#[derive(Default)]
pub(super) struct Places {
    /// The expression around an operator.
    pub(super) operators: HashMap<usize, Range<usize>>,
    /// The struct expression around a field.
    pub(super) fields: HashMap<usize, Range<usize>>,
    pub(super) arms: HashMap<usize, Arm>,
    /// Code that the compiler evaluates; a switch cannot be evaluated there.
    pub(super) constants: Vec<Range<usize>>,
    pub(super) const_functions: Vec<ConstFunction>,
    /// Operators beside a `let`; only `&&` may stand there.
    pub(super) chained: Vec<usize>,
}

/// Reads a file.
///
/// # Errors
/// It is not Rust.
pub(super) fn places(text: &str, lines: &Lines) -> Result<Places> {
    let file = syn::parse_file(text).context("it does not parse")?;
    let mut reader = Reader {
        lines,
        places: Places::default(),
    };
    reader.visit_file(&file);
    Ok(reader.places)
}

struct Reader<'a> {
    lines: &'a Lines,
    places: Places,
}

impl Reader<'_> {
    fn constant(&mut self, span: Span) {
        let range = self.lines.range(span);
        self.places.constants.push(range);
    }

    fn function(&mut self, signature: &syn::Signature, whole: Span) {
        if let Some(word) = &signature.constness {
            let function = ConstFunction {
                name: signature.ident.to_string(),
                whole: self.lines.range(whole),
                word: self.lines.range(word.span()),
            };
            self.places.const_functions.push(function);
        }
    }

    fn operator(&mut self, operator: Span, whole: Span) {
        let at = self.lines.range(operator).start;
        let range = self.lines.range(whole);
        self.places.operators.insert(at, range);
    }
}

/// True for `let` and for a chain of conditions with one in it.
fn has_let(expression: &syn::Expr) -> bool {
    match expression {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        self.operator(binary.op.span(), binary.span());
        if has_let(&binary.left) || has_let(&binary.right) {
            let at = self.lines.range(binary.op.span()).start;
            self.places.chained.push(at);
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_unary(&mut self, unary: &'ast syn::ExprUnary) {
        self.operator(unary.op.span(), unary.span());
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_struct(&mut self, built: &'ast syn::ExprStruct) {
        let whole = self.lines.range(built.span());
        for field in &built.fields {
            let at = self.lines.range(field.span()).start;
            self.places.fields.insert(at, whole.clone());
        }
        visit::visit_expr_struct(self, built);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        let pattern = self.lines.range(arm.pat.span());
        let found = Arm {
            pattern_end: pattern.end,
            guard: arm
                .guard
                .as_ref()
                .map(|(_, guard)| self.lines.range(guard.span())),
        };
        let whole = self.lines.range(arm.span());
        self.places.arms.insert(whole.start, found.clone());
        self.places.arms.insert(pattern.start, found);
        visit::visit_arm(self, arm);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, item.span());
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, item.span());
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.constant(item.span());
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.constant(item.span());
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.constant(item.span());
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.constant(item.span());
    }

    fn visit_expr_const(&mut self, block: &'ast syn::ExprConst) {
        self.constant(block.span());
    }

    fn visit_type_array(&mut self, array: &'ast syn::TypeArray) {
        self.constant(array.len.span());
    }

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.constant(repeat.len.span());
        self.visit_expr(&repeat.expr);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.constant(variant.span());
    }
}
