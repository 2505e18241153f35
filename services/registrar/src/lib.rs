//! The registrar around [`registrar_core`]: it hears questions for new tokens, looks the asker's
//! key up in the list of issued credentials, and signs with the key of its role. It hears invited
//! machines too, and enters those that are enrolled into that list. It holds the keys of the
//! [`identity::Issuer`], and none of the vault.
//!
//! | file | holds |
//! | --- | --- |
//! | `service` | the loop of the program |
//! | `enrolment` | invited machines: the records that are read and written |
//! | `own` | the registrar's own token |
//! | `config` | the program's configuration |
//! | `program` | the command line |

pub mod config;
mod enrolment;
mod own;
pub mod program;
pub mod service;

pub use config::Config;
pub use service::Service;
