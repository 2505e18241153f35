//! The operator's command line: noun, then verb. A command hands a typed value to one printer,
//! which knows table, JSON and JSON lines, so every command has every format. Data goes to stdout,
//! progress and advice to stderr.

mod cli;
mod commands;
mod context;
mod exit;
mod files;
mod history;
mod listing;
mod objects;
mod output;
mod pages;
mod reference;
mod stack;
mod switches;
mod table;

pub use cli::Cli;
pub use commands::run;
pub use reference::reference;
